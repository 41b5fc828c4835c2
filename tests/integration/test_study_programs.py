"""The studies of the poster's method: what each of them trains and scores; run whole, tiny, as slow tests."""

import time
from pathlib import Path

import pytest

from benchmarks import planes, synthesis, table1
from benchmarks.lib import lines, study_runs
from benchmarks.lib.lines import Ceiling, Line
from benchmarks.lib.studies import Study
from kits_dist.data.store import PLANES
from kits_dist.inference.predictor import CascadeStage
from kits_dist.labels import REGIONS
from tests.helpers import fork_server
from tests.unit.benchmarks.test_studies import CASES, Machine


@pytest.mark.parametrize("small", [True, False])
def test_the_posters_rows_are_what_they_are_called(store, tmp_path, small):
    variants = tuple(table1._variant(name, small, (), (0,)) for name in table1.ROWS)
    study = Study("table1", str(store.path), variants, tmp_path)
    study_runs.check(study)
    simple, first, best = (
        [study_runs.configuration(training, study) for training in variant.trainings] for variant in variants
    )
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
    variant = table1._variant("ResNet34 U-Net, first run", True, (), (0,))
    study = Study("table1", str(store.path), (variant,), tmp_path / "s")
    assert study_runs.run(study, jobs=1) == {}
    evaluations = [words for words in asked if words[0] == "kits_dist.evaluate"]
    assert len(evaluations) == 1 and len(asked) == 3
    assert evaluations[0][1].startswith("run=[") and "phase1," in evaluations[0][1]
    tables = study_runs.tables_of(study, variant, 0)
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


def test_the_posters_figures_stand_beside_ours():
    def row(variant, region, value):
        config = {"variant": variant, "region": region}
        return Line(
            "table1",
            value,
            "Dice",
            (value - 0.1, value + 0.1),
            3,
            0,
            Ceiling("none", None, "-"),
            None,
            config,
            {},
            "",
            "",
            False,
        )

    found = [row("simple U-Net", "kidney_and_mass", 0.7), row("ResNet34 U-Net, first run", "tumor", 0.5)]
    text = table1.beside_the_poster(found).splitlines()
    assert text[1].split() == "simple U-Net 0.700 [0.600 .. 0.800] 0.736 - -".split()
    assert text[2].split() == "ResNet34 U-Net, first run - 0.932 0.500 [0.400 .. 0.600] 0.793".split()
    assert set(table1.ROWS) > {"simple U-Net"} and "tumor" in REGIONS


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
