"""What NVIDIA's data sheets promise: dense (no sparsity) peaks at boost clock, which no real program reaches."""

from typing import NamedTuple

from kits_dist.utils.errors import InputError


class Peak(NamedTuple):
    """One GPU on paper."""

    flops: dict[str, float]  # precision -> floating point operations a second, tensor cores where they serve it
    bytes_per_s: float  # of its memory
    link_bytes_per_s: float  # to its neighbours, one direction
    source: str


_HOPPER = {"bf16": 989.4e12, "tf32": 494.7e12, "fp32": 66.9e12}

PEAKS = {
    "A6000": Peak(
        {"bf16": 154.8e12, "tf32": 77.4e12, "fp32": 38.7e12},
        768e9,
        32e9,  # PCIe 4.0 x16; a bridge joins no more than two of them
        "NVIDIA RTX A6000 data sheet (309.7 TFLOPS with sparsity)",
    ),
    "A40": Peak({"bf16": 149.7e12, "tf32": 74.8e12, "fp32": 37.4e12}, 696e9, 32e9, "NVIDIA A40 data sheet"),
    "L40S": Peak({"bf16": 362e12, "tf32": 183e12, "fp32": 91.6e12}, 864e9, 32e9, "NVIDIA L40S data sheet"),
    "A100": Peak(
        {"bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12}, 2039e9, 300e9, "NVIDIA A100 data sheet, 80 GB SXM4"
    ),
    "H100": Peak(_HOPPER, 3350e9, 450e9, "NVIDIA H100 data sheet, SXM5 (1,979 TFLOPS with sparsity)"),
    "H200": Peak(_HOPPER, 4800e9, 450e9, "NVIDIA H200 data sheet, SXM5 (1,979 TFLOPS with sparsity)"),
}


def peak_of(gpu: str) -> Peak:
    """By its short name, in any case. Raises InputError naming the known ones."""
    known = {name.lower(): peak for name, peak in PEAKS.items()}
    if gpu.lower() not in known:
        raise InputError(
            f"gpu={gpu}: choose one of {', '.join(PEAKS)}, or add its data sheet to kits_dist/training/peaks.py"
        )
    return known[gpu.lower()]


_OTHER_BOARDS = {"PCIE", "NVL", "MIG"}  # slower than the SXM boards whose data sheets these are, or a slice of one


def short_name(device_name: str) -> str | None:
    """'NVIDIA H100 80GB HBM3' -> 'H100'; None for a GPU, or a board of one, that is not in the table."""
    words = device_name.upper().replace("-", " ").split()
    return None if _OTHER_BOARDS & set(words) else next((name for name in PEAKS if name in words), None)
