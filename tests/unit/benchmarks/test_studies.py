"""Studies of Dice: what is trained and evaluated, what is not done twice, and the figures, against numbers by hand."""

import json
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from benchmarks.lib import lines, studies, study_runs, tables
from benchmarks.lib.lines import rounded
from benchmarks.lib.studies import Arm, Evaluation, Study, Training
from kits_dist.utils.errors import InputError, JobFailed

ROOT = Path(lines.__file__).resolve().parents[2]
SMALL = ("data.size_px=64x64", "model.arch=simple_unet", "model.width=6", "model.regions=[kidney_and_mass,tumor]")
CASES = ["case_00001", "case_00004", "case_00009"]


@dataclass(frozen=True)
class Args:
    out: str = ""
    jobs: int = 1
    quick: bool = False


class Machine:
    """In place of the programs: notes what it is asked, and writes the tables that `dice` says."""

    def __init__(self, monkeypatch, dice, fail=()):
        """dice: (folder of the scores) -> {region: [Dice a case]}; fail: run folders whose training fails."""
        self.dice, self.fail, self.asked = dice, set(fail), []
        monkeypatch.setattr(study_runs, "_program", self.program)

    def program(self, words, log, place):
        of = dict(word.split("=", 1) for word in words if "=" in word)
        self.asked.append(words)
        if "kits_dist.train" in words:
            run = Path(of["run"])
            run.mkdir(parents=True, exist_ok=True)
            (run / "config.yaml").write_text("")
            if "/".join(run.parts[-2:]) in self.fail:
                raise JobFailed("kits_dist.train ended with exit code 1:\nout of paper")
            (run / "environment.json").write_text('{"commit": "abc"}')
        else:
            table = self.dice(Path(of["output"]))
            Path(of["output"]).mkdir(parents=True)
            rows = [",".join(["case", *(f"{region}_dice" for region in table)])]
            rows += [
                f"{case},{','.join(map(str, row))}"
                for case, row in zip(CASES, zip(*table.values(), strict=True), strict=True)
            ]
            (Path(of["output"]) / "cases.csv").write_text("\n".join(rows) + "\n")
        return 12.0

    def names(self) -> list[str]:
        """Of the folders that were trained into, in order."""
        runs = [
            next(word for word in words if word.startswith("run=")) for words in self.asked if "--config_file" in words
        ]
        return ["/".join(Path(run[4:]).parts[-2:]) for run in runs]


def study_of(store, tmp_path, *arms, seeds=(0, 1), **more) -> Study:
    return Study("ablation", str(store.path), arms, tmp_path / "study", seeds=seeds, **more)


def one(name: str, *words: str) -> Arm:
    return Arm(name, (Training((*SMALL, *words)),))


def lines_in(folder: Path) -> Args:
    return Args(out=str(folder))


# a, b: hand-made Dice by variant and seed, of the three cases; b is 0.1 better than a in each case, seeds averaged
TUMOR = {
    ("a", 0): [0.2, 0.5, 0.8],
    ("a", 1): [0.4, 0.5, 0.6],
    ("b", 0): [0.3, 0.6, 0.9],
    ("b", 1): [0.5, 0.6, 0.7],
}


def by_hand(folder: Path) -> dict[str, list[float]]:
    variant, seed = folder.parts[-4], int(folder.parts[-3].removeprefix("seed_"))
    return {"kidney_and_mass": [0.9, 0.9, 0.9], "tumor": TUMOR[variant, seed]}


def test_the_posters_measure_is_weighted_by_slices_of_all_seeds():
    """Two cases, two seeds: the tumor counts on slices with a predicted kidney, of which each seed has others."""
    columns = ("kidney_and_mass_dice_poster", "kidney_and_mass_dice_poster_empty", "kidney_and_mass_poster_slices")
    rows = [[(0.5, 0.25, 4), (1.0, 1.0, 0)], [(0.75, 0.5, 8), (None, None, 0)]]
    tables = [
        {case: dict(zip(columns, row, strict=True)) for case, row in zip("ab", table, strict=True)} for table in rows
    ]
    found = studies.poster_scores(tables)
    assert found == {
        "kidney_and_mass": {
            "dice_poster": rounded((0.5 * 4 + 0.75 * 8) / 12),
            "dice_poster_ci95": [rounded(8 / 12)] * 2,
            "dice_poster_empty": rounded((0.25 * 4 + 0.5 * 8) / 12),
        }
    }


