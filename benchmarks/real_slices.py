"""How well does a network segment real CT slices that saw painted ones alone? `python -m benchmarks.real_slices`.

labels=DIR     annotated cases; CTs are painted onto them (kits_dist.phantom labels=DIR), and these train
slices=DIR     real CT slices with annotation, in KiTS layout; nothing is trained or chosen on them
against=DIR    a ready store of another painter, which is trained likewise: the reference that is compared with

Every slice of `slices` becomes a volume of its own and is scored alone. Patients that are in a store of painted cases
are not scored: their anatomy was trained on. Dice is over the slices that have the region; intervals and differences
resample patients, since slices of one patient are alike.
"""

import dataclasses
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.lib.lines import Line, line, rounded
from benchmarks.lib.studies import NO_CEILING, Arm, Evaluation, Study, Training, about, conduct
from benchmarks.lib.study_runs import STATE, tables_of
from benchmarks.lib.study_setup import RecipeArgs, digest, painted
from kits_dist import cli
from kits_dist.data.store import Store
from kits_dist.evaluation.bootstrap import Bootstrap
from kits_dist.evaluation.comparison import wilcoxon_p
from kits_dist.imaging.datasets import find_all_cases
from kits_dist.imaging.nifti import kits_geometry, read_image, read_labels, write_nifti
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, MissingInput
from kits_dist.utils.text import listed, parse_folders

REGIONS = ("kidney_and_mass", "tumor")
# Pixels of 2 mm show a kidney 30 pixels wide, for a third of the time of 1.2 mm. Real scanners differ in brightness and
# contrast more than one painter does. On real slices networks are sure of too little: trained with weights of 1 and 4,
# they scored best at a threshold of 0.1 or below (NOTES.md); weights nine times as large shift that to 0.5.
RECIPE = (
    "optim.pos_weight=[9,36]",
    "data.size_px=192x192",
    "data.pixel_mm=2",
    "augment.brightness_p=0.3",
    "augment.contrast_p=0.3",
    "augment.gamma_p=0.3",
    "augment.blur_p=0.2",
    "augment.scale=[0.75,1.3]",
    "augment.scale_p=0.5",
)


