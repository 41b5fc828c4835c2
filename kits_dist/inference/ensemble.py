"""Ensembles of models that predict the same regions: the mean of their probabilities, or of their weighted logits.

The weights, one for each network and region, are chosen on `val` by `kits_dist.fuse` and stored in a JSON file.
"""

from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path

import numpy as np
import torch

from kits_dist.data.store import Case
from kits_dist.inference.region_models import PlaneModel, RegionModel, SliceProbabilities
from kits_dist.utils import files
from kits_dist.utils.errors import InputError


class MeanEnsemble:
    """The mean of the members' probabilities."""

    def __init__(self, members: Sequence[RegionModel]):
        self.members = members
        self.regions = members[0].regions

    def probabilities(self, levels: np.ndarray, case: Case) -> Iterator[SliceProbabilities]:
        """Yield all axial slices; the members run in lockstep, so one batch of each is in memory."""
        for batches in zip(*(member.probabilities(levels, case) for member in self.members), strict=True):
            total = reduce(torch.add, [batch.probability for batch in batches])
            yield SliceProbabilities(batches[0].slices, total / len(batches))


class WeightedLogitEnsemble:
    """The sigmoid of the weighted mean of the members' logits, with weights of its own for each region."""

    CLIP = 1e-3  # probabilities are kept this far from 0 and 1, so that one certain network does not outvote all others

    def __init__(self, members: Sequence[RegionModel], weights: np.ndarray):
        """weights: (M, R), not negative; those of a region sum to 1."""
        self.members = members
        self.regions = members[0].regions
        self.weights = torch.from_numpy(weights).float()[:, None, :, None, None]

    def probabilities(self, levels: np.ndarray, case: Case) -> Iterator[SliceProbabilities]:
        """Yield all axial slices."""
        for batches in zip(*(member.probabilities(levels, case) for member in self.members), strict=True):
            logits = torch.stack([batch.probability for batch in batches]).logit(self.CLIP)
            yield SliceProbabilities(batches[0].slices, (logits * self.weights.to(logits.device)).sum(0).sigmoid())


def describe_members(members: Sequence[PlaneModel]) -> list[dict]:
    """Return what identifies each network that a weight belongs to: the sha256 of its file, and its plane."""
    return [
        {
            "run": member.run_model.run.resolve().name,
            "step": member.run_model.step,
            "sha256": files.sha256(member.run_model.run / "model.safetensors"),
            "plane": member.plane,
        }
        for member in members
    ]


def load_weights(path: str | Path, members: Sequence[PlaneModel]) -> np.ndarray:
    """Return the (M, R) weights of `members`, in their order.

    Raises InputError for a damaged file, or one that was made for other runs.
    """
    content = files.read_json(Path(path))
    try:
        regions = list(content["regions"])
        rows = {_key(row): row["weights"] for row in content["members"]}
        weights = np.array([rows[_key(member)] for member in describe_members(members)], float)
    except KeyError as error:
        raise InputError(
            f"fusion={path} holds no weights for {error}. It was made for other runs, or for other steps of them; make "
            "it again: python -m kits_dist.fuse"
        ) from error
    except (TypeError, ValueError) as error:
        raise InputError(f"fusion={path} is damaged ({error}). Make it again: python -m kits_dist.fuse") from error

    if regions != list(members[0].regions) or len(rows) != len(members):
        raise InputError(
            f"fusion={path} is for {len(rows)} networks that predict {', '.join(regions)}; these are {len(members)} "
            f"that predict {', '.join(members[0].regions)}. Name the runs that it was made for."
        )
    if weights.shape != (len(members), len(regions)) or (weights < 0).any() or abs(weights.sum(0) - 1).max() > 1e-6:
        raise InputError(
            f"fusion={path} is damaged: the weights of a region must sum to 1. Make it again: python -m kits_dist.fuse"
        )
    return weights


def _key(member: dict) -> str:
    return f"run {member['run']}, step {member['step']}, {member['plane']} ({member['sha256'][:12]})"
