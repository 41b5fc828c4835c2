"""Gradient communication between ranks: what each option may change, and which options conflict."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import plan
from kits_dist import cli, train
from kits_dist.config import Config, ModelConfig, TrainConfig
from kits_dist.distributed.runtime import ddp_settings
from tests.helpers import fork_server


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.static_graph=true", "optim.accumulate=2"], "train.static_graph=true with optim.accumulate=2: DDP "),
        (["train.static_graph=true", "train.deterministic=true"], "would not be bit-equal. Leave it or train.det"),
        (["train.bucket_mb=0"], "train.bucket_mb=0: use 1..1024"),
        (["train.gradients=fp8"], "train.gradients"),
    ],
)
def test_conflicting_options_are_refused_with_code_2(words, said, capsys):
    with pytest.raises(SystemExit) as left:
        cli.run(train.main, Config, ["data.store=nowhere", "run=nowhere", *words])
    assert left.value.code == 2 and said in capsys.readouterr().err


def test_by_default_two_settings_of_ddp_differ_from_torch():
    ours = {"gradient_as_bucket_view": True, "broadcast_buffers": False}
    assert ddp_settings(TrainConfig()).to_kwargs() == ours  # no bucket_cap_mb: torch's own has a first bucket of 1 MB
    asked = ddp_settings(TrainConfig(bucket_mb=7, static_graph=True)).to_kwargs()
    assert asked == ours | {"bucket_cap_mb": 7, "static_graph": True}


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory) -> tuple[list[dict[str, Tensor]], dict]:
    """The tensors that two ranks saved, and the logging data of DDP for each variant."""
    folder = tmp_path_factory.mktemp("exchange")
    fork_server.run("tests.helpers.launched.exchange", folder, world=2)
    found = [load_file(folder / f"rank_{rank}.safetensors") for rank in (0, 1)]
    return found, json.loads((folder / "variants.json").read_text())


@pytest.mark.slow
def test_ddp_was_asked_for_what_the_keys_say(exchanged):
    _, said = exchanged
    assert {variant for variant, about in said.items() if about.get("static_graph")} == {"static", "all"}
    hooks = {variant: about.get("comm_hook", "") for variant, about in said.items()}
    assert {variant for variant, hook in hooks.items() if hook == "bf16_compress_hook"} == {"bf16", "all"}
    sizes = {
        variant: said[variant]["bucket_cap_bytes"] >> 20 for variant in ("default", "bucket_1", "bucket_100", "all")
    }
    assert sizes == {"default": 25, "bucket_1": 1, "bucket_100": 100, "all": 1}


@pytest.mark.slow
def test_all_ranks_hold_equal_weights_which_only_bf16_changes(exchanged):
    (zero, one), _ = exchanged
    for name in zero:
        assert torch.equal(zero[name], one[name]) == (name != "alone.gradient"), name
    for variant in ("static", "bucket_1", "bucket_100"):  # the sum of two numbers does not depend on the bucket
        for kind in ("gradient", "weights"):
            assert torch.equal(zero[f"{variant}.{kind}"], zero[f"default.{kind}"]), (variant, kind)
    for kind in ("gradient", "weights", "accumulated"):
        assert not torch.equal(zero[f"bf16.{kind}"], zero[f"default.{kind}"])
    for kind in ("gradient", "weights"):
        assert torch.equal(zero[f"bf16.{kind}"], zero[f"all.{kind}"])


@pytest.mark.slow
def test_accumulated_batches_are_one_large_batch(exchanged):
    (zero, _), _ = exchanged
    torch.testing.assert_close(zero["parts"], zero["whole"], rtol=1e-4, atol=1e-6)  # order of float32 sums


@pytest.mark.slow
def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(exchanged):
    (zero, _), _ = exchanged
    for variant in ("default", "all"):
        assert torch.equal(zero[f"{variant}.resumed"], zero[f"{variant}.weights"])


@pytest.mark.slow
def test_bf16_gradients_are_the_mean_of_rounded_gradients(exchanged):
    ranks, _ = exchanged
    a, b = (found["alone.gradient"] for found in ranks)
    exact, rounded = ranks[0]["default.gradient"], ranks[0]["bf16.gradient"]
    assert torch.equal(exact, a / 2 + b / 2)
    assert torch.equal(rounded, (a.bfloat16() / 2 + b.bfloat16() / 2).float())
    # bf16 has 8 significant bits: rounding to nearest errs by 2^-8 at most, once each term and once the sum
    mean = (a.abs() + b.abs()) / 2
    assert ((rounded - exact).abs() <= 2**-8 * (mean + mean * (1 + 2**-8)) + 1e-38).all()


def test_the_planner_sends_half_the_bytes_in_bf16():
    network = ModelConfig("simple_unet", width=8)  # 486,409 weights
    assert [plan.gradient_bytes(network, gradients) for gradients in ("fp32", "bf16")] == [1_945_636, 972_818]
