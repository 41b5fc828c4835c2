"""What a training step does on a GPU, on fake tensors: they have device, shape and memory order, but no memory."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kits_dist.config import ModelConfig, OptimConfig, TrainConfig
from kits_dist.diagnostics.checks import STEP_GB
from kits_dist.models import build_model
from kits_dist.training.losses import RegionLoss, WithLoss
from kits_dist.training.train_step import place_model

GPU = torch.device("cuda", 0)
REGIONS = ("kidney_and_mass", "tumor")
BATCH = 8


class Watch(TorchDispatchMode):
    """Keeps the names of operators that make the host wait: they read values, or copy between host and GPU."""

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {t.device.type for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)}
        if "_local_scalar_dense" in str(func) or "nonzero" in str(func) or len(devices) > 1:
            self.waits.append(str(func))
        return out


class Saved:
    """Bytes that the forward pass saves for the backward pass, each storage once, by memory order."""

    def __init__(self, parameters):
        self._seen = {parameter.untyped_storage()._cdata: parameter for parameter in parameters}
        self.total, self.by_order = 0, Counter()

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = tensor  # held, so that its address is not used again
            self.total += storage.nbytes()
            if tensor.ndim == 4 and tensor.shape[1] > len(REGIONS):  # of fewer channels both orders are much alike
                order = "channels_last" if tensor.is_contiguous(memory_format=torch.channels_last) else "other"
                self.by_order[order] += storage.nbytes()
        return tensor


def on_fake_gpu(module: nn.Module) -> nn.Module:
    """Move weights and buffers: Module.to fails on fake tensors."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(parameter.detach().to(GPU))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(GPU)
    return module


@pytest.fixture
def forward(monkeypatch):
    """Network -> (what the forward pass and the loss waited for, what they saved)."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)

    def run(network: ModelConfig, train: TrainConfig) -> tuple[list[str], Saved]:
        placed = place_model(build_model(network, 1, pretrained=False), train, torch.device("cpu"))
        loss_fn = RegionLoss(OptimConfig().loss, REGIONS)
        with FakeTensorMode(allow_non_fake_inputs=True):
            whole = on_fake_gpu(WithLoss(placed, loss_fn).train())
            image = torch.empty(BATCH, 1, 512, 512, device=GPU, dtype=torch.float16)
            label = torch.empty(BATCH, 512, 512, device=GPU, dtype=torch.uint8)
            saved = Saved(whole.parameters())
            hooks = torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor)
            with Watch() as watch, hooks, torch.autocast("cuda", torch.float16):
                loss_fn.global_value(whole(image, label))
        return watch.waits, saved

    return run


@pytest.mark.parametrize("arch", ["unet", "simple_unet"])
def test_forward_and_loss_never_wait_and_keep_the_memory_order(forward, arch):
    waits, saved = forward(ModelConfig(arch, encoder_weights="none", regions=REGIONS), TrainConfig())
    assert waits == []
    assert saved.by_order["other"] == 0 < saved.by_order["channels_last"]
    if arch == "unet":
        # activations are nearly all of the peak that doctor names; the rest is alive in the backward pass only
        assert saved.total / 1e9 / BATCH == pytest.approx(STEP_GB["fp16"], rel=0.1)


def test_without_channels_last_the_memory_order_is_another(forward):
    network = ModelConfig("simple_unet", regions=REGIONS, width=4)
    _, saved = forward(network, TrainConfig(channels_last=False))
    assert saved.by_order["channels_last"] < saved.by_order["other"]
