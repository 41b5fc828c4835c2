"""Two scorers that turn a pair of files into the official table; benchmarks.evaluate starts each in its own process.

`python -m benchmarks.lib.scorers ours|official` answers every line of its input: `PREDICTION<tab>TRUTH` with Dice and
surface Dice of the three regions as JSON, an empty line with the memory of this process.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kits_dist.labels import REGIONS, TOLERANCES_MM
from kits_dist.utils.errors import MissingPackage
from kits_dist.utils.packages import optional_package

Table = dict[str, list[float]]  # region -> [Dice, surface Dice]


def ours() -> Callable[[Path, Path], Table]:
    """Return the scorer of kits_dist.evaluate, which also computes HD95, ASSD, slices and lesions."""
    from kits_dist.evaluation.case_scores import Job, score_job

    def score(prediction: Path, truth: Path) -> Table:
        figures = score_job(Job("case", prediction, truth, REGIONS)).regions
        return {name: [figures[name]["dice"], figures[name]["surface_dice"]] for name in REGIONS}

    return score


def official() -> Callable[[Path, Path], Table]:
    """Return the scorer of the challenge (kits23/evaluation): SimpleITK reads, surface_distance gets whole volumes."""
    import warnings

    install = "pip install 'kits-dist[dev]'"
    with optional_package("SimpleITK", "the official scorer needs SimpleITK", install):
        import SimpleITK
    with optional_package("surface_distance", "the official scorer needs surface-distance", install):
        import surface_distance

    warnings.filterwarnings("ignore", category=DeprecationWarning)  # it calls SciPy by older names

    def score(prediction: Path, truth: Path) -> Table:
        images = [SimpleITK.ReadImage(str(path)) for path in (prediction, truth)]
        spacing_mm = images[0].GetSpacing()[::-1]
        predicted, true = (SimpleITK.GetArrayFromImage(image) for image in images)
        table = {}
        for name, labels in REGIONS.items():
            a, b = (_any_of(array, labels) for array in (predicted, true))
            if not a.any() or not b.any():
                table[name] = [float(a.any() == b.any())] * 2
                continue
            distances = surface_distance.compute_surface_distances(b, a, spacing_mm)
            surface = surface_distance.compute_surface_dice_at_tolerance(distances, TOLERANCES_MM[name])
            table[name] = [float(surface_distance.compute_dice_coefficient(b, a)), float(surface)]
        return table

    return score


def _any_of(array: np.ndarray, labels: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(array.shape, bool)
    for label in labels:
        mask[array == label] = True
    return mask


SCORERS = {"official": official, "ours": ours}


def memory_mb() -> dict[str, float]:
    """Return {"peak", "now"} from the kernel: getrusage's peak includes the parent's memory before exec."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(fields[key].split()[0]) / 1024 for name, key in (("peak", "VmHWM"), ("now", "VmRSS"))}


def main(name: str) -> None:
    """Answer every line of the input."""
    try:
        score = SCORERS[name]()
    except MissingPackage as error:
        sys.exit(str(error))
    for line in sys.stdin:
        paths = line.rstrip("\n").split("\t")
        answer = score(*map(Path, paths)) if len(paths) == 2 else memory_mb()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
