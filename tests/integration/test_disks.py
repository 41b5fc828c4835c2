"""Read-only folders, full disks, and a store that changes while a run reads it."""

import os
import shutil
import subprocess

import pytest

from kits_dist import cli, phantom, prepare
from kits_dist import train as training
from kits_dist.config import Config
from kits_dist.data.store import Store
from tests.helpers import fork_server
from tests.helpers.launching import LAUNCH, rank_pids, start_training, still_running, wait_until
from tests.helpers.small_run import SMALL


@pytest.fixture
def mounted(tmp_path):
    """mount(options) -> an empty folder, the root of a new tmpfs."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a tmpfs needs root and the right to mount")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


def failure(capsys, main, schema, *arguments) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        cli.run(main, schema, [str(argument) for argument in arguments])
    return caught.value.code, capsys.readouterr().err.splitlines()[-1]


def test_a_folder_that_cannot_be_written_is_named(mounted, raw, store, capsys):
    disk = mounted("ro")
    for main, schema, arguments in (
        (prepare.main, prepare.Args, (f"source={raw}", f"store={disk / 'store'}")),
        (phantom.main, phantom.Args, (f"output={disk / 'raw'}", "cases=1", "size=[8,64,64]")),
        (training.main, Config, (f"data.store={store.path}", f"run={disk / 'run'}", *SMALL)),
    ):
        code, message = failure(capsys, main, schema, *arguments)
        assert code == 2
        assert str(disk) in message and "Read-only file system" in message and "Name another f" in message


def test_prepare_on_a_full_disk_keeps_what_is_finished(mounted, raw, tmp_path, capsys):
    disk = mounted("size=200k")
    code, message = failure(capsys, prepare.main, prepare.Args, f"source={raw}", f"store={disk / 'store'}", "workers=1")
    assert code == 1 and "No space left on device" in message and "free some space and run again" in message
    whole = sorted((disk / "store" / "axial").iterdir())
    assert whole and all((case / "case.json").is_file() for case in whole)  # nothing half-written
    assert not (disk / "store" / "store.json").exists()  # and no store that lacks cases
    subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
    code = failure(capsys, prepare.main, prepare.Args, f"source={raw}", f"store={disk / 'store'}", "workers=1")[0]
    assert code == 0


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_training_on_a_full_disk_keeps_its_checkpoints(mounted, store, world):
    disk = mounted("size=3m")  # a checkpoint of this network takes 1.4 MB
    words = [f"data.store={store.path}", f"run={disk / 'run'}", *SMALL]
    words += ["optim.epochs=6", "optim.patience=0", "train.keep=9", "log.images=0", "model.width=4"]
    printed = fork_server.run("kits_dist.train", *words, world=world, code=1)
    said = [line for line in printed.splitlines() if "kits_dist.train: " in line]
    assert "No space left on device" in said[0] and len(said) == world and "Traceback" not in printed
    assert world == 1 or "[rank 1] kits_dist.train: rank 0 could not write to the run folder" in said[1]
    subprocess.run(["mount", "-o", "remount,size=32m", str(disk)], check=True)
    assert "continuing from step_" in fork_server.run("kits_dist.train", *words, "resume=auto", world=world)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: os.truncate(path, 100), "image.npy has 100 bytes instead of"),
        (os.unlink, "image.npy is missing"),
    ],
    ids=["cut", "deleted"],
)
def test_all_ranks_end_soon_when_the_store_changes_under_them(store, tmp_path, change, words):
    copy, log = Store(shutil.copytree(store.path, tmp_path / "store")), tmp_path / "log"
    run = start_training(copy, tmp_path / "run", log, LAUNCH, "optim.epochs=100000")
    try:
        wait_until(lambda: "epoch 2:" in log.read_text(), run, log)
        ranks = rank_pids(run)
        assert len(ranks) == 2
        for path in sorted(copy.path.glob("axial/*/image.npy")):
            change(path)
        assert run.wait(timeout=60) != 0
        assert not still_running(ranks)
    finally:
        run.kill()
    said = log.read_text()
    # cut between the check of a batch and its reading, which no program can catch: the place is printed
    if not (words.startswith("image.npy has") and "Fatal Python error: Bus error" in said):
        assert said.count(words) == 1 and "the store changed while it was read" in said
