import math

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch

from kits_dist.labels import REGIONS
from kits_dist.training.losses import LOSSES, RegionLoss, region_bits, region_targets
from kits_dist.training.validation import batch_counts

ALL = tuple(REGIONS)


def test_targets_are_nested_regions():
    label = torch.tensor([[[0, 1, 2, 3]]], dtype=torch.uint8)
    assert region_targets(label, region_bits(ALL))[0, :, 0].tolist() == [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 0]]


def test_bce_is_the_mean_over_pixels_and_pos_weight_weighs_the_inside():
    label = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    logits = torch.zeros(1, 1, 1, 2)
    assert RegionLoss("bce", ("kidney_and_mass",))(logits, label).item() == pytest.approx(math.log(2))
    weighted = RegionLoss("bce", ("kidney_and_mass",), (3.0,))(logits, label).item()
    assert weighted == pytest.approx((math.log(2) + 3 * math.log(2)) / 2)


def test_dice_loss_known_values():
    label = torch.ones(1, 8, 8, dtype=torch.uint8)
    loss = RegionLoss("dice", ("kidney_and_mass",))
    assert loss(torch.full((1, 1, 8, 8), 50.0), label).item() == pytest.approx(0, abs=1e-6)
    # nothing found: 1 - 1 / (64 + 1)
    assert loss(torch.full((1, 1, 8, 8), -50.0), label).item() == pytest.approx(1 - 1 / 65, abs=1e-6)
    # an empty batch, rightly left empty, costs nothing
    assert loss(torch.full((1, 1, 8, 8), -50.0), label * 0).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    targets = region_targets(torch.randint(0, 4, (2, 4, 4), dtype=torch.uint8), region_bits(ALL)).double()
    for term in LOSSES[name]:
        assert torch.autograd.gradcheck(lambda x, term=term: term.value(term.sums(x, targets, None)), logits)


def test_losses_equal_those_of_segmentation_models_pytorch():
    """For the mean over regions of a batch; smp's Dice is halved above and below, so is its `smooth`."""
    torch.manual_seed(0)
    logits, label = torch.randn(3, 3, 8, 8), torch.randint(0, 4, (3, 8, 8), dtype=torch.uint8)
    targets = region_targets(label, region_bits(ALL))
    oracles = {
        "dice": smp.losses.DiceLoss("multilabel", smooth=0.5),
        "tversky": smp.losses.TverskyLoss("multilabel", smooth=1, alpha=0.3, beta=0.7),
        "focal": smp.losses.FocalLoss("multilabel", gamma=2),
        "bce": torch.nn.BCEWithLogitsLoss(),
    }
    for name, oracle in oracles.items():
        assert RegionLoss(name, ALL)(logits, label).item() == pytest.approx(oracle(logits, targets).item(), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_sums_of_parts_give_the_loss_of_the_whole(name):
    """What makes validation independent of batches and ranks; a mean of losses would not do for Dice."""
    torch.manual_seed(0)
    logits, label = torch.randn(5, 3, 8, 8), torch.randint(0, 4, (5, 8, 8), dtype=torch.uint8)
    loss = RegionLoss(name, ALL, pos_weight=(1.0, 2.0, 3.0))
    parts = loss.sums(logits[:2], label[:2]) + loss.sums(logits[2:], label[2:])
    assert loss.value(parts).item() == pytest.approx(loss(logits, label).item(), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_region_weights_weigh_regions(name):
    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, 8, 8), torch.randint(0, 4, (2, 8, 8), dtype=torch.uint8)
    alone = [RegionLoss(name, (region,))(logits[:, i : i + 1], label).item() for i, region in enumerate(ALL)]
    weighted = RegionLoss(name, ALL, region_weight=(1.0, 1.0, 2.0))(logits, label).item()
    assert weighted == pytest.approx((alone[0] + alone[1] + 2 * alone[2]) / 4, rel=1e-5)


def test_focal_loss_fades_easy_pixels_and_weighs_the_inside():
    label = torch.tensor([[[1, 0]]], dtype=torch.uint8)  # logit 0: p = 1/2, (1 - 1/2)^2 * log 2
    one = 0.25 * math.log(2)
    assert RegionLoss("focal", ("kidney_and_mass",))(torch.zeros(1, 1, 1, 2), label).item() == pytest.approx(one)
    weighted = RegionLoss("focal", ("kidney_and_mass",), (3.0,))(torch.zeros(1, 1, 1, 2), label).item()
    assert weighted == pytest.approx((3 * one + one) / 2)


def test_batch_counts_are_those_of_the_painted_maps():
    torch.manual_seed(0)
    logits, label = torch.randn(3, 2, 7, 9), torch.randint(0, 4, (3, 7, 9), dtype=torch.uint8)
    counts = batch_counts(logits, region_targets(label, region_bits(("kidney_and_mass", "tumor"))))
    for b in range(3):
        for r, labels in enumerate((REGIONS["kidney_and_mass"], REGIONS["tumor"])):
            p, t = (logits[b, r] >= 0).numpy(), np.isin(label[b].numpy(), labels)
            assert counts[b, r].tolist() == [(p & t).sum(), (p & ~t).sum(), (~p & t).sum()]
