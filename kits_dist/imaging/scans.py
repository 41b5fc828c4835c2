"""Find the scans that `predict` is given: NIfTI files, KiTS and nnU-Net folders, DICOM series."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from kits_dist.imaging import dicom
from kits_dist.imaging.datasets import find_cases, find_image
from kits_dist.imaging.nifti import Volume, by_name, is_nifti, nifti_files, read_image, stem
from kits_dist.utils.errors import InputError, MissingInput
from kits_dist.utils.parallel import progress_bar
from kits_dist.utils.text import listed


class Scan(NamedTuple):
    """One CT to predict."""

    name: str  # of its label map
    source: Path | dicom.Series | None  # None: the case's folder holds no CT
    root: Path  # the folder that was searched

    def read(self) -> Volume:
        """Read the CT. Raises InputError naming the scan's file or folder."""
        if self.source is None:
            raise MissingInput(f"{self.name}: no CT file in {self.root}.")
        return dicom.read_series(self.source) if isinstance(self.source, dicom.Series) else read_image(self.source)


class ScanList(NamedTuple):
    """Scans, and notes on what was chosen and what was left out."""

    scans: list[Scan]
    notes: list[str]


def find_scans(source: Path) -> ScanList:
    """Find the scans of a file or folder, trying one layout after the other.

    source   one NIfTI file, a folder of them, a KiTS case or a folder of cases, nnU-Net's imagesTs or the folder above
             it, or a folder of DICOM series at any depth

    Raises MissingInput / InputError when nothing is found, or when two scans would have one name.
    """
    if source.is_file():
        if not is_nifti(source) and dicom.is_dicom(source):
            raise InputError(f"input={source} is one DICOM file. Name the folder that holds the whole series.")
        return ScanList([Scan(_scan_name(source), source, source.parent)], [])
    if not source.is_dir():
        raise MissingInput(f"input={source}: no such file or folder.")

    image = find_image(source)
    if image is not None:
        return ScanList([Scan(source.resolve().name, image, source)], [])
    scans = _nifti_scans(source)
    if scans:
        return ScanList(scans, [])
    test_images = source / "imagesTs"
    scans = _nifti_scans(test_images) if test_images.is_dir() else []
    if scans:
        return ScanList(scans, [f"{test_images}: nnU-Net's test images; those of imagesTr are left out"])
    paths = dicom.files_below(source)
    if paths:
        return _dicom_scans(source, paths)
    try:
        return ScanList([Scan(case.case_id, case.image, source) for case in find_cases(source).cases], [])
    except InputError as error:
        raise InputError(
            f"input={source}: no .nii.gz or .nii file directly in it, no DICOM below it. {error}"
        ) from error


def _nifti_scans(folder: Path) -> list[Scan]:
    """Return the NIfTI files directly in `folder` as scans."""
    scans = by_name(nifti_files(folder), _scan_name)
    second = [name for name in scans if name.endswith("_0001") and name.removesuffix("_0001") in scans]
    if second:
        files = listed([scans[name].name for name in second], 3)
        raise InputError(f"{folder} holds second channels ({files}); a CT has one. Name another folder.")
    return [Scan(name, path, folder) for name, path in scans.items()]


def _scan_name(path: Path) -> str:
    """Strip the file type and nnU-Net's channel number (NAME_0000.nii.gz)."""
    return stem(path).removesuffix("_0000") or stem(path)


def _dicom_scans(root: Path, paths: list[Path]) -> ScanList:
    """Make each CT series a scan, named by its folder, and by its number where a folder holds several."""
    with progress_bar("read DICOM headers", "file", items=paths, disable=len(paths) < 2000) as bar:
        found = dicom.series_of(bar)
    skipped = Counter(f"{series.folder}: {series.skip}" for series in found if series.skip)
    left_out = [f"{reason} ({count} series)" for reason, count in skipped.items()]
    by_folder: dict[Path, list[dicom.Series]] = defaultdict(list)
    for series in found:
        if not series.skip:
            by_folder[series.folder].append(series)
    if not by_folder:
        why = listed(left_out, 3) or "none holds an image"
        raise InputError(f"input={root}: {len(paths)} DICOM files, but no CT series: {why}.")

    scans: list[Scan] = []
    notes = [f"left out {reason}" for reason in left_out]
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

    twice = [name for name, count in Counter(scan.name for scan in scans).items() if count > 1]
    if twice:
        raise InputError(f"input={root}: two series would be named {twice[0]}. Rename a folder.")
    return ScanList(scans, notes)
