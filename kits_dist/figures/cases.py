"""Pictures of an evaluation: the worst, the median and the best case, expected beside predicted.

EVALUATION/contours.png   the slice with the most true tumor of each, cut to the kidneys
EVALUATION/surfaces.png   kidney, tumor and cyst in three dimensions, as far as the model tells them apart
"""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from kits_dist.data.store import Case, Store
from kits_dist.figures.contours import PanelRow, RenderedCase, contour_panel, save_png, surface_panel
from kits_dist.figures.surfaces import Viewpoint, fit_camera, render
from kits_dist.imaging.nifti import read_labels
from kits_dist.labels import REGIONS, innermost_region, regions_to_labels, slice_with_most_tumor
from kits_dist.utils.components import bounding_box

MARGIN_MM = 20.0  # of slice around the kidneys
SIDE_PX = 320


class SelectedCase(NamedTuple):
    rank: str  # worst, median, best
    case_id: str
    dice: float


def draw_cases(evaluation: Path, store: Store, regions: tuple[str, ...]) -> None:
    """From the tables and label maps in the folder `evaluation` of a run whose model predicts `regions`."""
    region = innermost_region(regions)
    chosen = select_cases(evaluation / "cases.csv", region)
    if not chosen:
        return
    tiles, pairs = [], []
    for rank, case_id, dice in chosen:
        row = store.row[case_id]
        case = store.cases[row]
        expected = expected_labels(np.asarray(store.label(row)), regions)
        predicted = read_labels(evaluation / "predictions" / f"{case_id}.nii.gz").array
        caption = f"{rank}: {case_id}, {region} Dice {dice:.3f}"
        tiles.append(_slice(store.image(row), expected, predicted, case, store.window.levels, caption))
        pairs.append(_surfaces(expected, predicted, case, caption))
    about = f"data: {store.meta['data']}   {evaluation.name}"
    save_png(evaluation / "contours.png", contour_panel(tiles, about, SIDE_PX))
    save_png(evaluation / "surfaces.png", surface_panel(pairs, f"{about}   from the front and left"))


def select_cases(cases: Path, region: str) -> list[SelectedCase]:
    """Among the cases that have `region` in truth: a case without it scores 0 or 1 and shows nothing."""
    with open(cases, encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if float(row[f"{region}_truth_ml"]) > 0]
    ranked = sorted((float(row[f"{region}_dice"]), row["case"]) for row in rows)
    if not ranked:
        return []
    places = {"worst": 0, "median": len(ranked) // 2, "best": len(ranked) - 1}
    by_place = {place: rank for rank, place in reversed(places.items())}  # of one case the first name
    return [SelectedCase(by_place[place], ranked[place][1], ranked[place][0]) for place in sorted(by_place)]


def expected_labels(truth: np.ndarray, regions: tuple[str, ...]) -> np.ndarray:
    """(D, H, W) true labels -> what a perfect model of `regions` would paint."""
    return regions_to_labels(np.stack([np.isin(truth, REGIONS[name]) for name in regions]), regions)


def _slice(
    image: np.ndarray, expected: np.ndarray, predicted: np.ndarray, case: Case, levels: int, caption: str
) -> PanelRow:
    """The slice with the most true tumor, or else the most of what is true: chosen by the truth, never by the score."""
    index = slice_with_most_tumor(expected)
    box = bounding_box((expected[index] | predicted[index])[None])
    window = _square(box[1:], image.shape[1:], case.spacing_mm[1:])
    grey = np.clip(image[index][window].astype(np.float32) * 255 / levels, 0, 255).astype(np.uint8)
    return PanelRow(
        grey, expected[index][window], predicted[index][window], f"{caption}, slice {index}", case.spacing_mm[1:]
    )


def _square(box: tuple[slice, ...], shape: tuple[int, ...], pixel_mm: tuple[float, ...]) -> tuple[slice, ...]:
    """As wide as high in mm, `box` in its middle with a margin; moved, and if need be cut, to lie within the slice."""
    side_mm = 2 * MARGIN_MM + max((part.stop - part.start) * mm for part, mm in zip(box, pixel_mm, strict=True))
    window = []
    for part, length, mm in zip(box, shape, pixel_mm, strict=True):
        side = min(length, round(side_mm / mm))
        first = min(max(0, (part.start + part.stop - side) // 2), length - side)
        window.append(slice(first, first + side))
    return tuple(window)


def _surfaces(expected: np.ndarray, predicted: np.ndarray, case: Case, caption: str) -> RenderedCase:
    """Both at one scale, in one box."""
    box = bounding_box(expected | predicted)
    camera = fit_camera(expected[box].shape, case.spacing_mm, SIDE_PX, Viewpoint())
    pictures = (
        np.asarray(Image.fromarray(render(labels[box], case.spacing_mm, camera)).resize((SIDE_PX, SIDE_PX)))
        for labels in (expected, predicted)
    )
    return RenderedCase(*pictures, caption, camera.mm_per_px * camera.side_px / SIDE_PX)
