"""Where the cases of a data set lie: KiTS19, KiTS21, KiTS23 and nnU-Net raw folders -> a list of CaseFiles."""

import json
import re
from pathlib import Path
from typing import Literal, NamedTuple

from kits_dist.errors import InputError, MissingInput

DataKind = Literal["kits", "phantom", "painted"]
# A folder we made carries this file, so that no phantom's score is ever read as a KiTS result.
MARKER = "kits_dist_data.json"

_LABEL_FILES = {
    "KiTS21": ("aggregated_MAJ_seg.nii.gz", "aggregated_MAJ_seg.nii"),
    "KiTS19/KiTS23": ("segmentation.nii.gz", "segmentation.nii"),
}
_IMAGE_FILES = ("imaging.nii.gz", "imaging.nii")


class CaseFiles(NamedTuple):
    case_id: str  # case_00042, or nnU-Net's name
    image: Path | None  # None: the file is missing, which is the reader's error to report
    label: Path | None


class Source(NamedTuple):
    root: Path  # the folder that directly holds the cases
    layout: str
    data: DataKind
    cases: list[CaseFiles]


def find_cases(source: Path) -> Source:
    """Detect the layout below `source` and list its cases by id.

    Raises MissingInput when the folder is not there, InputError when it holds none of the layouts (and says what was
    looked for).
    """
    if not source.is_dir():
        raise MissingInput(f"source={source}: no such folder.")
    for root in (source, source / "data", source / "dataset", source / "kits21" / "data"):
        folders = sorted(p for p in root.glob("case_*") if p.is_dir())
        if folders:
            cases = [CaseFiles(p.name, image_of(p), _first(p, _label_names())) for p in folders]
            layout = next(
                (n for n, names in _LABEL_FILES.items() if any(c.label and c.label.name in names for c in cases)),
                "KiTS",
            )
            return Source(root, layout, data_kind(source, root), cases)
    images = sorted((source / "imagesTr").glob("*_0000.nii*"))
    if images:
        cases = []
        for image in images:
            case_id = re.sub(r"_0000\.nii(\.gz)?$", "", image.name)
            label = _first(source / "labelsTr", (f"{case_id}.nii.gz", f"{case_id}.nii"))
            cases.append(CaseFiles(case_id, image, label))
        return Source(source, "nnU-Net raw", data_kind(source), cases)
    raise InputError(
        f"source={source}: no cases found. Looked for case_*/imaging.nii.gz here and in data/, dataset/, kits21/data/ "
        "(KiTS19, KiTS21, KiTS23), and for imagesTr/*_0000.nii.gz (nnU-Net raw)."
    )


def image_of(case: Path) -> Path | None:
    """The CT in a KiTS case's folder, if it is one."""
    return _first(case, _IMAGE_FILES)


def _label_names() -> tuple[str, ...]:
    return tuple(name for names in _LABEL_FILES.values() for name in names)


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def data_kind(*folders: Path) -> DataKind:
    """What made the cases: the mark in one of `folders`, else kits."""
    marks = [json.loads((folder / MARKER).read_text())["data"] for folder in folders if (folder / MARKER).is_file()]
    return marks[0] if marks else "kits"
