"""Slices with contours, as pictures a person can judge: panels of predictions, sheets of a whole data set."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from kits_dist.labels import COLORS, LABEL_COLORS, REGIONS


class PanelRow(NamedTuple):
    image: np.ndarray  # (H, W) uint8 levels of grey
    expected: np.ndarray  # (H, W) uint8 labels
    predicted: np.ndarray  # (H, W) uint8 labels
    caption: str
    pixel_mm: tuple[float, float] = (1.0, 1.0)  # (row, column): what is drawn is as high and wide as the patient


def contour_panel(tiles: list[PanelRow], title: str, tile_px: int = 320) -> np.ndarray:
    """One row a slice: plain, expected, predicted. Returns (H, W, 3) uint8."""
    margin, head, text = 6, 44, 18
    width = 3 * (tile_px + margin) + margin
    sheet = Image.new("RGB", (width, head + len(tiles) * (tile_px + text + margin)), (24, 24, 24))
    pen = ImageDraw.Draw(sheet)
    pen.text((margin, 4), title, fill="white")
    for column, name in enumerate(("slice", "expected", "predicted")):
        pen.text((margin + column * (tile_px + margin), 24), name, fill=(200, 200, 200))
    _legend(pen, width - margin, 6)
    for row, tile in enumerate(tiles):
        y = head + row * (tile_px + text + margin)
        pen.text((margin, y), tile.caption, fill=(200, 200, 200))
        for column, labels in enumerate((None, tile.expected, tile.predicted)):
            picture = draw_contours(tile.image, labels, tile_px, tile.pixel_mm)
            sheet.paste(Image.fromarray(picture), (margin + column * (tile_px + margin), y + text))
    return np.asarray(sheet)


class RenderedCase(NamedTuple):
    expected: np.ndarray  # (side, side, 3) uint8
    predicted: np.ndarray
    caption: str
    mm_per_px: float


def surface_panel(pairs: list[RenderedCase], title: str) -> np.ndarray:
    """One row a pair of pictures with a bar of 50 mm; returns (H, W, 3) uint8."""
    margin, head, text = 6, 44, 18
    side = len(pairs[0].expected)
    sheet = Image.new("RGB", (2 * (side + margin) + margin, head + len(pairs) * (side + text + margin)), (24, 24, 24))
    pen = ImageDraw.Draw(sheet)
    pen.text((margin, 4), title, fill="white")
    for column, name in enumerate(("expected", "predicted")):
        pen.text((margin + column * (side + margin), 24), name, fill=(200, 200, 200))
    _legend(pen, sheet.width - margin, 24, LABEL_COLORS)
    for row, pair in enumerate(pairs):
        y = head + row * (side + text + margin)
        pen.text((margin, y), pair.caption, fill=(200, 200, 200))
        for column, picture in enumerate((pair.expected, pair.predicted)):
            x = margin + column * (side + margin)
            sheet.paste(Image.fromarray(picture), (x, y + text))
            pen.rectangle((x, y + text, x + side - 1, y + text + side - 1), outline=(60, 60, 60))
            pen.text((x + 6, y + text + 4), "R", fill=(200, 200, 200))
            pen.text((x + side - 14, y + text + 4), "L", fill=(200, 200, 200))
            bar = (x + 10, y + text + side - 12, x + 10 + 50 / pair.mm_per_px, y + text + side - 10)
            pen.rectangle(bar, fill=(200, 200, 200))
            pen.text((bar[2] + 6, bar[1] - 6), "50 mm", fill=(200, 200, 200))
    return np.asarray(sheet)


class Thumbnail(NamedTuple):
    picture: np.ndarray | None  # (THUMBNAIL_PX, THUMBNAIL_PX, 3) uint8; None: could not be read
    caption: str
    mark: str  # error, warning, or nothing


THUMBNAIL_PX = 150
_MARKS = {"error": (230, 60, 50), "warning": (240, 170, 40)}


def contact_sheet(thumbs: list[Thumbnail], title: str, columns: int = 10) -> np.ndarray:
    """One small picture a case, in the order given, framed in the colour of its mark. Returns (H, W, 3) uint8."""
    margin, head, text = 6, 40, 34
    columns = max(4, min(columns, len(thumbs)))  # four: the title and its legend need the width
    rows = -(-len(thumbs) // columns)
    step_x, step_y = THUMBNAIL_PX + margin, THUMBNAIL_PX + text + margin
    sheet = Image.new("RGB", (columns * step_x + margin, head + rows * step_y), (24, 24, 24))
    pen = ImageDraw.Draw(sheet)
    pen.text((margin, 4), title, fill="white")
    _legend(pen, sheet.width - margin, 22)
    for i, thumb in enumerate(thumbs):
        x, y = margin + i % columns * step_x, head + i // columns * step_y
        color = _MARKS.get(thumb.mark, (200, 200, 200))
        if thumb.picture is None:
            pen.text((x + THUMBNAIL_PX // 2, y + THUMBNAIL_PX // 2), "not usable", fill=color, anchor="mm")
        else:
            sheet.paste(Image.fromarray(thumb.picture), (x, y))
        pen.rectangle((x - 1, y - 1, x + THUMBNAIL_PX, y + THUMBNAIL_PX), outline=color if thumb.mark else (60, 60, 60))
        pen.text((x, y + THUMBNAIL_PX + 2), thumb.caption, fill=color)
    return np.asarray(sheet)


def _legend(pen: ImageDraw.ImageDraw, right: int, top: int, colors: dict[str, tuple] = COLORS) -> None:
    """Names of what is drawn beside their colours, ending at column `right`."""
    for name in reversed(colors):
        right -= int(pen.textlength(name)) + 22
        pen.rectangle((right, top + 2, right + 10, top + 12), fill=colors[name])
        pen.text((right + 14, top), name, fill=(200, 200, 200))


def draw_contours(
    image: np.ndarray, labels: np.ndarray | None, side_px: int, pixel_mm: tuple[float, float] = (1.0, 1.0)
) -> np.ndarray:
    """(H, W) grey and labels -> (side_px, side_px, 3) uint8, the larger side filling it, regions outlined."""
    height, width = (pixels * mm for pixels, mm in zip(image.shape, pixel_mm, strict=True))
    factor = side_px / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    grey = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    canvas = np.zeros((side_px, side_px, 3), np.uint8)
    top, left = (side_px - size[1]) // 2, (side_px - size[0]) // 2
    picture = np.repeat(grey[..., None], 3, axis=2)
    for name, members in REGIONS.items() if labels is not None else ():
        if name == "mass" and not (labels == REGIONS["mass"][1]).any():
            continue  # without a cyst mass and tumor are the same outline
        inside = np.isin(labels, members).astype(np.uint8) * 255
        large = np.asarray(Image.fromarray(inside).resize(size, Image.Resampling.BILINEAR)) >= 128
        picture[large & ~ndimage.binary_erosion(large, iterations=2)] = COLORS[name]
    canvas[top : top + size[1], left : left + size[0]] = picture
    return canvas


def save_png(path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(path)
