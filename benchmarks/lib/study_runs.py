"""The trainings of a study: each variant with each seed through `accelerate launch`, as a user would, then evaluated.

Everything lies in STUDY/VARIANT/seed_K; what is finished there is not done again, and a training that was cut off goes
on. Each training is one process (launch/single.yaml) on one GPU, or on one core where there is none: a step is then
`data.batch_size` slices on every machine. As many run side by side as there are GPUs or cores; on two cores that wastes
nothing on waiting for each other, as the two processes of one training (launch/cpu.yaml) do.
"""

import os
import subprocess
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.lib.lines import slug
from kits_dist import cli
from kits_dist.config import Config, as_plain
from kits_dist.data.store import Store
from kits_dist.evaluation.metrics import Metrics
from kits_dist.evaluation.tables import read_cases
from kits_dist.labels import REGIONS
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, JobFailed
from kits_dist.utils.text import listed

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ["accelerate.commands.launch", "--config_file", str(ROOT / "launch" / "single.yaml"), "-m", "kits_dist.train"]
STATE = "study.json"  # in a seed's folder: what it was asked, whether it is done
LAST_LINES = 15


class Training(NamedTuple):
    """One run of kits_dist.train."""

    words: tuple[str, ...]  # config=FILE.yaml and key=value; store, run, seed and resume are added
    name: str = ""  # of its run folder inside seed_K; empty: seed_K itself, for a variant of one training
    store: str = ""  # empty: the study's


class Evaluation(NamedTuple):
    """One run of kits_dist.evaluate, a row of the study."""

    name: str = ""  # where a variant has several
    runs: tuple[str, ...] = ("",)  # names of trainings; several are evaluated together, run=[A,B]
    words: tuple[str, ...] = ()  # as tta=flip, or store=DIR where each training had another
    fuse: bool = False  # with weights that kits_dist.fuse chooses on val first
    stage: bool = False  # phase1 or phase2: the table that a cascade's evaluation, named "", leaves beside its own


