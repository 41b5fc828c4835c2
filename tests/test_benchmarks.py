"""Benchmarks count what they say they count; each one runs and writes lines that the report can read."""

import json
import os
import select
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import agreement, end_to_end, gpu_suite, harness, loader, model, report
from kits_dist import cli
from kits_dist.errors import InputError, JobFailed, MissingInput

CPU = torch.device("cpu")
ROOT = Path(harness.__file__).parent.parent
KEYS = {
    *("question", "value", "unit", "spread", "windows", "warmup_steps", "ceiling", "ratio"),
    *("config", "env", "command", "time_utc", "quick"),
}


@dataclass(frozen=True)
class Args:
    store: str = ""
    size_px: tuple[int, int] = (0, 0)
    variants: tuple[str, ...] = ()
    out: str = ""
    quick: bool = False


def made(value: list[float], *, quick: bool = False, **config) -> harness.Line:
    ceiling = harness.Ceiling("roof", 40.0)
    return harness.line("demo", value, "images/s", ceiling, config, Args(quick=quick), warmup_steps=3)


def test_median_and_spread():
    assert harness.median([5.0, 1.0, 9.0, 2.0, 3.0]) == (3.0, (1.0, 9.0))


def test_a_window_has_its_steps_its_lead_in_and_one_before_and_after():
    calls = []
    variant = harness.Variant(lambda: calls.append("s"), lambda: calls.append("<"), lambda: calls.append(">"))
    seconds = harness.time_window(variant, 3, CPU, lead_in=2)
    assert "".join(calls) == "ss<sss>"  # the lead-in lies outside
    assert seconds >= 0


def test_settle_waits_for_threads_and_gives_up_on_what_never_rests():
    stop, until = threading.Event(), time.perf_counter() + 0.5

    def busy():
        while not stop.is_set() and time.perf_counter() < until:
            pass

    thread = threading.Thread(target=busy)
    thread.start()
    harness.settle()
    assert not thread.is_alive()
    until = float("inf")
    thread = threading.Thread(target=busy)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="after 0.2 s this process or one of its workers still computes"):
            harness.settle(limit_s=0.2)
    finally:
        stop.set()
        thread.join()


