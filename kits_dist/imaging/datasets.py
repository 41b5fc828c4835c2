"""Where the cases of a data set lie: KiTS19, KiTS21, KiTS23 and nnU-Net raw folders -> a list of CaseFiles."""

import json
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from kits_dist.labels import CYST, KIDNEY, LABELS, TUMOR
from kits_dist.utils.errors import InputError, MissingInput
from kits_dist.utils.text import listed, parse_folders

DataKind = Literal["kits", "phantom", "painted"]
LabelChoice = Literal["majority", "and", "or"]
# A folder we made carries this file, so that no phantom's score is ever read as a KiTS result.
MARKER = "kits_dist_data.json"
VARIANT_RECORD = "variant.json"  # in the folder of a synthetic variant: which cases it was made from

_AGGREGATED: dict[LabelChoice, str] = {
    "majority": "aggregated_MAJ_seg",
    "and": "aggregated_AND_seg",
    "or": "aggregated_OR_seg",
}
_CASE_FOLDERS = (".", "data", "dataset", "kits21/data")
_NNUNET = "nnU-Net raw"
_VARIANT_OF = "-variant-"
# Words in the label names of a dataset.json, the more telling first: a kidney tumor is a tumor.
_WORDS = {"tumo": TUMOR, "lesion": TUMOR, "cancer": TUMOR, "mass": TUMOR, "cyst": CYST, "kidney": KIDNEY}


class CaseFiles(NamedTuple):
    case_id: str  # case_00042, or nnU-Net's name
    image: Path | None  # None: the file is not there, which is the reader's error to report
    label: Path | None
    missing: str = ""  # which file is not there, and its name as expected
    made_from: tuple[str, ...] = ()  # of a synthetic variant: the cases whose anatomy or lesions it holds


class CaseList(NamedTuple):
    root: Path  # the folder that directly holds the cases; of several the first's
    layout: str
    labels: LabelChoice | None  # which of KiTS21's aggregations; None: there is one label a case
    data: DataKind
    cases: list[CaseFiles]
    notes: list[str]  # what a person should know about the choice of cases

    @property
    def description(self) -> str:
        labels = f" (labels: {self.labels})" if self.labels else ""
        return f"{self.layout} layout{labels}, data: {self.data}"


def find_all_cases(source: str, labels: LabelChoice = "majority") -> CaseList:
    """The cases of one folder, or of several written [A,B]. A case id found again is the same patient: first one wins.

    Raises MissingInput / InputError as `find_cases`, and when the folders hold different kinds of data.
    """
    folders = parse_folders(source, "source")
    found = {folder: find_cases(folder, labels) for folder in folders}
    if len({one.data for one in found.values()}) > 1:
        kinds = ", ".join(f"{folder} holds {one.data}" for folder, one in found.items())
        raise InputError(
            f"source={source}: {kinds} cases. Figures on a mixture could be read as KiTS results. Keep them apart."
        )
    cases: dict[str, CaseFiles] = {}
    notes: list[str] = []
    for folder, one in found.items():
        again = [case.case_id for case in one.cases if case.case_id in cases]
        cases |= {case.case_id: case for case in one.cases if case.case_id not in cases}
        if again:
            notes.append(
                f"{folder}: {len(again)} of {len(one.cases)} cases left out, because an earlier folder has the same "
                f"ids: {listed(again)}. Other patients under these ids? Rename their folders."
            )
    return CaseList(
        found[folders[0]].root,
        " + ".join(dict.fromkeys(one.layout for one in found.values())),
        next((one.labels for one in found.values() if one.labels), None),
        next(iter(found.values())).data,
        list(cases.values()),
        notes,
    )


