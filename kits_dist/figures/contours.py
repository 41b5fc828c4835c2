"""Slices with the contours of their regions, one by one, as panels of several cases, and as a contact sheet."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from kits_dist.labels import COLORS, LABEL_COLORS, REGIONS

THUMBNAIL_PX = 150

_MARGIN = 6
_HEADER = 44
_CAPTION = 18
_BACKGROUND = (24, 24, 24)
_TEXT = (200, 200, 200)
_FRAME = (60, 60, 60)
_MARKS = {"error": (230, 60, 50), "warning": (240, 170, 40)}


class PanelRow(NamedTuple):
    """One slice of a panel."""

    image: np.ndarray  # (H, W) uint8 gray levels
    expected: np.ndarray  # (H, W) uint8 labels
    predicted: np.ndarray  # (H, W) uint8 labels
    caption: str
    pixel_mm: tuple[float, float] = (1.0, 1.0)  # (row, column), for the aspect ratio


class RenderedCase(NamedTuple):
    """The surfaces of one case."""

    expected: np.ndarray  # (side, side, 3) uint8
    predicted: np.ndarray  # (side, side, 3) uint8
    caption: str
    mm_per_px: float


class Thumbnail(NamedTuple):
    """One case of a contact sheet."""

    picture: np.ndarray | None  # (THUMBNAIL_PX, THUMBNAIL_PX, 3) uint8; None: could not be read
    caption: str
    mark: str  # error, warning, or empty


def contour_panel(rows: list[PanelRow], title: str, side_px: int = 320) -> np.ndarray:
    """Draw one row per slice: plain, expected, predicted. Return (H, W, 3) uint8."""
    panel = _Panel(("slice", "expected", "predicted"), [row.caption for row in rows], title, side_px)
    _legend(panel.pen, panel.sheet.width - _MARGIN, 6, COLORS)
    for number, row in enumerate(rows):
        for column, labels in enumerate((None, row.expected, row.predicted)):
            panel.paste(number, column, draw_contours(row.image, labels, side_px, row.pixel_mm))
    return np.asarray(panel.sheet)


def surface_panel(cases: list[RenderedCase], title: str) -> np.ndarray:
    """Draw one row per case: expected, predicted, each with a scale bar of 50 mm. Return (H, W, 3) uint8."""
    side = len(cases[0].expected)
    panel = _Panel(("expected", "predicted"), [case.caption for case in cases], title, side)
    pen = panel.pen
    _legend(pen, panel.sheet.width - _MARGIN, 24, LABEL_COLORS)
    for number, case in enumerate(cases):
        for column, picture in enumerate((case.expected, case.predicted)):
            x, y = panel.paste(number, column, picture)
            pen.rectangle((x, y, x + side - 1, y + side - 1), outline=_FRAME)
            pen.text((x + 6, y + 4), "R", fill=_TEXT)
            pen.text((x + side - 14, y + 4), "L", fill=_TEXT)
            bar_end = x + 10 + 50 / case.mm_per_px
            pen.rectangle((x + 10, y + side - 12, bar_end, y + side - 10), fill=_TEXT)
            pen.text((bar_end + 6, y + side - 18), "50 mm", fill=_TEXT)
    return np.asarray(panel.sheet)


class _Panel:
    """A dark sheet with a title, named columns, and a captioned row of square pictures for each case."""

    def __init__(self, columns: tuple[str, ...], captions: list[str], title: str, side_px: int):
        self.side_px = side_px
        width = len(columns) * (side_px + _MARGIN) + _MARGIN
        height = _HEADER + len(captions) * (side_px + _CAPTION + _MARGIN)
        self.sheet = Image.new("RGB", (width, height), _BACKGROUND)
        self.pen = ImageDraw.Draw(self.sheet)
        self.pen.text((_MARGIN, 4), title, fill="white")
        for column, name in enumerate(columns):
            self.pen.text((self._position(0, column)[0], 24), name, fill=_TEXT)
        for row, caption in enumerate(captions):
            self.pen.text((_MARGIN, self._position(row, 0)[1] - _CAPTION), caption, fill=_TEXT)

    def paste(self, row: int, column: int, picture: np.ndarray) -> tuple[int, int]:
        """Place (side, side, 3) uint8; return the (x, y) of its upper left corner."""
        position = self._position(row, column)
        self.sheet.paste(Image.fromarray(picture), position)
        return position

    def _position(self, row: int, column: int) -> tuple[int, int]:
        x = _MARGIN + column * (self.side_px + _MARGIN)
        return x, _HEADER + _CAPTION + row * (self.side_px + _CAPTION + _MARGIN)


def contact_sheet(thumbnails: list[Thumbnail], title: str, columns: int = 10) -> np.ndarray:
    """Draw one small picture per case, in the given order, framed in the color of its mark. Return (H, W, 3) uint8."""
    header = 40
    caption = 34
    columns = max(4, min(columns, len(thumbnails)))  # the title and the legend need the width of four
    rows = -(-len(thumbnails) // columns)
    step_x = THUMBNAIL_PX + _MARGIN
    step_y = THUMBNAIL_PX + caption + _MARGIN
    sheet = Image.new("RGB", (columns * step_x + _MARGIN, header + rows * step_y), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, 4), title, fill="white")
    _legend(pen, sheet.width - _MARGIN, 22, COLORS)

    for index, thumbnail in enumerate(thumbnails):
        x = _MARGIN + index % columns * step_x
        y = header + index // columns * step_y
        color = _MARKS.get(thumbnail.mark, _TEXT)
        if thumbnail.picture is None:
            pen.text((x + THUMBNAIL_PX // 2, y + THUMBNAIL_PX // 2), "not usable", fill=color, anchor="mm")
        else:
            sheet.paste(Image.fromarray(thumbnail.picture), (x, y))
        frame = color if thumbnail.mark else _FRAME
        pen.rectangle((x - 1, y - 1, x + THUMBNAIL_PX, y + THUMBNAIL_PX), outline=frame)
        pen.text((x, y + THUMBNAIL_PX + 2), thumbnail.caption, fill=color)
    return np.asarray(sheet)


def _legend(pen: ImageDraw.ImageDraw, right: int, top: int, colors: dict[str, tuple]) -> None:
    """Write the names next to their colors, ending at column `right`."""
    for name in reversed(colors):
        right -= int(pen.textlength(name)) + 22
        pen.rectangle((right, top + 2, right + 10, top + 12), fill=colors[name])
        pen.text((right + 14, top), name, fill=_TEXT)


def draw_contours(
    image: np.ndarray, labels: np.ndarray | None, side_px: int, pixel_mm: tuple[float, float] = (1.0, 1.0)
) -> np.ndarray:
    """Draw the contours of the regions on a slice, scaled so that its larger side fills the picture.

    image      (H, W) uint8 gray levels
    labels     (H, W) uint8; None: no contours
    pixel_mm   (row, column)
    Returns (side_px, side_px, 3) uint8.
    """
    height, width = (pixels * mm for pixels, mm in zip(image.shape, pixel_mm, strict=True))
    factor = side_px / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    gray = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    picture = np.repeat(gray[..., None], 3, axis=2)

    if labels is not None:
        from scipy import ndimage  # half a second to import

        for name, members in REGIONS.items():
            if name == "mass" and not (labels == REGIONS["mass"][1]).any():
                continue  # without a cyst, mass and tumor have the same outline
            mask = np.isin(labels, members).astype(np.uint8) * 255
            large = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.BILINEAR)) >= 128
            picture[large & ~ndimage.binary_erosion(large, iterations=2)] = COLORS[name]

    canvas = np.zeros((side_px, side_px, 3), np.uint8)
    top = (side_px - size[1]) // 2
    left = (side_px - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = picture
    return canvas


def save_png(path: Path, picture: np.ndarray) -> None:
    """Write (H, W, 3) uint8 as a PNG file."""
    Image.fromarray(picture).save(path)
