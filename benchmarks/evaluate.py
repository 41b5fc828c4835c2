"""How fast is the official table of a case, and in how much memory? `python -m benchmarks.evaluate truth=DIR`.

Dice and surface Dice of the three regions, from two files: ours against the challenge's way (SimpleITK, and
surface_distance on whole volumes), one process each, with the same predictions: the true label maps, moved about by
1.5 mm along a smooth random field, which is what a good network gets wrong. Both must come to the same figures.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

from benchmarks.lib.harness import Ceiling, Variant, interleave, line, record
from kits_dist import cli
from kits_dist.imaging.nifti import Volume, kits_geometry, read_labels, write_nifti
from kits_dist.imaging.predictions import find_truths
from kits_dist.synthetic.phantom import make_case
from kits_dist.utils.components import bounding_box
from kits_dist.utils.errors import InputError, JobFailed

CPU = torch.device("cpu")  # nothing here runs on a GPU
NEEDS = {"official": ("SimpleITK", "surface_distance"), "ours": ()}
MOVED_MM, BUMP_MM = 1.5, 12.0  # how far, and over what distance the field changes
WARMUP_STEPS = 1
A_RATIO = Ceiling("none", None, "a ratio of two figures of this run: more is better")
MEMORY = Ceiling("none", None, "the process' peak memory in label volumes, a byte a voxel: less is better")
THE_OTHER = Ceiling("none", None, "it is what ours is compared with")


@dataclass(frozen=True)
class Args:
    truth: str = ""
    """Folder of annotated cases; empty: phantoms of 32, 128 and 256 slices of 512x512."""
    cases: int = 3
    """How many, evenly from the one with the fewest slices to the one with the most."""
    windows: int = 5
    """Timed windows a variant, at least 5."""
    window_s: float = 1.5
    """Seconds a window, roughly; at least a case."""
    beside: str = ""
    """What else the machine did meanwhile, for the line."""
    out: str = ""
    """Folder for the line; empty: benchmarks/results."""
    quick: bool = False
    """One tiny phantom: proves that it runs."""

    def __post_init__(self) -> None:
        if self.cases < 1:
            raise InputError(f"cases={self.cases} must be at least 1.")


class Pair(NamedTuple):
    prediction: Path
    truth: Path
    shape: tuple[int, int, int]  # (D, H, W)


class Scorer:
    """benchmarks.lib.scorers in a process of its own."""

    def __init__(self, way: str):
        command = [sys.executable, "-m", "benchmarks.lib.scorers", way]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *paths: Path) -> dict[str, Any]:
        self.process.stdin.write("\t".join(map(str, paths)) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise JobFailed(f"{' '.join(self.process.args[1:])} ended: its words stand above.")
        return json.loads(answer)


def main(args: Args) -> None:
    ways = [way for way, names in NEEDS.items() if all(importlib.util.find_spec(name) for name in names)]
    with tempfile.TemporaryDirectory() as folder, _started(ways) as scorers:
        pairs = list(_pairs(args, Path(folder)))
        imports_mb = {way: scorer.ask()["now"] for way, scorer in scorers.items()}
        apart = _largest_difference(scorers, pairs)
        peaks_mb: dict[str, list[float]] = {way: [] for way in ways}
        timed = interleave(
            {
                f"{way} {number}": Variant(
                    lambda scorer=scorer, pair=pair: scorer.ask(pair.prediction, pair.truth),
                    after=lambda scorer=scorer, way=way: peaks_mb[way].append(scorer.ask()["peak"]),
                )
                for number, pair in enumerate(pairs)
                for way, scorer in scorers.items()
            },
            CPU,
            windows=args.windows,
            window_s=0 if args.quick else args.window_s,
            warmup_steps=WARMUP_STEPS,
        )
    common = {"data": "kits" if args.truth else "phantom", "moved_mm": MOVED_MM, "cache": "warm", "beside": args.beside}
    if apart is not None:
        common["largest_difference"] = apart

    def write(variant: str, values: list[float], unit: str, ceiling: Ceiling, pair: Pair, **more: Any) -> None:
        size = {"slices": pair.shape[0], "size_px": list(pair.shape[1:])}
        config = {"variant": f"{variant}, {pair.shape[0]} slices", **common, **size, **more}
        answer = variant.startswith("ours against")
        record(
            line("evaluate", values, unit, ceiling, config, args, warmup_steps=WARMUP_STEPS, answer=answer), args.out
        )

    for number, pair in enumerate(pairs):
        rates = {way: timed[f"{way} {number}"].rates(pair.shape[0]) for way in ways}
        for way in ways:
            write(way, rates[way], "slices a second", THE_OTHER if way == "official" else _known(rates), pair)
        if "official" in ways:
            times = [a / b for a, b in zip(rates["ours"], rates["official"], strict=True)]
            write("ours against official", times, "times", A_RATIO, pair)
        else:
            write("official", [], "slices a second", THE_OTHER, pair, failed="not installed: pip install -e .[dev]")
    largest = max(pairs, key=lambda pair: np.prod(pair.shape))
    volume_mb = float(np.prod(largest.shape)) / 2**20
    for way in ways:
        of_volume = [mb / volume_mb for mb in peaks_mb[way][-args.windows :]]  # a peak never falls
        mb = {"imports_mb": round(imports_mb[way], 1), "volume_mb": round(volume_mb, 1)}
        write(f"memory of {way}", of_volume, "volumes", MEMORY, largest, **mb)


def _known(rates: dict[str, list[float]]) -> Ceiling:
    if "official" not in rates:
        return Ceiling("official", None, "not installed")
    return Ceiling("official", float(np.median(rates["official"])))


@contextmanager
def _started(ways: list[str]) -> Iterator[dict[str, Scorer]]:
    scorers = {way: Scorer(way) for way in ways}
    try:
        yield scorers
    finally:
        for scorer in scorers.values():
            scorer.process.stdin.close()  # it ends when its input does
            scorer.process.wait()


def _pairs(args: Args, folder: Path) -> Iterator[Pair]:
    for number, (truth, path) in enumerate(_annotations(args)):
        prediction = folder / f"prediction_{number}.nii.gz"
        write_nifti(prediction, moved(truth.array, truth.spacing_mm, seed=number), truth.geometry)
        if path is None:
            path = folder / f"truth_{number}.nii.gz"
            write_nifti(path, truth.array, truth.geometry)
        yield Pair(prediction, path, truth.array.shape)


def _annotations(args: Args) -> Iterator[tuple[Volume, Path | None]]:
    """Label maps, and the file of each if there is one."""
    if not args.truth:
        for index, slices in enumerate((16,) if args.quick else (32, 128, 256)):
            case = make_case(0, index, (slices, 64, 64) if args.quick else (slices, 512, 512))
            yield Volume(case.label, kits_geometry(case.label.shape, case.spacing_mm)), None
        return
    paths = sorted(find_truths(Path(args.truth)).values(), key=lambda path: np.prod(nib.load(path).shape))
    count = 1 if args.quick else min(args.cases, len(paths))
    for at in np.unique(np.linspace(0, len(paths) - 1, count).round().astype(int)):
        yield read_labels(paths[at]), paths[at]


def moved(label: np.ndarray, spacing_mm: tuple[float, float, float], seed: int) -> np.ndarray:
    """(D, H, W) labels, each voxel taken from MOVED_MM (one sd along each axis) away; the distance changes smoothly."""
    box = tuple(slice(max(part.start - 8, 0), part.stop + 8) for part in bounding_box(label))
    cut, generator = label[box], np.random.default_rng(seed)
    places = []
    for axis, place in enumerate(np.indices(cut.shape, np.float32)):
        coarse = generator.normal(size=[int(n * mm / BUMP_MM) + 2 for n, mm in zip(cut.shape, spacing_mm, strict=True)])
        field = ndimage.zoom(coarse, np.divide(cut.shape, coarse.shape), order=1)
        places.append(place + field * MOVED_MM / spacing_mm[axis])
    result = label.copy()
    result[box] = ndimage.map_coordinates(cut, places, order=0)
    return result


def _largest_difference(scorers: dict[str, Scorer], pairs: list[Pair]) -> float | None:
    """Between the ways, of all figures; None where there is one way. Raises JobFailed beyond 1e-9."""
    if len(scorers) < 2:
        return None
    worst = 0.0
    for pair in pairs:
        a, b = (scorer.ask(pair.prediction, pair.truth) for scorer in scorers.values())
        worst = max(worst, *(abs(x - y) for name in a for x, y in zip(a[name], b[name], strict=True)))
    if worst > 1e-9:
        raise JobFailed(f"the two ways differ by {worst:.2g}: speed says nothing while the figures are not the same.")
    return worst


if __name__ == "__main__":
    cli.run(main, Args)