def test_a_paired_difference_by_hand(store, tmp_path, monkeypatch):
    Machine(monkeypatch, by_hand)
    study = study_of(store, tmp_path, one("a"), one("b", "optim.loss=dice"))
    found = studies.conduct(study, lines_in(tmp_path / "lines"))
    assert [(line.config["variant"], line.config["region"]) for line in found] == [
        ("a", "kidney_and_mass"),
        ("a", "tumor"),
        ("b", "kidney_and_mass"),
        ("b", "tumor"),
    ]
    a, b = found[1], found[3]
    assert (a.value, b.value, a.unit, a.windows) == (0.5, 0.6, "Dice", 3)
    # seeds averaged case by case: 0.3 0.5 0.7; each interval spans cases, the one of the pairs does not
    assert a.spread == (0.3, 0.7) and b.spread == (0.4, 0.8)
    assert b.config["difference"] == 0.1 and b.config["difference_ci95"] == [0.1, 0.1]
    assert "difference" not in a.config and a.config["reference"] is None and b.config["reference"] == "a"
    assert b.config["by_seed"] == [0.6, 0.6] and b.config["sd_between_seeds"] == 0
    assert b.config["training_s"] == [12.0, 12.0] and b.config["seeds"] == [0, 1]
    assert b.config["data"] == "kits" and b.config["model"]["width"] == 6
    assert b.config["cases"] == {"train": 4, "val": 1, "test": 3}
    assert b.config["trainings"]["run"][-1] == "optim.loss=dice"
    assert str(tmp_path) not in json.dumps([lines.to_json(line) for line in found])
    assert lines.read_all("out", tmp_path / "lines") == found


def test_the_sd_between_seeds_is_that_of_their_means(store, tmp_path, monkeypatch):
    means = {0: 0.2, 1: 0.5, 2: 0.65}
    Machine(monkeypatch, lambda folder: {"tumor": [means[int(folder.parts[-3][-1])]] * 3})
    study = study_of(store, tmp_path, one("a"), seeds=(0, 1, 2))
    (line,) = studies.conduct(study, lines_in(tmp_path / "lines"))
    assert line.config["sd_between_seeds"] == pytest.approx(statistics.stdev([0.2, 0.5, 0.65]), rel=1e-4)
    assert line.value == 0.45 and line.spread == (0.45, 0.45)  # the cases do not differ


def test_each_is_trained_as_a_user_would_and_only_once(store, tmp_path, monkeypatch):
    machine = Machine(monkeypatch, by_hand)
    study = study_of(store, tmp_path, one("a"), one("b", "optim.loss=dice"))
    study_runs.run(study, jobs=1)
    assert machine.names() == ["a/seed_0", "b/seed_0", "a/seed_1", "b/seed_1"]  # seed by seed
    train, evaluate = machine.asked[2:4]
    folder = tmp_path / "study" / "b" / "seed_0"
    assert train[:5] == [
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / "launch/single.yaml"),
        "-m",
        train[4],
    ]
    assert train[4:] == [
        "kits_dist.train",
        *SMALL,
        "optim.loss=dice",
        f"data.store={store.path}",
        f"run={folder}",
        "seed=0",
        "resume=auto",
    ]
    assert evaluate[:3] == ["kits_dist.evaluate", f"run={folder}", "split=test"]
    assert f"output={folder / 'evaluation' / 'test'}" in evaluate
    machine.asked.clear()
    study_runs.run(study)
    assert machine.asked == []


