"""What doctor finds on a machine with GPUs."""

import pytest
import torch

from kits_dist.diagnostics import probes
from kits_dist.diagnostics.checks import check_all

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def test_every_gpu_computes_and_dali_runs_on_it():
    facts = probes.probe(None, None)
    assert len(facts.gpus) == torch.cuda.device_count() and [gpu.error for gpu in facts.gpus if gpu.error] == []
    assert facts.dali_ran == ("CPU", "GPU") and facts.driver_cuda is not None
    assert {check.topic for check in check_all(facts)} >= {"gpu", "driver", "batch"}
