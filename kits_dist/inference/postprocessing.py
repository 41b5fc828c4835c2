"""Anatomical rules that repair a predicted label map; `kits_dist.postprocess` selects among them on `val`.

Pure functions of (D, H, W) uint8 labels. Components are connected over faces, edges and corners (26 neighbors).
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

FILE = "postprocess.json"  # in the run folder, or in the output folder of several runs


@dataclass(frozen=True)
class Rules:
    """The rules to apply, in this order; the defaults change nothing."""

    fill_holes: bool = False  # holes in a tumor become tumor, holes in kidney and masses become kidney
    touch_kidney: bool = False  # tumors and cysts that touch no kidney become background
    min_tumor_ml: float = 0.0  # smaller tumors become what they touch: cyst, else kidney, else background
    min_cyst_ml: float = 0.0  # smaller cysts likewise: tumor, kidney, background
    min_kidney_ml: float = 0.0  # smaller components of kidney and masses become background
    two_kidneys: bool = False  # all but the two largest components of kidney and masses become background

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, bool) and not isinstance(value, bool):
                raise InputError(f"{field.name}={value!r}: true or false.")
            if not isinstance(value, (int, float)) or not 0 <= value < 1000:
                raise InputError(f"{field.name}={value!r}: use 0..1000 ml.")

    @property
    def active(self) -> dict[str, bool | float]:
        """Return the rules that do something."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value}

    def __str__(self) -> str:
        return ", ".join(key if value is True else f"{key}={value:g}" for key, value in self.active.items()) or "none"


_MASS_ML = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # nine in ten tumors of KiTS21 have more than 4.4 ml
# {rule: (values to try, the region that a model must predict for the rule to apply)}
_CANDIDATES: dict[str, tuple[tuple[bool | float, ...], str]] = {
    "fill_holes": ((True,), "kidney_and_mass"),
    "touch_kidney": ((True,), "kidney_and_mass"),
    "min_tumor_ml": (_MASS_ML, "tumor"),
    "min_cyst_ml": (_MASS_ML, "mass"),
    "min_kidney_ml": ((1.0, 5.0, 10.0, 20.0), "kidney_and_mass"),
    "two_kidneys": ((True,), "kidney_and_mass"),
}


def candidates(regions: tuple[str, ...]) -> list[tuple[str, bool | float]]:
    """Return the (rule, value) pairs to try on the predictions of a model of `regions`."""
    return [(rule, value) for rule, (values, needed) in _CANDIDATES.items() if needed in regions for value in values]


def clean(labels: np.ndarray, spacing_mm: tuple[float, float, float], rules: Rules) -> np.ndarray:
    """Apply `rules` to a copy of (D, H, W) uint8 labels. The cost grows with the foreground's box, not the volume."""
    cleaned = labels.copy()
    inside = cleaned[bounding_box(labels)]  # a view: changes in it are changes in `cleaned`
    if not rules.active or not inside.size:
        return cleaned
    voxel_ml = float(np.prod(spacing_mm)) / 1000

    if rules.fill_holes:
        inside[_holes(inside == TUMOR) & (inside != CYST)] = TUMOR
        inside[_holes(inside > BACKGROUND)] = KIDNEY
    if rules.touch_kidney:
        inside[(inside > KIDNEY) & ~_touching(inside > BACKGROUND, inside == KIDNEY)] = BACKGROUND
    _relabel_small(inside, TUMOR, CYST, rules.min_tumor_ml / voxel_ml)
    _relabel_small(inside, CYST, TUMOR, rules.min_cyst_ml / voxel_ml)
    inside[_smaller_than(inside > BACKGROUND, rules.min_kidney_ml / voxel_ml)] = BACKGROUND
    if rules.two_kidneys:
        sizes = np.sort(connected_components(inside > BACKGROUND)[1])
        inside[_smaller_than(inside > BACKGROUND, sizes[-2] if len(sizes) > 2 else 0)] = BACKGROUND
    return cleaned


def load_rules(runs: Sequence[Path], step: int | list | None, wanted: bool, file: str = "") -> tuple[Rules, str]:
    """Load the rules chosen for the weights of `runs` at `step`, and describe them in a sentence for the user.

    wanted   False: no rules
    file     the value of rules=, chosen for the mean of exactly these runs; "": the file in the folder of the one run
    Raises InputError for a damaged file, or one named by rules= that was chosen for other weights.
    """
    if not wanted:
        return Rules(), "post-processing: none (postprocess=false)"
    if not file and len(runs) > 1:
        return Rules(), "post-processing: none (several runs take the rules chosen for their mean, rules=FILE)"

    path = Path(file) if file else runs[0] / FILE
    run_argument = str(runs[0]) if len(runs) == 1 else f"[{','.join(map(str, runs))}]"
    again = f"python -m kits_dist.postprocess run={run_argument}" + (" output=DIR" if len(runs) > 1 else "")
    if not file and not path.is_file():
        return Rules(), f"post-processing: none ({again} chooses rules on val)"

    content = files.read_json(path)
    try:
        rules = Rules(**content["rules"])
        chosen_at = content["step"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be used ({error}). Make it again: {again}") from error
    if file:
        if content.get("weights", []) != weights_of(runs):
            raise InputError(f"rules={path} was chosen for other weights than those of run={run_argument}. Run {again}")
        return rules, f"post-processing: {rules} (chosen on val, {path})"
    if chosen_at != step:
        reason = f"{path} was chosen for the weights of step {chosen_at}, these are of {step}"
        return Rules(), f"post-processing: none ({reason})"
    return rules, f"post-processing: {rules} (chosen on val)"


def weights_of(runs: Sequence[Path]) -> list[str]:
    """Return the sorted sha256 of the runs' weights, which identifies the networks wherever they are stored."""
    return sorted(files.sha256(run / "model.safetensors") for run in runs)


def _relabel_small(labels: np.ndarray, label: int, other: int, voxels: float) -> None:
    """Relabel components of `label` with fewer voxels, in place: as `other` where they touch it, else as kidney."""
    small = _smaller_than(labels == label, voxels)
    if not small.any():
        return
    touching = {
        near: small & _touching((labels == label) | (labels == near), labels == near) for near in (KIDNEY, other)
    }
    labels[small] = BACKGROUND
    for near, mask in touching.items():
        labels[mask] = near


def _smaller_than(mask: np.ndarray, voxels: float) -> np.ndarray:
    """Return a (D, H, W) bool mask of the components with fewer voxels."""
    if voxels <= 0:
        return np.zeros_like(mask)
    components, sizes = connected_components(mask)
    return np.concatenate([[False], sizes < voxels])[components]


def _touching(mask: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return a (D, H, W) bool mask of the components of `mask` that hold a voxel of `other`."""
    components, sizes = connected_components(mask)
    hit = np.zeros(len(sizes) + 1, bool)
    hit[np.unique(components[other & mask])] = True
    return hit[components]


def _holes(mask: np.ndarray) -> np.ndarray:
    """Return a (D, H, W) bool mask of what `mask` encloses on all sides, in three dimensions (6 neighbors)."""
    components = cc3d.connected_components(np.pad(~mask, 1, constant_values=True), connectivity=6)
    assert isinstance(components, np.ndarray)
    return ~mask & (components[1:-1, 1:-1, 1:-1] != components[0, 0, 0])
