"""The studies: what each of them trains and scores, how their programs start; run whole, tiny, as slow tests."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import planes, synthesis, table1
from benchmarks.lib import lines, study_runs
from benchmarks.lib.programs import ROOT
from benchmarks.lib.studies import Study
from kits_dist.data.store import PLANES
from kits_dist.inference.predictor import CascadeStage
from kits_dist.utils.errors import JobFailed
from tests.helpers import fork_server
from tests.unit.benchmarks.test_studies import CASES, Machine, one, study_of


@pytest.mark.parametrize("small", [True, False])
def test_the_posters_rows_are_what_they_are_called(store, tmp_path, small):
    arms = tuple(table1.arm_of(name, small, ()) for name in table1.ROWS)
    study = Study("table1", str(store.path), arms, tmp_path, seeds=(0,))
    simple, first, best = ([study_runs.configuration(training, study) for training in arm.trainings] for arm in arms)
    assert [one.model.arch for one in simple] == ["simple_unet"]
    assert all((one.model.arch, one.model.encoder) == ("unet", "resnet34") for one in (*first, *best))
    for phase1, phase2 in (first, best):
        assert (phase1.data.box, phase1.model.regions) == ("body", ("kidney_and_mass",))
        assert (phase2.data.box, phase2.model.regions) == ("kidney", ("mass", "tumor"))
    assert all(one.optim.ema == 0 and one.optim.schedule == "constant" for one in (*simple, *first))
    assert all(one.optim.ema and one.optim.schedule == "cosine" and one.optim.warmup_steps for one in best)
    assert [one.model.width for one in (*simple, *first)] == ([8, 16, 16] if small else [64] * 3)
    assert all(one.data.batch_size == (8 if small else 128) for one in (*simple, *first, *best))


def test_a_cascade_is_evaluated_once_and_gives_three_tables(store, tmp_path, monkeypatch):
    """The stages' tables are looked for where kits_dist.evaluate leaves them."""
    asked = []

    def program(words, log, place):
        asked.append(words)
        of = dict(word.split("=", 1) for word in words if "=" in word)
        if "kits_dist.train" in words:
            Path(of["run"]).mkdir(parents=True)
            return 1.0
        for stage in (CascadeStage("phase1", ()), CascadeStage("phase2", ()), CascadeStage("", ())):
            output = Path(of["output"])
            folder = output.with_name(f"{output.name}_{stage.name}") if stage.name else output
            folder.mkdir(parents=True)
            rows = [f"{case},{0.1 * len(stage.name)}" for case in CASES]
            (folder / "cases.csv").write_text("\n".join(["case,tumor_dice", *rows]))
        return 2.0

    monkeypatch.setattr(study_runs, "_program", program)
    arm = table1.arm_of("ResNet34 U-Net, first run", True, ())
    study = Study("table1", str(store.path), (arm,), tmp_path / "s", seeds=(0,))
    assert study_runs.run(study, jobs=1) == {}
    evaluations = [words for words in asked if words[0] == "kits_dist.evaluate"]
    assert len(evaluations) == 1 and len(asked) == 3
    assert evaluations[0][1].startswith("run=[") and "phase1," in evaluations[0][1]
    tables = study_runs.tables_of(study, arm, 0)
    assert [table[CASES[0]]["tumor_dice"] for table in tables.values()] == pytest.approx([0.0, 0.6, 0.6])


