"""Which cases a run may be scored on: those of its store that training has not seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from kits_dist.data.store import Store
from kits_dist.utils.errors import InputError
from kits_dist.utils.text import listed

if TYPE_CHECKING:
    from kits_dist.inference.predictor import Predictor

Split = Literal["test", "val"]


def held_out(predictor: Predictor, split: Split, store: str = "") -> tuple[Store, list[str]]:
    """The run's store (or the one it has moved to) and the case ids of `split`.

    Raises InputError for an empty split, another window, or cases that the run was trained on.
    """
    config = predictor.config
    opened = Store(store or config.data.store, key="store")
    case_ids = opened.splits.test if split == "test" else opened.splits.select(config.data.fold)[1]
    if not case_ids:
        raise InputError(f"split={split}: this store has no such cases (it holds {len(opened.cases)}).")
    if opened.window != predictor.window:
        raise InputError(
            f"the run was trained on HU {list(predictor.window)} but the store {opened.path} holds "
            f"{list(opened.window)}. Prepare a store with the run's window: window_hu=[...]"
        )
    wanted = {plane for member in predictor.members for plane in member.config.data.planes}
    if absent := sorted(wanted - set(opened.planes)):
        raise InputError(
            f"the run looks along {', '.join(absent)}, which the store {opened.path} was not prepared for. Prepare it "
            "with planes=[axial,coronal,sagittal]"
        )
    seen = [case for case in case_ids if opened.cases[opened.row[case]].voxels_sha256 in predictor.trained_on]
    if seen:
        raise InputError(
            f"split={split}: the run was trained on {listed(seen)}; such a score says nothing about new patients. "
            "Use split=test with the store that the run was trained on."
        )
    return opened, case_ids
