"""Pictures of an evaluation: the worst, the median and the best case, expected next to predicted.

EVALUATION/contours.png   the slice with the most true tumor of each, cropped to the kidneys
EVALUATION/surfaces.png   kidney, tumor and cyst in three dimensions, as far as the model tells them apart
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from kits_dist.data.store import Case, Store
from kits_dist.figures.contours import PanelRow, RenderedCase, contour_panel, save_png, surface_panel
from kits_dist.figures.surfaces import Viewpoint, fit_camera, render
from kits_dist.imaging.nifti import read_labels
from kits_dist.labels import REGIONS, innermost_region, regions_to_labels, slice_with_most_tumor
from kits_dist.utils import files
from kits_dist.utils.components import bounding_box

MARGIN_MM = 20.0  # around the kidneys
SIDE_PX = 320


class SelectedCase(NamedTuple):
    """A case to draw."""

    rank: str  # worst, median, best
    case_id: str
    dice: float


def draw_cases(evaluation: Path, store: Store, regions: tuple[str, ...]) -> None:
    """Draw contours.png and surfaces.png from the table and the label maps in a folder of evaluate.

    regions   what the evaluated model predicts
    """
    region = innermost_region(regions)
    selected = select_cases(evaluation / "cases.csv", region)
    if not selected:
        return

    slices = []
    surfaces = []
    for rank, case_id, dice in selected:
        row = store.row[case_id]
        case = store.cases[row]
        expected = expected_labels(np.asarray(store.label(row)), regions)
        predicted = read_labels(evaluation / "predictions" / f"{case_id}.nii.gz").array
        caption = f"{rank}: {case_id}, {region} Dice {dice:.3f}"
        slices.append(_slice(store.image(row), expected, predicted, case, store.window.levels, caption))
        surfaces.append(_surfaces(expected, predicted, case, caption))
    title = f"data: {store.meta['data']}   {evaluation.name}"
    save_png(evaluation / "contours.png", contour_panel(slices, title, SIDE_PX))
    save_png(evaluation / "surfaces.png", surface_panel(surfaces, f"{title}   from the front and left"))


def select_cases(table: Path, region: str) -> list[SelectedCase]:
    """Select the worst, the median and the best case by the Dice of `region`, from a cases.csv.

    Only cases that have the region in the truth count: without it a case scores 0 or 1 and shows nothing.
    """
    rows = [row for row in files.read_table(table) if float(row[f"{region}_truth_ml"]) > 0]
    ranked = sorted((float(row[f"{region}_dice"]), row["case"]) for row in rows)
    if not ranked:
        return []
    places = {"worst": 0, "median": len(ranked) // 2, "best": len(ranked) - 1}
    # with one or two cases a case has several ranks: the first one is shown
    rank_at = {place: rank for rank, place in reversed(places.items())}
    return [SelectedCase(rank_at[place], ranked[place][1], ranked[place][0]) for place in sorted(rank_at)]


def expected_labels(truth: np.ndarray, regions: tuple[str, ...]) -> np.ndarray:
    """Return the (D, H, W) labels that a perfect model of `regions` would predict."""
    return regions_to_labels(np.stack([np.isin(truth, REGIONS[name]) for name in regions]), regions)


def _slice(
    image: np.ndarray, expected: np.ndarray, predicted: np.ndarray, case: Case, levels: int, caption: str
) -> PanelRow:
    """Return the slice to show, chosen by the truth and never by the score."""
    index = slice_with_most_tumor(expected)
    pixel_mm = case.spacing_mm[1:]
    _, *box = bounding_box((expected[index] | predicted[index])[None])
    window = _square(tuple(box), image.shape[1:], pixel_mm)
    gray = np.clip(image[index][window].astype(np.float32) * 255 / levels, 0, 255).astype(np.uint8)
    return PanelRow(gray, expected[index][window], predicted[index][window], f"{caption}, slice {index}", pixel_mm)


def _square(box: tuple[slice, ...], shape: tuple[int, ...], pixel_mm: tuple[float, ...]) -> tuple[slice, ...]:
    """Return a window that is square in mm around `box` with a margin, moved and, if need be, cut to fit the slice."""
    side_mm = 2 * MARGIN_MM + max((part.stop - part.start) * mm for part, mm in zip(box, pixel_mm, strict=True))
    window = []
    for part, length, mm in zip(box, shape, pixel_mm, strict=True):
        side = min(length, round(side_mm / mm))
        first = min(max(0, (part.start + part.stop - side) // 2), length - side)
        window.append(slice(first, first + side))
    return tuple(window)


def _surfaces(expected: np.ndarray, predicted: np.ndarray, case: Case, caption: str) -> RenderedCase:
    """Render both label maps in one box, at one scale."""
    box = bounding_box(expected | predicted)
    camera = fit_camera(expected[box].shape, case.spacing_mm, SIDE_PX, Viewpoint())

    def picture(labels: np.ndarray) -> np.ndarray:
        rendered = Image.fromarray(render(labels[box], case.spacing_mm, camera))
        return np.asarray(rendered.resize((SIDE_PX, SIDE_PX)))

    return RenderedCase(picture(expected), picture(predicted), caption, camera.mm_per_px * camera.side_px / SIDE_PX)