def test_what_failed_is_named_the_others_go_on_and_the_next_start_does_the_rest(store, tmp_path, monkeypatch, capsys):
    machine = Machine(monkeypatch, by_hand, fail=["b/seed_1"])
    study = study_of(store, tmp_path, one("a"), one("b", "optim.loss=dice"))
    with pytest.raises(JobFailed, match="1 of 2 arms failed: b"):
        studies.conduct(study, lines_in(tmp_path / "first"))
    assert "out of paper" in capsys.readouterr().out
    first = lines.read_all("out", tmp_path / "first")
    assert [line.value for line in first] == [0.9, 0.5, None] and "seed 1: kits_dist.train" in first[2].config["failed"]
    assert "| b |  | failed |" in tables.studies(first)
    machine.fail.clear()
    machine.asked.clear()
    found = studies.conduct(study, lines_in(tmp_path / "second"))
    assert machine.names() == ["b/seed_1"]
    assert found[3].config["training_s"] == [12.0, None]  # that one was interrupted: its seconds are not known


def test_without_its_reference_nothing_is_compared(store, tmp_path, monkeypatch):
    Machine(monkeypatch, lambda folder: {"tumor": [0.1, 0.2, 0.3]}, fail=["a/seed_0"])
    study = study_of(store, tmp_path, one("a"), one("b", "optim.loss=dice"), one("c", "optim.loss=focal"))
    with pytest.raises(JobFailed, match="arms failed: a"):
        studies.conduct(study, lines_in(tmp_path / "lines"))
    found = lines.read_all("out", tmp_path / "lines")
    assert [(line.config["variant"], line.config.get("difference")) for line in found] == [
        ("b", None),
        ("c", None),
        ("a", None),
    ]


def test_several_trainings_and_evaluations_of_one_variant(store, tmp_path, monkeypatch):
    """Two phases: the kidney alone, then both together; a store of its own; a row an evaluation."""

    def dice(folder):
        kidney = {"kidney_and_mass": [0.9, 0.8, 0.7]}
        return kidney if folder.name == "test_kidney" else kidney | {"tumor": [0.1, 0.2, 0.3]}

    machine = Machine(monkeypatch, dice)
    phases = (Training(SMALL[:3], "kidney"), Training(SMALL, "tumor", str(store.path)))
    both = Evaluation("both", ("kidney", "tumor"), ("tta=flip",))
    arm = Arm("poster", phases, (Evaluation("kidney", ("kidney",)), both))
    found = studies.conduct(study_of(store, tmp_path, arm, seeds=(5,)), lines_in(tmp_path / "l"))
    assert machine.names() == ["seed_5/kidney", "seed_5/tumor"]
    folder = tmp_path / "study" / "poster" / "seed_5"
    assert f"run=[{folder / 'kidney'},{folder / 'tumor'}]" in machine.asked[3] and "tta=flip" in machine.asked[3]
    rows = [(line.config["variant"], line.config["region"], line.config.get("difference")) for line in found]
    assert rows == [
        ("poster, kidney", "kidney_and_mass", None),
        ("poster, both", "kidney_and_mass", 0.0),
        ("poster, both", "tumor", None),  # the reference has no tumor
    ]
    assert found[0].config["training_s"] == [24.0] and set(found[0].config["trainings"]) == {"kidney", "tumor"}


def test_scores_of_other_cases_are_not_averaged_nor_compared(store, tmp_path, monkeypatch):
    Machine(monkeypatch, by_hand)
    study = study_of(store, tmp_path, one("a"), one("b", "optim.loss=dice"))
    study_runs.run(study)
    for seed in (0, 1):
        table = tmp_path / "study" / "b" / f"seed_{seed}" / "evaluation" / "test" / "cases.csv"
        table.write_text(table.read_text().replace(CASES[2], "case_00011"))
        with pytest.raises(InputError, match="scored on different cases" if seed == 0 else "a has no case_00011"):
            studies.lines_of(study, lines_in(tmp_path / "lines"), {})


def test_a_folder_with_another_training_is_refused_before_anything_runs(store, tmp_path, monkeypatch):
    machine = Machine(monkeypatch, by_hand)
    study_runs.run(study_of(store, tmp_path, one("a")))
    machine.asked.clear()
    longer = study_of(store, tmp_path, one("b", "optim.loss=dice"), one("a", "optim.epochs=7"))
    with pytest.raises(InputError, match=r"a/seed_0 holds another training \(what differs: optim.epochs\). Delete it"):
        study_runs.run(longer)
    assert machine.asked == []


