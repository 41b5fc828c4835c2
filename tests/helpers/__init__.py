"""Shared by tests: paths of this checkout and of the real data, processes, clusters, programs for a launcher."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("KITS_DATA", ROOT.parent / "shared" / "data"))


def by_nibabel(path: Path) -> np.ndarray:
    """Return a label map (D, H, W) in our orientation, read and turned by nibabel alone."""
    upright = nib.as_closest_canonical(nib.load(path))  # x to the right, y to the front, z to the head
    return np.asanyarray(upright.dataobj)[::-1, ::-1, ::-1].transpose(2, 1, 0)
