"""What `predict` is pointed at -> scans by name: NIfTI files, KiTS and nnU-Net folders, DICOM series."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from kits_dist.imaging import dicom
from kits_dist.imaging.datasets import find_cases, find_image, stem
from kits_dist.imaging.nifti import Volume, read_image
from kits_dist.utils.errors import InputError, MissingInput
from kits_dist.utils.parallel import progress_bar
from kits_dist.utils.text import listed


class Scan(NamedTuple):
    name: str  # of its label map
    source: Path | dicom.Series | None  # None: the case's folder holds no CT
    root: Path  # where it was looked for

    def read(self) -> Volume:
        """Raises InputError naming the scan's file or folder."""
        if self.source is None:
            raise MissingInput(f"{self.name}: no CT file in {self.root}.")
        return dicom.read_series(self.source) if isinstance(self.source, dicom.Series) else read_image(self.source)


class ScanList(NamedTuple):
    scans: list[Scan]
    notes: list[str]  # what a person should know about the choice


def find_scans(source: Path) -> ScanList:
    """One NIfTI file, a folder of them, a KiTS case or a folder of cases, nnU-Net's imagesTs or the folder above it, a
    folder of DICOM series at any depth.

    Raises MissingInput / InputError when nothing is there, or two scans would have one name.
    """
    if source.is_file():
        if not _is_nifti(source) and dicom.is_dicom(source):
            raise InputError(f"input={source} is one DICOM file. Name the folder that holds the whole series.")
        return ScanList([Scan(_name(source), source, source.parent)], [])
    if not source.is_dir():
        raise MissingInput(f"input={source}: no such file or folder.")
    if (image := find_image(source)) is not None:
        return ScanList([Scan(source.resolve().name, image, source)], [])
    if loose := _loose(source):
        return ScanList(loose, [])
    if below := _loose(source / "imagesTs"):
        return ScanList(below, [f"{source / 'imagesTs'}: nnU-Net's test images; those of imagesTr are left out"])
    if paths := dicom.files_below(source):
        return _series(source, paths)
    try:
        return ScanList([Scan(case.case_id, case.image, source) for case in find_cases(source).cases], [])
    except InputError as error:
        raise InputError(
            f"input={source}: no .nii.gz or .nii file directly in it, no DICOM below it. {error}"
        ) from error


def _loose(folder: Path) -> list[Scan]:
    """NIfTI files that lie directly in `folder`."""
    paths = sorted(p for p in folder.iterdir() if _is_nifti(p)) if folder.is_dir() else []
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        by_name[_name(path)].append(path)
    for same in by_name.values():
        if len(same) > 1:
            names = " and ".join(path.name for path in same)
            raise InputError(f"{folder} holds {names}, whose label maps would have one name. Keep one of them.")
    if second := [path.name for path in paths if stem(path).endswith("_0001") and stem(path)[:-5] in by_name]:
        raise InputError(f"{folder} holds second channels ({listed(second, 3)}); a CT has one. Name another folder.")
    return [Scan(name, same[0], folder) for name, same in by_name.items()]


def _is_nifti(path: Path) -> bool:
    return path.name.endswith((".nii", ".nii.gz")) and not path.name.startswith(".")


def _name(path: Path) -> str:
    """Without the ending, and without the channel number that nnU-Net wants (NAME_0000.nii.gz)."""
    return stem(path).removesuffix("_0000") or stem(path)


def _series(root: Path, paths: list[Path]) -> ScanList:
    """Each CT series is a scan, named by its folder, and by its number where several lie in one."""
    with progress_bar("look at DICOM headers", "file", items=paths, disable=len(paths) < 2000) as bar:
        found = dicom.series_of(bar)
    left_out = Counter(f"{series.folder}: {series.skip}" for series in found if series.skip)
    by_folder: dict[Path, list[dicom.Series]] = defaultdict(list)
    for series in found:
        if not series.skip:
            by_folder[series.folder].append(series)
    if not by_folder:
        why = listed([f"{words} ({count} series)" for words, count in left_out.items()], 3) or "none holds a picture"
        raise InputError(f"input={root}: {len(paths)} DICOM files, but no CT series: {why}.")
    scans, notes = [], [f"left out {words} ({count} series)" for words, count in left_out.items()]
    for folder, several in sorted(by_folder.items()):
        name = "_".join(folder.relative_to(root).parts) or root.resolve().name
        if len(several) == 1:
            scans.append(Scan(name, several[0], root))
            continue
        numbers = [series.number for series in several]
        if not all(number.isdigit() for number in numbers) or len(set(numbers)) < len(numbers):
            numbers = [str(k + 1) for k in range(len(several))]
        scans += [Scan(f"{name}_{number}", series, root) for number, series in zip(numbers, several, strict=True)]
        notes.append(f"{folder} holds {len(several)} CT series: each is a scan, named by its number")
    if twice := [name for name, count in Counter(scan.name for scan in scans).items() if count > 1]:
        raise InputError(f"input={root}: two series would be named {twice[0]}. Rename a folder.")
    return ScanList(scans, notes)
