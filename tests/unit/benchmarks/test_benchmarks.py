"""Benchmarks measure what they say they measure, and what they write can be read, compared and put into the README."""

import itertools
import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import benchmarks.all
from benchmarks import compare, end_to_end, loader, model, report, rerun
from benchmarks.lib import harness, lines, plot, training
from benchmarks.lib.steps import Task
from kits_dist import cli
from kits_dist.utils.errors import InputError, JobFailed, MissingInput

CPU = torch.device("cpu")
ROOT = Path(harness.__file__).parents[2]
KEYS = {
    *("question", "value", "unit", "spread", "windows", "warmup_steps", "ceiling", "ratio"),
    *("config", "env", "command", "time_utc", "quick", "answer"),
}


@dataclass(frozen=True)
class Args:
    store: str = ""
    size_px: tuple[int, int] = (0, 0)
    variants: tuple[str, ...] = ()
    out: str = ""
    quick: bool = False


def made(value: list[float], *, quick: bool = False, unit: str = "images/s", answer: bool = False, **config):
    ceiling = harness.Ceiling("roof", 40.0)
    return harness.line("demo", value, unit, ceiling, config, Args(quick=quick), warmup_steps=3, answer=answer)


class Clock:
    """Stands still but for what is slept."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_median_and_spread():
    assert harness.median([5.0, 1.0, 9.0, 2.0, 3.0]) == (3.0, (1.0, 9.0))


def test_a_window_has_its_steps_its_lead_in_and_one_before_and_after():
    calls = []
    variant = harness.Variant(lambda: calls.append("s"), lambda: calls.append("<"), lambda: calls.append(">"))
    seconds = harness.time_window(variant, 3, CPU, lead_in=2)
    assert "".join(calls) == "ss<sss>"  # the lead-in lies outside
    assert seconds >= 0


def test_settle_waits_until_no_cpu_time_is_used(monkeypatch):
    clock, used = Clock(monkeypatch), iter([0.0, 0.05, 0.1, 0.14, 0.141])
    monkeypatch.setattr(time, "sleep", clock.sleep)
    monkeypatch.setattr(harness, "cpu_seconds", lambda: next(used))
    harness.settle()
    assert next(used, "all were asked for") == "all were asked for"  # the last 50 ms used 1 ms: rest
    monkeypatch.setattr(harness, "cpu_seconds", lambda: clock.now)  # one core, always
    with pytest.raises(RuntimeError, match="after 0.2 s this process or one of its workers still computes"):
        harness.settle(limit_s=0.2)


@pytest.mark.parametrize("where", ["thread", "child"])
def test_the_work_of_threads_and_of_children_is_cpu_time(where):
    before = harness.cpu_seconds()
    spin = "import time\nwhile time.process_time() < 60: pass"
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            pass

    worker = subprocess.Popen([sys.executable, "-c", spin]) if where == "child" else threading.Thread(target=busy)
    try:
        worker.start() if where == "thread" else None
        deadline = time.monotonic() + 60
        while harness.cpu_seconds() < before + 0.3 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert harness.cpu_seconds() >= before + 0.3
    finally:
        stop.set()
        if where == "child":
            worker.kill()
            worker.wait()
        else:
            worker.join()


def test_variants_take_turns_with_the_same_number_of_steps_in_each_window():
    calls = []
    variants = {name: harness.Variant(lambda name=name: calls.append(name)) for name in "ab"}
    timed = harness.interleave(variants, CPU, windows=5, window_s=0, warmup_steps=4)
    # warm-up 4 of each; then 5 rounds of one step each (window_s=0)
    assert "".join(calls) == "a" * 4 + "b" * 4 + "ab" * 5
    assert [(len(one.seconds), one.steps) for one in timed.values()] == [(5, 1), (5, 1)]


def test_rates_are_items_per_second():
    assert harness.Windows([2.0, 4.0], steps=10).rates(8) == [40.0, 20.0]  # 10 steps x 8 items in 2 s and in 4 s


def test_fewer_than_five_windows_are_refused():
    with pytest.raises(InputError, match="windows=3: a median and a spread need at least 5"):
        harness.interleave({}, CPU, windows=3, window_s=0, warmup_steps=0)


def test_a_window_has_as_many_steps_as_fill_its_time(monkeypatch):
    clock = Clock(monkeypatch)
    variants = {"slow": harness.Variant(lambda: clock.sleep(0.5)), "fast": harness.Variant(lambda: clock.sleep(0.1))}
    timed = harness.interleave(variants, CPU, windows=5, window_s=0.95, warmup_steps=1)
    assert (timed["slow"].steps, timed["fast"].steps) == (2, 10)  # 0.95 / 0.5 and 0.95 / 0.1, rounded up
    assert timed["fast"].rates(3) == pytest.approx([30.0] * 5)


def test_the_warm_up_is_in_no_figure(monkeypatch):
    clock, calls = Clock(monkeypatch), itertools.count()
    step = harness.Variant(lambda: clock.sleep(60 if next(calls) < 8 else 0.5))
    timed = harness.interleave({"one": step}, CPU, windows=5, window_s=1, warmup_steps=8)
    assert timed["one"].rates(1) == pytest.approx([2.0] * 5)
    calls = itertools.count()
    timed = harness.interleave({"one": step}, CPU, windows=5, window_s=1, warmup_steps=7)  # one too few: it shows
    assert timed["one"].steps == 1


def test_processes_that_step_together_agree_on_the_number_of_steps():
    asked = []
    timed = harness.interleave(
        {"one": harness.Variant(lambda: None)},
        CPU,
        windows=5,
        window_s=0.01,
        warmup_steps=0,
        agree=lambda steps: asked.append(steps) or 7,
    )
    assert timed["one"].steps == 7 and asked[0] > 7  # nothing is done in no time, so many fit


def trained(clock: Clock, source_s: float, step_s: float = 0.1) -> training.Training:
    """A training whose source sleeps before each batch and whose step sleeps."""

    def batches():
        while True:
            clock.sleep(source_s)
            yield training.Pair(torch.rand(2, 1, 4, 4), torch.zeros(2, 4, 4))

    return training.Training(batches(), lambda batch, logging: clock.sleep(step_s), torch.nn.Identity(), "")


@pytest.mark.parametrize("source_s", [0.0, 0.02, 0.05, 0.4])
def test_a_source_that_sleeps_lowers_the_ratio_by_as_much_and_raises_the_wait(source_s, monkeypatch):
    """All of end_to_end but the network and the loader: fixed against a source that blocks `source_s` in `next`."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(end_to_end, "settle", lambda: None)
    runs = {
        "fixed": end_to_end.Run(trained(clock, 0.0), "fixed", 2, CPU),
        "dali": end_to_end.Run(trained(clock, source_s), "dali", 2, CPU),
    }
    timed = end_to_end.measure(runs, CPU, 5, 1.0, warmup_steps=3, lead_in=4)
    ratio = harness.median(harness.rounds(timed["dali"].rates(2), timed["fixed"].rates(2)))[0]
    assert ratio == pytest.approx(0.1 / (0.1 + source_s), rel=1e-6)  # a step of 100 ms
    found = runs["dali"].findings(timed["dali"], 5)
    assert found["data_wait"] == pytest.approx(source_s / (0.1 + source_s), abs=1e-5)
    assert found["step_ms"]["p50"] == found["step_ms"]["p99"] == pytest.approx(1e3 * (0.1 + source_s))
    assert found["step_ms"]["steps"] == 5 * timed["dali"].steps  # neither warm-up nor lead-in nor calibration
    assert runs["fixed"].findings(timed["fixed"], 5)["data_wait"] == 0


