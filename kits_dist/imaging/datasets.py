"""Find the cases of a data set: KiTS19, KiTS21, KiTS23 and nnU-Net raw folders -> a list of CaseFiles."""

import csv
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from kits_dist.imaging.nifti import by_name, is_nifti, nifti_files, stem
from kits_dist.labels import CYST, KIDNEY, LABELS, TUMOR
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, MissingInput
from kits_dist.utils.text import listed, parse_folders, utf8

DataKind = Literal["kits", "phantom", "painted"]
LabelChoice = Literal["majority", "and", "or"]
# A generated folder carries this file, so that the score of a phantom is never read as a KiTS result.
MARKER = "kits_dist_data.json"
PATIENTS = "patients.csv"  # next to the case folders: which of them are scans of one patient
VARIANT_RECORD = "variant.json"  # in the folder of a synthetic variant: which cases it was made from

_AGGREGATED: dict[LabelChoice, str] = {
    "majority": "aggregated_MAJ_seg",
    "and": "aggregated_AND_seg",
    "or": "aggregated_OR_seg",
}
_CASE_FOLDERS = (".", "data", "dataset", "kits21/data")
_NNUNET = "nnU-Net raw"
_VARIANT_OF = "-variant-"
# what a folder of cases may hold that needs no word
_KITS_NAMES = {"imaging", "segmentations", "instances", "raw", VARIANT_RECORD}
_NEXT_TO_CASES = {MARKER, PATIENTS, "kits.json", "audit.json", "audit.png", "LICENSE", "README.md"}
_NNUNET_NAMES = {"imagesTr", "labelsTr", "imagesTs", "labelsTs", "dataset.json", *_NEXT_TO_CASES}
_CHANNEL = re.compile(r"(.*)_(\d{4})")  # nnU-Net's NAME_0000
# Words in the label names of a dataset.json, the most specific first: a kidney tumor is a tumor.
_WORDS = {"tumo": TUMOR, "lesion": TUMOR, "cancer": TUMOR, "mass": TUMOR, "cyst": CYST, "kidney": KIDNEY}


class CaseFiles(NamedTuple):
    """The files of one case."""

    case_id: str  # case_00042, or nnU-Net's name
    image: Path | None  # None: missing, which the reader reports
    label: Path | None
    missing: str = ""  # which file is missing, and its expected name
    made_from: tuple[str, ...] = ()  # of a synthetic variant: the cases whose anatomy or lesions it holds
    patient: str = ""  # cases of one patient stay on one side of every split; "": a patient of its own


class CaseList(NamedTuple):
    """The cases of one data set, and how they were found."""

    root: Path  # the folder that directly holds the cases; the first where there are several
    layout: str
    labels: LabelChoice | None  # which of KiTS21's aggregations; None: there is one label per case
    data: DataKind
    cases: list[CaseFiles]
    notes: list[str]  # what a person should know about the choice of cases

    @property
    def description(self) -> str:
        """Return layout, labels and kind of data in a few words."""
        labels = f" (labels: {self.labels})" if self.labels else ""
        return f"{self.layout} layout{labels}, data: {self.data}"


def find_all_cases(source: str, labels: LabelChoice = "majority") -> CaseList:
    """Find the cases of one folder, or of several written [A,B], where the first folder with a case id wins.

    Raises MissingInput / InputError as `find_cases` does, and when the folders hold different kinds of data.
    """
    lists = {folder: find_cases(folder, labels) for folder in parse_folders(source, "source")}
    first = next(iter(lists.values()))
    if any(found.data != first.data for found in lists.values()):
        kinds = ", ".join(f"{folder} holds {found.data}" for folder, found in lists.items())
        raise InputError(
            f"source={source}: {kinds} cases. Results on a mixture could be read as KiTS results. Keep them apart."
        )

    cases: dict[str, CaseFiles] = {}
    notes: list[str] = []
    for folder, found in lists.items():
        notes += found.notes
        again = [case.case_id for case in found.cases if case.case_id in cases]
        cases |= {case.case_id: case for case in found.cases if case.case_id not in cases}
        if again:
            notes.append(
                f"{folder}: {len(again)} of {len(found.cases)} cases left out, because an earlier folder has the same "
                f"ids: {listed(again)}. Other patients under these ids? Rename their folders."
            )
    strange = [case_id for case_id in cases if utf8(case_id) != case_id]
    if strange:
        raise InputError(f"source={source}: the names {listed(strange)} are not UTF-8. Rename these cases.")
    layout = " + ".join(dict.fromkeys(found.layout for found in lists.values()))
    chosen: LabelChoice | None = next((found.labels for found in lists.values() if found.labels), None)
    return CaseList(first.root, layout, chosen, first.data, list(cases.values()), notes)


