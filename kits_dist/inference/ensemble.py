"""Weights with which the logits of several networks (three planes, say) are fused, region by region; tuned on `val`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from kits_dist.data.store import Case
from kits_dist.inference.region_models import PlaneModel, RegionModel, SliceProbabilities
from kits_dist.utils import files
from kits_dist.utils.errors import InputError


class MeanEnsemble:
    """Several models of the same regions: the mean of their probabilities."""

    def __init__(self, members: Sequence[RegionModel]):
        self.members, self.regions = members, members[0].regions

    def probabilities(self, levels: np.ndarray, case: Case) -> Iterator[SliceProbabilities]:
        for chunks in zip(*(member.probabilities(levels, case) for member in self.members), strict=True):
            yield SliceProbabilities(chunks[0].slices, sum(chunk.probability for chunk in chunks) / len(chunks))


class WeightedLogitEnsemble:
    """Several models of the same regions: the weighted mean of their logits, region by region."""

    CLIP = 1e-3  # a probability is taken as at least this far from 0 and 1: one sure network does not outvote all

    def __init__(self, members: Sequence[RegionModel], weights: np.ndarray):
        """weights: (M, R), 0 or more; those of a region sum to 1."""
        self.members, self.regions = members, members[0].regions
        self.weights = torch.from_numpy(weights).float()[:, None, :, None, None]

    def probabilities(self, levels: np.ndarray, case: Case) -> Iterator[SliceProbabilities]:
        for chunks in zip(*(member.probabilities(levels, case) for member in self.members), strict=True):
            logits = torch.stack([chunk.probability for chunk in chunks]).logit(self.CLIP)
            yield SliceProbabilities(chunks[0].slices, (logits * self.weights.to(logits.device)).sum(0).sigmoid())


def describe_members(members: Sequence[PlaneModel]) -> list[dict]:
    """What a weight belongs to: a network, known by the sha256 of its file, along a plane."""
    return [
        {
            "run": one.of.run.resolve().name,
            "step": one.of.step,
            "sha256": files.sha256(one.of.run / "model.safetensors"),
            "plane": one.plane,
        }
        for one in members
    ]


def load_weights(path: str | Path, members: Sequence[PlaneModel]) -> np.ndarray:
    """(M, R) of the members, in their order. Raises InputError for a damaged file, or one made for other runs."""
    content = files.read_json(Path(path))
    try:
        regions, rows = list(content["regions"]), {_key(row): row["weights"] for row in content["members"]}
        weights = np.array([rows[_key(name)] for name in describe_members(members)], float)
    except KeyError as error:
        raise InputError(
            f"fusion={path} holds no weights for {error}. It was made for other runs, or for other steps of them; make "
            "it again: python -m kits_dist.fuse"
        ) from error
    except (TypeError, ValueError) as error:
        raise InputError(f"fusion={path} is damaged ({error}). Make it again: python -m kits_dist.fuse") from error
    if regions != list(members[0].regions) or len(rows) != len(members):
        raise InputError(f"fusion={path} is for {len(rows)} networks of {regions}, not for these. Name the same runs.")
    if weights.shape != (len(members), len(regions)) or (weights < 0).any() or abs(weights.sum(0) - 1).max() > 1e-6:
        raise InputError(f"fusion={path} is damaged: the weights of a region must sum to 1. Make it again.")
    return weights


def _key(name: dict) -> str:
    return f"run {name['run']}, step {name['step']}, {name['plane']} ({name['sha256'][:12]})"
