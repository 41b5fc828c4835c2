"""Find the CT series among many files: every file is a slice, left out for a reason, or the fault of its series.

A file of a series that does not fit is a fact about the series. What is no slice of the scan (a localizer, a dose page,
a second copy) is left out and said. What should be a slice and cannot be read (cut, empty, without preamble) makes its
series unreadable: without it the scan could lack an end, where nobody would notice.
"""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kits_dist.imaging.dicom import Series, Slice, read_header
from kits_dist.utils.errors import InputError, MissingPackage
from kits_dist.utils.text import listed

# CT, enhanced CT and legacy converted enhanced CT (PS3.4 B.5); "": the file is too damaged to name a class
_CT_CLASSES = {"1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2", ""}
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and those of several frames, .7.1 to .7.4
_CLASS_NAMES = {
    "1.2.840.10008.1.3.10": "a DICOM directory",
    "1.2.840.10008.5.1.4.1.1.104.1": "a PDF document",
    "1.2.840.10008.5.1.4.1.1.11.1": "a presentation state",
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.88.11": "a report",
    "1.2.840.10008.5.1.4.1.1.88.22": "a report",
    "1.2.840.10008.5.1.4.1.1.88.33": "a report",
    "1.2.840.10008.5.1.4.1.1.88.67": "a dose report",
    "1.2.840.10008.5.1.4.1.1.481.2": "a dose distribution",
    "1.2.840.10008.5.1.4.1.1.481.3": "a structure set",
    "1.2.840.10008.5.1.4.1.1.481.5": "a treatment plan",
}
_ENDINGS = {".dcm", ".dicom", ".dic", ".ima"}
_UNFINISHED = (".gz", ".bz2", ".xz", ".zip", ".part", ".partial", ".tmp", ".filepart", ".crdownload", ".download")
_HEAD = 1024  # bytes that are read of each file to know what it is
_HEADER = 2**16  # bytes of a damaged one in which its series is looked for
_SERIES_UID = b"\x20\0\x0e\0"  # (0020,000e)


class Found(NamedTuple):
    """What a search has found; each of its files is in exactly one of the lists."""

    series: list[Series]  # CT series, those with a fault included
    left_out: list[tuple[Path, str]]  # DICOM files that are no slice of a scan, and why
    others: list[Path]  # files that are no DICOM
    unreadable: dict[Path, str]  # other files that cannot be opened, and why


class _File(NamedTuple):
    """The beginning of a file."""

    path: Path
    head: bytes
    problem: str = ""  # why it cannot be opened

    @property
    def is_dicom(self) -> bool:
        return self.head[128:132] == b"DICM"


class _Lost(NamedTuple):
    """What should be a slice and cannot be read."""

    message: str
    uid: str = ""  # of its series, where that can still be read; else it may belong to any series of its folder


def is_dicom(path: Path) -> bool:
    """Return whether DICM follows the preamble (PS3.10)."""
    return _peek(path).is_dicom


def search(paths: list[Path], unreadable: dict[Path, str], progress: Callable[[list], Iterable] = iter) -> Found:
    """Group files from any folders by series, at half a millisecond per file; no pixels are read.

    unreadable   {file: why} of files that are there and cannot be opened
    progress     wraps the list of DICOM files whose headers are read

    Raises MissingPackage without SimpleITK, where there is a DICOM file.
    """
    files = [*(_peek(path) for path in paths), *(_File(path, b"", why) for path, why in unreadable.items())]
    lost = _lost_slices(files)
    others = [file for file in files if not file.is_dicom and file.path not in lost]
    left_out: list[tuple[Path, str]] = []
    by_uid: dict[str | Path, list[Slice]] = defaultdict(list)
    for file in progress([file for file in files if file.is_dicom]):
        try:
            header = read_header(file.path)
        except MissingPackage:
            raise
        except InputError as error:
            sop_class = _sop_class(file.head)
            if sop_class in _CT_CLASSES:
                lost[file.path] = _Lost(str(error), _tag_in(_peek(file.path, _HEADER).head, _SERIES_UID))
            else:
                left_out.append((file.path, _CLASS_NAMES.get(sop_class, f"no image (SOP class {sop_class})")))
            continue
        by_uid[header.tags.get("series_uid") or file.path.parent].append(header)

    series = []
    blamed: set[Path] = set()
    for uid, headers in by_uid.items():
        slices, not_slices = _slices_of(headers)
        left_out += not_slices
        if slices:
            folders = {header.path.parent for header in slices}
            faults = {
                path: why for path, why in lost.items() if (why.uid == uid if why.uid else path.parent in folders)
            }
            blamed |= faults.keys()
            folder = Path(os.path.commonpath(folders))
            series.append(Series(slices[0].tags.get("series_number", ""), folder, slices, _described(faults)))
    alone = {path: why for path, why in lost.items() if path not in blamed}
    for folder in sorted({path.parent for path in alone}):
        faults = {path: why for path, why in alone.items() if path.parent == folder}
        series.append(Series("", folder, [], _described(faults)))
    closed = {file.path: file.problem for file in others if file.problem}
    return Found(series, left_out, [file.path for file in others if not file.problem], closed)


