"""batchgeneratorsv2, the library of nnU-Net: torch tensors, a sample at a time.

Options that are faster than the obvious ones: labels by nearest neighbor (nnU-Net's default interpolates each label
separately: 1.6 times the time), noise only after the crop. SpatialTransform rotates, scales and crops in one
resampling, and only crops where it drew neither. In a torch DataLoader: NonDetMultiThreadedAugmenter, which nnU-Net
uses, was as fast.
"""

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.slices import Peer
from kits_dist.config import AugmentConfig
from kits_dist.data.dataset import SliceDataset


class BatchGenerators(Peer):
    """The peer batchgeneratorsv2."""

    package = "batchgeneratorsv2"
    choices = "one SpatialTransform, nearest labels, torch DataLoader"

    def __init__(self, dataset: SliceDataset, changes: AugmentConfig):
        from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
        from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
        from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
        from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
        from batchgeneratorsv2.transforms.utils.random import RandomTransform

        if changes.flip not in (0, 0.5):
            raise ValueError(f"augment.flip={changes.flip}: MirrorTransform mirrors half of the samples")
        window, angle = dataset.store.window, np.deg2rad(changes.rotate_deg)
        self.levels, self.norm = window.levels, dataset.norm
        spatial = SpatialTransform(
            dataset.data.size_px,
            [n / 2 for n in dataset.data.size_px],
            random_crop=True,
            p_rotation=changes.rotate_p,
            rotation=(-angle, angle),
            p_scaling=changes.scale_p,
            scaling=tuple(1 / zoom for zoom in reversed(changes.scale)),  # larger makes things smaller
            p_synchronize_scaling_across_axes=1,
            mode_seg="nearest",
        )
        # called variance, used as the standard deviation
        noise = GaussianNoiseTransform((0, changes.noise_hu / window.step_hu))
        mirror = [MirrorTransform((1,))] if changes.flip else []
        self.transform = ComposeTransforms([spatial, *mirror, RandomTransform(noise, changes.noise_p)])

    def seed(self, seed: int) -> None:
        """Seed the generators of this process."""
        np.random.seed(seed)
        torch.manual_seed(seed)

    def sample(self, levels: np.ndarray, labels: np.ndarray) -> tuple:
        """Change one slice."""
        image, segmentation = torch.from_numpy(levels.astype(np.float32)), torch.from_numpy(np.array(labels))
        made = self.transform(image=image[None], segmentation=segmentation[None])
        normalized = made["image"].clamp_(0, self.levels).sub_(self.norm.mean).mul_(1 / self.norm.sd)
        return normalized, made["segmentation"][0]

    def batch(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Turn collated slices into a batch."""
        return image, label
