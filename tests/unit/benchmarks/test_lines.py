"""A measurement is one complete line of JSON that can be written, read and typed again."""

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.lib import lines, tables
from kits_dist import cli
from kits_dist.utils.errors import InputError
from tests.helpers.benchmark_lines import Args, made

ROOT = Path(lines.__file__).parents[2]
KEYS = {
    *("question", "value", "unit", "spread", "windows", "warmup_steps", "ceiling", "ratio"),
    *("config", "env", "command", "time_utc", "quick", "answer"),
}


def test_median_and_spread():
    assert lines.median([5.0, 1.0, 9.0, 2.0, 3.0]) == (3.0, (1.0, 9.0))


def test_a_line_that_measures_nothing_never_goes_to_the_committed_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lines, "RESULTS", tmp_path / "committed")
    line = made([1.0] * 5, variant="x")
    assert lines.record(line).parent == tmp_path / "committed"
    assert lines.record(dataclasses.replace(line, quick=True)).parent == Path("runs/benchmarks")


def test_a_line_survives_the_disk(tmp_path):
    line = made([10.0, 30.0, 20.0, 25.0, 15.0], variant="x")
    path = lines.record(line, tmp_path)
    assert path.name == f"{line.time_utc[:10]}_{lines.slug(line.env['gpu'] or 'cpu')}_demo.jsonl"
    assert lines.record(line, tmp_path) == path  # appended
    assert lines.read(path) == [line, line]
    row = json.loads(path.read_text().splitlines()[0])
    assert set(row) == KEYS
    assert (row["value"], row["spread"], row["windows"], row["ratio"]) == (20.0, [10.0, 30.0], 5, 0.5)  # 20 / 40


def test_an_unknown_ceiling_gives_its_reason():
    with pytest.raises(ValueError, match="'peak' is unknown and gives no reason"):
        lines.line("demo", [1.0], "s", lines.Ceiling("peak", None), {}, Args())


def test_a_failed_variant_is_a_line_without_value():
    line = lines.line("demo", [], "s", lines.Ceiling("none", None, "failed"), {"failed": "no memory"}, Args())
    assert (line.value, line.spread, line.ratio) == (None, None, None)
    assert "failed: no memory" in lines.describe(line)
    assert "| failed |" in tables.table([line])


def test_the_command_names_what_differs_and_no_folder():
    args = Args(store=str(ROOT), size_px=(64, 96), variants=("a", "b"), out=str(ROOT), quick=True)
    words = lines.command(args)
    assert words.endswith("store=DIR size_px=64x96 variants=[a,b] quick=true")
    assert str(ROOT) not in words
    assert cli.load(Args, words.split()[3:]).size_px == (64, 96)  # it can be typed as it stands


def test_a_line_of_an_older_version_can_be_read():
    line = made([1.0])
    row = lines.to_json(line)
    del row["answer"]
    assert lines.from_json(row) == line


def test_what_is_no_line_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps(lines.to_json(made([1.0]))) + "\n{}\n")
    with pytest.raises(InputError, match="x.jsonl, line 2: this is not the line of a benchmark"):
        lines.read(tmp_path / "x.jsonl")


def test_a_recorder_writes_the_ratio_to_windows_timed_in_turns(tmp_path):
    recorder = lines.Recorder("demo", Args(out=str(tmp_path)), {"device": "cpu"}, unit="s", warmup_steps=3)
    one = recorder.write("x", [1.0, 2.0, 9.0], lines.Baseline("base", [2.0, 2.0, 3.0]), {"batch_size": 4}, answer=True)
    # rounds 1 / 2, 2 / 2, 9 / 3: their median is 1, that of the medians is 2 / 2
    assert (one.ratio, one.config["ratio_spread"], one.ceiling) == (1.0, [0.5, 3.0], lines.Ceiling("base", 2.0))
    assert one.config == {"variant": "x", "device": "cpu", "batch_size": 4, "ratio_spread": [0.5, 3.0]}
    assert (one.unit, one.warmup_steps, one.answer) == ("s", 3, True)
    failed = recorder.write("y", [], lines.Baseline("base", [2.0]), {"failed": "no memory"}, unit="images/s")
    assert (failed.value, failed.ratio, failed.unit) == (None, None, "images/s")
    (path,) = tmp_path.iterdir()
    assert lines.read(path) == [one, failed]
