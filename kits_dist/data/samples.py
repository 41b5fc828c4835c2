"""Which slices are the samples of a split, and the groups that the sampler deals them from."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kits_dist.config import DataConfig
from kits_dist.data.sampler import Group
from kits_dist.data.store import PLANE_NAMES, Store
from kits_dist.utils.errors import InputError


class Samples(NamedTuple):
    """Samples of a split, sorted by stack: whole slices, or slices of the box of one kidney each."""

    rows: np.ndarray  # (n,) rows of store.slices
    kidneys: np.ndarray | None = None  # (n,) int64 number of the kidney in its case; None: whole slices

    def keys(self, table_rows: int) -> np.ndarray:
        """Return (n,) numbers that identify samples in every split: augmentation is keyed by them."""
        return self.rows if self.kidneys is None else self.rows + table_rows * self.kidneys


def select_samples(store: Store, case_ids: list[str], data: DataConfig, training: bool) -> Samples:
    """Return the samples of these cases.

    training   True: the slices that data.slices asks for; False: all slices, because scores are per case

    Raises InputError for a plane that was not prepared, or where no case has a kidney that data.box or data.slices
    asks for.
    """
    if data.box == "kidney":
        return _kidney_slices(store, case_ids, data)
    slices = data.slices if training else "all"
    rows = select_rows(store, case_ids, slices, data.margin, data.planes)
    if slices == "kidney" and not len(rows):
        raise InputError(
            f"data.slices=kidney: none of the {len(case_ids)} training cases has a kidney in its annotation. Use "
            "data.slices=all, or a store with annotated cases."
        )
    return Samples(rows)


def _kidney_slices(store: Store, case_ids: list[str], data: DataConfig) -> Samples:
    """Return every axial slice of each kidney's box with its margin, kidney after kidney."""
    table = store.slices
    axial = np.flatnonzero(table.plane == PLANE_NAMES.index("axial"))
    rows = [np.zeros(0, np.int64)]
    kidneys = [np.zeros(0, np.int64)]
    for number in sorted(store.row[case] for case in case_ids):
        case = store.cases[number]
        first_row = axial[np.searchsorted(table.case[axial], number)]
        for k, kidney in enumerate(case.kidneys):
            slices = kidney.around(data.box_margin_mm, case.spacing_mm, case.shape)[0]
            rows.append(np.arange(first_row + slices.start, first_row + slices.stop))
            kidneys.append(np.full(len(rows[-1]), k))
    if len(rows) == 1:
        raise InputError(f"data.box=kidney: none of these {len(case_ids)} cases has a kidney in its annotation.")
    return Samples(np.concatenate(rows), np.concatenate(kidneys))


def select_rows(store: Store, case_ids: list[str], slices: str, margin: int, planes: Sequence[str]) -> np.ndarray:
    """Return the rows of store.slices of these cases and planes: all, or those within `margin` slices of foreground.

    Raises InputError for a plane that was not prepared.
    """
    absent = [plane for plane in planes if plane not in store.planes]
    if absent:
        raise InputError(
            f"data.planes={list(planes)}: the store {store.path} holds {store.planes}. Prepare it again with planes="
            f"[{','.join(p for p in PLANE_NAMES if p in (*store.planes, *absent))}]"
        )
    table = store.slices
    chosen = np.isin(table.plane, [PLANE_NAMES.index(plane) for plane in planes])
    chosen &= np.isin(table.case, [store.row[case] for case in case_ids])
    if slices == "kidney":
        chosen &= _near(table.foreground > 0, table.stack, margin)
    return np.flatnonzero(chosen)


def _near(holds: np.ndarray, stacks: np.ndarray, margin: int) -> np.ndarray:
    """Return (n,) bool: rows within `margin` of one that `holds`, in the same stack. Rows are sorted by stack."""
    # Lay all rows out on one line, with a gap wider than the margin between stacks.
    place = np.arange(len(holds)) + (margin + 1) * np.unique(stacks, return_inverse=True)[1]
    held = np.concatenate([[-np.inf], place[holds], [np.inf]])
    following = np.searchsorted(held, place)
    return np.minimum(place - held[following - 1], held[following] - place) <= margin


def build_groups(store: Store, samples: Samples, data: DataConfig) -> list[Group]:
    """Return the groups that data.sampler asks for; their members are positions in `samples`.

    Raises InputError where a group would be empty or never be drawn.
    """
    rows, table = samples.rows, store.slices
    everything = np.arange(len(rows))
    if data.sampler == "natural":
        return [Group("all", everything, 1.0)]
    if data.sampler == "case":  # a tenth of KiTS's cases own a third of its slices, because they are thin
        cases, sizes = np.unique(table.case[rows], return_counts=True)
        members = np.split(np.argsort(table.case[rows], kind="stable"), np.cumsum(sizes)[:-1])
        return [Group(store.cases[c].case_id, part, 1 / len(cases)) for c, part in zip(cases, members, strict=True)]

    holds = _holding(store, samples, data.sampler)
    if holds.all() or not holds.any():
        raise InputError(
            f"data.sampler={data.sampler}: {holds.sum()} training slices hold it and {(~holds).sum()} do not; both are "
            "needed. Use data.sampler=natural"
        )
    count = round(data.share * len(rows))
    if count in (0, len(rows)):
        raise InputError(
            f"data.share={data.share} of an epoch of {len(rows)} slices is {count} of them, so slices "
            f"with{'out' if count else ''} {data.sampler} would never be drawn. Use a share nearer to 0.5"
        )
    return [
        Group(f"with {data.sampler}", everything[holds], data.share),
        Group("others", everything[~holds], 1 - data.share),
    ]


def samples_to_show(store: Store, samples: Samples, count: int) -> np.ndarray:
    """Return positions of up to `count` samples, evenly spaced among the tenth with the most tumor.

    Samples without tumor rank by their foreground.
    """
    table, rows = store.slices, samples.rows
    own = _holding(store, samples, "tumor")  # the slice's tumor may be in the other kidney
    ranked = np.lexsort((table.foreground[rows], table.tumor[rows] * own))[::-1]
    tenth = len(rows) // 10
    spaced = ranked[: max(count, tenth)][:: max(1, tenth // count)]
    return np.sort(spaced)[:count]


def _holding(store: Store, samples: Samples, label: str) -> np.ndarray:
    """Return (n,) bool: samples that hold foreground, tumor or cyst; of one kidney each, only that kidney's count."""
    table, (rows, kidneys) = store.slices, samples
    if kidneys is None:
        return getattr(table, label)[rows] > 0
    case, index = table.case[rows], table.index[rows]
    holds = np.zeros(len(rows), bool)
    for number, k in np.unique(np.stack([case, kidneys]), axis=1).T:
        kidney = store.cases[number].kidneys[k]
        mine = (case == number) & (kidneys == k)
        for first, last in [kidney.box[0]] if label == "foreground" else getattr(kidney, label):
            holds |= mine & (first <= index) & (index < last)
    return holds