def test_weights_are_chosen_before_they_are_used(store, tmp_path, monkeypatch):
    machine = Machine(monkeypatch, lambda folder: {"tumor": [0.1, 0.2, 0.3]})
    stand_in = machine.program

    def program(words, log, place):
        if words[0] != "kits_dist.fuse":
            return stand_in(words, log, place)
        machine.asked.append(words)
        return 1.0

    monkeypatch.setattr(study_runs, "_program", program)
    monkeypatch.setattr(planes, "phantoms", lambda *_: str(store.path))
    planes.main(planes.Args(quick=True, runs=str(tmp_path / "runs"), out=str(tmp_path / "out"), jobs=1))
    programs = [(words[0], words) for words in machine.asked if "--config_file" not in words]
    assert [name for name, _ in programs] == ["kits_dist.evaluate"] * 4 + ["kits_dist.fuse"] + [
        "kits_dist.evaluate"
    ] * 2
    fused, used = programs[4][1], programs[5][1]
    assert fused[1] == used[1] and all(plane in fused[1] for plane in PLANES)
    assert fused[2].removeprefix("output=") == next(word for word in used if word.startswith("fusion="))[7:]


def at_once(words: list[str], log: Path, place: study_runs.Place) -> float:
    """As study_runs._program, without a launcher and without waiting for imports."""
    begin = time.monotonic()
    module, *arguments = words[len(study_runs.LAUNCH) - 1 :] if words[0] == study_runs.LAUNCH[0] else words
    assert fork_server.start(log, module, *arguments, **place.environ).wait(600) == 0, log.read_text()[-3000:]
    return time.monotonic() - begin


@pytest.mark.slow
@pytest.mark.parametrize("program", [table1, planes, synthesis], ids=lambda program: program.__name__.split(".")[1])
def test_it_runs_whole(program, tmp_path, monkeypatch):
    """What really starts programs is tested with the ablation (test_studies.py)."""
    name = program.__name__.split(".")[1]
    monkeypatch.setattr(study_runs, "_program", at_once)
    program.main(program.Args(quick=True, runs=str(tmp_path / "runs"), out=str(tmp_path / "out")))
    found = lines.read_all("out", tmp_path / "out")
    assert found and all(line.value is not None and line.quick and line.question == name for line in found)
    kind = "painted" if name == "synthesis" else "phantom"
    assert {line.config["data"] for line in found} == {kind} and synthesis.Args().augment == 4


def test_a_program_that_fails_is_quoted(tmp_path):
    log = tmp_path / "log.txt"
    with pytest.raises(JobFailed, match="json.tool ended with exit code [12]:\n(.*\n)*.*nowhere.json"):
        study_runs._program(["json.tool", str(tmp_path / "nowhere.json")], log, study_runs.Place(set(), {}))
    assert "nowhere.json" in log.read_text()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system knows no affinity")
def test_a_training_sees_the_cores_of_its_place_only(store, tmp_path, monkeypatch):
    seen, before = [], os.sched_getaffinity(0)

    def program(words, log, place):
        code = "import os; print(*os.sched_getaffinity(0))"
        seen.append(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split())
        raise JobFailed("enough")

    monkeypatch.setattr(study_runs, "_program", program)
    study_runs.run(study_of(store, tmp_path, one("a"), seeds=(0,)))
    assert len(seen) == 1 and len(seen[0]) == 1 and int(seen[0][0]) in before
    assert os.sched_getaffinity(0) == before  # of this process, nothing changed


@pytest.mark.slow
def test_the_ablation_runs_tiny_and_a_second_time_reads_what_is_there(tmp_path):
    for out in ("first", "second"):
        words = ["quick=true", f"runs={tmp_path / 'runs'}", f"out={tmp_path / out}", "only=[context]"]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.ablation", *words], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    first, second = (lines.read_all("out", tmp_path / name) for name in ("first", "second"))
    assert [(line.config["variant"], line.value) for line in first] == [
        (line.config["variant"], line.value) for line in second
    ]
    assert {line.config["variant"] for line in first} == {"reference", "context 1"}
    assert {line.config["region"] for line in first} == {"kidney_and_mass", "tumor"}
    assert all(line.quick and line.config["data"] == "phantom" and line.config["training_s"][0] > 0 for line in first)
    run = tmp_path / "runs" / "ablation_quick" / "context-1" / "seed_0"
    assert "already finished" not in (run / "log.txt").read_text() and (run / "model.safetensors").is_file()
