"""The poster's own data path, rebuilt from its author's code (H. Beheshtifard, Kidney-Tumor-Segmentation, 2023).

One .nii.gz file for each slice and one for its labels, read by SimpleITK in the workers of a DataLoader; albumentations
on float32; HU clipped, then mean and sd. There, four workers feed two GPUs; here there are as many as cores, as for
every peer. Its augmentation is that of configs/poster_optimized_kidney.yaml, which ours then draws, too.

The strength of its noise was albumentations 1's default, a variance of 10 to 50 HU; albumentations 2 takes the standard
deviation as a share of an image in 0..1, so the noise is added to HU / 255.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.lib.programs import ROOT
from benchmarks.peers.slices import Peer, Slices
from kits_dist import cli
from kits_dist.config import AugmentConfig, Config
from kits_dist.data.dataset import SliceDataset

FILES = 256  # slices written, at most: a store of KiTS21 has 48,000 to train on, and none is in the page cache longer
_RECIPE = [f"config={ROOT / 'configs' / 'poster_optimized_kidney.yaml'}", "data.store=-", "run=-"]
AS_THE_POSTER: AugmentConfig = cli.load(Config, _RECIPE).augment


class PosterLoader(Peer):
    """The peer "poster"."""

    package = "SimpleITK"
    choices = "its author's: one .nii.gz a slice, SimpleITK, albumentations on float32, DataLoader"

    def __init__(self, dataset: SliceDataset, changes: AugmentConfig):
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks the package index for a version
        import albumentations as A
        import cv2
        import SimpleITK

        cv2.setNumThreads(0)  # workers are the parallelism
        self.read = lambda path: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
        self.low, self.high = dataset.store.window.low, dataset.store.window.high
        self.norm, self.step_hu = dataset.norm, dataset.store.window.step_hu
        height, width = dataset.data.size_px
        part = [round(pixels / changes.zoom_crop) for pixels in (height, width)]
        crop = A.Compose([A.RandomCrop(*part), A.Resize(height, width)], p=changes.zoom_crop_p)
        noise = tuple(hu / 255 for hu in (changes.noise_min_hu, changes.noise_hu))
        self.transform = A.Compose(
            [
                A.Resize(height, width),
                A.Rotate(limit=changes.rotate_deg, p=changes.rotate_p),
                A.HorizontalFlip(p=changes.flip),
                A.VerticalFlip(p=changes.flip_vertical),
                A.GaussNoise(std_range=noise, p=changes.noise_p),
                crop,
            ]
        )

    def source(self, dataset: SliceDataset, changes: AugmentConfig) -> Dataset:
        """Write the files of up to FILES training slices, evenly spread, and return what reads them."""
        return SliceFiles(dataset, Slices(dataset, changes, self), self)

    def seed(self, seed: int) -> None:
        """Seed the generators of this process."""
        self.transform.set_random_seed(seed)

    def sample(self, levels: np.ndarray, labels: np.ndarray) -> tuple:
        """Change one slice; levels: (H, W) int16 HU as they were in the file."""
        image = np.clip(levels.astype(np.float32), self.low, self.high) / 255
        made = self.transform(image=image[..., None], mask=labels)
        mean = self.norm.mean * self.step_hu + self.low
        return (made["image"][..., 0] * 255 - mean) / (self.norm.sd * self.step_hu), np.ascontiguousarray(made["mask"])

    def batch(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Turn collated slices into a batch."""
        return image[:, None].to(torch.float32), label


class SliceFiles(Dataset):
    """Maps a row of store.slices to the sample that the poster's code makes of the slice's two files."""

    def __init__(self, dataset: SliceDataset, slices: Slices, peer: PosterLoader):
        import SimpleITK

        self.peer = peer
        self._folder = tempfile.TemporaryDirectory()
        window, folder = dataset.store.window, Path(self._folder.name)
        each = -(-len(dataset.rows) // FILES)
        self.number = {row: place // each for place, row in enumerate(dataset.rows.tolist())}
        for number, row in enumerate(dataset.rows[::each].tolist()):
            levels, labels = slices.pair(row)
            hu = np.rint(levels * window.step_hu + window.low).astype(np.int16)
            for kind, array in (("image", hu), ("label", np.ascontiguousarray(labels))):
                SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(folder / f"{number}_{kind}.nii.gz"), True)

    def __getitem__(self, row: int) -> tuple:
        paths = (Path(self._folder.name) / f"{self.number[row]}_{kind}.nii.gz" for kind in ("image", "label"))
        return self.peer.sample(*map(self.peer.read, paths))
