"""HU of annotated tissue in a painted scan: cortex and medulla, and tumors with patches and necrosis."""

import numpy as np
from scipy import ndimage

from kits_dist.labels import CYST, TUMOR
from kits_dist.synthetic.organs import DistanceMaps, Patient
from kits_dist.synthetic.scene import Scene
from kits_dist.synthetic.shapes import Axes, SmoothField, distance_mm, interpolate

SINUS_MM = 7.0  # sd of the blur that closes the sinus of an annotated kidney


def closed_in(distances: DistanceMaps) -> np.ndarray:
    """Return the share of annotated tissue around each voxel of the grid of `distances`: high in the sinus, too."""
    spacing = [float(a[1] - a[0]) if len(a) > 1 else SINUS_MM for a in distances.axes]
    annotated = (distances.inside_mm > 0).astype(np.float32)
    return ndimage.gaussian_filter(annotated, [min(SINUS_MM / s, 3.0) for s in spacing])


def depth_below_cortex(distances: DistanceMaps) -> DistanceMaps:
    """Return `distances` with the depth below the outer surface of the kidney: the sinus is covered by no cortex."""
    spacing = [float(a[1] - a[0]) if len(a) > 1 else 1.0 for a in distances.axes]
    solid = (distances.inside_mm > 0) | (closed_in(distances) > 0.5)
    depth = distance_mm(np.pad(solid, 1, mode="edge"), spacing)[1:-1, 1:-1, 1:-1]
    return distances._replace(inside_mm=depth.astype(np.float32))


def paint_tissue(
    label: np.ndarray,
    axes: Axes,
    distances: DistanceMaps,
    patient: Patient,
    scene: Scene,
    fields: dict[str, SmoothField],
) -> np.ndarray:
    """Return HU float32 of annotated voxels; `label` and `axes` are part of the grid, other voxels are undefined.

    distances   of `depth_below_cortex`
    fields      random fields by name: coarse, medium and fine
    """
    medium, fine = fields["medium"].at(axes), fields["fine"].at(axes)
    depth = interpolate(distances.inside_mm, distances.axes, axes)
    # Pyramids lie below the cortex, which reaches down between them in columns: where the medium field is low.
    below = np.clip((depth - scene.cortex_mm) / scene.cortex_edge_mm, 0.0, 1.0)
    medulla = below * np.clip(0.75 + medium * 1.5, 0.0, 1.0)
    hu = np.float32(patient.cortex_hu) + np.float32(patient.medulla_hu - patient.cortex_hu) * medulla + 7.0 * fine

    if (label == TUMOR).any():
        coarse = fields["coarse"].at(axes)
        tumor = np.float32(patient.tumor_hu) + np.float32(patient.tumor_rough_hu) * (0.8 * medium + 0.6 * fine)
        tumor += np.float32(scene.tumor_patch_hu) * coarse
        if patient.necrosis:
            share = interpolate(distances.tumor_share, distances.axes, axes) + 0.2 * coarse + 0.1 * medium
            core = np.clip((share - patient.necrosis) * np.float32(scene.core_edge), 0.0, 1.0)
            tumor += core * (np.float32(patient.core_hu) - tumor + 4.0 * fine)
        np.copyto(hu, tumor, where=label == TUMOR)
    np.copyto(hu, np.float32(patient.cyst_hu), where=label == CYST)
    return hu