def find_cases(folder: Path, labels: LabelChoice = "majority") -> CaseList:
    """Detect the layout below `folder` and list its cases by id.

    Raises MissingInput when the folder is not there, InputError when it holds none of the layouts (and says what was
    looked for), has no such labels, or has one case twice.
    """
    if not folder.is_dir():
        raise MissingInput(f"source={folder}: no such folder.")
    root = _root_of(folder)
    if root is None:
        raise InputError(_nothing_in(folder))
    layout = _layout_of(root)
    if labels != "majority" and layout != "KiTS21":
        raise InputError(
            f"labels={labels}: {folder} is {layout}; only KiTS21 has {_AGGREGATED[labels]}. Leave labels= out."
        )
    if layout == _NNUNET:
        _check_dataset_json(root / "dataset.json")
        cases = _nnunet_cases(root)
    else:
        cases = _kits_cases(root, _AGGREGATED[labels] if layout == "KiTS21" else "segmentation")
    return CaseList(root, layout, labels if layout == "KiTS21" else None, data_kind(folder, root), cases, [])


def find_image(case: Path) -> Path | None:
    """The CT in a KiTS case's folder, if it is one."""
    return _one(case, "imaging")


def data_kind(*folders: Path) -> DataKind:
    """What made the cases: the mark in one of `folders`, else kits."""
    for mark in (folder / MARKER for folder in folders):
        if mark.is_file():
            kind = _json(mark).get("data")
            if kind not in get_args(DataKind):
                raise InputError(f"{mark}: data is {kind!r}, not one of {', '.join(get_args(DataKind))}.")
            return kind
    return "kits"


def variant_id(case_id: str, number: int) -> str:
    return f"{case_id}{_VARIANT_OF}{number}"


def stem(path: Path) -> str:
    """NAME of NAME.nii.gz or NAME.nii."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _root_of(folder: Path) -> Path | None:
    """The folder that directly holds the cases, or imagesTr/."""
    for root in (folder / name for name in _CASE_FOLDERS):
        if _case_folders(root):
            return root
    return folder if _by_name(folder / "imagesTr", "_0000") else None


def _case_folders(root: Path) -> list[Path]:
    return sorted(p for p in root.glob("case_*") if p.is_dir())


def _layout_of(root: Path) -> str:
    """KiTS19 and KiTS23 name their files alike; instances/ or the folder's own name tells them apart, or nothing."""
    folders = _case_folders(root)
    if not folders:
        return _NNUNET
    inside = {p.name for case in folders for p in case.iterdir()}
    name = root.absolute().name
    if any(p.startswith(("aggregated_", "segmentations")) for p in inside):
        return "KiTS21"
    if "instances" in inside or name == "dataset":
        return "KiTS23"
    return "KiTS19" if name == "data" else "KiTS19 or KiTS23"


def _kits_cases(root: Path, label_name: str) -> list[CaseFiles]:
    return [_kits_case(folder, label_name) for folder in _case_folders(root)]


def _kits_case(folder: Path, label_name: str) -> CaseFiles:
    try:
        files = _one(folder, "imaging"), _one(folder, label_name)
    except InputError as error:  # this case's own fault: it is named with the others
        return CaseFiles(folder.name, None, None, f"single file of each kind: {str(error).rstrip('.')}")
    case = _case(folder.name, *files, folder / "imaging", folder / label_name)
    try:
        return case._replace(made_from=_made_from(folder))
    except InputError as error:
        return CaseFiles(folder.name, None, None, f"record of the cases it was made from: {str(error).rstrip('.')}")


def _made_from(folder: Path) -> tuple[str, ...]:
    """Raises InputError where a variant does not say what it was made from: it would pass for a patient of its own,
    and be trained on while that patient is tested."""
    record = folder / VARIANT_RECORD
    if not record.is_file():
        if _VARIANT_OF not in folder.name:
            return ()
        raise InputError(f"{record} is not there. Delete that folder, or make the variants again.")
    cases = _json(record).get("made_from")
    if not isinstance(cases, list) or not cases or not all(isinstance(case, str) for case in cases):
        raise InputError(
            f"{record} is damaged: made_from must list case ids, found {cases!r}. Delete that folder, or make the "
            "variants again."
        )
    return tuple(cases)