def test_one_repeated_batch_in_place_of_the_loader_gives_a_ratio_of_one(monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(end_to_end, "settle", lambda: None)
    runs = {name: end_to_end.Run(trained(clock, 0.0), "fixed", 2, CPU) for name in ("fixed", "again")}
    timed = end_to_end.measure(runs, CPU, 5, 1.0, warmup_steps=3, lead_in=4)
    assert harness.rounds(timed["again"].rates(2), timed["fixed"].rates(2)) == pytest.approx([1.0] * 5)


def test_a_loader_that_gives_nothing_real_is_refused():
    zeros, noise = torch.zeros(2, 1, 4, 4), torch.rand(2, 1, 4, 4)
    with pytest.raises(JobFailed, match="dali: every pixel of a batch is 0. Nothing real was measured"):
        harness.checked(iter([training.Pair(zeros, None), training.Pair(noise, None)]), "dali")
    with pytest.raises(JobFailed, match="opencv: two batches in a row are the same"):
        harness.checked(itertools.repeat((noise, None)), "opencv")  # also as (image, label)
    left = harness.checked(iter([(noise, None), (noise + 1, None), "third"]), "monai")
    assert next(left) == "third"


def test_a_loader_that_reuses_its_memory_is_not_taken_for_one_that_repeats():
    buffer = torch.rand(2, 1, 4, 4)

    def batches():
        for number in range(3):
            buffer[0, 0, 0, 0] = number
            yield training.Pair(buffer, None)

    harness.checked(batches(), "dali")


def test_a_line_survives_the_disk(tmp_path):
    line = made([10.0, 30.0, 20.0, 25.0, 15.0], variant="x")
    path = harness.record(line, tmp_path)
    assert path.name == f"{line.time_utc[:10]}_{lines.slug(line.env['gpu'] or 'cpu')}_demo.jsonl"
    assert harness.record(line, tmp_path) == path  # appended
    assert harness.read(path) == [line, line]
    row = json.loads(path.read_text().splitlines()[0])
    assert set(row) == KEYS
    assert (row["value"], row["spread"], row["windows"], row["ratio"]) == (20.0, [10.0, 30.0], 5, 0.5)  # 20 / 40


def test_an_unknown_ceiling_gives_its_reason():
    with pytest.raises(ValueError, match="'peak' is unknown and gives no reason"):
        harness.line("demo", [1.0], "s", harness.Ceiling("peak", None), {}, Args())


def test_a_failed_variant_is_a_line_without_value():
    line = harness.line("demo", [], "s", harness.Ceiling("none", None, "failed"), {"failed": "no memory"}, Args())
    assert (line.value, line.spread, line.ratio) == (None, None, None)
    assert "failed: no memory" in lines.in_words(line)
    assert "| failed |" in report.table([line])


def test_the_command_names_what_differs_and_no_folder():
    args = Args(store=str(ROOT), size_px=(64, 96), variants=("a", "b"), out=str(ROOT), quick=True)
    words = harness.command(args)
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
    with pytest.raises(InputError, match="x.jsonl, line 2: no line of a benchmark"):
        lines.read(tmp_path / "x.jsonl")


def test_the_table_leaves_quick_lines_out_and_takes_the_latest(tmp_path, capsys):
    for line in (made([1.0], variant="x"), made([2.0], variant="x"), made([3.0], variant="y", quick=True)):
        harness.record(line, tmp_path)
    capsys.readouterr()
    report.main(report.Args(results=str(tmp_path)))
    printed = capsys.readouterr().out
    assert "| 2 images/s |" in printed and "| 1 images/s |" not in printed and "| 3 images/s |" not in printed


def test_a_folder_without_lines_is_named(tmp_path):
    with pytest.raises(MissingInput, match="no .jsonl file there. Make one: python -m benchmarks.loader"):
        report.main(report.Args(results=str(tmp_path)))


def test_recorded_lines_are_whole_and_name_no_folder():
    for path in harness.RESULTS.glob("*.jsonl"):
        text = path.read_text()
        known = ("images/s", "TFLOP/s", "GB/s", "value / ceiling", "cases/min", "volumes/min", "slices/s")
        for words in known:
            text = text.replace(words, "")
        assert "/" not in text, path.name
        for line in harness.read(path):
            assert not line.quick, f"{path.name} holds a quick line"
            few = line.question in ("agreement", "time_to_dice", *report.STUDIES) or line.value is None
            assert few or line.windows >= harness.MIN_WINDOWS
            assert line.question in report.QUESTIONS | report.STUDIES


def test_the_results_of_the_readme_are_those_of_the_recorded_lines():
    recorded = [line for line in lines.read_all("results", harness.RESULTS) if not line.quick]
    readme = (ROOT / "README.md").read_text()
    between = readme.partition(report.BEGIN)[2].partition(report.END)[0].strip()
    assert between == report.section(recorded), "run: python -m benchmarks.report update=README.md"
    page = (harness.RESULTS / "README.md").read_text()
    assert page == f"{report.everything(recorded)}\n", "run: python -m benchmarks.report update=README.md"


def test_an_updated_file_keeps_what_stands_around_the_section(tmp_path):
    results, readme = tmp_path / "results", tmp_path / "README.md"
    harness.record(made([2.0], variant="helper"), results)
    harness.record(made([3.0], variant="it", answer=True), results)
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.main(report.Args(results=str(results), update=str(readme)))
    text = readme.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n\n**") and text.endswith(f"{report.END}\nafter\n")
    assert "3 images/s [3 .. 3]" in text and "helper" not in text and "old" not in text  # the answer alone
    assert "| helper |" in (results / "README.md").read_text()
    assert (results / "plot.png").read_bytes()[1:4] == b"PNG"
    report.main(report.Args(results=str(results), update=str(readme)))
    assert readme.read_text() == text  # again changes nothing
    readme.write_text("no markers")
    with pytest.raises(InputError, match="must hold these two lines once"):
        report.main(report.Args(results=str(results), update=str(readme)))
    assert readme.read_text() == "no markers"


def test_curves_are_drawn(tmp_path):
    line = made([2.0], variant="kits_dist", curves=[[[1.0, 0.2], [2.0, 0.8]], [[1.0, 0.3]]], target_dice=0.7)
    plot.draw([line, made([1.5], unit="times", variant="a against b"), made([], failed="x")], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_every_benchmark_has_its_row_in_the_readme_of_the_folder():
    text = (ROOT / "benchmarks" / "README.md").read_text()
    names = [name for name in benchmarks.all.ORDER if (ROOT / "benchmarks" / f"{name}.py").exists()]
    names += ["all", "gpu_suite", "report", "compare", "rerun", "plan", *report.STUDIES]
    assert not [name for name in names if f"`python -m benchmarks.{name}" not in text]
    assert set(report.QUESTIONS) == {*benchmarks.all.ORDER, "phantom_dice"}


# compare and rerun


def compared(tmp_path, old: list, new: list, capsys) -> str:
    for name, found in (("old", old), ("new", new)):
        for line in found:
            harness.record(line, tmp_path / name)
    capsys.readouterr()
    compare.main(compare.Args(old=str(tmp_path / "old"), new=str(tmp_path / "new")))
    return capsys.readouterr().out


def test_a_change_within_the_noise_is_no_loss(tmp_path, capsys):
    old, new = made([90.0, 100.0, 110.0], variant="x"), made([85.0, 88.0, 91.0], variant="x")
    said = compared(tmp_path, [old], [new], capsys)
    # 88 / 100; the windows reach 10 / 100 and 3 / 88 from their medians
    assert "demo x: 100 -> 88 images/s, 0.880 +- 0.134: within noise" in said


def test_a_loss_beyond_the_noise_ends_with_code_1(tmp_path):
    harness.record(made([99.0, 100.0, 101.0], variant="x"), tmp_path / "old")
    harness.record(made([94.0, 95.0, 96.0], variant="x"), tmp_path / "new")  # 0.95, noise 0.01 + 0.0105
    command = [sys.executable, "-m", "benchmarks.compare", str(tmp_path / "old"), str(tmp_path / "new")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "demo x: 100 -> 95 images/s, 0.950 +- 0.021: LOST" in done.stdout
    assert "1 of 1 lost more than their noise: demo x." in done.stderr and "Traceback" not in done.stderr


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
    assert "demo x: has no value any more: no memory" in (said := capsys.readouterr().out)
    assert "only in old: 1" in said
    assert not compare.change(gone, made([1.0], variant="x")).lost


def test_other_machines_and_quick_lines_are_not_compared(tmp_path, capsys):
    old = made([1.0], variant="x")
    elsewhere = replace(old, env=old.env | {"gpu": "NVIDIA H100", "gpus": 1})
    for new in (elsewhere, made([1.0], variant="x", quick=True)):
        with pytest.raises(InputError, match="have no figure in common. Machines:"):
            compared(tmp_path / str(new.quick), [old], [new], capsys)


def test_a_figure_comes_again_within_twice_its_spread():
    old = made([90.0, 100.0, 105.0], variant="x")  # reaches 10: twice that is allowed
    assert rerun.verdict(old, made([81.0])) == ("demo x: 100 +- 20, now 81 images/s: again", True)
    assert rerun.verdict(old, made([79.0])) == ("demo x: 100 +- 20, now 79 images/s: MISSED", False)
    assert rerun.verdict(old, None)[1] is False


def test_a_recorded_command_is_run_again(tmp_path, capsys):
    line = replace(made([1.0], variant="x"), command="python -m benchmarks.loader store=DIR")
    harness.record(line, tmp_path)
    with pytest.raises(InputError, match="store=DIR: name that store with store=FOLDER"):
        rerun.main(rerun.Args(results=str(tmp_path)))
    with pytest.raises(InputError, match="no such line has a value"):
        rerun.main(rerun.Args(results=str(tmp_path), variant="y"))
    with pytest.raises(JobFailed, match="no store.json there"):
        rerun.main(rerun.Args(results=str(tmp_path), store=str(tmp_path / "nowhere")))


# all of them


def test_one_benchmark_that_fails_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    good = tmp_path / "work" / "lines" / "x.jsonl"
    good.parent.mkdir(parents=True)

    def tasks(self):
        harness.record(made([5.0], variant="fine"), self.work / "lines")
        return [
            Task("broken", ["benchmarks.model", "variants=[none]"], 60),
            Task("good", ["benchmarks.report", "help"], 60, after=self._keep),
        ]

    monkeypatch.setattr(benchmarks.all.Everything, "tasks", tasks)
    with pytest.raises(JobFailed, match="1 benchmarks failed: broken"):
        benchmarks.all.main(benchmarks.all.Args(out=str(tmp_path / "out")))
    said = capsys.readouterr().out
    assert "broken             failed, exit code 2" in said and "variants=['none']: choose from" in said
    assert "good               done" in said and "| demo | fine |" in said
    assert len(list((tmp_path / "out").glob("*_demo.jsonl"))) == 1 and (tmp_path / "out" / "plot.png").exists()


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(InputError, match="only=\\['speed'\\]: choose from"):
        benchmarks.all.Args(only=("speed",))


def test_an_unknown_variant_is_refused():
    with pytest.raises(InputError, match=r"variants=\['fast'\]: choose from"):
        model.main(model.Args(variants=("fast",)))


def test_on_a_gpu_the_loader_is_measured_from_mapped_files_and_from_gpu_memory():
    ways = loader._paths(torch.device("cuda", 0), 128)
    on_gpu = {name: way.residency for name, way in ways.items() if way.device.type == "cuda"}
    assert on_gpu == {
        "dali_gpu_still": "mmap",
        "dali_gpu_resident_still": "gpu",
        "dali_gpu_poster": "mmap",
        "dali_gpu_resident_poster": "gpu",
    }


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(InputError, match=r"devices=\[tpu\]: this machine has cpu"):
        loader.Args(devices=("cpu", "tpu"))
