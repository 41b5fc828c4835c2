"""Find the scans that `predict` is given: NIfTI files, KiTS and nnU-Net folders, DICOM series.

Every file of the folder is accounted for: it belongs to a scan, or a line says why it is left out. What is left out and
may be a CT makes the program end with an error, after the others are predicted.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from kits_dist.imaging import dicom, dicom_search
from kits_dist.imaging.datasets import (
    MARKER,
    PATIENTS,
    VARIANT_RECORD,
    CaseFiles,
    check_one_channel,
    find_cases,
    find_image,
    holds_cases,
    other_channels,
)
from kits_dist.imaging.nifti import Volume, by_name, is_nifti, nifti_files, read_image, stem
from kits_dist.imaging.tree import Tree, list_tree
from kits_dist.labels import REGIONS
from kits_dist.utils.errors import InputError, MissingInput, MissingPackage
from kits_dist.utils.files import read_json
from kits_dist.utils.parallel import progress_bar
from kits_dist.utils.text import listed

_KNOWN = {MARKER, PATIENTS, VARIANT_RECORD, "dataset.json"}  # files that are read elsewhere
# names of files, or of folders above them, that say what is no CT
_NO_CT = re.compile(r"seg|label|mask|annot|pred|truth|(^|[_.])gt([_.]|$)")
_VOLUMES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr", ".hdr", ".img", ".mgz", ".mgh", ".mnc")


class Unread(NamedTuple):
    """What may be a CT and cannot be read."""

    message: str


class Scan(NamedTuple):
    """One CT to predict."""

    name: str  # of its label map
    source: Path | dicom.Series | Unread
    root: Path  # the folder that was searched

    def read(self) -> Volume:
        """Read the CT. Raises InputError naming the scan's file or folder."""
        if isinstance(self.source, Unread):
            raise InputError(self.source.message)
        return dicom.read_series(self.source) if isinstance(self.source, dicom.Series) else read_image(self.source)


class ScanList(NamedTuple):
    """Scans, and what else there was."""

    scans: list[Scan]  # last those that cannot be read, so that leaving them out is no success
    notes: list[str]  # what was chosen, and what was left out because it is no CT


def find_scans(source: Path, output: Path | None = None) -> ScanList:
    """Find the scans of a file or folder.

    source   one NIfTI file, a folder of them, a KiTS case or a folder of cases, nnU-Net's imagesTs or the folder above
             it; in each folder also the DICOM series at any depth
    output   the folder for the label maps, which is not searched

    Raises MissingInput / InputError when nothing is found, or when two scans would have one name.
    """
    if source.is_file():
        if not is_nifti(source) and dicom_search.is_dicom(source):
            raise InputError(f"input={source} is one DICOM file. Name the folder that holds the whole series.")
        # of a KiTS case (case_00010/imaging.nii.gz) the folder has the name
        name = source.resolve().parent.name if find_image(source.parent) == source else _scan_name(source)
        return ScanList([Scan(name, source, source.parent)], _other_channels_of(source))
    if not source.is_dir():
        raise MissingInput(f"input={source}: no such file or folder.")

    scans, notes = _nifti_scans(source)
    tree = list_tree(source, without=output)
    said = {scan.name for scan in scans if isinstance(scan.source, Unread)}  # cases without a CT
    tree = tree._replace(unreadable={path: why for path, why in tree.unreadable.items() if path.name not in said})
    found, without_reader = _search_dicom(source, tree, needed=not scans)
    series, more = _dicom_scans(source, found, {scan.name for scan in scans} - said)
    if not scans and not series:
        _raise_nothing(source, tree, found)

    with_series = said & {part for one in found.series for part in one.folder.parts}
    scans = [scan for scan in scans if scan.name not in with_series] + series
    twice = [name for name, count in Counter(scan.name for scan in scans).items() if count > 1]
    if twice:
        raise InputError(f"input={source}: two scans would be named {twice[0]}. Rename a file or folder.")
    rest, unread = _account(source, tree, found, scans)
    return ScanList([*scans, *without_reader, *unread], notes + more + rest)


