"""One optimizer step: averaged weights, accumulation, what fp16 skips, and a step that is undone."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kits_dist.config import ModelConfig, OptimConfig, TrainConfig
from kits_dist.data.batch import Batch
from kits_dist.models import build_model
from kits_dist.models.unet import SimpleUNet
from kits_dist.training.ema import AveragedModel
from kits_dist.training.losses import RegionLoss, WithLoss
from kits_dist.training.step_timer import StepTimer
from kits_dist.training.train_step import TrainStep, place_model
from kits_dist.utils.errors import InputError

CPU = torch.device("cpu")


class OneProcess:
    """What TrainStep needs of an accelerator, without a process group; gradients pass a scaler where one is given."""

    device = CPU

    def __init__(self, scaler=None):
        self.scaler = scaler

    def prepare(self, model, optimizer):
        return model, SimpleNamespace(
            param_groups=optimizer.param_groups, step=self._step(optimizer), zero_grad=optimizer.zero_grad
        )

    def _step(self, optimizer):
        def step():
            if self.scaler:
                self.scaler.step(optimizer)
                self.scaler.update()
            else:
                optimizer.step()

        self._optimizer = optimizer
        return step

    def autocast(self):
        return torch.autocast("cpu", enabled=False)

    no_sync = staticmethod(lambda model: torch.autocast("cpu", enabled=False))

    def backward(self, loss):
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def clip_grad_norm_(self, parameters, max_norm):
        if self.scaler:
            self.scaler.unscale_(self._optimizer)
        return nn.utils.clip_grad_norm_(parameters, max_norm)


def train_step(scaler=None, compiled=False, **optim):
    torch.manual_seed(0)
    made = TrainStep(SimpleUNet(1, 1, 2), ("kidney_and_mass",), OptimConfig(**optim), OneProcess(scaler))
    made.wrap(TrainConfig(compile=compiled))
    made.model.train()
    return made


def batches(size=2, factor=1.0):
    generator = torch.Generator().manual_seed(0)
    while True:
        image = torch.randn(size, 1, 32, 32, generator=generator) * factor
        numbers = torch.zeros(size, dtype=torch.int32)
        yield Batch(image, (image[:, 0] > 0).byte(), numbers, numbers, numbers)


def test_averaged_weights_follow_by_hand():
    torch.manual_seed(0)
    source = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = AveragedModel(source, decay=0.9)
    expected = copy.deepcopy(source[0].weight.detach())
    for step in range(30):
        with torch.no_grad():
            source[0].weight.add_(1)
            source[1].running_mean.add_(1)
            source[1].num_batches_tracked.add_(1)
        average.update(source, step)
        decay = min(0.9, (1 + step) / (10 + step))  # 0.1, 2/11, ... then 0.9 from step 81 on; here always the ramp
        expected = decay * expected + (1 - decay) * source[0].weight.detach()
    torch.testing.assert_close(average.model[0].weight, expected)
    assert 20 < average.model[1].running_mean[0] < 30 and average.model[1].num_batches_tracked == 30
    assert not any(p.requires_grad for p in average.model.parameters())


def test_averaged_weights_are_evaluated_and_reach_the_decay():
    made = train_step(ema=0.5, lr=0.1)
    stream, before = batches(), copy.deepcopy(made.plain_model.state_dict())
    for step in range(3):
        made(stream, 0.1, step, StepTimer(CPU))
    assert made.eval_model is made.average.model
    averaged, last = ((m.head.weight - before["head.weight"]).abs().mean() for m in (made.eval_model, made.plain_model))
    assert 0 < averaged < last
    late, other = AveragedModel(nn.Linear(1, 1), 0.5), nn.Linear(1, 1)
    was = late.model.weight.item()
    late.update(other, 1000)
    assert late.model.weight.item() == pytest.approx((was + other.weight.item()) / 2)
    plain = train_step()
    assert plain.eval_model is plain.plain_model


def test_accumulated_steps_are_one_large_step():
    """Batch norm is set aside (`eval`), as everywhere where batches are compared."""
    small, large = train_step(accumulate=3, lr=0.1, name="sgd"), train_step(lr=0.1, name="sgd")
    for one in (small, large):
        one.model.eval()
    parts = [next(stream) for stream in [batches()] for _ in range(3)]
    whole = Batch(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    losses = small(iter(parts), 0.1, 0, StepTimer(CPU)).losses
    loss = large(iter([whole]), 0.1, 0, StepTimer(CPU)).losses
    assert losses.shape == (3,) and losses.mean().item() == pytest.approx(loss.item(), rel=1e-6)
    for a, b in zip(small.plain_model.parameters(), large.plain_model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)  # order of float32 sums


def test_the_gradient_norm_is_computed_on_request_and_clipped_to_the_limit():
    made = train_step()
    assert made(batches(), 0.1, 0, StepTimer(CPU)).grad_norm is None
    assert made(batches(), 0.1, 0, StepTimer(CPU), want_norm=True).grad_norm > 0
    clipped = train_step(clip_norm=1e-3, name="sgd", lr=1.0)
    before = [p.detach().clone() for p in clipped.plain_model.parameters()]
    clipped(batches(), 1.0, 0, StepTimer(CPU))
    moved = torch.cat([(p - q).flatten() for p, q in zip(clipped.plain_model.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(1.9e-3, rel=1e-2)  # Nesterov: 1 + momentum times the gradient


def test_steps_that_the_scaler_skips_are_counted_and_saved():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    made = train_step(scaler, lr=0.1)
    weights = [p.detach().clone() for p in made.plain_model.parameters()]
    made(batches(factor=1e38), 0.1, 0, StepTimer(CPU))  # squares overflow: gradients are not finite
    assert all(torch.equal(p, q) for p, q in zip(made.plain_model.parameters(), weights, strict=True))
    assert made.skipped == 0 and made.state()["skipped"] == made.skipped == 1
    made.plain_model.load_state_dict(train_step().plain_model.state_dict())  # batch norm statistics were not finite
    made(batches(), 0.1, 1, StepTimer(CPU))
    assert made.skipped_on_device == 1
    assert not all(torch.equal(p, q) for p, q in zip(made.plain_model.parameters(), weights, strict=True))
    assert train_step().state() == {"scaler": None, "skipped": 0}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_measuring_a_step_leaves_the_model_unchanged():
    accelerator = OneProcess()
    accelerator.device = torch.device("cuda")
    made = TrainStep(SimpleUNet(1, 1, 2).cuda().train(), ("kidney_and_mass",), OptimConfig(), accelerator)
    before = copy.deepcopy(made.plain_model.state_dict())
    assert made.step_bytes(2, 1, (32, 32)) > 0
    after = made.plain_model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None for p in made.plain_model.parameters())


def test_without_a_gpu_no_step_is_measured():
    made = train_step()
    made.model = made.loss_fn = None
    assert made.step_bytes(2, 1, (32, 32)) == 0


def test_synchronized_batch_norm_needs_gpus():
    with pytest.raises(InputError, match="train.sync_bn=true needs GPUs"):
        place_model(SimpleUNet(1, 1, 2), TrainConfig(sync_bn=True), CPU)


@pytest.mark.parametrize("arch", ["simple_unet", "unet"])
def test_network_and_loss_are_one_graph_to_the_compiler(arch):
    """A break would write the logits out and start a second graph, silently."""
    network = ModelConfig(arch, "resnet18", "none", width=4, regions=("kidney_and_mass", "tumor"))
    whole = WithLoss(build_model(network, 1), RegionLoss("bce_dice", network.regions, (1.0, 4.0)))
    image, label = torch.randn(2, 1, 32, 32), torch.ones(2, 32, 32, dtype=torch.uint8)
    torch._dynamo.reset()
    found = torch._dynamo.explain(whole)(image, label)
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


def spoiled(made, where, value):
    """Put `value` into one of the states that a checkpoint keeps."""
    states = {
        "weight": made.plain_model.state_dict(),
        "average": made.average.model.state_dict(),
        "moment": made.plain_optimizer.state[next(made.plain_model.parameters())],
    }
    tensor = next(value for key, value in states[where].items() if value.ndim)
    tensor.view(-1)[0] = value


@pytest.mark.parametrize("where", ["weight", "average", "moment"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_seen_wherever_it_is_kept(where, value):
    made = train_step(ema=0.9)
    made(batches(), 0.01, 0, StepTimer(CPU))
    assert made.is_finite()
    spoiled(made, where, value)
    assert not made.is_finite()


def test_finite_values_whose_sum_overflows_are_finite():
    made = train_step(ema=0.9)
    made(batches(), 0.01, 0, StepTimer(CPU))
    for parameter in made.plain_model.parameters():
        parameter.data.fill_(3e38)
    assert made.is_finite()
    spoiled(made, "weight", float("nan"))
    assert not made.is_finite()


def test_the_network_is_compiled_around_what_accelerate_wraps_for_ddp():
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    made = TrainStep(SimpleUNet(1, 1, 2), ("kidney_and_mass",), OptimConfig(), OneProcess())
    made.accelerator.prepare = lambda model, optimizer: (Wrapper(model), optimizer)
    made.wrap(TrainConfig(compile=True))  # compiles nothing before the first call
    assert isinstance(made.model, torch._dynamo.OptimizedModule) and isinstance(made.model._orig_mod, Wrapper)


def test_narrow_strided_convolutions_stay_out_of_channels_last_on_a_cpu():
    """Their backward pass was seen to abort the process."""

    def order(*layers):
        placed = place_model(nn.Sequential(*layers), TrainConfig(), CPU)
        return placed[0].weight.is_contiguous(memory_format=torch.channels_last)

    wide = nn.Conv2d(16, 16, 3)
    assert order(wide, nn.Conv2d(16, 32, 1, stride=2)) and order(wide, nn.Conv2d(4, 8, 1))
    assert not order(nn.Conv2d(16, 16, 3), nn.Conv2d(4, 8, 1, stride=2))