@dataclass(frozen=True)
class Args(RecipeArgs):
    """Arguments of the program."""

    slices: str = ""
    """Folder of real slices with annotation, KiTS layout; several: [A,B]."""
    labels: str = ""
    """Folder of annotated cases to paint; not with store=."""
    augment: int = 0
    """Synthetic variants of each painted case."""
    store: str = ""
    """A ready store of painted cases, instead of labels=."""
    against: str = ""
    """A ready store of another painter, to compare with; empty: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.labels) == bool(self.store):
            raise InputError("name annotated cases to paint, labels=DIR, or a ready store of painted ones, store=DIR.")
        if not self.slices:
            raise InputError("name the real slices to score: slices=DIR, several slices=[A,B].")
        if self.augment < 0 or (self.augment and self.store):
            raise InputError(f"augment={self.augment}: 0 or more, and with labels= only.")


class RealSlice(NamedTuple):
    """A slice that is scored."""

    name: str  # of its one-slice case
    patient: str
    source: str  # name of the folder it comes from


def main(args: Args) -> None:
    """Paint or open the stores, train, and score the slices."""
    study = args.study("real_slices")
    for folder in parse_folders(args.slices, "slices"):
        if not folder.is_dir():
            raise MissingInput(f"slices={folder}: no such folder.")
    store = args.store or painted(study.folder, args.labels, 10**6, args.augment)
    words = (*args.recipe(epochs=7), *(() if args.quick or args.config else RECIPE), *args.keys)
    trained = {"painted": store} | ({"reference painter": args.against} if args.against else {})
    for key, folder in (("store", store), ("against", args.against)):
        if folder and Store(folder, key=key).meta["data"] == "kits":
            raise InputError(f"{key}={folder} holds real cases; this study trains on painted ones alone.")

    seen = {case.case_id for folder in trained.values() for case in Store(folder).cases}
    scans, chosen, left_out = staged(study.folder, args.slices, seen)
    evaluation = Evaluation(words=(f"regions=[{','.join(REGIONS)}]",), scans=str(scans))
    arms = tuple(
        Arm(name, (Training(words, store=folder),), (evaluation,)) for name, folder in reversed(trained.items())
    )
    kind = find_all_cases(args.slices).data

    def make_lines(study: Study, args: Args, failed: dict[str, str]) -> list[Line]:
        scored = [arm for arm in study.arms if arm.name not in failed]
        return [one for arm in scored for one in lines_of(study, arm, chosen, left_out, kind, args)]

    conduct(study._replace(store=store, arms=arms), args, make_lines)


def staged(folder: Path, slices: str, seen: set[str]) -> tuple[Path, list[RealSlice], list[str]]:
    """Write every slice as a one-slice case, made once.

    seen   patients of the training stores

    Returns the folder, the slices of other patients, and the patients that were left out. Raises InputError where no
    slice is left.
    """
    where = folder / "data" / f"slices_{digest([slices, *sorted(seen)])}"
    chosen, left_out = [], set()
    for source in parse_folders(slices, "slices"):
        for case in find_all_cases(str(source)).cases:
            if case.patient in seen:
                left_out.add(case.patient)
                continue
            if case.image is None or case.label is None:
                raise InputError(f"slices={source}: {case.case_id}: no {case.missing}.")
            image, label = read_image(case.image), read_labels(case.label)
            geometry = kits_geometry((1, *image.array.shape[1:]), image.spacing_mm)
            for index in range(len(image.array)):
                name = case.case_id if len(image.array) == 1 else f"{case.case_id}_{source.name}_{index}"
                chosen.append(RealSlice(name, case.patient, source.name))
                if not (where / name / "segmentation.nii.gz").is_file():
                    write_nifti(where / name / "imaging.nii.gz", image.array[index : index + 1], geometry)
                    write_nifti(where / name / "segmentation.nii.gz", label.array[index : index + 1], geometry)
    if not chosen:
        raise InputError(f"slices={slices}: all patients ({listed(sorted(left_out))}) are among the painted cases.")
    return where, chosen, sorted(left_out)


def groups_of(slices: list[RealSlice]) -> dict[str, list[RealSlice]]:
    """Return all slices, those of each folder where there are several, and two halves of the patients.

    A painter that was developed by looking at the slices of even case numbers is honest on the odd ones.
    """
    folders = sorted({one.source for one in slices})
    groups = {"": slices}
    groups |= {name: [one for one in slices if one.source == name] for name in folders if len(folders) > 1}
    for name, rest in (("even case numbers", 0), ("odd case numbers", 1)):
        groups[name] = [one for one in slices if int("0" + one.patient[-1:]) % 2 == rest]
    return {name: group for name, group in groups.items() if group}


def lines_of(
    study: Study, arm: Arm, slices: list[RealSlice], left_out: list[str], kind: str, args: Args
) -> Iterator[Line]:
    """Yield a line for each group of slices and region."""
    seconds = [files.read_json(study.seed_folder(arm, seed) / STATE)["training_s"].get("") for seed in study.seeds]
    reference = study.arms[0]
    described = about(study, arm)
    common = described | {"trained_on": described["data"], "data": kind, "split": "slices of other patients"}
    for group, members in groups_of(slices).items():
        for region in REGIONS:
            scored = [one for one in members if has_region(study, one, region)]
            if not scored:
                continue
            dice = _dice(study, arm, scored, region)  # (seeds, slices)
            patients = [one.patient for one in scored]
            value, interval = mean_by_patient(dice.mean(0), patients)
            by_seed = [float(one) for one in dice.mean(1)]
            config = {
                "variant": ", ".join(filter(None, (arm.name, group))),
                "region": region,
                **common,
                "cases": common["cases"] | {"real": len(set(patients))},
                "left_out": left_out,
                "seeds": list(study.seeds),
                "by_seed": [rounded(one) for one in by_seed],
                "sd_between_seeds": rounded(statistics.stdev(by_seed)) if len(by_seed) > 1 else None,
                "training_s": seconds,
                "spread_is": "95 % interval over patients of the mean over slices",
                "reference": None if arm is reference else reference.name,
            }
            if arm is not reference:
                config |= _difference(dice - _dice(study, reference, scored, region), patients)
            made = line(study.name, [value], "Dice", NO_CEILING, config, args, answer=not group)
            yield dataclasses.replace(made, spread=interval, windows=len(scored))


def has_region(study: Study, one: RealSlice, region: str) -> bool:
    """Return whether a slice has the region, by its annotation."""
    table = next(iter(tables_of(study, study.arms[-1], study.seeds[0]).values()))
    return (table[one.name][f"{region}_truth_ml"] or 0.0) > 0


def _dice(study: Study, arm: Arm, slices: list[RealSlice], region: str) -> np.ndarray:
    tables = [next(iter(tables_of(study, arm, seed).values())) for seed in study.seeds]
    return np.array([[table[one.name][f"{region}_dice"] for one in slices] for table in tables], float)


def _difference(difference: np.ndarray, patients: list[str]) -> dict[str, Any]:
    value, interval = mean_by_patient(difference.mean(0), patients)
    of_patient = [difference[:, np.array(patients) == patient].mean() for patient in sorted(set(patients))]
    return {
        "difference": rounded(value),
        "difference_ci95": list(interval),
        "p": rounded(wilcoxon_p(np.array(of_patient))),
    }


def mean_by_patient(values: np.ndarray, patients: list[str]) -> tuple[float, tuple[float, float]]:
    """Return the mean over slices, and its 95 % interval over patients.

    values   (slices,)
    """
    _, numbers = np.unique(patients, return_inverse=True)
    counts = np.bincount(numbers)
    interval = Bootstrap(len(counts)).interval(np.bincount(numbers, values), counts)
    assert interval is not None  # every patient has a slice
    return float(values.mean()), (rounded(interval[0]), rounded(interval[1]))


if __name__ == "__main__":
    cli.run(main, Args)