def test_settle_waits_for_child_processes():
    spin = (
        "import time\nend = time.perf_counter() + 1\nwhile time.perf_counter() < end: pass\nprint(flush=True)\ninput()"
    )
    child = subprocess.Popen([sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        time.sleep(0.3)  # it has started
        harness.settle()
        assert select.select([child.stdout], [], [], 0)[0]  # it has finished its work, and rests
    finally:
        child.kill()
        child.communicate()


def test_variants_take_turns_with_the_same_number_of_steps_in_each_window():
    calls = []
    variants = {name: harness.Variant(lambda name=name: calls.append(name)) for name in "ab"}
    timed = harness.interleave(variants, CPU, windows=5, window_s=0, warmup_steps=4)
    # warm-up 4 and calibration 2 of each; then 5 rounds of one step each (window_s=0)
    assert "".join(calls) == "a" * 6 + "b" * 6 + "ab" * 5
    assert [(len(one.seconds), one.steps) for one in timed.values()] == [(5, 1), (5, 1)]


def test_rates_are_items_per_second():
    assert harness.Windows([2.0, 4.0], steps=10).rates(8) == [40.0, 20.0]  # 10 steps x 8 items in 2 s and in 4 s


def test_fewer_than_five_windows_are_refused():
    with pytest.raises(ValueError, match="windows=3: a median and a spread need at least 5"):
        harness.interleave({}, CPU, windows=3, window_s=0, warmup_steps=0)


def test_a_line_survives_the_disk(tmp_path):
    line = made([10.0, 30.0, 20.0, 25.0, 15.0], variant="x")
    path = harness.record(line, tmp_path)
    assert path.name == f"{line.time_utc[:10]}_{harness.slug(line.env['gpu'] or 'cpu')}_demo.jsonl"
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
    assert "failed: no memory" in harness.in_words(line)
    assert "| failed |" in report.table([line])


def test_the_command_names_what_differs_and_no_folder():
    args = Args(store=str(ROOT), size_px=(64, 96), variants=("a", "b"), out=str(ROOT), quick=True)
    words = harness.command(args)
    assert words.endswith("store=DIR size_px=64x96 variants=[a,b] quick=true")
    assert str(ROOT) not in words
    assert cli.load(Args, words.split()[3:]).size_px == (64, 96)  # it can be typed as it stands


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
        assert "/" not in text.replace("images/s", "").replace("TFLOP/s", "").replace("value / ceiling", ""), path.name
        for line in harness.read(path):
            assert not line.quick, f"{path.name} holds a quick line"
            assert line.windows >= harness.MIN_WINDOWS or line.value is None or line.question == "agreement"


def valid(folder: Path, question: str) -> list[harness.Line]:
    lines = [line for path in folder.glob(f"*_{question}.jsonl") for line in harness.read(path)]
    assert lines and all(line.quick and line.question == question and line.env["torch"] for line in lines)
    assert all(line.value is not None for line in lines), [line.config.get("failed") for line in lines]
    return lines


def test_loader_runs(store, tmp_path):
    loader.main(loader.Args(store=str(store.path), out=str(tmp_path), quick=True))
    lines = {line.config["variant"]: line for line in valid(tmp_path, "loader")}
    assert lines["feed"].config["blocked_ms_per_batch"] > 0
    assert lines["dali_cpu_1_poster"].ratio > 0 and lines["opencv_1_poster"].ratio > 0


def test_agreement_runs_and_agrees(store, tmp_path):
    agreement.main(agreement.Args(store=str(store.path), out=str(tmp_path), quick=True))
    lines = {line.config["variant"]: line for line in valid(tmp_path, "agreement")}
    # tests/test_augment.py explains the tolerance on noisy slices
    assert lines["dali_cpu against numpy"].value < 2
    assert lines[f"busy_{harness.pick_device().type}"].value == 0


def test_a_batch_that_changed_has_another_digest(store):
    data = loader.DataConfig(store=str(store.path), size_px=(64, 64), batch_size=2)
    batches, _ = loader.build_train_loader(store, data, loader.POSTER, 0, loader.ALONE)
    batch = next(iter(batches))
    changed = batch._replace(image=batch.image.clone())
    assert agreement.digest(changed) == agreement.digest(batch)
    changed.image[1, 0, 5, 5] += 1e-3
    assert agreement.digest(changed) != agreement.digest(batch)
    assert agreement.digest(batch._replace(label=batch.label.flip(0))) != agreement.digest(batch)


@pytest.mark.slow
def test_model_runs(tmp_path):
    model.main(model.Args(out=str(tmp_path), quick=True))
    lines = {line.config["variant"]: line for line in valid(tmp_path, "model")}
    peak = next(line for name, line in lines.items() if name.startswith("peak"))
    assert peak.ceiling.value is None and peak.ceiling.reason
    train = next(line for name, line in lines.items() if name.startswith("train"))
    infer = next(line for name, line in lines.items() if name.startswith("infer"))
    assert train.config["gflop_per_image"] == pytest.approx(3 * infer.config["gflop_per_image"], abs=0.01)


def test_the_counted_work_is_that_of_the_convolutions():
    # width 1 at 16x16, a multiply-add counts 2. Pixels and channels of the five levels: 256x1 64x2 16x4 4x8 1x16
    # down, 3x3: 256*(1+1) + 64*(2+4) + 16*(8+16) + 4*(32+64) + 1*(128+256) = 2048 channel products, * 9 * 2 =  36864
    # up, 2x2 with stride 2: a coarse pixel gives 4 fine ones: 64*2*1 + 16*4*2 + 4*8*4 + 1*16*8 = 512, * 4 * 2 =  4096
    # merge, 3x3: 256*(2+1) + 64*(8+4) + 16*(32+16) + 4*(128+64) = 3072, * 9 * 2                              =  55296
    # head, 1x1: 256 * 2                                                                                      =    512
    network = model.ModelConfig(arch="simple_unet", width=1)
    assert model.forward_gflop(network, (16, 16)) * 1e9 == pytest.approx(36864 + 4096 + 55296 + 512)


def test_an_unknown_variant_is_refused():
    with pytest.raises(InputError, match=r"variants=\['fast'\]: choose from"):
        model.main(model.Args(variants=("fast",)))


@pytest.mark.slow
def test_end_to_end_runs(tmp_path):
    folder = tmp_path / "lines"
    subprocess.run(  # a process of its own: it starts an Accelerator and sets the number of threads
        [sys.executable, "-m", "benchmarks.end_to_end", "quick=true", f"out={folder}"], cwd=ROOT, check=True
    )
    lines = {line.config["variant"]: line for line in valid(folder, "end_to_end")}
    assert set(lines) == {"fixed", "end_to_end"}
    assert lines["end_to_end"].ratio > 0 and lines["fixed"].ratio is None
    assert 0 <= lines["end_to_end"].config["data_wait"] < 1
    assert lines["fixed"].config["step_ms"]["steps"] == lines["fixed"].windows >= 5  # windows of one step
    assert end_to_end.EVERY_STEPS == 10


@pytest.mark.slow
def test_the_whole_suite_runs_tiny_without_a_gpu(tmp_path):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu_suite", f"out={tmp_path}", "quick=true", "limit_s=400"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=500)
    table = (tmp_path / "table.txt").read_text()
    assert "failed" not in table and "stopped" not in table and "left out" not in table, table
    questions = {line.question for line in harness.read(tmp_path / "results.jsonl")}
    assert questions == {"agreement", "loader", "model", "end_to_end", "phantom_dice"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) <= 8 and all(path.stat().st_size < 16e6 for path in files)


def test_a_step_that_fails_is_noted_and_the_suite_goes_on(tmp_path):
    suite = gpu_suite.Suite(gpu_suite.Args(out=str(tmp_path), quick=True), tmp_path / "work")
    suite.run(gpu_suite.Task("wrong", ["kits_dist.prepare", "source=nowhere", "store=nowhere"], 60), 0)
    suite.run(gpu_suite.Task("late", ["kits_dist.prepare", "help"], 60), suite.args.limit_s)
    suite.write_table()
    table = (tmp_path / "table.txt").read_text()
    assert "failed, exit code 2" in table and "source=nowhere" in table
    assert "late" in table and "left out" in table


def test_the_suite_without_a_gpu_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no NVIDIA GPU here. With quick=true"):
        gpu_suite.main(gpu_suite.Args(out=str(tmp_path)))


def test_evaluate_runs_and_both_ways_agree(tmp_path):
    for name in ("SimpleITK", "surface_distance"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install -e .[dev]")
    from benchmarks import evaluate

    evaluate.main(evaluate.Args(out=str(tmp_path), quick=True))
    lines = {line.config["variant"]: line for line in valid(tmp_path, "evaluate")}
    assert set(lines) == {
        *("official, 16 slices", "ours, 16 slices", "ours against official, 16 slices"),
        *("memory of official, 16 slices", "memory of ours, 16 slices"),
    }
    assert all(line.config["largest_difference"] < 1e-9 for line in lines.values())
    assert lines["memory of ours, 16 slices"].config["imports_mb"] > 10
    assert lines["ours, 16 slices"].ratio > 0


def test_a_way_that_dies_is_named():
    from benchmarks import evaluate

    scorer = evaluate.Scorer("neither")
    with pytest.raises(JobFailed, match="benchmarks.scorers neither ended: its words stand above"):
        scorer.ask()
    scorer.process.wait()


def test_the_moved_copy_is_near_the_truth_and_holds_its_labels():
    from benchmarks.evaluate import moved

    label = np.zeros((12, 40, 40), np.uint8)
    label[3:9, 10:30, 10:30] = 1
    label[4:8, 15:25, 15:25] = 2
    near = moved(label, (3.0, 0.8, 0.8), seed=0)
    assert set(np.unique(near)) == {0, 1, 2} and not np.array_equal(near, label)
    assert 0.8 < 2 * ((near > 0) & (label > 0)).sum() / ((near > 0).sum() + (label > 0).sum()) < 1
    assert np.array_equal(near, moved(label, (3.0, 0.8, 0.8), seed=0))
