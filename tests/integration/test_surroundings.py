"""What a shell, a scheduler or a container leaves around a program: closed output, foreign variables, no /dev/shm."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.helpers import ROOT, fork_server
from tests.helpers.fork_server import cpu_environment
from tests.helpers.launching import log_length, wait_until
from tests.helpers.small_run import SMALL

SHORT = ["optim.epochs=1", "data.backend=opencv", "log.images=0"]


def test_a_reader_that_leaves_and_a_stream_that_is_closed_cost_no_work(raw, tmp_path):
    """`audit | true` without standard error, as `2>&-` leaves it."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "kits_dist.audit", f"source={raw}", f"output={tmp_path}", "workers=1"]
    shell = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    done = subprocess.run(shell, stdout=writing, cwd=ROOT, env=cpu_environment(), timeout=300)
    os.close(writing)
    assert done.returncode == 0 and (tmp_path / "audit.json").is_file()


def test_a_listener_that_leaves_a_training_does_not_end_it(store, tmp_path):
    fifo, run = tmp_path / "fifo", tmp_path / "run"
    os.mkfifo(fifo)
    listener = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    words = [f"data.store={store.path}", f"run={run}", *SMALL, *SHORT, "optim.epochs=3", "log.every_steps=1"]
    process = fork_server.start(fifo, "kits_dist.train", *words)
    wait_until(lambda: log_length(run) > 2, process, tmp_path / "run" / "log.jsonl")
    os.close(listener)
    assert process.wait(200) == 0 and (run / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "left",
    [
        {"PMI_SIZE": "2", "PMI_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_SIZE": "", "RANK": ""},
        {"RANK": "3", "LOCAL_RANK": "abc", "MASTER_PORT": "tcp://10.0.0.1:80", "SLURM_NTASKS": "4"},
    ],
    ids=["mpi", "kubernetes"],
)
def test_one_process_trains_alone_whatever_other_launchers_left(store, tmp_path, left):
    log = tmp_path / "log"
    words = [f"data.store={store.path}", f"run={tmp_path / 'run'}", *SMALL, *SHORT]
    process = fork_server.start(log, "kits_dist.train", *words, **left)
    assert process.wait(300) == 0, log.read_text()
    assert "1 processes x batch 3" in log.read_text()


@pytest.mark.parametrize("options", ["ro", "mode=000,size=4k"])
def test_prepare_without_shared_memory(raw, tmp_path, options):
    script = f'mount -t tmpfs -o {options} tmpfs /dev/shm && exec setpriv --bounding-set -all --inh-caps -all "$@"'
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("a mount namespace needs root")
    program = [sys.executable, "-m", "kits_dist.prepare", f"source={raw}", f"store={tmp_path / 'store'}", "workers=2"]
    command = ["unshare", "-m", "sh", "-c", script, "sh", *program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=cpu_environment(), timeout=300)
    assert done.returncode == 0 and "as with workers=1" in done.stderr, done.stderr
    assert (tmp_path / "store" / "store.json").is_file()
