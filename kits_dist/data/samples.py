"""Which slices a split's samples are, and what groups the sampler deals them from."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kits_dist.config import DataConfig
from kits_dist.data.sampler import Group
from kits_dist.data.store import PLANE_NAMES, Store
from kits_dist.utils.errors import InputError


class Samples(NamedTuple):
    rows: np.ndarray  # (n,) rows of store.slices
    kidneys: np.ndarray | None = None  # (n,) int64 which kidney of the case each is a slice of; None: the whole body

    def keys(self, table_rows: int) -> np.ndarray:
        """(n,) numbers that tell samples apart, whatever split they are in: what augmentation is keyed by."""
        return self.rows if self.kidneys is None else self.rows + table_rows * self.kidneys


def select(store: Store, case_ids: list[str], data: DataConfig, near_kidney: bool) -> Samples:
    """The samples of these cases. near_kidney: of whole slices only those that data.slices asks for (training).

    Raises InputError for a plane that was not prepared, or where no case has a kidney that data.box or data.slices
    asks for.
    """
    if data.box == "kidney":
        return _kidney_slices(store, case_ids, data)
    slices = data.slices if near_kidney else "all"
    rows = select_rows(store, case_ids, slices, data.margin, data.planes)
    if slices == "kidney" and not len(rows):
        raise InputError(
            f"data.slices=kidney: none of the {len(case_ids)} training cases has a kidney in its annotation. Use "
            "data.slices=all, or a store with annotated cases."
        )
    return Samples(rows)


def _kidney_slices(store: Store, case_ids: list[str], data: DataConfig) -> Samples:
    """Every axial slice of each kidney's box with its margin, kidney after kidney."""
    table = store.slices
    axial = np.flatnonzero(table.plane == PLANE_NAMES.index("axial"))
    rows, kidneys = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for number in sorted(store.row[case] for case in case_ids):
        case, first = store.cases[number], axial[np.searchsorted(table.case[axial], number)]
        for k, kidney in enumerate(case.kidneys):
            slices = kidney.around(data.box_margin_mm, case.spacing_mm, case.shape)[0]
            rows.append(np.arange(first + slices.start, first + slices.stop))
            kidneys.append(np.full(len(rows[-1]), k))
    if len(rows) == 1:
        raise InputError(f"data.box=kidney: none of these {len(case_ids)} cases has a kidney in its annotation.")
    return Samples(np.concatenate(rows), np.concatenate(kidneys))


def groups_of(store: Store, samples: Samples, data: DataConfig) -> list[Group]:
    """Samples (by number) by what data.sampler asks for. Raises InputError when there are no such slices."""
    rows, table = samples.rows, store.slices
    everyone = np.arange(len(rows))
    if data.sampler == "natural":
        return [Group("all", everyone, 1.0)]
    if data.sampler == "case":  # a tenth of KiTS's cases own a third of its slices, because they are thin
        cases, sizes = np.unique(table.case[rows], return_counts=True)
        mine = np.split(np.argsort(table.case[rows], kind="stable"), np.cumsum(sizes)[:-1])
        return [Group(store.cases[c].case_id, one, 1 / len(cases)) for c, one in zip(cases, mine, strict=True)]
    holds = _holding(store, samples, data.sampler)
    if holds.all() or not holds.any():
        raise InputError(
            f"data.sampler={data.sampler}: {holds.sum()} training slices hold it and {(~holds).sum()} do not; both are "
            "needed. Use data.sampler=natural"
        )
    chosen = round(data.share * len(rows))
    if chosen in (0, len(rows)):
        raise InputError(
            f"data.share={data.share} of an epoch of {len(rows)} slices is {chosen} of them, so slices "
            f"with{'out' if chosen else ''} {data.sampler} would never be seen. Use a share nearer to 0.5"
        )
    return [
        Group(f"with {data.sampler}", everyone[holds], data.share),
        Group("others", everyone[~holds], 1 - data.share),
    ]


def worth_seeing(store: Store, samples: Samples, count: int) -> np.ndarray:
    """Positions of up to `count` samples, evenly spaced among the tenth with the most tumor, else foreground."""
    table, rows = store.slices, samples.rows
    own = _holding(store, samples, "tumor")  # of two kidneys in a slice the healthy one has none
    ranked = np.lexsort((table.foreground[rows], table.tumor[rows] * own))[::-1]
    return np.sort(ranked[: max(count, len(rows) // 10)][:: max(1, len(rows) // 10 // count)])[:count]


def _holding(store: Store, samples: Samples, label: str) -> np.ndarray:
    """(n,) bool: samples that hold foreground, tumor or cyst; of a kidney's samples, that kidney's own."""
    table, (rows, kidneys) = store.slices, samples
    if kidneys is None:
        return getattr(table, label)[rows] > 0
    case, index = table.case[rows], table.index[rows]
    holds = np.zeros(len(rows), bool)
    ends = np.flatnonzero(np.diff(case, append=-1) | np.diff(kidneys, append=-1)) + 1  # they lie kidney by kidney
    for first, last in zip([0, *ends[:-1]], ends, strict=True):
        kidney = store.cases[case[first]].kidneys[kidneys[first]]
        for start, stop in [kidney.box[0]] if label == "foreground" else getattr(kidney, label):
            holds[first:last] |= (start <= index[first:last]) & (index[first:last] < stop)
    return holds


def select_rows(store: Store, case_ids: list[str], slices: str, margin: int, planes: Sequence[str]) -> np.ndarray:
    """Rows of store.slices of these cases and planes: all, or those within `margin` slices of any foreground.

    Raises InputError for a plane that was not prepared.
    """
    if absent := [plane for plane in planes if plane not in store.planes]:
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
    """(n,) bool: rows within `margin` of one that `holds`, in the same stack. The rows of a stack lie together."""
    here = np.arange(len(holds))
    before = np.maximum.accumulate(np.where(holds, here, -1))
    after = np.minimum.accumulate(np.where(holds, here, len(here))[::-1])[::-1]
    near = np.zeros(len(holds), bool)
    for other, exists in ((before, before >= 0), (after, after < len(here))):
        other = np.where(exists, other, 0)
        near |= exists & (stacks[other] == stacks) & (abs(here - other) <= margin)
    return near