# ---- what of a series is a slice


def _slices_of(headers: list[Slice]) -> tuple[list[Slice], list[tuple[Path, str]]]:
    """Split the files of one series into the slices of its scan, and the others with the reason."""
    slices: list[Slice] = []
    left_out: list[tuple[Path, str]] = []
    for header in headers:
        reason = _no_slice(header)
        if reason:
            left_out.append((header.path, reason))
        else:
            slices.append(header)
    slices, copies = _without_copies(slices)
    slices, across = _axial(slices)
    return slices, left_out + copies + across


def _no_slice(header: Slice) -> str:
    """Return why a file is no slice of a CT scan by its own header, "" where it may be one."""
    sop_class = header.tags.get("sop_class", "")
    modality = header.tags.get("modality", "") or ("CT" if sop_class and sop_class in _CT_CLASSES else "")
    image_type = header.tags.get("image_type", "").upper().split("\\")
    if modality != "CT":
        return f"its modality is {modality or 'not given'}, not CT"
    if "LOCALIZER" in image_type:
        return "it is a localizer"
    if sop_class.startswith(_SECONDARY_CAPTURE):
        return "it is a secondary capture (a screenshot or a dose page)"
    if header.components != 1:
        return "it is a color image; a CT is gray"
    if "SECONDARY" in image_type and "AXIAL" not in image_type and "position" not in header.tags:
        return "it is a derived image without a position"
    return ""


def _without_copies(slices: list[Slice]) -> tuple[list[Slice], list[tuple[Path, str]]]:
    """Leave out files that are byte-identical copies of another one."""
    by_place: dict[tuple, list[Slice]] = defaultdict(list)
    for header in slices:
        by_place[header.tags.get("position"), header.tags.get("orientation"), header.shape].append(header)
    copies = []
    for group in by_place.values():
        first: dict[str, Path] = {}
        for header in group if len(group) > 1 else ():
            original = first.setdefault(_sha256(header.path), header.path)
            if original != header.path:
                copies.append((header.path, "a byte-identical copy of another file of its series"))
    dropped = {path for path, _ in copies}
    return [header for header in slices if header.path not in dropped], copies


def _axial(slices: list[Slice]) -> tuple[list[Slice], list[tuple[Path, str]]]:
    """Leave out the images across an axial scan: scouts that no tag calls a localizer, and reformatted planes.

    Nothing is left out where most images are not axial, or where an orientation cannot be read: what is wrong with
    such a series is for its reader to say.
    """
    axial = [_is_axial(header.tags.get("orientation", "")) for header in slices]
    if None in axial or all(axial) or 2 * sum(map(bool, axial)) <= len(axial):
        return slices, []
    kept = [header for header, yes in zip(slices, axial, strict=True) if yes]
    across = [header.path for header, yes in zip(slices, axial, strict=True) if not yes]
    return kept, [(path, "it lies across the axial slices of its series") for path in across]


def _is_axial(orientation: str) -> bool | None:
    """Return whether the normal of an image is closest to the body's axis; None where that is not known."""
    try:
        across, down = np.array([float(text) for text in orientation.split("\\")]).reshape(2, 3)
    except ValueError:
        return None
    return int(np.abs(np.cross(across, down)).argmax()) == 2


# ---- what should be a slice and is none


