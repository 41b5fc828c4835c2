"""Rules of anatomy that mend a predicted label map; `kits_dist.postprocess` chooses among them on `val`.

Pure functions of (D, H, W) uint8 labels. Pieces are joined over faces, edges and corners (26 neighbours).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cc3d
import numpy as np

from kits_dist.labels import BACKGROUND, CYST, KIDNEY, TUMOR
from kits_dist.utils import files
from kits_dist.utils.components import bounding_box, connected_components
from kits_dist.utils.errors import InputError

FILE = "postprocess.json"  # in the run folder, or in the common one of several runs


@dataclass(frozen=True)
class Rules:
    """What is done, in this order; the defaults leave labels as they are."""

    fill_holes: bool = False  # what a tumor encloses becomes tumor, what kidney and masses enclose becomes kidney
    touch_kidney: bool = False  # tumors and cysts that touch no kidney become background
    min_tumor_ml: float = 0.0  # smaller tumors become what they touch: cyst, else kidney, else background
    min_cyst_ml: float = 0.0  # smaller cysts likewise: tumor, kidney, background
    min_kidney_ml: float = 0.0  # smaller pieces of kidney and masses become background
    two_kidneys: bool = False  # all but the two largest pieces of kidney and masses become background

    def __post_init__(self) -> None:
        for key, value in dataclasses.asdict(self).items():
            kind = type(getattr(type(self), key))
            if not isinstance(value, (kind, int) if kind is float else kind) or not 0 <= value < 1000:
                raise InputError(f"{key}={value!r}: {'true or false' if kind is bool else 'use 0..1000 ml'}.")

    @property
    def active(self) -> dict[str, bool | float]:
        """Those that do something."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value}

    def __str__(self) -> str:
        return ", ".join(key if value is True else f"{key}={value:g}" for key, value in self.active.items()) or "none"


_MASS_ML = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # nine in ten tumors of KiTS21 have more than 4.4 ml
# {rule: (what is tried, the region that a model must predict for the rule to mean anything)}
_TRIED: dict[str, tuple[tuple[bool | float, ...], str]] = {
    "fill_holes": ((True,), "kidney_and_mass"),
    "touch_kidney": ((True,), "kidney_and_mass"),
    "min_tumor_ml": (_MASS_ML, "tumor"),
    "min_cyst_ml": (_MASS_ML, "mass"),
    "min_kidney_ml": ((1.0, 5.0, 10.0, 20.0), "kidney_and_mass"),
    "two_kidneys": ((True,), "kidney_and_mass"),
}


def candidates(regions: tuple[str, ...]) -> list[tuple[str, bool | float]]:
    """(rule, value) pairs worth trying on the predictions of a model of `regions`."""
    return [(rule, value) for rule, (values, needs) in _TRIED.items() if needs in regions for value in values]


def clean(labels: np.ndarray, spacing_mm: tuple[float, float, float], rules: Rules) -> np.ndarray:
    """(D, H, W) uint8 -> another (D, H, W) uint8. The cost follows the foreground's box, not the volume."""
    cleaned = labels.copy()
    inside = cleaned[bounding_box(labels)]  # a view: what changes in it changes in `cleaned`
    if not rules.active or not inside.size:
        return cleaned
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    if rules.fill_holes:
        inside[_holes(inside == TUMOR) & (inside != CYST)] = TUMOR
        inside[_holes(inside > BACKGROUND)] = KIDNEY
    if rules.touch_kidney:
        inside[(inside > KIDNEY) & ~_joined_to(inside > BACKGROUND, inside == KIDNEY)] = BACKGROUND
    for label, other, least_ml in ((TUMOR, CYST, rules.min_tumor_ml), (CYST, TUMOR, rules.min_cyst_ml)):
        small = _smaller(inside == label, least_ml / voxel_ml)
        if small.any():
            beside = {
                near: small & _joined_to((inside == label) | (inside == near), inside == near)
                for near in (KIDNEY, other)
            }
            inside[small] = BACKGROUND
            for near, where in beside.items():
                inside[where] = near
    inside[_smaller(inside > BACKGROUND, rules.min_kidney_ml / voxel_ml)] = BACKGROUND
    if rules.two_kidneys:
        sizes = np.sort(connected_components(inside > BACKGROUND)[1])
        inside[_smaller(inside > BACKGROUND, sizes[-2] if len(sizes) > 2 else 0)] = BACKGROUND
    return cleaned


def load_rules(runs: Sequence[Path], step: int | list | None, wanted: bool, file: str = "") -> tuple[Rules, str]:
    """The rules chosen for the weights of `runs` at `step`, none where not `wanted`; and a sentence for the user.

    file   the value of rules=, chosen for the mean of exactly these runs; "": one run's own, in its folder
    Raises InputError for a damaged file, or one named by rules= that was chosen for other weights.
    """
    if not wanted:
        return Rules(), "post-processing: none (postprocess=false)"
    if not file and len(runs) > 1:
        return Rules(), "post-processing: none (the mean of several runs takes those chosen for it, rules=FILE)"
    path = Path(file) if file else runs[0] / FILE
    again = f"python -m kits_dist.postprocess run={_runs_text(runs)}" + (" output=DIR" if len(runs) > 1 else "")
    if not file and not path.is_file():
        return Rules(), f"post-processing: none ({again} chooses rules on val)"
    content = files.read_json(path)
    try:
        rules, tuned, weights = Rules(**content["rules"]), content["step"], content.get("weights", [])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be used ({error}). Make it again: {again}") from error
    if file and weights != weights_of(runs):
        raise InputError(f"rules={path} was chosen for other weights than those of run={_runs_text(runs)}. Run {again}")
    if tuned != step and not file:
        return (
            Rules(),
            f"post-processing: none ({path} was chosen for the weights of step {tuned}, these are of {step})",
        )
    return rules, f"post-processing: {rules} (chosen on val{f', {path}' if file else ''})"


def weights_of(runs: Sequence[Path]) -> list[str]:
    """sha256 of each run's weights, sorted: which networks a mean is made of, wherever they lie."""
    return sorted(files.sha256(run / "model.safetensors") for run in runs)


def _runs_text(runs: Sequence[Path]) -> str:
    """As they are written on a command line: A or [A,B]."""
    return str(runs[0]) if len(runs) == 1 else f"[{','.join(map(str, runs))}]"


def _smaller(mask: np.ndarray, voxels: float) -> np.ndarray:
    """(D, H, W) bool: pieces of `mask` that have fewer voxels."""
    if voxels <= 0:
        return np.zeros_like(mask)
    numbers, sizes = connected_components(mask)
    return np.concatenate([[False], sizes < voxels])[numbers]


def _joined_to(mask: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(D, H, W) bool: pieces of `mask` that hold a voxel of `other`."""
    numbers, sizes = connected_components(mask)
    hit = np.zeros(len(sizes) + 1, bool)
    hit[np.unique(numbers[other & mask])] = True
    return hit[numbers]


def _holes(mask: np.ndarray) -> np.ndarray:
    """(D, H, W) bool: what `mask` encloses on all sides (6 neighbours), in three dimensions."""
    numbers = cc3d.connected_components(np.pad(~mask, 1, constant_values=True), connectivity=6)
    return ~mask & (numbers[1:-1, 1:-1, 1:-1] != numbers[0, 0, 0])
