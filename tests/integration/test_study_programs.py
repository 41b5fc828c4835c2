"""The studies: what each of them trains and scores, how their programs start; run whole, tiny, as slow tests."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import planes, real_slices, synthesis, table1
from benchmarks.lib import lines, study_runs
from benchmarks.lib.programs import ROOT
from benchmarks.lib.stores import rewindowed
from benchmarks.lib.studies import Study
from kits_dist import phantom, prepare
from kits_dist.data.intensity import Window
from kits_dist.data.store import PLANES, Store, case_to_json
from kits_dist.utils.errors import InputError, JobFailed
from tests.helpers import fork_server
from tests.unit.benchmarks.test_studies import Machine, one, study_of


@pytest.mark.parametrize("small", [True, False])
def test_the_rows_of_table_1_are_what_they_are_called(store, tmp_path, small):
    stores = {table1.WIDE: str(store.path), table1.NARROW: str(store.path / "narrow")}
    arms = {name: table1.arm_of(name, small, stores) for name in table1.ROWS}
    study = Study("table1", str(store.path), tuple(arms.values()), tmp_path, seeds=(0,))
    plain, first, optimized, best = (
        [study_runs.configuration(training, study) for training in arm.trainings] for arm in arms.values()
    )
    windows = [[one.data.store == stores[table1.NARROW] for one in row] for row in (plain, first, optimized, best)]
    assert windows == [[True, True], [True, True], [False, False], [False, False]]

    for phase1, phase2 in (plain, first, optimized):
        assert (phase1.data.mask, phase1.model.regions) == ("none", ("kidney_and_mass",))
        assert (phase2.data.mask, phase2.data.box, phase2.model.regions) == ("kidney", "body", ("tumor",))
        for phase in (phase1, phase2):
            assert (phase.optim.name, phase.optim.lr, phase.optim.loss, phase.optim.ema) == ("adam", 1e-3, "bce", 0)
            assert phase.optim.schedule == "constant" and phase.optim.best_by == "loss" and phase.log.poster
            assert phase.augment.flip_vertical == 0.5 and phase.augment.rotate_deg == 30
    assert [one.model.arch for one in plain] == ["simple_unet"] * 2
    assert all(one.augment.zoom_crop_p == (one in optimized) / 2 for one in (*first, *optimized))
    assert [one.augment.noise_p for one in (*first, *optimized)] == [0, 0, 0.5, 0]

    assert best[1].data.box == "kidney" and all(one.optim.ema and one.optim.schedule == "cosine" for one in best)
    resnets = (*first, *optimized, *best)
    assert all((one.model.arch, one.model.encoder) == ("unet", "resnet34") for one in resnets)
    assert all(one.data.batch_size == (8 if small else 128) for one in (*plain, *resnets))
    assert [one.optim.epochs for one in (*plain, *optimized)] == ([2] * 4 if small else [100] * 4)


def test_a_store_of_another_window_is_refused(raw, tmp_path):
    narrow = prepared(raw, tmp_path / "narrow", (20, 45))
    with pytest.raises(InputError, match=r"window \[20, 45\]. Prepare one with window_hu=\[0,200\]"):
        table1.main(table1.Args(store=str(narrow.path), runs=str(tmp_path / "runs")))


def test_a_store_is_rewindowed_as_prepare_would(raw, tmp_path):
    wide, expected = (prepared(raw, tmp_path / name, w) for name, w in (("w", (0, 200)), ("n", (20, 45))))
    made = rewindowed(wide, table1.NARROW, tmp_path / "made")
    assert [*map(case_to_json, made.cases)] == [*map(case_to_json, expected.cases)]
    assert (made.meta, made.splits) == (expected.meta, expected.splits)
    assert made.image(0).max() == 25 and (made.image(0) == expected.image(0)).all()
    assert rewindowed(wide, table1.NARROW, tmp_path / "made").path == made.path
    with pytest.raises(InputError, match=r"\[-10, 45\] is not in it"):
        rewindowed(wide, Window(-10, 45), tmp_path / "x")


def prepared(source: Path, path: Path, window_hu: tuple[float, float]) -> Store:
    """Return the store of `source` with the poster's splits."""
    prepare.main(prepare.Args(str(source), str(path), window_hu=window_hu, splits="poster", workers=1))
    return Store(path)


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


@pytest.mark.slow
def test_real_slices_run_whole(tmp_path, monkeypatch):
    """Phantoms take the place of real cases: 6 are painted, the slices of 2 others and of one of these are given."""
    phantom.main(phantom.Args(output=str(tmp_path / "labels"), cases=8, size=(8, 64, 64)))
    for number in (5, 6, 7):
        shutil.copytree(tmp_path / "labels" / f"case_0000{number}", tmp_path / "real" / f"case_0000{number}")
    for number in (6, 7):
        shutil.rmtree(tmp_path / "labels" / f"case_0000{number}")
    monkeypatch.setattr(study_runs, "_program", at_once)
    folders = {"runs": str(tmp_path / "runs"), "out": str(tmp_path / "out")}
    where = {"labels": str(tmp_path / "labels"), "slices": str(tmp_path / "real")}
    real_slices.main(real_slices.Args(quick=True, **where, **folders))
    found = lines.read_all("out", tmp_path / "out")
    halves = {"painted", "painted, even case numbers", "painted, odd case numbers"}
    assert {line.config["variant"] for line in found} == halves
    assert {line.config["region"] for line in found} == {"kidney_and_mass", "tumor"}
    assert all(line.value is not None and line.quick for line in found)
    assert found[0].config["left_out"] == ["case_00005"] and found[0].config["trained_on"] == "painted"
    assert found[0].command == "python -m benchmarks.real_slices quick=true slices=DIR labels=DIR"


def test_a_program_that_fails_is_quoted(tmp_path):
    log = tmp_path / "log.txt"
    with pytest.raises(JobFailed, match="json.tool ended with exit code [12]:\n(.*\n)*.*nowhere.json"):
        study_runs._program(["json.tool", str(tmp_path / "nowhere.json")], log, study_runs.Place(set(), {}))
    assert "nowhere.json" in log.read_text()


def test_a_program_that_a_signal_ended_is_one_line(tmp_path):
    """As the launcher tells it, after the process has dumped the names of its modules."""
    code = "import os, subprocess, sys; subprocess.run([sys.executable, '-c', 'import os; os.abort()'], check=True)"
    log = tmp_path / "log.txt"
    (tmp_path / "dies.py").write_text(code)
    environ = {"PYTHONPATH": str(tmp_path), "PYTHONFAULTHANDLER": "1"}
    with pytest.raises(JobFailed) as caught:
        study_runs._program(["dies"], log, study_runs.Place(set(), environ))
    assert str(caught.value) == f"dies was killed by SIGABRT: see {log}"
    assert "Fatal Python error: Aborted" in log.read_text()


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
