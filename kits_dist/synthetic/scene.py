"""Draw what one painted scan looks like: contrast phase, HU of every organ, size of the trunk, scanner.

Everything is drawn once per case and widely, so that organs overlap in HU as they do between patients and phases: a
network trained on the result cannot tell kidney from spleen, vertebra or bowel by HU alone (domain randomization, Tobin
et al. 2017, doi:10.1109/IROS.2017.8202133; on segmentation of label maps Billot et al. 2023,
doi:10.1016/j.media.2023.102789). Ranges hold what was measured on real KiTS slices, see `phantom`.
"""

from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from kits_dist.synthetic.organs import Patient


class Scene(NamedTuple):
    """What a painted scan has beyond a `Patient`: lengths in mm, intensities in HU."""

    spine: tuple[float, float, float]  # (y of the middle, y semi-axis, x semi-axis) of a vertebral body
    psoas_mm: float  # radius at the lower pole of the kidneys
    back_mm: float  # y semi-axis of the erector muscles
    perirenal_fat_mm: float
    muscle_fat_hu: float  # how much darker streaks of fat in muscle are
    bone_hu: float  # of the spongy part
    liver_vessel_hu: float  # difference to the liver
    spleen_band_hu: float  # sd of its stripes in the arterial phase
    bowel_wall_hu: float
    bowel_loops: int
    oral_contrast: float  # share of loops that hold positive contrast
    urine_hu: float
    table_hu: float
    table_bend: float  # 1/mm
    cortex_mm: float
    cortex_edge_mm: float  # over which cortex becomes medulla
    tumor_patch_hu: float  # sd of patches a few centimeters wide
    core_edge: float  # of necrosis: a high value gives a sharp edge
    psf_mm: float  # sd of the scanner's point spread in plane


class _Phase(NamedTuple):
    """HU ranges of a contrast phase."""

    share: float
    cortex: tuple[float, float]
    medulla: tuple[float, float]  # as a share of the cortex's HU
    artery: tuple[float, float]
    vein: tuple[float, float]
    liver: tuple[float, float]
    spleen: tuple[float, float]
    bowel_wall: tuple[float, float]
    spleen_band: float
    urine: tuple[float, float]


_NATIVE = _Phase(0.10, (26, 60), (0.85, 1.0), (35, 55), (35, 55), (40, 68), (38, 58), (25, 45), 2.0, (0, 15))
_CORTICOMEDULLARY = _Phase(
    0.38, (90, 240), (0.25, 0.7), (180, 380), (60, 190), (50, 105), (80, 165), (60, 130), 22.0, (0, 15)
)
_NEPHROGRAPHIC = _Phase(
    0.42, (60, 175), (0.7, 1.0), (110, 190), (110, 195), (80, 140), (85, 150), (60, 110), 6.0, (0, 20)
)
_EXCRETORY = _Phase(0.10, (80, 150), (0.8, 1.05), (90, 140), (90, 140), (75, 115), (75, 120), (50, 90), 4.0, (80, 900))
_PHASES = (_NATIVE, _CORTICOMEDULLARY, _NEPHROGRAPHIC, _EXCRETORY)


def draw_scene(rng: Generator) -> tuple[Patient, Scene]:
    """Draw a patient and the appearance of the scan; the places of the kidneys are those of the annotation."""
    phase = _PHASES[int(rng.choice(len(_PHASES), p=[one.share for one in _PHASES]))]
    cortex = rng.uniform(*phase.cortex)
    medulla = cortex * rng.uniform(*phase.medulla)
    semi_y = rng.uniform(96.0, 148.0)
    body_center_y = rng.uniform(-24.0, 4.0)
    thick = rng.uniform()  # obese patients have fat in every place
    patient = Patient(
        body_semi=(semi_y, float(np.clip(semi_y * rng.uniform(1.2, 1.5), 135.0, 196.0))),
        body_center_y=body_center_y,
        fat_mm=4.0 + 36.0 * thick**1.5,
        wall_mm=rng.uniform(4.0, 13.0),
        kidneys=((0.0, 0.0, -68.0), (0.0, 0.0, 68.0)),  # replaced by those of the annotation
        cortex_hu=cortex,
        medulla_hu=medulla,
        tumor_hu=_draw_tumor_hu(rng, cortex),
        tumor_rough_hu=rng.uniform(3.0, 18.0),
        necrosis=rng.uniform(0.15, 0.75) if rng.random() < 0.55 else 0.0,
        core_hu=rng.uniform(5.0, 38.0),
        cyst_hu=rng.uniform(2.0, 32.0),
        artery_hu=rng.uniform(*phase.artery),
        vein_hu=rng.uniform(*phase.vein),
        liver_hu=rng.uniform(*phase.liver),
        spleen_hu=rng.uniform(*phase.spleen),
        muscle_hu=rng.normal(58.0, 8.0),
        noise_factor=rng.uniform(0.75, 1.35),
        noise_lag1=rng.uniform(0.3, 0.6),
    )
    depth = rng.uniform(13.0, 19.0)
    scene = Scene(
        spine=(rng.uniform(4.0, 26.0), depth, depth * rng.uniform(1.25, 1.5)),
        psoas_mm=rng.uniform(15.0, 27.0),
        back_mm=rng.uniform(21.0, 36.0),
        perirenal_fat_mm=rng.uniform(0.5, 4.0) + 9.0 * thick,
        muscle_fat_hu=rng.uniform(0.0, 90.0) * (0.3 + 0.7 * thick),
        bone_hu=rng.uniform(110.0, 280.0),
        liver_vessel_hu=rng.uniform(-15.0, 60.0),
        spleen_band_hu=phase.spleen_band * rng.uniform(0.3, 1.3),
        bowel_wall_hu=rng.uniform(*phase.bowel_wall),
        bowel_loops=int(rng.integers(60, 160)),
        oral_contrast=float(rng.uniform(0.2, 0.7)) if rng.random() < 0.25 else 0.04,
        urine_hu=rng.uniform(*phase.urine),
        table_hu=rng.uniform(-100.0, 500.0),
        table_bend=rng.uniform(0.0, 0.0022),
        cortex_mm=rng.uniform(4.5, 8.0),
        cortex_edge_mm=rng.uniform(1.0, 3.0),
        tumor_patch_hu=rng.uniform(0.0, 28.0),
        core_edge=rng.uniform(2.5, 10.0),
        psf_mm=rng.uniform(0.4, 0.9),
    )
    return patient, scene


def _draw_tumor_hu(rng: Generator, cortex_hu: float) -> float:
    """Most tumors enhance little; clear cell carcinomas enhance with the cortex, some beyond it."""
    kind = rng.random()
    if kind < 0.12:  # as bright as the kidney
        return float(np.clip(cortex_hu * rng.uniform(0.8, 1.1), 35.0, 220.0))
    if kind < 0.42:
        return float(np.clip(cortex_hu * rng.uniform(0.5, 0.8), 32.0, 160.0))
    if kind < 0.55:  # cystic and fatty ones
        return rng.uniform(8.0, 34.0)
    return rng.uniform(34.0, 85.0)
