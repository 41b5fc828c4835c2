"""Two GPUs: with synchronized batch norm they learn what one GPU learns from the whole batch."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import ROOT

pytestmark = [
    pytest.mark.multigpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs"),
]
LAUNCH = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "launch" / "ddp.yaml"), "--num_processes"]


@pytest.mark.parametrize("loss", ["bce", "bce_dice"])
def test_two_gpus_with_synchronized_batch_norm_learn_what_one_learns(store, tmp_path, loss):
    weights = {}
    for world, start in ((1, []), (2, [*LAUNCH, "2"])):
        folder = tmp_path / str(world)
        folder.mkdir()
        command = [sys.executable, *start, "-m", "tests.helpers.launched.consume", str(store.path), str(folder)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)
        weights[world] = load_file(folder / f"rank_0_{loss}.safetensors")
    for key, value in weights[1].items():
        # another order of float32 sums, and kernels that depend on the batch size
        torch.testing.assert_close(weights[2][key], value, rtol=1e-3, atol=1e-5)


def test_two_gpus_hold_equal_weights_however_gradients_are_exchanged(tmp_path):
    command = [sys.executable, *LAUNCH, "2", "-m", "tests.helpers.launched.exchange", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, timeout=300)
    zero, one = (load_file(tmp_path / f"rank_{rank}.safetensors") for rank in (0, 1))
    for name in zero:
        assert torch.equal(zero[name], one[name]) == (name != "alone.gradient"), name
    exact = zero["default.gradient"]
    for way in ("static", "bucket_1", "bucket_100"):  # kernels may sum in another order
        torch.testing.assert_close(zero[f"{way}.gradient"], exact, rtol=1e-3, atol=1e-5)
    mean = (zero["alone.gradient"].abs() + one["alone.gradient"].abs()) / 2
    error = (zero["bf16.gradient"] - exact).abs()
    # each term and the sum are rounded to 8 bits; the rest as above
    assert (error <= 2**-7 * (1 + 2**-8) * mean + 1e-3 * mean + 1e-5).all() and error.max() > 0