def _nnunet_cases(root: Path) -> list[CaseFiles]:
    images, labels = _by_name(root / "imagesTr", "_0000"), _by_name(root / "labelsTr", "")
    return [
        _case(name, images.get(name), labels.get(name), root / "imagesTr" / f"{name}_0000", root / "labelsTr" / name)
        for name in sorted(images | labels)
    ]


def _case(case_id: str, image: Path | None, label: Path | None, image_at: Path, label_at: Path) -> CaseFiles:
    absent = [
        f"{kind} file (expected {at.parent.name}/{at.name}.nii.gz)"
        for kind, path, at in (("image", image, image_at), ("label", label, label_at))
        if path is None
    ]
    return CaseFiles(case_id, image, label, " and no ".join(absent))


def _one(folder: Path, name: str) -> Path | None:
    """`name`.nii.gz or `name`.nii. Raises InputError when both are there: they may differ."""
    found = [path for ending in (".nii.gz", ".nii") if (path := folder / f"{name}{ending}").exists()]
    if len(found) > 1:
        raise InputError(f"{folder} holds both {name}.nii.gz and {name}.nii. Keep one of them.")
    return found[0] if found else None


def _by_name(folder: Path, suffix: str) -> dict[str, Path]:
    """{NAME: file} of NAME<suffix>.nii.gz and NAME<suffix>.nii; hidden files are not data."""
    endings = (f"{suffix}.nii.gz", f"{suffix}.nii")
    names = {
        p.name.removesuffix(".gz").removesuffix(f"{suffix}.nii")
        for p in (folder.iterdir() if folder.is_dir() else ())
        if p.name.endswith(endings) and not p.name.startswith(".")
    }
    return {name: _one(folder, f"{name}{suffix}") for name in sorted(names)}


def _check_dataset_json(path: Path) -> None:
    """nnU-Net's own names of the label ids, where they are given: other ids would train a kidney model on tumors.

    Raises InputError. Regions ("kidney": [1, 2, 3]) and nnU-Net 1's order ("1": "kidney") are understood.
    """
    labels = _json(path).get("labels", {}) if path.is_file() else {}
    if not isinstance(labels, dict):
        raise InputError(f"{path} is damaged: its labels must be names and ids, found {labels!r}.")
    for key, value in labels.items():
        if str(key).isdigit():
            name, ids = str(value), [int(key)]
        else:
            name, ids = key, value if isinstance(value, list) else [value]
        meant = next((label for word, label in _WORDS.items() if word in name.lower()), None)
        # a name KiTS does not have may stand for the background and for ids that no KiTS label has
        foreign = meant is None and len(ids) == 1 and ids[0] in (KIDNEY, TUMOR, CYST)
        if foreign or (meant is not None and meant not in ids):
            raise InputError(
                f"{path} calls label {', '.join(map(str, ids))} {name!r}; here labels are {LABELS}. Convert the label "
                "files and dataset.json first."
            )


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it must hold an object, found {type(content).__name__}.")
    return content


def _nothing_in(folder: Path) -> str:
    if (folder / "store.json").is_file():
        return "It is a slice store, made by kits_dist.prepare: name the folder that it was made from."
    inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    below = [str(p) for p in inside if p.is_dir() and _root_of(p)]
    if below:
        end = f"There are cases in {listed(below)}: name that folder."
    elif any(p.name.endswith((".nii", ".nii.gz")) for p in inside):
        names = listed([p.name for p in inside], 3)
        end = f"It holds single files ({names}); a case is a folder with its CT and its label."
    else:
        end = f"It holds {listed([p.name for p in inside], 5)}." if inside else "It is empty."
    return (
        f"{folder}: no cases found. Looked for case_*/imaging.nii.gz here and in data/, dataset/, kits21/data/ "
        f"(KiTS19, KiTS21, KiTS23), and for imagesTr/*_0000.nii.gz (nnU-Net raw). {end}"
    )
