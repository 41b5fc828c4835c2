"""Two sets of lines are compared with their noise."""

from dataclasses import replace

import pytest

from benchmarks import compare
from benchmarks.lib import lines
from kits_dist.utils.errors import InputError, JobFailed
from tests.helpers.benchmark_lines import made


def compared(tmp_path, old: list, new: list, capsys) -> str:
    for name, found in (("old", old), ("new", new)):
        for line in found:
            lines.record(line, tmp_path / name)
    capsys.readouterr()
    compare.main(compare.Args(old=str(tmp_path / "old"), new=str(tmp_path / "new")))
    return capsys.readouterr().out


def test_a_change_within_the_noise_is_no_loss(tmp_path, capsys):
    old, new = made([90.0, 100.0, 110.0], variant="x"), made([85.0, 88.0, 91.0], variant="x")
    said = compared(tmp_path, [old], [new], capsys)
    # 88 / 100; the windows reach 10 / 100 and 3 / 88 from their medians
    assert "demo x: 100 -> 88 images/s, 0.880 +- 0.134: within noise" in said


def test_less_is_better_for_seconds_and_differences(tmp_path, capsys):
    old = [made([10.0], unit="s", variant="a"), made([0.0], unit="batches that differ", variant="b")]
    said = compared(tmp_path, old, [made([8.0], unit="s", variant="a"), old[1]], capsys)
    assert "10 -> 8 s, 1.250 +- 0.000: gained" in said and "0 -> 0 batches that differ, 1.000" in said
    worse = made([3.0], unit="batches that differ", variant="b")
    assert compare.change(old[1], worse).lost and not compare.change(worse, old[1]).lost
    assert compare.change(made([1.0], unit="HU (worst)"), made([2.0], unit="HU (worst)")).lost


def test_a_figure_that_is_gone_is_a_loss_and_a_missing_line_is_counted(tmp_path, capsys):
    gone = made([], variant="x", failed="no memory")
    with pytest.raises(JobFailed, match="1 of 1 lost more than their noise: demo x"):
        compared(tmp_path, [made([1.0], variant="x"), made([1.0], variant="y")], [gone], capsys)
    assert "demo x: has no value now: no memory" in (said := capsys.readouterr().out)
    assert "only in old: 1" in said
    assert not compare.change(gone, made([1.0], variant="x")).lost


def test_other_machines_and_quick_lines_are_not_compared(tmp_path, capsys):
    old = made([1.0], variant="x")
    elsewhere = replace(old, env=old.env | {"gpu": "NVIDIA H100", "gpus": 1})
    for new in (elsewhere, made([1.0], variant="x", quick=True)):
        with pytest.raises(InputError, match="have no value in common. Machines:"):
            compared(tmp_path / str(new.quick), [old], [new], capsys)
