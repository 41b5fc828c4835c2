"""Small DICOM files as bytes (explicit VR, little endian), so that a test can write what no library would."""

import struct
from pathlib import Path

import numpy as np

CT, CAPTURE, DOSE_REPORT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.88.67"
AXIAL, SAGITTAL, CORONAL = (1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1)
SHAPE = (6, 16, 16)  # of `write_ct`: slices, rows, columns
POSITION, ORIENTATION, INTERCEPT, MODALITY = (0x20, 0x32), (0x20, 0x37), (0x28, 0x1052), (0x08, 0x60)
IMAGE = {(0x28, n) for n in (2, 4, 0x10, 0x11, 0x30, 0x100, 0x101, 0x102, 0x103, 0x1052)} | {(0x7FE0, 0x10)}


def dicom_file(path, z=0.0, hu=50, side=16, series="1.2.3", preamble=True, without=(), **tags):
    """Write one image. tags: sop_class, modality, image_type, orientation; without: tags left out, as (0x20, 0x32)."""
    about = {"sop_class": CT, "modality": "CT", "image_type": "ORIGINAL\\PRIMARY\\AXIAL", "orientation": AXIAL} | tags
    pixels = np.full((side, side), hu + 1024, "<u2")
    pixels[:2] = 24  # air
    items = [
        (0x08, 0x08, "CS", about["image_type"]),
        (0x08, 0x16, "UI", about["sop_class"]),
        (0x08, 0x18, "UI", f"1.9.{abs(hash((str(path), z))) % 10**9}"),
        (*MODALITY, "CS", about["modality"]),
        (0x20, 0x0E, "UI", series),
        (0x20, 0x11, "IS", "4"),
        (*POSITION, "DS", f"-6\\-6\\{z:.6g}"),
        (*ORIENTATION, "DS", "\\".join(f"{v:g}" for v in about["orientation"])),
        (0x28, 0x02, "US", 1),
        (0x28, 0x04, "CS", "MONOCHROME2"),
        (0x28, 0x10, "US", side),
        (0x28, 0x11, "US", side),
        (0x28, 0x30, "DS", "0.8\\0.8"),
        (0x28, 0x100, "US", 16),
        (0x28, 0x101, "US", 16),
        (0x28, 0x102, "US", 15),
        (0x28, 0x103, "US", 0),
        (*INTERCEPT, "DS", "-1024"),
        (0x28, 0x1053, "DS", "1"),
        (0x7FE0, 0x10, "OW", pixels.tobytes()),
    ]
    body = b"".join(_element(*item) for item in items if item[:2] not in without)
    meta = _element(0x02, 0x02, "UI", about["sop_class"]) + _element(0x02, 0x03, "UI", "1.9")
    meta += _element(0x02, 0x10, "UI", "1.2.840.10008.1.2.1")
    meta = _element(0x02, 0x00, "UL", struct.pack("<I", len(meta))) + meta
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(bytes(128) + b"DICM" + meta + body if preamble else body)
    return Path(path)


def write_ct(folder, name="im{:03d}.dcm", **more):
    """Write the slices of a CT of SHAPE, 3 mm apart."""
    return [dicom_file(Path(folder) / name.format(k + 1), z=3.0 * k, hu=40 + k, **more) for k in range(SHAPE[0])]


def _element(group, number, vr, value):
    if isinstance(value, int):
        value = struct.pack("<H", value)
    if isinstance(value, str):
        value = value.encode()
    if len(value) % 2:
        value += b"\0" if vr == "UI" else b" "
    size = struct.pack("<HI", 0, len(value)) if vr == "OW" else struct.pack("<H", len(value))
    return struct.pack("<HH", group, number) + vr.encode() + size + value
