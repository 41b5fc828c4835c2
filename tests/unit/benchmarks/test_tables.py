"""Recorded lines become tables, and the README shows their headlines."""

from dataclasses import replace
from pathlib import Path

import pytest

import benchmarks.all
from benchmarks import report
from benchmarks.lib import harness, lines, tables
from kits_dist.utils.errors import InputError, MissingInput
from tests.helpers.benchmark_lines import made

ROOT = Path(lines.__file__).parents[2]


def test_the_table_leaves_quick_lines_out_and_takes_the_latest(tmp_path, capsys):
    for line in (made([1.0], variant="x"), made([2.0], variant="x"), made([3.0], variant="y", quick=True)):
        lines.record(line, tmp_path)
    capsys.readouterr()
    report.main(report.Args(results=str(tmp_path)))
    printed = capsys.readouterr().out
    assert "| 2 images/s |" in printed and "| 1 images/s |" not in printed and "| 3 images/s |" not in printed


def test_a_folder_without_lines_is_named(tmp_path):
    with pytest.raises(MissingInput, match="there is no .jsonl file. Make one: python -m benchmarks.loader"):
        report.main(report.Args(results=str(tmp_path)))


def test_recorded_lines_are_whole_and_name_no_folder():
    for path in lines.RESULTS.glob("*.jsonl"):
        text = path.read_text()
        known = ("images/s", "TFLOP/s", "GB/s", "value / ceiling", "cases/min", "volumes/min", "slices/s")
        for words in known:
            text = text.replace(words, "")
        assert "/" not in text, path.name
        for line in lines.read(path):
            assert not line.quick, f"{path.name} holds a quick line"
            few = line.question in ("time_to_dice", *tables.STUDIES) or line.value is None
            assert few or line.windows >= harness.MIN_WINDOWS
            assert line.question in tables.QUESTIONS | tables.STUDIES


def test_the_results_of_the_readme_are_those_of_the_recorded_lines():
    recorded = [line for line in lines.read_all("results", lines.RESULTS) if not line.quick]
    readme = (ROOT / "README.md").read_text()
    between = readme.partition(report.BEGIN)[2].partition(report.END)[0].strip()
    assert between == tables.headlines(recorded), "run: python -m benchmarks.report update=README.md"
    page = (lines.RESULTS / "README.md").read_text()
    assert page == f"{tables.everything(recorded)}\n", "run: python -m benchmarks.report update=README.md"


def headline(value: float, **more):
    line = made([value], unit="times", variant="kits_dist against plain_pytorch", answer=True)
    return replace(line, question="time_to_dice", ratio=None, ceiling=lines.A_RATIO, **more)


def test_an_updated_file_keeps_what_surrounds_the_headlines(tmp_path):
    results, readme = tmp_path / "results", tmp_path / "README.md"
    lines.record(made([2.0], variant="helper"), results)
    lines.record(headline(3.0), results)
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.main(report.Args(results=str(results), update=str(readme)))
    text = readme.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n\n| what |") and text.endswith(f"{report.END}\nafter\n")
    assert "| 3 times [3 .. 3] |" in text and "helper" not in text and "old" not in text  # the headline alone
    assert "| helper |" in (results / "README.md").read_text()
    report.update(readme, lines.read_all("results", results))
    assert readme.read_text() == text  # again changes nothing
    readme.write_text("no markers")
    with pytest.raises(InputError, match="must hold these two lines once"):
        report.main(report.Args(results=str(results), update=str(readme)))
    assert readme.read_text() == "no markers"


def test_a_headline_is_the_latest_line_with_its_hardware():
    old = headline(1.0, time_utc="2026-01-01T00:00:00Z")
    env = old.env | {"gpus": 2, "gpu": "NVIDIA H200", "cpu_cores": 16, "cpu": "EPYC"}
    new = replace(old, value=2.0, time_utc="2026-02-01T00:00:00Z", env=env)
    *_, row = tables.headlines([new, old]).splitlines()
    assert "| 2 times [1 .. 1] |" in row and "| 2 x NVIDIA H200, 16 cores (EPYC) | 2026-02-01 " in row
    assert len(tables.HEADLINES) == 5 and tables.headlines([made([1.0])]) == "No line of a headline was recorded yet."


def test_every_headline_has_a_recorded_line():
    recorded = lines.read_all("results", lines.RESULTS)
    assert len(tables.headlines(recorded).splitlines()) == 2 + len(tables.HEADLINES)


def test_every_benchmark_has_its_row_in_the_readme_of_the_folder():
    text = (ROOT / "benchmarks" / "README.md").read_text()
    names = [name for name in benchmarks.all.ORDER if (ROOT / "benchmarks" / f"{name}.py").exists()]
    names += ["all", "gpu_suite", "report", "compare", "plan", *tables.STUDIES]
    assert not [name for name in names if f"`python -m benchmarks.{name}" not in text]
    assert set(tables.QUESTIONS) == {*benchmarks.all.ORDER, "phantom_dice"}
