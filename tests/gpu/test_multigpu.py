"""What takes two GPUs: with synchronised batch norm they learn what one GPU learns from the whole batch."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.test_end_to_end import ROOT

pytestmark = [
    pytest.mark.multigpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs"),
]
LAUNCH = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "launch" / "ddp.yaml"), "--num_processes"]


@pytest.mark.parametrize("loss", ["bce", "bce_dice"])
def test_synchronised_batch_norm_makes_two_gpus_one(store, tmp_path, loss):
    weights = {}
    for world, start in ((1, []), (2, [*LAUNCH, "2"])):
        folder = tmp_path / str(world)
        folder.mkdir()
        command = [sys.executable, *start, "-m", "tests.launched.consume", str(store.path), str(folder)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)
        weights[world] = load_file(folder / f"rank_0_{loss}.safetensors")
    for key, value in weights[1].items():
        # float32 sums in another order, in kernels that differ by batch size
        torch.testing.assert_close(weights[2][key], value, rtol=1e-3, atol=1e-5)
