"""launch/folds.sh: trains, evaluates and joins the folds of a store, and continues where it was stopped."""

import re
import signal
import subprocess

import pytest

from kits_dist import phantom, prepare
from tests.helpers import ROOT
from tests.helpers.fork_server import cpu_environment
from tests.helpers.launching import wait_until

SCRIPT = ROOT / "launch" / "folds.sh"


def run_script(*arguments, **more) -> subprocess.CompletedProcess:
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=cpu_environment(), **more)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "store= is missing"),
        (["store=x"], "run= is missing"),
        (["store=x", "run=y"], "store=x holds no splits.json"),
        (["store={store}", "run=a,b"], "run=a,b holds a comma"),
        (["store=x", "run=y", "data.fold=3"], "data.fold=3 is set by this script"),
        (["store=x", "run=y", "--lr"], "'--lr' is not an argument"),
    ],
)
def test_the_script_refuses_wrong_arguments(store, arguments, words):
    done = run_script(*(word.format(store=store.path) for word in arguments))
    assert done.returncode == 2 and words in done.stderr and "Example: bash launch/folds.sh" in done.stderr


@pytest.mark.slow(minutes=3)
def test_the_script_continues_after_a_stop_and_ends_with_the_report(tmp_path):
    """Two folds on three phantoms: stopped while the first trains, continued, and called once more when finished."""
    phantom.main(phantom.Args(output=str(tmp_path / "raw"), cases=3, size=(16, 64, 64), seed=5))
    prepare.main(prepare.Args(source=str(tmp_path / "raw"), store=str(tmp_path / "my store"), workers=1))
    run = tmp_path / "all folds"
    arguments = [f"store={tmp_path / 'my store'}", f"run={run}", "data.size_px=64x64", "model.arch=simple_unet"]
    arguments += ["model.width=4", "model.regions=[kidney_and_mass,tumor]", "data.batch_size=4", "log.images=0"]
    arguments += ["optim.lr=1e-2", "optim.patience=0"]
    log = tmp_path / "log.txt"
    with open(log, "w") as output:
        command = ["bash", str(SCRIPT), *arguments, "optim.epochs=100000"]
        started = subprocess.Popen(command, cwd=ROOT, env=cpu_environment(), stdout=output, stderr=output)
        wait_until((run / "fold_0" / "checkpoint" / "last").exists, started, log, timeout=600)
        started.send_signal(signal.SIGTERM)  # to the script alone
        assert started.wait(timeout=300) == 75
    text = log.read_text()
    assert "folds.sh: stopped as asked in 'fold 0 of 2: train'" in text and not (run / "fold_1").exists()
    saved = (run / "fold_0" / "checkpoint" / "last").resolve().name
    epochs = f"optim.epochs={int(saved.removeprefix('step_')) // 2 + 2}"  # 16 slices are two steps

    refused = run_script(*arguments, "optim.lr=-1", timeout=600)
    assert refused.returncode == 2 and "optim.lr=-1.0: use 0 or more" in refused.stderr
    failed = run_script(*arguments, "data.context=1", timeout=600)  # another network than the one that was saved
    assert failed.returncode != 0 and "folds.sh: in 'fold 0 of 2: train' (exit code" in failed.stderr

    done = run_script(*arguments, epochs, timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"continuing from {saved}" in done.stdout
    table = done.stdout.split("== all folds")[1]
    for title in ("fold 0, val", "fold 1, val", "all 2, out of fold", "test, mean of all", "test, after rules"):
        assert re.search(rf"^{title} +[12]  \d\.\d{{3}} \(", table, flags=re.M), table
    assert "data: phantom" in table and "rules: " in table
    page = (run / "report.html").read_text()
    assert "Cross-validation" in page and "no number here is a KiTS result" in page and "http" not in page
    before = {path: path.stat().st_mtime_ns for path in run.glob("**/cases.csv") if "out_of_fold" not in str(path)}
    assert len(before) == 4

    again = run_script(*arguments, epochs, timeout=900)
    assert again.returncode == 0 and again.stdout.count("already finished") == 2
    assert again.stdout.split("== all folds")[1] == table
    assert before == {path: path.stat().st_mtime_ns for path in before}  # nothing was predicted or scored again