def _lost_slices(files: list[_File]) -> dict[Path, _Lost]:
    """Return {file: what it lost} of the files that are no DICOM and should be, by their names or by what they hold."""
    neighbors: dict[Path, list[Path]] = defaultdict(list)
    for file in files:
        if file.is_dicom:
            neighbors[file.path.parent].append(file.path)
    patterns = {folder: {_pattern(path) for path in paths} for folder, paths in neighbors.items()}
    endings = {folder: {_ending(path) for path in paths} for folder, paths in neighbors.items()}

    lost: dict[Path, _Lost] = {}
    for file in files:
        if file.is_dicom:
            continue
        folder = file.path.parent
        without_preamble = _is_bare(file.head)
        named_so = _ending(file.path) in _ENDINGS or _pattern(file.path) in patterns.get(folder, ())
        # in a folder of nothing else: IM0001, IM0002, all of them empty
        ending, numbered = _ending(file.path), "#" in _pattern(file.path)
        like_others = ending in endings[folder] if folder in endings else (not ending and numbered)
        blank = like_others and not file.head.strip(b"\0")
        bare_ct = without_preamble and _sop_class(file.head) in _CT_CLASSES
        if named_so or blank or bare_ct:
            lost[file.path] = _Lost(f"{file.path}: {_what_is_wrong(file, without_preamble)}")
    return lost


def _what_is_wrong(file: _File, without_preamble: bool) -> str:
    if file.problem:
        return f"it cannot be read ({file.problem})"
    if not file.head:
        return "the file is empty (0 bytes)"
    if without_preamble:
        return "no DICOM preamble (128 bytes, then DICM), so not a DICOM file by the standard. Convert it (dcmconv)"
    if not file.head.strip(b"\0"):
        return f"it holds nothing but zeros in its first {len(file.head)} bytes"
    if file.path.name.lower().endswith(_UNFINISHED):
        return "no DICOM file, but packed or not copied to its end. Unpack it, or copy it again"
    return f"no DICOM file, it begins with {file.head[:12]!r}"


def _described(lost: dict[Path, _Lost]) -> str:
    """Return the first message, how many files there are like it, and why that matters; "" for none."""
    if not lost:
        return ""
    first = next(iter(lost.values())).message.rstrip(".")
    more = f" ({len(lost) - 1} more files of this folder cannot be read)" if len(lost) > 1 else ""
    return f"{first}{more}. A slice may be missing: copy or export the series again, or remove what is no slice."


def _pattern(path: Path) -> str:
    """Return a name without its numbers and what a broken download appends: im012.dcm.part -> im#.dcm."""
    return re.sub(r"\d+", "#", plain_name(path))


def _ending(path: Path) -> str:
    """Return the ending in lower case; that of a UID is none."""
    suffix = Path(plain_name(path)).suffix
    return "" if suffix[1:].isdigit() else suffix


def plain_name(path: Path) -> str:
    """Return a name in lower case, without what packing or a broken download appends: scan.nii.part -> scan.nii."""
    name = path.name.lower()
    ending = next((ending for ending in _UNFINISHED if name.endswith(ending)), "")
    return name.removesuffix(ending)


def _is_bare(head: bytes) -> bool:
    """Return whether a file begins with a data set: an element of group 8, or of the meta information's group 2.

    Without a preamble nothing tells such a file apart but its first tags (PS3.5 7.1): group, element, and a type of
    two capital letters or a short length.
    """
    if len(head) < 8 or head[:2] not in (b"\x08\0", b"\x02\0", b"\0\x08"):
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return explicit or 0 < int.from_bytes(head[4:8], "little") < 256


def _sop_class(head: bytes) -> str:
    """Return the SOP class by the meta information or the data set; "" without either."""
    return _tag_in(head, b"\x02\0\x02\0") or _tag_in(head, b"\x08\0\x16\0")


def _tag_in(head: bytes, tag: bytes) -> str:
    """Return the UID that follows a tag in little endian, explicit (PS3.5 7.1.2) or implicit; "" where it is cut."""
    at = head.find(tag)
    if at < 0:
        return ""
    explicit = head[at + 4 : at + 6] == b"UI"
    size = int.from_bytes(head[at + 6 : at + 8] if explicit else head[at + 4 : at + 8], "little")
    value = head[at + 8 : at + 8 + size]
    return value.strip(b"\0 ").decode("ascii", "replace") if len(value) == size <= 64 else ""


def _peek(path: Path, size: int = _HEAD) -> _File:
    try:
        with open(path, "rb") as file:
            return _File(path, file.read(size))
    except OSError as error:
        return _File(path, b"", error.strerror or str(error))


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return str(path)  # a copy of nothing; its reader reports it


def summarize(left_out: list[tuple[Path, str]]) -> list[str]:
    """Return a line for each folder and reason, with the names of the first files."""
    names: dict[tuple[Path, str], list[str]] = defaultdict(list)
    for path, reason in left_out:
        names[path.parent, reason].append(path.name)
    return [f"{folder}: {reason} ({listed(files, 2)})" for (folder, reason), files in sorted(names.items())]