def _nifti_scans(source: Path) -> tuple[list[Scan], list[str]]:
    """Return the NIfTI scans of a folder, trying one layout after the other, and notes on the choice.

    What else lies in the folder is for `_account` to say.
    """
    image = find_image(source)
    if image is not None:
        return [Scan(source.resolve().name, image, source)], []
    test_images = source / "imagesTs"
    for folder in (source, test_images):
        scans = _scans_in(folder) if folder.is_dir() else []
        if scans:
            chosen = f"{test_images}: nnU-Net's test images; those of imagesTr are left out"
            return scans, [] if folder == source else [chosen]
    if not holds_cases(source):
        return [], []
    cases = find_cases(source)
    return [Scan(case.case_id, case.image or Unread(_why_none(case, source)), source) for case in cases.cases], []


def _why_none(case: CaseFiles, source: Path) -> str:
    plain = case.missing.startswith("image file")
    return f"{case.case_id}: no CT file in {source}." if plain else f"{case.case_id}: has no {case.missing}."


def _scans_in(folder: Path) -> list[Scan]:
    """Return the NIfTI files directly in `folder` as scans. Raises InputError for those of several channels."""
    files = nifti_files(folder)
    check_one_channel(folder, files)
    return [Scan(name, path, folder) for name, path in by_name(files, _scan_name).items()]


def _scan_name(path: Path) -> str:
    """Strip the file type and nnU-Net's channel number (NAME_0000.nii.gz)."""
    return stem(path).removesuffix("_0000") or stem(path)


def _other_channels_of(path: Path) -> list[str]:
    """Return a note where other channels lie next to the one file that was named."""
    name = stem(path)[: -len("_0000")]
    others = [other.name for other in other_channels(nifti_files(path.parent)) if stem(other).startswith(f"{name}_")]
    others = [other for other in others if other != path.name]
    return [f"{path} has other channels next to it ({listed(others, 3)}), which are not used"] if others else []


def _search_dicom(source: Path, tree: Tree, needed: bool) -> tuple[dicom_search.Found, list[Scan]]:
    """Search for DICOM series, and return as a scan those that cannot be read without SimpleITK.

    needed   there are no other scans: raise MissingPackage without SimpleITK
    """
    unreadable = {path: why for path, why in tree.unreadable.items() if not path.is_dir() and not is_nifti(path)}
    others = [path for path in tree.files if not is_nifti(path)]
    try:
        return dicom_search.search(others, unreadable, _bar), []
    except MissingPackage as error:
        if needed:
            raise
        dicoms = [path for path in others if dicom_search.is_dicom(path)]
        found = dicom_search.search([path for path in others if path not in dicoms], unreadable)
        return found, [Scan("DICOM files", Unread(f"{_relative(source, dicoms)}: {error}"), source)]


def _dicom_scans(root: Path, found: dicom_search.Found, taken: set[str]) -> tuple[list[Scan], list[str]]:
    """Make each CT series a scan, named by its folder, and by its number where a folder holds several.

    taken   names of NIfTI files: a series of such a name, which may be what the file was made from, gets another one
    """
    by_folder: dict[Path, list[dicom.Series]] = defaultdict(list)
    for series in found.series:
        by_folder[series.folder].append(series)

    scans: list[Scan] = []
    notes = [f"left out {reason}" for reason in dicom_search.summarize(found.left_out)]
    for folder, several in sorted(by_folder.items()):
        name = "_".join(folder.relative_to(root).parts) or root.resolve().name
        if name in taken:
            notes.append(f"{folder}: the series is called {name}_dicom, because there is a NIfTI file of its name")
            name += "_dicom"
        if len(several) == 1:
            scans.append(Scan(name, several[0], root))
            continue
        numbers = [series.number for series in several]
        if not all(number.isdigit() for number in numbers) or len(set(numbers)) < len(numbers):
            numbers = [str(k + 1) for k in range(len(several))]
        scans += [Scan(f"{name}_{number}", series, root) for number, series in zip(numbers, several, strict=True)]
        notes.append(f"{folder} holds {len(several)} CT series: each is a scan, named by its number")
    return scans, notes


