"""MONAI 1: torch tensors, dictionary transforms.

Options that are faster than the obvious ones: one RandAffined that resamples straight into the window (instead of
RandRotated, RandZoomd and a crop), drawn by OneOf with the probabilities of "neither", "only rotated", "only scaled"
and "both", so that "neither" is a crop; float32 instead of float64, for which RandAffined has no argument but its
resampler an attribute (1.6 times as fast); no MetaTensor; one ScaleIntensityRanged to clip and normalize. RandAffined
draws the scales of rows and columns separately, the other libraries draw one.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.slices import Peer
from kits_dist.config import AugmentConfig
from kits_dist.data.dataset import SliceDataset

KEYS = ("image", "label")


class Monai(Peer):
    """The peer MONAI."""

    package = "monai"
    choices = "one RandAffined into the window in OneOf, float32, cached grid, no MetaTensor, ScaleIntensityRanged"

    def __init__(self, dataset: SliceDataset, changes: AugmentConfig):
        import monai.transforms as M
        from monai.data import set_track_meta

        set_track_meta(False)
        self.size_px, self.changes = dataset.data.size_px, changes
        window, norm = dataset.store.window, dataset.norm
        low, high = ((level - norm.mean) / norm.sd for level in (0, window.levels))
        self.tail = M.Compose(
            [
                M.RandFlipd(KEYS, prob=changes.flip, spatial_axis=1),
                M.RandGaussianNoised(["image"], changes.noise_p, std=changes.noise_hu / window.step_hu),
                M.ScaleIntensityRanged(["image"], 0, window.levels, low, high, clip=True),
            ]
        )
        self._geometry: dict[tuple[int, ...], Any] = {}  # by the slice's shape: the random shift depends on it

    def _geometry_of(self, shape: tuple[int, ...]):
        import monai.transforms as M

        p, q = self.changes.rotate_p, self.changes.scale_p
        turn = {"rotate_range": np.deg2rad(self.changes.rotate_deg)}
        # 0.1 makes things a tenth smaller
        zoom = {"scale_range": [tuple(1 / zoom - 1 for zoom in reversed(self.changes.scale))] * 2}
        shift = [(have - want) / 2 for have, want in zip(shape, self.size_px, strict=True)]

        def affine(**move):
            made = M.RandAffined(
                KEYS,
                self.size_px,
                prob=1,
                translate_range=shift,
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
                cache_grid=True,
                **move,
            )
            made.rand_affine.resampler.dtype = np.float32
            return made

        crop = M.RandSpatialCropd(KEYS, self.size_px, random_size=False)
        choice = M.OneOf(
            [crop, affine(**turn), affine(**zoom), affine(**turn, **zoom)],
            weights=[(1 - p) * (1 - q), p * (1 - q), (1 - p) * q, p * q],
        )
        return choice.set_random_state(self.tail.R.randint(2**31))

    def seed(self, seed: int) -> None:
        """Seed the generators of this process."""
        self.tail.set_random_state(seed)
        self._geometry.clear()

    def sample(self, levels: np.ndarray, labels: np.ndarray) -> tuple:
        """Change one slice."""
        return self.changed(self.tensors(levels, labels))

    def tensors(self, levels: np.ndarray, labels: np.ndarray) -> dict[str, Tensor]:
        """Return the input of the random changes: (1, H, W) uint8 each."""
        return {"image": torch.from_numpy(np.array(levels)[None]), "label": torch.from_numpy(np.array(labels)[None])}

    def changed(self, pair: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Draw and apply the changes of one slice."""
        shape = tuple(pair["image"].shape[1:])
        if shape not in self._geometry:
            self._geometry[shape] = self._geometry_of(shape)
        made = self.tail(self._geometry[shape](pair))
        return made["image"], made["label"][0].to(torch.uint8)

    def batch(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Turn collated slices into a batch."""
        return image, label
