"""How fast is the official table of a case, and in how much memory? `python -m benchmarks.evaluate truth=DIR`.

Dice and surface Dice of the three regions, from two files: ours against the challenge's code (SimpleITK, and
surface_distance on whole volumes), one process each, with the same predictions: the true label maps, deformed by about
1.5 mm along a smooth random field, which resembles the errors of a good network. Both must give the same scores. The
last case is also scored at its worst, a whole body called kidney.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

from benchmarks.lib.arguments import TimedArgs
from benchmarks.lib.harness import Candidate, interleave
from benchmarks.lib.lines import A_RATIO, Ceiling, Recorder, no_ceiling, rounds
from benchmarks.lib.scorers import SCORERS
from kits_dist import cli
from kits_dist.imaging.nifti import Volume, kits_geometry, read_labels, write_nifti
from kits_dist.imaging.predictions import find_truths
from kits_dist.synthetic.phantom import make_case
from kits_dist.utils.components import bounding_box
from kits_dist.utils.errors import InputError, JobFailed

CPU = torch.device("cpu")  # nothing here runs on a GPU
MOVED_MM, BUMP_MM = 1.5, 12.0  # how far, and over what distance the field changes
WARMUP_STEPS = 1
MEMORY = no_ceiling("the process' peak memory in label volumes, a byte a voxel: less is better")
THE_OTHER = no_ceiling("ours is compared with it")


@dataclass(frozen=True)
class Args(TimedArgs):
    """Arguments of the program."""

    truth: str = ""
    """Folder of annotated cases; empty: phantoms of 32, 128 and 256 slices of 512x512."""
    cases: int = 3
    """How many of them, evenly from the one with the fewest slices to the one with the most."""
    window_s: float = 1.5
    """Seconds per window, approximately; at least a case."""

    def __post_init__(self) -> None:
        if self.cases < 1:
            raise InputError(f"cases={self.cases} must be at least 1.")


class ScoringCase(NamedTuple):
    """Two files to score."""

    prediction: Path
    truth: Path
    shape: tuple[int, int, int]  # (D, H, W)
    what: str = ""  # for the line, where the prediction is no deformed truth


class Scorer:
    """A scorer of benchmarks.lib.scorers in a process of its own."""

    def __init__(self, name: str):
        command = [sys.executable, "-m", "benchmarks.lib.scorers", name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *paths: Path) -> dict[str, Any]:
        """Return the scores of two files, or without files the memory of the process. Raises JobFailed."""
        answer = ""
        with suppress(BrokenPipeError):  # it has ended
            self.process.stdin.write("\t".join(map(str, paths)) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        if not answer:
            raise JobFailed(f"{' '.join(self.process.args[1:])} ended; why is printed above.")
        return json.loads(answer)


def main(args: Args) -> None:
    """Time the scorers in turns, and write their lines."""
    timing = args.timing(WARMUP_STEPS)
    with tempfile.TemporaryDirectory() as folder, _started() as scorers:
        imports_mb = {name: scorer.ask()["now"] for name, scorer in scorers.items()}  # fails before the work of pairs
        pairs = list(_pairs(args, Path(folder)))
        common = {"data": "kits" if args.truth else "phantom", "moved_mm": MOVED_MM, "cache": "warm"}
        common["largest_difference"] = _largest_difference(scorers, pairs)
        peaks_mb: dict[str, list[float]] = {name: [] for name in scorers}
        timed = interleave(
            {
                f"{name} {number}": Candidate(
                    lambda scorer=scorer, pair=pair: scorer.ask(pair.prediction, pair.truth),
                    after=lambda scorer=scorer, name=name: peaks_mb[name].append(scorer.ask()["peak"]),
                )
                for number, pair in enumerate(pairs)
                for name, scorer in scorers.items()
            },
            CPU,
            **timing,
        )

    recorder = Recorder("evaluate", args, common, unit="slices a second", warmup_steps=WARMUP_STEPS)
    for number, pair in enumerate(pairs):
        size, tail = {"slices": pair.shape[0], "size_px": list(pair.shape[1:])}, f", {pair.shape[0]} slices{pair.what}"
        rates = {name: timed[f"{name} {number}"].rates(pair.shape[0]) for name in scorers}
        recorder.write(f"official{tail}", rates["official"], THE_OTHER, size)
        recorder.write(f"ours{tail}", rates["ours"], Ceiling("official", float(np.median(rates["official"]))), size)
        times = rounds(rates["ours"], rates["official"])
        recorder.write(f"ours against official{tail}", times, A_RATIO, size, unit="times", answer=True)

    largest = max(pairs, key=lambda pair: np.prod(pair.shape))
    size = {"slices": largest.shape[0], "size_px": list(largest.shape[1:])}
    volume_mb = float(np.prod(largest.shape)) / 2**20
    for name in scorers:
        in_volumes = [mb / volume_mb for mb in peaks_mb[name][-args.windows :]]  # a peak never falls
        config = size | {"imports_mb": round(imports_mb[name], 1), "volume_mb": round(volume_mb, 1)}
        recorder.write(f"memory of {name}, {largest.shape[0]} slices", in_volumes, MEMORY, config, unit="volumes")


@contextmanager
def _started() -> Iterator[dict[str, Scorer]]:
    scorers = {name: Scorer(name) for name in SCORERS}
    try:
        yield scorers
    finally:
        for scorer in scorers.values():
            with suppress(BrokenPipeError):
                scorer.process.stdin.close()  # it ends when its input does
            scorer.process.wait()


def _pairs(args: Args, folder: Path) -> Iterator[ScoringCase]:
    for number, (truth, path) in enumerate(_annotations(args)):
        prediction = folder / f"prediction_{number}.nii.gz"
        write_nifti(prediction, moved(truth.array, truth.spacing_mm, seed=number), truth.geometry)
        if path is None:
            path = folder / f"truth_{number}.nii.gz"
            write_nifti(path, truth.array, truth.geometry)
        yield ScoringCase(prediction, path, truth.array.shape)
    whole = folder / "prediction_whole.nii.gz"
    write_nifti(whole, _trunk(truth.array.shape), truth.geometry)
    yield ScoringCase(whole, path, truth.array.shape, ", a whole body called kidney")


def _trunk(shape: tuple[int, int, int]) -> np.ndarray:
    """Return (D, H, W) uint8 kidney in the ellipse that a body fills: surfaces that are far apart all over."""
    y, x = (np.linspace(-1, 1, pixels) for pixels in shape[1:])
    trunk = (np.hypot(y[:, None] / 0.6, x / 0.85) < 1).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(trunk, shape))


def _annotations(args: Args) -> Iterator[tuple[Volume, Path | None]]:
    """Yield label maps, and the file of each if there is one."""
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
    """Deform (D, H, W) labels: each voxel moves by MOVED_MM (one sd along each axis), smoothly over distance."""
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


def _largest_difference(scorers: dict[str, Scorer], pairs: list[ScoringCase]) -> float:
    """Return the largest difference between two scorers. Raises JobFailed beyond 1e-9."""
    worst = 0.0
    for pair in pairs:
        a, b = (scorer.ask(pair.prediction, pair.truth) for scorer in scorers.values())
        worst = max(worst, *(abs(x - y) for name in a for x, y in zip(a[name], b[name], strict=True)))
    if worst > 1e-9:
        raise JobFailed(f"the scores differ by {worst:.2g}: their speed means nothing before they agree.")
    return worst


if __name__ == "__main__":
    cli.run(main, Args)
