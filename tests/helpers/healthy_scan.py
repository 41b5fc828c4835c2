"""A small healthy case, written as KiTS stores it, for tests that damage it."""

import numpy as np

from kits_dist.imaging.datasets import CaseFiles, find_cases
from kits_dist.imaging.nifti import kits_geometry, write_nifti

SHAPE, SPACING = (10, 40, 48), (3.0, 0.8, 0.8)


class HealthyScan:
    """A body with bone, a kidney and a tumor that changes a little from slice to slice."""

    def __init__(self, number=0):
        z, y, x = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
        body = ((y - 20) / 16) ** 2 + ((x - 24) / (19 + 0.2 * z)) ** 2 < 1
        self.image = np.where(body, 50, -1000).astype(np.int16)
        self.image[(np.abs(y - 30) < 3) & (np.abs(x - 24) < 3)] = 600
        self.label = np.zeros(SHAPE, np.uint8)
        self.label[2:8, 12:22, 8:16] = 1
        self.label[4:6, 12:16, 8:12] = 2
        self.image[self.label == 1] = 150
        self.image[self.label == 2] = 80
        self.image += np.random.default_rng(number).normal(0, 10, SHAPE).astype(np.int16)
        self.geometry = self.label_geometry = kits_geometry(SHAPE, SPACING)

    def write(self, root, name) -> CaseFiles:
        folder = root / name
        write_nifti(folder / "imaging.nii.gz", self.image, self.geometry)
        write_nifti(folder / "segmentation.nii.gz", self.label, self.label_geometry)
        return next(case for case in find_cases(root).cases if case.case_id == name)