def test_other_evaluations_are_made_without_training_again(store, tmp_path, monkeypatch):
    machine = Machine(monkeypatch, by_hand)
    study_runs.run(study_of(store, tmp_path, one("a"), seeds=(0,)))
    machine.asked.clear()
    study_runs.run(study_of(store, tmp_path, one("a"), seeds=(0,), split="val"))
    assert [words[0] for words in machine.asked] == ["accelerate.commands.launch", "kits_dist.evaluate"]
    assert "split=val" in machine.asked[1]
    state = json.loads((tmp_path / "study" / "a" / "seed_0" / study_runs.STATE).read_text())
    assert state["training_s"] == {"": 12.0}  # of the training itself, not of finding it finished


def test_what_cannot_work_is_refused_at_once(store, tmp_path):
    def refused(words: str, *arms: Arm):
        with pytest.raises(InputError, match=words):
            study_runs.run(study_of(store, tmp_path, *arms))

    refused("optim.loss=hinge", one("a", "optim.loss=hinge"))
    refused("config=nowhere.yaml: no such file", one("a", "config=nowhere.yaml"))


def test_each_place_has_its_own_share_of_the_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert [place.cores for place in study_runs.places()] == [{core} for core in range(8)]
    assert [place.cores for place in study_runs.places(2)] == [{0, 2, 4, 6}, {1, 3, 5, 7}]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    found = study_runs.places()
    assert [place.environ["CUDA_VISIBLE_DEVICES"] for place in found] == ["2", "5", "7"]
    assert sorted(core for place in found for core in place.cores) == list(range(8))


# tables


def test_a_study_is_a_table_of_its_own_under_a_heading_that_names_the_data(store, tmp_path, monkeypatch):
    Machine(monkeypatch, by_hand)
    found = studies.conduct(study_of(store, tmp_path, one("a"), one("b", "optim.loss=dice")), lines_in(tmp_path / "l"))
    for line in found:
        line.config["data"] = "phantom"
    speed = lines.line("loader", [5.0, 7.0, 6.0], "images/s", lines.A_RATIO, {"variant": "x"}, Args(), answer=True)
    alone, together = tables.table([speed]), tables.table([found[0], speed, *found[1:]])
    assert together.startswith(alone) and "Dice" not in alone
    heading, *_, last = together.removeprefix(alone).strip().splitlines()
    title = "Each ingredient of the training changed alone: Dice on phantoms"
    assert heading == f"### {title}"
    assert tables.studies(found).startswith(f"### {title}\n")
    assert last.startswith("| b | tumor | 0.600 [0.400 .. 0.800] | +0.100 [+0.100 .. +0.100] | 0.000 (2) | 3 | 12 |")
    assert "| a | tumor | 0.500 [0.300 .. 0.700] | reference |" in together and "| a | kidney_and_mass |" in together
    assert "simple_unet width 6, phantoms, 4 train cases, 1 val cases, 3 test cases, seeds 0, 1." in together
    assert tables.table([*found, speed]).count("| loader |") == 1
    for line in found:
        line.config["data"] = "painted"
    assert "Dice on painted CTs" in tables.table(found)


def test_a_failure_that_was_repaired_leaves_the_table(store, tmp_path, monkeypatch):
    machine = Machine(monkeypatch, by_hand, fail=["b/seed_0"])
    study = study_of(store, tmp_path, one("a"), one("b", "optim.loss=dice"))
    with pytest.raises(JobFailed):
        studies.conduct(study, lines_in(tmp_path / "l"))
    assert "| b |  | failed |" in tables.studies(lines.read_all("out", tmp_path / "l"))
    machine.fail.clear()
    studies.conduct(study, lines_in(tmp_path / "l"))
    table = tables.studies(lines.read_all("out", tmp_path / "l"))
    assert "failed" not in table and "| b | tumor | 0.600" in table