def _bar(files: list) -> Iterable:
    return progress_bar("read DICOM headers", "file", items=files, disable=len(files) < 2000)


def _raise_nothing(source: Path, tree: Tree, found: dicom_search.Found) -> None:
    """Raise InputError that says what was looked for, and what is there instead."""
    if found.left_out:
        why = listed(dicom_search.summarize(found.left_out), 3)
        raise InputError(f"input={source}: {len(found.left_out)} DICOM files, but no CT series: {why}.")
    closed = [f"{path} cannot be read ({why})" for path, why in tree.unreadable.items() | found.unreadable.items()]
    if closed:
        raise InputError(f"input={source}: no scan is found, and {listed(closed, 3)}. Change its permissions.")
    try:
        find_cases(source)
    except InputError as error:
        raise InputError(
            f"input={source}: no .nii.gz or .nii file directly in it, no DICOM below it. {error}"
        ) from error


# ---- what is left


def _account(source: Path, tree: Tree, found: dicom_search.Found, scans: list[Scan]) -> tuple[list[str], list[Scan]]:
    """Return notes on files that are no CT, and as scans those that may be one and are not read."""
    used = {scan.source for scan in scans if isinstance(scan.source, Path)}
    # imagesTr/ is left out by the choice of imagesTs/, which has a note of its own
    chosen = {source / "imagesTr"} if any(path.parent == source / "imagesTs" for path in used) else set()
    nifti = [path for path in tree.files if is_nifti(path) and path not in used and path.parent not in chosen]
    nifti += [path for path in tree.unreadable if is_nifti(path) and path not in used]
    no_ct = [path for path in nifti if _is_no_ct(source, path)]
    may_be_ct = [path for path in nifti if path not in no_ct]
    # in another format, packed in another way, or not copied to its end
    other_volumes = [path for path in found.others if dicom_search.plain_name(path).endswith(_VOLUMES)]
    labels_elsewhere = [path for path in other_volumes if _is_no_ct(source, path)]
    other_volumes = [path for path in other_volumes if path not in labels_elsewhere]
    rest = [path for path in found.others if path not in {*other_volumes, *labels_elsewhere}]
    closed = found.unreadable | {path: why for path, why in tree.unreadable.items() if path.is_dir()}

    notes = []
    for paths, what in (
        (no_ct + labels_elsewhere, "label maps or probabilities, by their names or their JSON files"),
        ([path for path in rest if path.name not in _KNOWN], "neither NIfTI nor DICOM"),
        (tree.system, "hidden, or left by a viewer or an operating system"),
        ([path for path in tree.empty if path not in used], "empty folders"),
    ):
        if paths:
            notes.append(f"left out of {source}: {_relative(source, paths)}: {what}")
    unread = {
        **{path: f"left out, it lies in a folder below input=. Name it: input={path.parent}" for path in may_be_ct},
        **{path: "left out, its name ends with neither .nii nor .nii.gz. Convert it." for path in other_volumes},
        **{path: f"cannot be read ({why})." for path, why in closed.items()},
    }
    scans = [
        Scan(str(path.relative_to(source)), Unread(f"{path}: {why}"), source) for path, why in sorted(unread.items())
    ]
    return notes, scans


def _is_no_ct(source: Path, path: Path) -> bool:
    """Return whether names or a JSON file of ours say that a volume below `source` holds labels or probabilities."""
    if _NO_CT.search(str(path.relative_to(source)).lower()):
        return True
    names = [stem(path), *(stem(path).removesuffix(f"_{region}") for region in REGIONS)]
    return any(_is_our_record(path.with_name(f"{name}.json")) for name in names)


def _is_our_record(path: Path) -> bool:
    """Return whether a file is one that `predict` writes next to a label map."""
    try:
        return path.is_file() and "labels" in read_json(path)
    except InputError:
        return False


def _relative(source: Path, paths: list[Path]) -> str:
    return listed([str(path.relative_to(source)) for path in paths], 3)
