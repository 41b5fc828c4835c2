"""The trainings of a study: each arm with each seed through `accelerate launch`, as a user would, then evaluated.

Everything is stored in STUDY/ARM/seed_K; what is finished there is not done again, and an interrupted training is
resumed. Each training is one process (launch/single.yaml) on one GPU, or on one core where there is none: a step is
then `data.batch_size` slices on every machine. As many run in parallel as there are GPUs or cores; independent
processes never wait for each other, as the two of one training (launch/cpu.yaml) do.
"""

import os
import re
import subprocess
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.lib.lines import slug
from benchmarks.lib.programs import LAST_LINES, ROOT, environment
from kits_dist import cli
from kits_dist.config import Config, as_plain
from kits_dist.data.store import Store
from kits_dist.evaluation.metrics import Metrics
from kits_dist.evaluation.tables import read_cases
from kits_dist.labels import REGIONS
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, JobFailed
from kits_dist.utils.text import listed

LAUNCH = ["accelerate.commands.launch", "--config_file", str(ROOT / "launch" / "single.yaml"), "-m", "kits_dist.train"]
STATE = "study.json"  # in the folder of a seed: what was asked for, and whether it is done


class Training(NamedTuple):
    """One run of kits_dist.train."""

    words: tuple[str, ...]  # config=FILE.yaml and key=value; store, run, seed and resume are added
    name: str = ""  # of its run folder inside seed_K; empty: seed_K itself, for an arm of one training
    store: str = ""  # empty: the study's


class Evaluation(NamedTuple):
    """One run of kits_dist.evaluate, a row of the study."""

    name: str = ""  # where an arm has several
    runs: tuple[str, ...] = ("",)  # names of trainings; several are evaluated together, run=[A,B]
    words: tuple[str, ...] = ()  # as tta=flip, or store=DIR where each training had another
    fuse: bool = False  # with weights that kits_dist.fuse chooses on val first
    scans: str = ""  # folder of other annotated cases, which are predicted and scored instead of the split's


class Arm(NamedTuple):
    """One of the alternatives that a study compares, as in a clinical trial."""

    name: str
    trainings: tuple[Training, ...]
    evaluations: tuple[Evaluation, ...] = (Evaluation(),)


class Study(NamedTuple):
    """Arms to compare; the first evaluation of the first arm is the reference."""

    name: str  # the question of its lines
    store: str
    arms: tuple[Arm, ...]
    folder: Path
    split: str = "test"
    seeds: tuple[int, ...] = (0, 1, 2)

    def store_of(self, training: Training) -> str:
        """Return the store of a training."""
        return training.store or self.store

    def seed_folder(self, arm: Arm, seed: int) -> Path:
        """Return the folder of all trainings of a seed."""
        return self.folder / slug(arm.name) / f"seed_{seed}"

    def scores_folder(self, arm: Arm, seed: int, evaluation: Evaluation) -> Path:
        """Return the folder of an evaluation; for a single training it is where kits_dist.evaluate puts it."""
        name = "_".join(filter(None, (self.split, slug(evaluation.name))))
        return self.seed_folder(arm, seed) / "evaluation" / name


def configuration(training: Training, study: Study, seed: int = 0) -> Config:
    """Return the configuration that kits_dist.train will make of the words. Raises InputError."""
    return cli.load(Config, [*training.words, f"data.store={study.store_of(training)}", "run=-", f"seed={seed}"])


class Place(NamedTuple):
    """A GPU or a core, and its share of the cores: one training at a time runs there."""

    cores: set[int]  # empty where the system does not say
    environ: dict[str, str]


def places(jobs: int = 0) -> list[Place]:
    """Return one place per GPU, or per core where there is none; at most `jobs` unless that is 0."""
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
    """Train and evaluate what is not yet done: all arms with their first seed, then with their second, ...

    Returns {arm: why it failed}; the others are finished. Raises InputError, before anything runs, for arguments that
    kits_dist.train would refuse and for a folder that holds another training.
    """
    waiting = deque((arm, seed) for seed in study.seeds for arm in study.arms)
    for arm, seed in waiting:
        _state(study, arm, seed)
    failed: dict[str, str] = {}

    def work(place: Place) -> None:
        if place.cores:
            os.sched_setaffinity(0, place.cores)  # of this thread, and of all processes that it starts
        while waiting:
            try:
                arm, seed = waiting.popleft()
            except IndexError:  # another thread took the last one
                return
            try:
                print(f"  {arm.name}, seed {seed}: {_train_and_evaluate(study, arm, seed, place)}", flush=True)
            except (JobFailed, InputError) as error:
                failed.setdefault(arm.name, f"seed {seed}: {error}")
                print(f"  {arm.name}, seed {seed}: failed: {error}", flush=True)

    where = places(jobs)
    with ThreadPoolExecutor(len(where)) as pool:
        try:
            list(pool.map(work, where))
        except BaseException:  # Ctrl-C reaches the trainings too, which save; start no other
            waiting.clear()
            raise
    return failed