class Variant(NamedTuple):
    name: str
    trainings: tuple[Training, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    evaluations: tuple[Evaluation, ...] = (Evaluation(),)


class Study(NamedTuple):
    """The first evaluation of the first variant is the reference."""

    name: str  # the question of its lines
    store: str
    variants: tuple[Variant, ...]
    folder: Path
    split: str = "test"

    def store_of(self, training: Training) -> str:
        return training.store or self.store

    def seed_folder(self, variant: Variant, seed: int) -> Path:
        return self.folder / slug(variant.name) / f"seed_{seed}"

    def scores_folder(self, variant: Variant, seed: int, evaluation: Evaluation) -> Path:
        """Of a plain evaluation of one training the place where kits_dist.evaluate puts it."""
        name = "_".join(filter(None, (self.split, slug(evaluation.name))))
        return self.seed_folder(variant, seed) / "evaluation" / name


def check_counts(seeds: int, jobs: int) -> None:
    """Of a program's arguments. Raises InputError."""
    if not 1 <= seeds <= 100:
        raise InputError(f"seeds={seeds}: use 1..100.")
    if jobs < 0:
        raise InputError(f"jobs={jobs} must be 0 (one a GPU or core) or more.")


def check(study: Study) -> None:
    """Before hours are spent. Raises InputError for names that would share a folder, a training that is not there, and
    words that kits_dist.train would refuse."""
    _apart(study.name, [variant.name for variant in study.variants])
    for variant in study.variants:
        names = [training.name for training in variant.trainings]
        _apart(f"{study.name}, trainings of {variant.name}", names)
        _apart(f"{study.name}, evaluations of {variant.name}", [one.name for one in variant.evaluations])
        for evaluation in variant.evaluations:
            if unknown := set(evaluation.runs) - set(names):
                raise InputError(f"{study.name}, {variant.name}: no training is called {sorted(unknown)}: {names}.")
        for training in variant.trainings:
            configuration(training, study)


def _apart(where: str, names: list[str]) -> None:
    folders = [slug(name) for name in names]
    if twice := sorted({name for name in folders if folders.count(name) > 1}):
        raise InputError(f"{where}: several would lie in the folder {twice[0] or 'of the seed'!r}. Name them apart.")


def configuration(training: Training, study: Study, seed: int = 0) -> Config:
    """What kits_dist.train will make of its words. Raises InputError."""
    return cli.load(Config, [*training.words, f"data.store={study.store_of(training)}", "run=-", f"seed={seed}"])


class Place(NamedTuple):
    """Where one training at a time runs."""

    cores: set[int]  # empty where the system does not tell
    environ: dict[str, str]


def places(jobs: int = 0) -> list[Place]:
    """One a GPU, or one a core where there is none, each with its share of the cores; at most `jobs` unless 0."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    gpus = torch.cuda.device_count()
    count = gpus or len(cores) or 1
    count = min(jobs, count) if jobs else count
    visible = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))).split(",")
    return [
        Place(set(cores[number::count] or cores), {"CUDA_VISIBLE_DEVICES": visible[number]} if gpus else {})
        for number in range(count)
    ]


def run(study: Study, jobs: int = 0) -> dict[str, str]:
    """Train and evaluate what is not yet done: all variants with their first seed, then with their second, ...

    Returns {variant: why it failed}; the others are finished. Raises InputError, before anything runs, for what
    `check` refuses and for a folder that holds another training.
    """
    check(study)
    for variant in study.variants:
        for seed in variant.seeds:
            _state(study, variant, seed)
    turns = zip_longest(*([(variant, seed) for seed in variant.seeds] for variant in study.variants))
    waiting = deque(job for turn in turns for job in turn if job)
    failed: dict[str, str] = {}

    def work(place: Place) -> None:
        if place.cores:
            os.sched_setaffinity(0, place.cores)  # of this thread, and so of all that it starts
        while waiting:
            try:
                variant, seed = waiting.popleft()
            except IndexError:  # another took the last one
                return
            try:
                print(f"  {variant.name}, seed {seed}: {_bring_to_scores(study, variant, seed, place)}", flush=True)
            except (JobFailed, InputError) as error:
                failed.setdefault(variant.name, f"seed {seed}: {error}")
                print(f"  {variant.name}, seed {seed}: failed: {error}", flush=True)

    where = places(jobs)
    with ThreadPoolExecutor(len(where)) as pool:
        try:
            list(pool.map(work, where))
        except BaseException:  # Ctrl-C reaches the trainings too, which save; nothing else may begin
            waiting.clear()
            raise
    return failed


def _bring_to_scores(study: Study, variant: Variant, seed: int, place: Place) -> str:
    """Train and evaluate, or find it done. Returns the scores in words; raises JobFailed."""
    folder = study.seed_folder(variant, seed)
    state = _state(study, variant, seed)
    if not state["done"]:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / STATE, state)
        for training in variant.trainings:
            begun = (folder / training.name / "config.yaml").exists()
            words = [*training.words, f"data.store={study.store_of(training)}", f"run={folder / training.name}"]
            seconds = _program([*LAUNCH, *words, f"seed={seed}", "resume=auto"], folder / "log.txt", place)
            if not begun:
                state["training_s"][training.name] = round(seconds, 1)
            files.write_json(folder / STATE, state)
        for evaluation in (one for one in variant.evaluations if not one.stage):
            runs = ",".join(str(folder / name) for name in evaluation.runs)
            words = [f"run=[{runs}]" if len(evaluation.runs) > 1 else f"run={runs}"]
            if evaluation.fuse:
                fused = f"{folder / slug(evaluation.name)}.json"
                _program(["kits_dist.fuse", words[0], f"output={fused}"], folder / "log.txt", place)
                words += [f"fusion={fused}"]
            words += [f"split={study.split}", "workers=1", "panel=0", *evaluation.words]
            words += [f"output={study.scores_folder(variant, seed, evaluation)}"]
            seconds = _program(["kits_dist.evaluate", *words], folder / "log.txt", place)
            state.setdefault("evaluation_s", {})[evaluation.name] = round(seconds, 1)
        files.write_json(folder / STATE, state | {"done": True})
    means = {name: mean_dice(table) for name, table in tables_of(study, variant, seed).items()}
    return "; ".join(
        f"{name}  ".lstrip() + "  ".join(f"{region} {dice:.3f}" for region, dice in mean.items())
        for name, mean in means.items()
    )


def _state(study: Study, variant: Variant, seed: int) -> dict[str, Any]:
    """{"trainings", "evaluations": what is asked, "training_s": {training: seconds}, "done"} of a seed.

    Settings are compared as they are resolved, so that a yaml or a store that changed is seen. Raises InputError for
    other ones: trained further under a new schedule it would be neither the old training nor the new one.
    """
    trainings = {}
    for training in variant.trainings:
        config = as_plain(configuration(training, study, seed))
        del config["data"]["store"]
        trainings[training.name] = config | {"store_sha256": Store(study.store_of(training)).fingerprint()}
    of_each = ([one.name, list(one.runs), list(one.words), one.fuse, one.stage] for one in variant.evaluations)
    evaluations = [study.split, *of_each]
    asked = {"trainings": trainings, "evaluations": evaluations}
    folder = study.seed_folder(variant, seed)
    if not (folder / STATE).is_file():
        return asked | {"training_s": {}, "done": False}
    there = files.read_json(folder / STATE)
    if changed := _flat(there.get("trainings", {})).items() ^ _flat(trainings).items():
        raise InputError(
            f"{folder} holds another training (what differs: {listed(sorted({key for key, _ in changed}))}). Delete "
            "it, or keep this study elsewhere: runs=DIR"
        )
    return there | asked | {"done": there["done"] and there["evaluations"] == evaluations}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """{"a.b.c": value as text}."""
    found: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}".strip(".")
        found |= _flat(value, name) if isinstance(value, dict) else {name: str(value)}
    return found


def _program(words: list[str], log: Path, place: Place) -> float:
    """Seconds of `python -m WORDS`. Raises JobFailed with its last lines."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environ = os.environ | place.environ | {"PYTHONPATH": path}
    begin = time.monotonic()
    with open(log, "a", encoding="utf-8") as file:
        start = file.tell()
        code = subprocess.call([sys.executable, "-m", *words], env=environ, stdout=file, stderr=subprocess.STDOUT)
    if code:
        said = log.read_bytes()[start:].decode("utf-8", "replace").strip().splitlines()
        raise JobFailed(f"{words[0]} ended with exit code {code}:\n" + "\n".join(said[-LAST_LINES:]))
    return time.monotonic() - begin


def tables_of(study: Study, variant: Variant, seed: int) -> dict[str, dict[str, Metrics]]:
    """{evaluation: its cases.csv}. Raises InputError."""
    return {one.name: read_cases(study.scores_folder(variant, seed, one) / "cases.csv") for one in variant.evaluations}


def mean_dice(table: dict[str, Metrics]) -> dict[str, float]:
    """{region: mean over cases}, of the challenge's regions that the table has."""
    first = next(iter(table.values()))
    regions = [name for name in REGIONS if f"{name}_dice" in first]
    return {name: float(np.mean([row[f"{name}_dice"] for row in table.values()])) for name in regions}