def find_cases(folder: Path, labels: LabelChoice = "majority") -> CaseList:
    """Detect the layout below `folder` and list its cases by id; `notes` name what else lies there.

    Raises MissingInput when the folder is not there, InputError when it holds none of the layouts (and says what was
    looked for), has no such labels, has one case twice, or images of several channels.
    """
    if not folder.is_dir():
        raise MissingInput(f"source={folder}: no such folder.")
    root = _root_of(folder)
    if root is None:
        raise InputError(_describe_unknown(folder))
    layout = _layout_of(root)
    if labels != "majority" and layout != "KiTS21":
        raise InputError(
            f"labels={labels}: {folder} is {layout}; only KiTS21 has {_AGGREGATED[labels]}. Leave labels= out."
        )
    if layout == _NNUNET:
        cases = _nnunet_cases(root)
        notes = _check_dataset_json(root / "dataset.json", len(cases)) + _unused_of_nnunet(root, cases)
    else:
        label_name = _AGGREGATED[labels] if layout == "KiTS21" else "segmentation"
        cases = [_kits_case(case, label_name) for case in _case_folders(root)]
        notes = _unused_of_kits(folder, root, layout)
    patients = _patients(root, [case.case_id for case in cases])
    cases = [case._replace(patient=patients[case.case_id]) for case in cases]
    return CaseList(root, layout, labels if layout == "KiTS21" else None, data_kind(folder, root), cases, notes)


def _patients(root: Path, case_ids: list[str]) -> dict[str, str]:
    """Return {case: patient}: from patients.csv next to the case folders, else case_00067_s205 is a scan of case_00067.

    Raises InputError for a table that has other columns, or that names a case twice or one that is not there.
    """
    patients = {case_id: re.sub(r"^(case_\d{5})_s\d+$", r"\1", case_id) for case_id in case_ids}
    path = root / PATIENTS
    if not path.is_file():
        return patients
    try:
        named = [(row["case"].strip(), row["patient"].strip()) for row in files.read_table(path)]
    except csv.Error as error:
        raise InputError(f"{path}: no table of text with commas ({error}). Save it as such.") from error
    except (KeyError, AttributeError) as error:
        raise InputError(f"{path}: needs the columns case and patient, and both in every row.") from error
    twice = [case for case, count in Counter(case for case, _ in named).items() if count > 1]
    unknown = [case for case, _ in named if case not in patients]
    for wrong, what in ((twice, "twice"), (unknown, "without a folder of that name")):
        if wrong:
            raise InputError(f"{path}: {listed(wrong)} {what}. Correct the table, or delete it.")
    return patients | {case: patient for case, patient in named if patient}


def find_image(case: Path) -> Path | None:
    """Return the CT in the folder of a KiTS case, None when the folder is no such case."""
    return _find_file(case, "imaging")


def holds_cases(folder: Path) -> bool:
    """Return whether `find_cases` finds cases below `folder`."""
    return _root_of(folder) is not None


def other_channels(files: Iterable[Path]) -> list[Path]:
    """Return NAME_0001, NAME_0002 and so on, where there is a NAME_0000: nnU-Net's further channels of one image."""
    numbered = {path: match for path in files if (match := _CHANNEL.fullmatch(stem(path)))}
    first = {match[1] for match in numbered.values() if match[2] == "0000"}
    return [path for path, match in numbered.items() if match[2] != "0000" and match[1] in first]


def check_one_channel(folder: Path, files: Iterable[Path]) -> None:
    """Raise InputError where one of the images in `folder` has a second channel: alone, the first would be a guess."""
    second = other_channels(files)
    if second:
        names = listed([path.name for path in second], 3)
        raise InputError(
            f"{folder} holds second channels ({names}); a CT has one. Name another folder, or one with the files of "
            "the CT's channel alone."
        )


