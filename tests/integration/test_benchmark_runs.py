"""Each benchmark runs and writes the lines that it promises; tiny, so their figures mean nothing."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import evaluate, feed, gpu_suite, loader, peers, predict
from benchmarks.lib import gunzip, host_copy, lines
from benchmarks.lib.scaling_rank import RankGroup
from benchmarks.lib.stores import dataset_of
from kits_dist.config import DataConfig
from kits_dist.utils.errors import InputError, JobFailed

ROOT = Path(lines.__file__).parents[2]


def lines_of(folder: Path, question: str) -> dict[str, lines.Line]:
    found = [line for path in folder.glob(f"*_{question}.jsonl") for line in lines.read(path)]
    assert found and all(line.quick and line.question == question and line.env["torch"] for line in found)
    assert any(line.answer for line in found)
    return {line.config["variant"]: line for line in found}


def valid(folder: Path, question: str) -> dict[str, lines.Line]:
    found = lines_of(folder, question)
    assert not [line.config["failed"] for line in found.values() if line.value is None]
    return found


def test_feed_runs(store, tmp_path):
    feed.main(feed.Args(store=str(store.path), out=str(tmp_path), quick=True))
    found = lines_of(tmp_path, "feed")
    assert found["views"].config["blocked_ms_per_batch"] > 0 and found["views"].ratio is None
    assert found["read"].ratio > 0 and found["read"].config["gb_per_s"] > 0
    disk = found["disk"]  # a folder in memory has no disk behind it
    assert disk.value or "page cache keeps" in disk.config["failed"]


def test_the_feed_copies_every_pixel(store):
    data = DataConfig(store=str(store.path), size_px=(64, 64), batch_size=4, backend="opencv")
    of_store = dataset_of(store, data)
    host = of_store.batch(np.arange(4))
    target, _ = host_copy.room_for(of_store, 4)
    count = host_copy.copy_into(target, host)
    assert count == sum(piece.size for piece in (*host.slabs, *host.labels))
    first, last = host.slabs[0], host.labels[-1]
    assert np.array_equal(target[: first.size], first.ravel())
    assert np.array_equal(target[count - last.size : count], last.ravel())


def test_a_store_that_the_page_cache_keeps_is_no_disk(store, monkeypatch):
    monkeypatch.setattr(os, "posix_fadvise", lambda *_: None)
    for case in store.cases:  # now it is in memory
        (store.path / "axial" / case.case_id / "image.npy").read_bytes()
        (store.path / "axial" / case.case_id / "label.npy").read_bytes()
    why, images, nbytes = feed.read_cold(store, 5)
    assert "page cache keeps the store's files" in why or "not supported" in why
    assert images == sum(case.shape[0] for case in store.cases)
    assert nbytes == 2 * sum(int(np.prod(case.shape)) for case in store.cases)


def test_loader_runs(store, tmp_path):
    loader.main(loader.Args(store=str(store.path), out=str(tmp_path), quick=True))
    found = valid(tmp_path, "loader")
    assert found["dali_cpu_1_augmented"].ratio > 0 and found["opencv_1_augmented"].ratio > 0


def test_predict_runs(tmp_path):
    predict.main(predict.Args(out=str(tmp_path), quick=True))
    found = valid(tmp_path, "predict")
    ways = {"predict", "flip", "file_to_file"} | ({"tf32"} if torch.cuda.is_available() else set())
    assert ways < set(found) and all(name.startswith("network") for name in set(found) - ways)
    slices = found["predict"].config["slices"]
    for name in ways:
        config = found[name].config
        assert config["slices_per_s"] == pytest.approx(found[name].value / 60 * slices, rel=0.01)
        assert found[name].ratio > 0 and found[name].ceiling.name.startswith("network")


def test_the_floor_of_prepare_writes_as_many_bytes_as_the_store_holds(raw, store, tmp_path):
    gunzip.main(gunzip.Args(source=str(raw), output=str(tmp_path / "floor"), workers=1))
    written = sum(path.stat().st_size for path in (tmp_path / "floor").iterdir())
    headers = 352 + 352 // 2  # of the labels, and half of the image's, a case
    assert written == sum(2 * int(np.prod(case.shape)) + headers for case in store.cases)


def test_the_exchange_is_left_out_by_no_sync():
    """Without exchange the network is shared, and no step waits for another process."""
    group = object.__new__(RankGroup)
    group._idle, group._train = False, SimpleNamespace(model=SimpleNamespace(no_sync=lambda: "quiet"))
    group._exchange = "loud"
    other = group.without_exchange()
    assert other._exchange() == "quiet" and group._exchange == "loud" and other._train is group._train


@pytest.mark.slow
def test_one_command_runs_them_tiny_as_processes(tmp_path):
    """Those that start processes themselves or join two others' work; each of the rest runs above, in this process.

    Peers that are not installed have lines that say so.
    """
    there = ["model", "end_to_end", "epoch", "scaling", "startup", "prepare", "time_to_dice"]
    command = [sys.executable, "-m", "benchmarks.all", f"out={tmp_path}", "quick=true", f"only=[{','.join(there)}]"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = {name: lines_of(tmp_path, name) for name in there}

    model = found["model"]
    assert model["copy"].ceiling.value is None and model["copy"].ceiling.reason
    train, infer = model["train_fp32_channels_last"], model["infer_fp32"]
    assert 2 < train.config["gflop_per_image"] / infer.config["gflop_per_image"] <= 3  # rounded figures
    assert train.config["roofline"]["reached"] > 0 and train.config["saved_mb_per_image"] > 0

    steps = found["end_to_end"]
    assert {"fixed", "dali", "opencv"} <= set(steps)
    assert steps["dali"].ratio > 0 and steps["fixed"].ratio is None
    assert 0 <= steps["dali"].config["data_wait"] < 1 and steps["dali"].config["pixels_per_image"] == 64 * 64
    assert steps["fixed"].config["step_ms"]["steps"] == steps["fixed"].windows >= 5  # windows of one step

    weak = found["scaling"]["weak_2"]
    assert weak.ceiling.name == "2 times one process" and weak.config["processes"] == 2
    assert found["scaling"]["strong_2"].config["batch_size"] == weak.config["batch_size"] // 2
    assert -1 < weak.config["communication_share"] < 1
    assert found["startup"]["train help"].value > 0
    assert found["prepare"]["prepare"].ratio > 0
    ours = found["time_to_dice"]["kits_dist"]
    assert ours.value > 0 and ours.config["curves"][0][-1][0] == pytest.approx(ours.value, rel=1e-3)


@pytest.mark.slow
def test_the_whole_suite_runs_tiny_without_a_gpu(tmp_path):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu_suite", f"out={tmp_path}", "quick=true", "limit_s=600"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=700)
    table = (tmp_path / "table.txt").read_text()
    assert "failed, exit" not in table and "stopped" not in table and "left out" not in table, table
    questions = {line.question for line in lines.read(tmp_path / "results.jsonl")}
    assert questions == {"feed", "loader", "model", "end_to_end", "predict", "phantom_dice"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) <= 8 and all(path.stat().st_size < 16e6 for path in files)


def test_the_suite_without_a_gpu_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no NVIDIA GPU here. With quick=true"):
        gpu_suite.main(gpu_suite.Args(out=str(tmp_path)))


def test_evaluate_runs_and_both_scorers_agree(tmp_path):
    for name in ("SimpleITK", "surface_distance"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install -e .[dev]")
    evaluate.main(evaluate.Args(out=str(tmp_path), quick=True))
    found = valid(tmp_path, "evaluate")
    assert set(found) == {
        *("official, 16 slices", "ours, 16 slices", "ours against official, 16 slices"),
        *(f"{name}, 16 slices, a whole body called kidney" for name in ("official", "ours", "ours against official")),
        *("memory of official, 16 slices", "memory of ours, 16 slices"),
    }
    assert all(line.config["largest_difference"] < 1e-9 for line in found.values())
    assert found["memory of ours, 16 slices"].config["imports_mb"] > 10
    assert found["ours, 16 slices"].ratio > 0


def test_a_scorer_that_dies_is_named():
    scorer = evaluate.Scorer("neither")
    with pytest.raises(JobFailed, match="benchmarks.lib.scorers neither ended; why is printed above"):
        scorer.ask()
    scorer.process.wait()


def test_the_deformed_copy_is_near_the_truth_and_holds_its_labels():
    label = np.zeros((12, 40, 40), np.uint8)
    label[3:9, 10:30, 10:30] = 1
    label[4:8, 15:25, 15:25] = 2
    near = evaluate.moved(label, (3.0, 0.8, 0.8), seed=0)
    assert set(np.unique(near)) == {0, 1, 2} and not np.array_equal(near, label)
    assert 0.8 < 2 * ((near > 0) & (label > 0)).sum() / ((near > 0).sum() + (label > 0).sum()) < 1
    assert np.array_equal(near, evaluate.moved(label, (3.0, 0.8, 0.8), seed=0))


def test_a_peer_that_is_not_installed_is_a_line_that_says_so(store, tmp_path, monkeypatch):
    monkeypatch.setattr(peers.PEERS["monai"], "package", "monai-of-nowhere")
    loader.main(loader.Args(store=str(store.path), peers=("monai",), out=str(tmp_path), quick=True))
    (path,) = tmp_path.glob("*_loader.jsonl")
    found = {line.config["variant"]: line for line in lines.read(path)}
    assert found["monai"].value is None and "monai-of-nowhere is not installed" in found["monai"].config["failed"]
    assert not [name for name in found if "against" in name]
    assert str(tmp_path) not in path.read_text()


@pytest.mark.slow
def test_all_installed_peers_are_timed_in_one_run(tmp_path):
    """A process of its own: the workers are forked, and this one may have threads."""
    for peer in peers.PEERS.values():
        pytest.importorskip(peer.package, reason="needs: pip install -e .[peers]")
    command = [sys.executable, "-m", "benchmarks.loader", "quick=true", "peers=true", f"out={tmp_path}"]
    subprocess.run(command, cwd=lines.RESULTS.parents[1], check=True, timeout=240)
    (path,) = tmp_path.glob("*_loader.jsonl")
    found = {line.config["variant"]: line for line in lines.read(path)}
    for name, peer in peers.PEERS.items():
        assert found[name].value > 0 and found[name].config["choices"] == peer.choices
        ratios = [line for variant, line in found.items() if variant.endswith(f" against {name}")]
        assert len(ratios) >= 2 and all(line.unit == "times" and line.value > 0 for line in ratios)
