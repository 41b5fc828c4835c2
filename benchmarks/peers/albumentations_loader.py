"""albumentations 2: OpenCV on NumPy arrays.

Options that are faster than the obvious ones: uint8 until the end, so that a quarter of the bytes pass from worker to
reader, then one table for clipping and normalization (Normalize in the workers: 1.3 to 1.5 times the CPU time); one
Affine at most instead of Rotate and then Affine. OneOf draws it with the probabilities of "only rotated", "only scaled"
and "both", so the third of the samples that draw neither is cropped and not warped. Affine precedes the crop: the
reverse order is quicker, but turns corners black that hold pixels, which is not the same picture.
"""

import os

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.slices import Peer
from kits_dist.config import AugmentConfig
from kits_dist.data.dataset import SliceDataset

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the package index for a version


class Albumentations(Peer):
    """The peer albumentations."""

    package = "albumentations"
    choices = "uint8 until the last step, one Affine in OneOf before RandomCrop, one table to clip and normalize"

    def __init__(self, dataset: SliceDataset, changes: AugmentConfig):
        import albumentations as A
        import cv2

        cv2.setNumThreads(0)  # workers are the parallelism
        turn, zoom = {"rotate": (-changes.rotate_deg, changes.rotate_deg)}, {"scale": changes.scale, "keep_ratio": True}
        p, q = changes.rotate_p, changes.scale_p
        moves = [({**turn}, p * (1 - q)), ({**zoom}, (1 - p) * q), ({**turn, **zoom}, p * q)]
        affine = [A.Affine(**move, p=share) for move, share in moves if share > 0]
        noise_levels = changes.noise_hu / dataset.store.window.step_hu
        self.transform = A.Compose(
            [
                *([A.OneOf(affine, p=1 - (1 - p) * (1 - q))] if affine else []),
                A.RandomCrop(*dataset.data.size_px),
                A.HorizontalFlip(p=changes.flip),
                A.GaussNoise(std_range=(0, noise_levels / 255), p=changes.noise_p),
            ]
        )
        levels = np.minimum(np.arange(256), dataset.store.window.levels)
        self.table = ((levels - dataset.norm.mean) / dataset.norm.sd).astype(np.float32)

    def seed(self, seed: int) -> None:
        """Seed the generators of this process."""
        self.transform.set_random_seed(seed)

    def sample(self, levels: np.ndarray, labels: np.ndarray) -> tuple:
        """Change one slice."""
        made = self.transform(image=levels[..., None], mask=labels)
        # a flip of AlbumentationsX is a view with a negative stride, which no tensor can have
        return np.ascontiguousarray(made["image"][..., 0]), np.ascontiguousarray(made["mask"])

    def batch(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Turn collated slices into a batch."""
        import cv2

        size, height, width = image.shape
        pixels = np.empty((size * height, width), np.float32)  # np.empty: huge pages, as our OpenCV backend
        cv2.LUT(image.numpy().reshape(-1, width), self.table, dst=pixels)
        return torch.from_numpy(pixels).view(size, 1, height, width), label


class AlbumentationsX(Albumentations):
    """The peer AlbumentationsX, the successor, with the same options.

    Its licence is the AGPL, so it is an extra of its own, and nothing but this benchmark imports it. It is imported as
    `albumentations`: an environment has the one or the other.
    """

    package = "albumentationsx"
    module = "albumentations"
    extra = "peers-agpl"