def data_kind(*folders: Path) -> DataKind:
    """Return what made the cases: the first mark in `folders`, or "kits" where there is none."""
    for folder in folders:
        mark = folder / MARKER
        if mark.is_file():
            kind = files.read_json(mark).get("data")
            for known in get_args(DataKind):
                if kind == known:
                    return known
            raise InputError(f"{mark}: data is {kind!r}, not one of {', '.join(get_args(DataKind))}.")
    return "kits"


def variant_id(case_id: str, number: int) -> str:
    """Return the case id of a synthetic variant."""
    return f"{case_id}{_VARIANT_OF}{number}"


def _root_of(folder: Path) -> Path | None:
    """Return the folder that directly holds the cases or imagesTr/, None where there is none."""
    for name in _CASE_FOLDERS:
        if _case_folders(folder / name):
            return folder / name
    return folder if _by_name(folder / "imagesTr", "_0000") else None


def _case_folders(root: Path) -> list[Path]:
    """Return the folders of cases; a link to nothing is a case that cannot be read, not none."""
    return sorted(p for p in root.glob("case_*") if p.is_dir() or (p.is_symlink() and not p.exists()))


def _layout_of(root: Path) -> str:
    """Name the layout; KiTS19 and KiTS23 differ in nothing but instances/ and the name of the folder."""
    folders = _case_folders(root)
    if not folders:
        return _NNUNET
    inside = {p.name for case in folders for p in _entries(case)}
    name = root.absolute().name
    if any(p.startswith(("aggregated_", "segmentations")) for p in inside):
        return "KiTS21"
    if "instances" in inside or name == "dataset":
        return "KiTS23"
    return "KiTS19" if name == "data" else "KiTS19 or KiTS23"


def _kits_case(folder: Path, label_name: str) -> CaseFiles:
    """Return the files of a case; what is wrong with its folder is reported with the other cases, not raised."""
    if not folder.is_dir():
        return CaseFiles(folder.name, None, None, f"folder: {folder} is a link to nothing")
    problem = "single file of each kind"
    try:
        image, label = _find_file(folder, "imaging"), _find_file(folder, label_name)
        problem = "record of the cases it was made from"
        made_from = _made_from(folder)
    except InputError as error:
        return CaseFiles(folder.name, None, None, f"{problem}: {str(error).rstrip('.')}")
    except OSError as error:
        return CaseFiles(folder.name, None, None, f"readable folder ({error.strerror})")
    case = _case(folder.name, image, label, folder / "imaging", folder / label_name)
    return case._replace(made_from=made_from)


def _made_from(folder: Path) -> tuple[str, ...]:
    """Return the parents of a variant, () for a patient. Raises InputError where a variant does not name its parents.

    Such a variant would pass for a patient, and be trained on while its real patient is tested.
    """
    record = folder / VARIANT_RECORD
    if not record.is_file():
        if _VARIANT_OF not in folder.name:
            return ()
        raise InputError(f"{record} is not there. Delete that folder, or make the variants again.")
    cases = files.read_json(record).get("made_from")
    if not isinstance(cases, list) or not cases or not all(isinstance(case, str) for case in cases):
        raise InputError(
            f"{record} is damaged: made_from must list case ids, found {cases!r}. Delete that folder, or make the "
            "variants again."
        )
    return tuple(cases)


def _nnunet_cases(root: Path) -> list[CaseFiles]:
    check_one_channel(root / "imagesTr", nifti_files(root / "imagesTr"))
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


def _find_file(folder: Path, name: str) -> Path | None:
    """Return `name`.nii.gz or `name`.nii. Raises InputError when both exist, because they may differ."""
    # a link to nothing is a file that cannot be read, not one that is missing
    found = [path for path in nifti_files(folder) if stem(path) == name]
    if len(found) > 1:
        raise InputError(f"{folder} holds both {found[1].name} and {found[0].name}. Keep one of them.")
    return found[0] if found else None


def _by_name(folder: Path, suffix: str) -> dict[str, Path]:
    """Return {NAME: file} of NAME<suffix>.nii.gz and NAME<suffix>.nii."""
    paths = [path for path in (nifti_files(folder) if folder.is_dir() else ()) if stem(path).endswith(suffix)]
    return by_name(paths, lambda path: stem(path).removesuffix(suffix))