def _train_and_evaluate(study: Study, arm: Arm, seed: int, place: Place) -> str:
    """Train and evaluate, unless it is done. Returns the scores for a reader at the terminal. Raises JobFailed."""
    folder = study.seed_folder(arm, seed)
    state = _state(study, arm, seed)
    if not state["done"]:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / STATE, state)
        for training in arm.trainings:
            begun = (folder / training.name / "config.yaml").exists()
            words = [*training.words, f"data.store={study.store_of(training)}", f"run={folder / training.name}"]
            seconds = _program([*LAUNCH, *words, f"seed={seed}", "resume=auto"], folder / "log.txt", place)
            if not begun:
                state["training_s"][training.name] = round(seconds, 1)
            files.write_json(folder / STATE, state)
        for evaluation in arm.evaluations:
            runs = ",".join(str(folder / name) for name in evaluation.runs)
            words = [f"run=[{runs}]" if len(evaluation.runs) > 1 else f"run={runs}"]
            if evaluation.fuse:
                fused = f"{folder / slug(evaluation.name)}.json"
                _program(["kits_dist.fuse", words[0], f"output={fused}"], folder / "log.txt", place)
                words += [f"fusion={fused}"]
            if evaluation.scans:
                predicted = folder / f"predictions{slug(evaluation.name)}"
                asked = ["kits_dist.predict", words[0], f"input={evaluation.scans}", f"output={predicted}"]
                _program(asked, folder / "log.txt", place)
                words = [f"predictions={predicted}", f"truth={evaluation.scans}"]
            else:
                words += [f"split={study.split}", "panel=0"]
            words += ["workers=1", *evaluation.words]
            words += [f"output={study.scores_folder(arm, seed, evaluation)}"]
            _program(["kits_dist.evaluate", *words], folder / "log.txt", place)
        files.write_json(folder / STATE, state | {"done": True})
    means = {name: mean_dice(table) for name, table in tables_of(study, arm, seed).items()}
    return "; ".join(
        f"{name}  ".lstrip() + "  ".join(f"{region} {dice:.3f}" for region, dice in mean.items())
        for name, mean in means.items()
    )


def _state(study: Study, arm: Arm, seed: int) -> dict[str, Any]:
    """Return {"trainings", "evaluations": what is asked for, "training_s": {training: seconds}, "done"} of a seed.

    Resolved settings are compared, so that a yaml file or a store that changed is noticed. Raises InputError if they
    differ: a training resumed under another schedule would be neither the old one nor the new one.
    """
    trainings = {}
    for training in arm.trainings:
        config = as_plain(configuration(training, study, seed))
        del config["data"]["store"]
        trainings[training.name] = config | {"store_sha256": Store(study.store_of(training)).fingerprint()}
    of_each = ([one.name, list(one.runs), list(one.words), one.fuse] for one in arm.evaluations)
    evaluations = [study.split, *of_each, *(one.scans for one in arm.evaluations if one.scans)]
    asked = {"trainings": trainings, "evaluations": evaluations}
    folder = study.seed_folder(arm, seed)
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
    """Return {"a.b.c": value as text}."""
    found: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}".strip(".")
        found |= _flat(value, name) if isinstance(value, dict) else {name: str(value)}
    return found


def _program(words: list[str], log: Path, place: Place) -> float:
    """Run `python -m WORDS` and return its seconds. Raises JobFailed with its last lines."""
    environ = environment() | place.environ
    begin = time.monotonic()
    with open(log, "a", encoding="utf-8") as file:
        start = file.tell()
        code = subprocess.call([sys.executable, "-m", *words], env=environ, stdout=file, stderr=subprocess.STDOUT)
    if code:
        said = log.read_bytes()[start:].decode("utf-8", "replace").strip().splitlines()
        # words of accelerate's launcher and of torchrun's; a dump of the process, hundreds of lines, comes before
        if killed := re.search(r"died with <Signals\.(SIG\w+)|Signal \d+ \((SIG\w+)\)", "\n".join(said)):
            program = "kits_dist.train" if "kits_dist.train" in words else words[0]
            raise JobFailed(f"{program} was killed by {killed[1] or killed[2]}: see {log}")
        raise JobFailed(f"{words[0]} ended with exit code {code}:\n" + "\n".join(said[-LAST_LINES:]))
    return time.monotonic() - begin


def tables_of(study: Study, arm: Arm, seed: int) -> dict[str, dict[str, Metrics]]:
    """Return {evaluation: its cases.csv}. Raises InputError."""
    return {one.name: read_cases(study.scores_folder(arm, seed, one) / "cases.csv") for one in arm.evaluations}


def mean_dice(table: dict[str, Metrics]) -> dict[str, float]:
    """Return {region: mean over cases} for the challenge's regions that the table has."""
    first = next(iter(table.values()))
    regions = [name for name in REGIONS if f"{name}_dice" in first]
    return {name: float(np.mean([row[f"{name}_dice"] for row in table.values()])) for name in regions}
