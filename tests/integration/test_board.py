"""What TensorBoard shows of a tiny run: its tags and, in the slow tests, the pages in a browser."""

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kits_dist import cli, train
from kits_dist.config import Config
from kits_dist.distributed import ranks
from kits_dist.labels import COLORS
from kits_dist.training import setup
from tests.helpers.small_run import SMALL

AT_PEAK = 1000.0  # images/s of a GPU that this machine does not have


@pytest.fixture(scope="module")
def board(store, tmp_path_factory) -> tuple[Path, str]:
    """The folder of a run of two epochs, and its output."""
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps one per process
    folder, said = tmp_path_factory.mktemp("runs") / "tiny", io.StringIO()
    keys = [f"data.store={store.path}", f"run={folder}", *SMALL, "model.width=2", "optim.epochs=2"]
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        # for operators this small, threads cost more than they save
        patch.setattr(ranks, "available_cores", lambda: 1)
        patch.setattr(setup, "images_per_s_at_peak", lambda *args: AT_PEAK)
        train.main(cli.load(Config, [*keys, "data.backend=opencv"]))
    torch.set_num_threads(threads)
    return folder, said.getvalue()


def test_the_tags_are_those_of_the_readme(board):
    folder, _ = board
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    perf = {"images_per_s", "step_ms_p50", "step_ms_p99", "data_wait", "mfu", "cpu_util"}
    scores = {"val/loss", "val/dice_grid/kidney_and_mass", "val/dice_grid/tumor"}
    expected = {"train/loss", "train/lr", "train/grad_norm", "train/epoch"} | {f"perf/{name}" for name in perf}
    assert set(events.Tags()["scalars"]) == expected | scores | {f"best/{tag}" for tag in scores}
    assert events.Tags()["images"] == ["val/panel"]
    readme = (Path(train.__file__).parent / "training" / "README.md").read_text()
    assert [tag for tag in expected if f"`{tag}`" not in readme] == []


def test_mfu_is_the_rate_over_the_rate_at_peak(board):
    folder, _ = board
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "train/loss" in line]
    assert logged and all(line["perf/mfu"] == line["perf/images_per_s"] / AT_PEAK for line in logged)
    assert sum("perf/verdict" in line for line in lines) == 2


def test_the_best_metrics_are_those_of_the_epoch_with_the_lowest_loss(board):
    lines = [json.loads(line) for line in (board[0] / "log.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if "val/loss" in line]
    best = min(epochs, key=lambda line: line["val/loss"])
    kept = [line for line in epochs if "best/val/loss" in line][-1]
    assert kept["step"] == best["step"]
    assert all(kept[f"best/{tag}"] == best[tag] for tag in ("val/loss", "val/dice_grid/tumor"))


@pytest.fixture(scope="module")
def address(board):
    """The address of a TensorBoard server on the folder of runs."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(board[0].parent)]
    server = subprocess.Popen(
        [*command, "--port", str(port), "--host", "127.0.0.1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 60
        while not _asked(f"http://127.0.0.1:{port}/data/runs", b"tiny"):
            assert time.monotonic() < until and server.poll() is None, "tensorboard does not answer"
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def _asked(url: str, wanted: bytes) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return wanted in answer.read()
    except (urllib.error.URLError, OSError):
        return False


@pytest.mark.slow
def test_hparams_shows_one_row_with_the_best_metrics(address, board):
    asked = {"allowedStatuses": ["STATUS_SUCCESS"], "colParams": [], "startIndex": 0, "sliceSize": 9}
    request = urllib.request.Request(
        f"{address}/data/plugin/hparams/session_groups",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        (row,) = json.load(answer)["sessionGroups"]
    assert row["hparams"]["optim.lr"] == 0.01 and row["hparams"]["data"] == "kits"
    lines = [json.loads(line) for line in (board[0] / "log.jsonl").read_text().splitlines()]
    best = [line["best/val/loss"] for line in lines if "best/val/loss" in line][-1]
    found = {metric["name"]["tag"]: metric["value"] for metric in row["metricValues"]}
    assert found["best/val/loss"] == pytest.approx(best, rel=1e-6)  # TensorBoard keeps float32


@pytest.fixture
def browser(tmp_path):
    """(option, url) -> the output of a headless Chromium, which waits until the page has loaded."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs chromium or google-chrome on PATH")
    start = [path, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    start += ["--window-size=1600,1400", "--virtual-time-budget=8000", "--hide-scrollbars"]
    home = os.environ | {"HOME": str(tmp_path)}

    def look(option: str, url: str) -> str:
        return subprocess.run(
            [*start, option, url], capture_output=True, timeout=60, env=home, check=True
        ).stdout.decode()

    return look


@pytest.mark.slow
def test_a_browser_shows_the_tags(address, browser):
    text = browser("--dump-dom", f"{address}/#timeseries")  # of the two groups that are expanded
    for tag in ("best/val/dice_grid/tumor", "best/val/loss", "perf/mfu", "perf/data_wait", "perf/cpu_util"):
        assert tag in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "color", "least_px"),
    [
        ("images", COLORS["kidney_and_mass"], 50),  # contours of the panel
        ("text", (255, 112, 67), 1000),  # the frame in the color of the first run
        ("hparams", (245, 124, 0), 1000),  # the bar over the table
    ],
)
def test_a_browser_draws_the_page(address, browser, tmp_path, page, color, least_px):
    """Pages draw inside shadow roots, which a DOM dump omits; so look for a color that only a page with a run has."""
    picture = tmp_path / "page.png"
    browser(f"--screenshot={picture}", f"{address}/#{page}")
    seen = np.asarray(Image.open(picture).convert("RGB"))[120:]  # below the header
    assert (seen == color).all(axis=-1).sum() > least_px