def _unused_of_nnunet(root: Path, cases: list[CaseFiles]) -> list[str]:
    """Return notes on what a folder in nnU-Net's layout holds besides the files of its cases."""
    used = {path for case in cases for path in (case.image, case.label)}
    notes = []
    for name in ("imagesTr", "labelsTr"):
        unused = [path.name for path in _entries(root / name) if path not in used]
        if unused:
            expected = "NAME_0000.nii.gz" if name == "imagesTr" else "NAME.nii.gz"
            notes.append(f"{root / name}: {listed(unused, 3)} not used; expected {expected}")
    for name in ("imagesTs", "labelsTs"):
        found = _entries(root / name)
        if found:
            notes.append(f"{root / name}: {len(found)} files not used; a test set of its own is for predict")
    others = [path.name for path in _entries(root) if path.name not in _NNUNET_NAMES]
    return [*notes, f"{root}: {listed(others)} not used"] if others else notes


def _unused_of_kits(folder: Path, root: Path, layout: str) -> list[str]:
    """Return notes on what a folder in KiTS's layout holds besides its cases, and the cases besides their files."""
    known = _KITS_NAMES | (set(_AGGREGATED.values()) if layout == "KiTS21" else {"segmentation"})
    extra = Counter(path.name for case in _case_folders(root) for path in _entries(case) if stem(path) not in known)
    notes = []
    if extra:
        names = [f"{name} ({count} cases)" if count > 1 else name for name, count in sorted(extra.items())]
        notes.append(f"{root}: not used of the cases' folders: {listed(names)}")
    cases = {case.name for case in _case_folders(root)}
    others = [path.name for path in _entries(root) if path.name not in cases | _NEXT_TO_CASES]
    if others:
        notes.append(f"{root}: {listed(others)} not used, because a case is a folder case_NAME")
    elsewhere = [folder / name for name in _CASE_FOLDERS if (folder / name) != root and _case_folders(folder / name)]
    if _by_name(folder / "imagesTr", "_0000"):
        elsewhere.append(folder / "imagesTr")
    if elsewhere:
        notes.append(f"the cases in {listed([str(path) for path in elsewhere])} are not used. Name that folder, too")
    return notes


def _entries(folder: Path) -> list[Path]:
    """Return what lies in a folder by name, without hidden files; nothing where it is not there or must not be read."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def _check_dataset_json(path: Path, num_cases: int) -> list[str]:
    """Raise InputError where a dataset.json contradicts a CT with KiTS's labels; return notes on what else it says.

    Several channels would be read as the first one. Other label ids would train a kidney model on tumors; regions
    ("kidney": [1, 2, 3]) and nnU-Net 1's order ("1": "kidney") are understood.
    """
    content = files.read_json(path) if path.is_file() else {}
    _check_label_ids(path, content.get("labels", {}))
    channels = content.get("channel_names", content.get("modality", {}))
    names = [str(name) for name in (channels.values() if isinstance(channels, dict) else channels or [])]
    if len(names) > 1:
        raise InputError(
            f"{path} names {len(names)} channels ({listed(names)}); a CT has one. Make a folder with the files of the "
            "CT's channel alone, and a dataset.json that says so."
        )
    notes = []
    if names and not re.search(r"\bct", names[0].lower()):
        notes.append(f"{path} calls the images {names[0]!r}; here they are read as CT, in HU")
    said = content.get("numTraining", num_cases)
    if said != num_cases:
        notes.append(f"{path} says numTraining={said}, but {num_cases} cases are here")
    return notes


def _check_label_ids(path: Path, labels: Any) -> None:
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


def _describe_unknown(folder: Path) -> str:
    """Say what was looked for in a folder without cases, and what it holds instead."""
    if (folder / "store.json").is_file():
        return "It is a slice store, made by kits_dist.prepare: name the folder that it was made from."
    inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    below = [str(p) for p in inside if p.is_dir() and _root_of(p)]
    if below:
        end = f"There are cases in {listed(below)}: name that folder."
    elif any(is_nifti(p) for p in inside):
        names = listed([p.name for p in inside], 3)
        end = f"It holds single files ({names}); a case is a folder with its CT and its label."
    else:
        end = f"It holds {listed([p.name for p in inside], 5)}." if inside else "It is empty."
    return (
        f"{folder}: no cases found. Looked for case_*/imaging.nii.gz here and in data/, dataset/, kits21/data/ "
        f"(KiTS19, KiTS21, KiTS23), and for imagesTr/*_0000.nii.gz (nnU-Net raw). {end}"
    )
