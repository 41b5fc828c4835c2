"""Draw what is not annotated in a phantom's trunk: fat, wall, organs, vessels and bones, on a coarse grid in mm.

HU levels were measured on real KiTS slices, see `phantom`.
"""

from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from kits_dist.synthetic.shapes import (
    Axes,
    Ellipsoid,
    SmoothField,
    Vec3,
    capsule_distance,
    coarse_axes,
    interpolate,
    is_empty,
    rotation,
    superellipse_distance,
    vec3,
)
from kits_dist.utils.components import Box3

AIR_HU, FAT_HU, MUSCLE_HU = -1005.0, -103.0, 59.0  # measured, see `phantom`
TISSUE_SD_HU = 8.0  # with noise of 14-18 HU this gives the measured 18 HU of muscle and fat
WORK_STEP_MM = (2.5, 1.6, 1.6)  # near KiTS21's median slice step; twice its median pixel


class Patient(NamedTuple):
    """Parameters drawn once per case: lengths in mm, intensities in HU, positions from the middle of the kidneys."""

    body_semi: tuple[float, float]  # (y, x) of the skin
    body_center_y: float
    fat_mm: float  # subcutaneous
    wall_mm: float  # abdominal wall muscle
    kidneys: tuple[Vec3, Vec3]  # right, left
    cortex_hu: float
    medulla_hu: float
    tumor_hu: float
    tumor_rough_hu: float  # sd of the texture inside a tumor
    necrosis: float  # 0: none; else the share of the radius at which the core begins
    core_hu: float
    cyst_hu: float
    artery_hu: float
    vein_hu: float
    liver_hu: float
    spleen_hu: float
    muscle_hu: float
    noise_factor: float
    noise_lag1: float


class BackgroundGrid(NamedTuple):
    """The working grid: hu float32 and organ uint8 (index into ORGANS), both (D, H, W) of axes.shape."""

    axes: Axes
    hu: np.ndarray
    organ: np.ndarray


ORGANS = ("air", "fat", "wall", "liver", "spleen", "bowel", "gas", "muscle", "vessel", "bone", "table")


class DistanceMaps(NamedTuple):
    """Distances in mm on a 2-3 mm grid around the annotation, float32 (d, h, w) of axes.shape."""

    axes: Axes
    bounds: tuple[Vec3, Vec3]  # (z, y, x) corners in mm
    outside_mm: np.ndarray  # to the annotation, 0 within
    inside_mm: np.ndarray  # to the edge of the annotation, 0 outside
    tumor_share: np.ndarray  # 0 at a tumor's edge, 1 at the middle of the largest
    box: Box3  # the voxels of the full grid that the annotation may fill


def background(axes: Axes, distances: DistanceMaps, patient: Patient, rng: Generator) -> BackgroundGrid:
    """Draw trunk and organs on a grid no finer than WORK_STEP_MM, with fat where the annotation is."""
    axes = coarse_axes(axes, WORK_STEP_MM)
    grid = BackgroundGrid(axes, np.full(axes.shape, AIR_HU, np.float32), np.zeros(axes.shape, np.uint8))
    z, y, x = axes.mesh()
    everywhere = (slice(None), slice(None), slice(None))
    bumps, fine = SmoothField(rng, 26.0), SmoothField(rng, 7.0)
    rough = fine.at(axes)

    yb = y - np.float32(patient.body_center_y)
    # The outline is flat along the body but for slow bulges, so its distance is computed once per plane.
    skin = superellipse_distance(yb[0], x[0], *patient.body_semi)[None] + 3.0 * bumps.at(axes)
    behind = np.clip(yb / patient.body_semi[0], 0.0, 1.0)
    fat_mm = patient.fat_mm * (1.0 - 0.45 * behind)
    wall_mm = patient.wall_mm * (1.0 + 0.9 * behind**2)
    cavity = skin - fat_mm - wall_mm
    cover(grid, everywhere, skin, FAT_HU, "fat")
    cover(grid, everywhere, skin - fat_mm, patient.muscle_hu, "wall")
    cover(grid, everywhere, cavity, FAT_HU, "fat")
    cover(grid, everywhere, np.minimum(cavity - 6.0, 3.0 * rough - 5.2), 50.0, "vessel")  # mesenteric strands

    def blob(center: Vec3, semi: Vec3, hu: float, organ: str, wobble_mm: float, turn: np.ndarray | None = None) -> None:
        shape = Ellipsoid(center, semi, np.eye(3) if turn is None else turn)
        box = shape.box(axes, 2.0 * wobble_mm + 2.0)
        if not is_empty(box):
            own = axes.crop(box)
            cover(grid, box, np.minimum(shape.distance(own) + wobble_mm * bumps.at(own), cavity[box] - 1.0), hu, organ)

    def tube(start: Vec3, end: Vec3, radius: float, hu: float, organ: str) -> None:
        ends = np.array((start, end))
        box = axes.box(vec3(ends.min(0) - radius - 2.0), vec3(ends.max(0) + radius + 2.0))
        if not is_empty(box):
            cover(grid, box, capsule_distance(axes.crop(box), start, end, radius), hu, organ)

    half_x = patient.body_semi[1] - patient.fat_mm - patient.wall_mm
    front = patient.body_center_y - patient.body_semi[0] + patient.fat_mm + patient.wall_mm
    low_z, high_z = float(axes.z[0]) - 5.0, float(axes.z[-1]) + 5.0
    liver_low = rng.uniform(-10.0, 30.0)
    blob((liver_low - 105, -25, 22 - half_x), (105, 95, 72), patient.liver_hu, "liver", 5.0)
    blob((-95, front + 40, -10), (rng.uniform(50, 80), 42, 75), patient.liver_hu, "liver", 4.0)
    blob((-5, front + 38, -60), (28, 16, 14), 12.0, "bowel", 2.0)  # gall bladder
    blob((-80, 15, half_x - 22), (rng.uniform(50, 75), 44, 25), patient.spleen_hu, "spleen", 4.0)
    blob((-85, front + 42, 62), (48, 34, 48), 85.0, "bowel", 4.0)
    blob((-85, front + 42, 62), (43, 29, 43), rng.uniform(15, 60), "bowel", 4.0)
    blob((-85, front + 26, 62), (36, 13, 34), -950.0, "gas", 2.0)
    blob((-20, -52, 18), (11, 10, 55), 88.0, "bowel", 4.0, rotation(0, rng.uniform(-25, 5), 0))  # pancreas
    blob((15, -38, -38), (35, 13, 14), rng.uniform(40, 75), "bowel", 3.0)  # duodenum
    for side in (-1.0, 1.0):  # ascending and descending colon, lateral to the kidneys
        place = (60.0, rng.uniform(-30, -5), side * (half_x - rng.uniform(20, 28)))
        blob(place, (100, 20, 19), 75.0, "bowel", 3.0)
        blob(place, (98, 16, 15), rng.uniform(20, 60), "bowel", 4.0)
        blob((60.0, place[1] - 7, place[2]), (92, 7, 10), -850.0, "gas", 5.0)
    for _ in range(int(rng.integers(24, 38))):  # small bowel and transverse colon
        center = (rng.uniform(-25, 125), rng.uniform(front + 16, -48), rng.uniform(-0.72, 0.72) * half_x)
        semi, turn = rng.uniform((11, 11, 18), (17, 17, 42)), rotation(*rng.uniform(-60, 60, 3))
        content = 250.0 if rng.random() < 0.12 else rng.uniform(20, 85)
        blob(center, vec3(semi), rng.uniform(70, 105), "bowel", 2.0, turn)
        blob(center, vec3(semi - 3.5), content, "bowel", 2.0, turn)
        if rng.random() < 0.35:
            blob((center[0], center[1] - 4, center[2]), vec3((semi - 4) * (0.8, 0.45, 0.8)), -850.0, "gas", 1.5, turn)

    box = axes.box(*distances.bounds)
    outside_mm = interpolate(distances.outside_mm, distances.axes, axes.crop(box))
    # Perirenal fat varies in thickness down to none, so that liver, bowel and spleen sometimes touch a mass.
    cover(grid, box, np.minimum(3.5 + 3.5 * bumps.at(axes.crop(box)) - outside_mm, cavity[box]), FAT_HU, "fat")

    for side in (-1.0, 1.0):  # muscles of the back
        for height in range(int(low_z) - 40, int(high_z) + 40, 8):  # psoas: wider and further out towards the pelvis
            down = np.clip((height + 50) / 150, 0, 1)
            tube((height, 8 - 4 * down, side * (27 + 18 * down)), (height + 8, 8 - 4 * down, side * (28 + 18 * down)),
                 5 + 16 * down, patient.muscle_hu, "muscle")  # fmt: skip
        tube((low_z, 52, side * 30), (high_z, 50, side * 33), 24, patient.muscle_hu, "muscle")
        tube((10, 44, side * 70), (high_z, 36, side * 66), 11, patient.muscle_hu, "muscle")  # quadratus lumborum
    _vessels(tube, patient, low_z, high_z, rng)
    _bones(grid, cavity, wall_mm, tube, rng)
    grid.hu[grid.hu > -400] += np.float32(TISSUE_SD_HU) * rough[grid.hu > -400]
    curve = (patient.body_center_y + patient.body_semi[0] + 14.0) - 0.0012 * x * x  # the table, a shallow trough
    table = (2.5 - np.abs(y - curve) + 0.0 * z) * (np.abs(x) < 200)
    np.copyto(grid.hu, 20.0, where=(table > 0) & (grid.organ == 0))
    np.copyto(grid.organ, ORGANS.index("table"), where=(table > 0) & (grid.organ == 0))
    return grid


def _vessels(tube, patient: Patient, low_z: float, high_z: float, rng: Generator) -> None:
    aorta, cava = (-24.0, 9.0), (-22.0, -20.0)  # (y, x): in front of the spine, cava on the right
    tube((low_z, *aorta), (high_z, *aorta), rng.uniform(9, 12), patient.artery_hu, "vessel")
    tube((low_z, *cava), (high_z, *cava), rng.uniform(10, 13), patient.vein_hu, "vessel")
    for side, (kz, ky, kx) in zip((-1.0, 1.0), patient.kidneys, strict=True):
        hilum = (kz, ky - 6, kx - side * 20)
        tube((kz - 6, *aorta), hilum, 3.0, patient.artery_hu, "vessel")
        tube(
            (kz + 3, cava[0] - 6 * (side > 0), cava[1]),
            (hilum[0] + 5, hilum[1] - 4, hilum[2]),
            5.0,
            patient.vein_hu,
            "vessel",
        )


def _bones(grid: BackgroundGrid, cavity: np.ndarray, wall_mm: np.ndarray, tube, rng: Generator) -> None:
    z, y, x = grid.axes.mesh()
    first, rise = rng.uniform(0, 34), rng.uniform(0.6, 0.8)
    low_z, high_z = float(grid.axes.z[0]) - 5.0, float(grid.axes.z[-1]) + 5.0
    for side in (-1.0, 1.0):
        tube((low_z, 30, side * 15), (high_z, 30, side * 15), 6, 300.0, "bone")
    tube((low_z, 48, 0), (high_z, 48, 0), 5, 350.0, "bone")
    box = grid.axes.box((-1e9, -32, -32), (1e9, 34, 32))
    if not is_empty(box):
        zb, yb, xb = grid.axes.crop(box).mesh()
        body = 23.0 - np.hypot(yb - 2.0, xb * 0.85) + 0.0 * zb
        disc = np.abs((zb + first) % 34.0 - 17.0) > 13.5  # a vertebra every 34 mm, discs 7 mm thick
        cover(grid, box, body, np.where(disc, 95.0, 420.0), "bone")
        cover(grid, box, body - 3.5, np.where(disc, 85.0, 215.0), "bone")
        cover(grid, box, 9.0 - np.hypot(yb - 34.0, xb) + 0.0 * zb, 35.0, "fat")  # spinal canal
    # Ribs lie in the wall and drop towards the front, so one slice cuts several of them.
    along = (z - rise * y - 0.5 * np.abs(x) + first) % 30.0 - 15.0
    rib = np.minimum(3.8 - np.abs(cavity + 0.5 * wall_mm), 6.0 - np.abs(along))
    everywhere = (slice(None), slice(None), slice(None))
    allowed = (np.abs(x) > 55.0) & (z < 25.0 + 0.4 * y) & (y > -75.0)
    cover(grid, everywhere, np.where(allowed, rib, -9.0), 380.0, "bone")


def cover(grid: BackgroundGrid, box: Box3, distance_mm: np.ndarray, hu: float | np.ndarray, organ: str) -> None:
    """Blend `hu` in where `distance_mm` is positive; the edge is about a voxel wide, as with partial volume."""
    soft = max(1.5, 0.8 * float(grid.axes.x[1] - grid.axes.x[0]))
    share = np.clip(0.5 + distance_mm / np.float32(soft), 0.0, 1.0, dtype=np.float32)
    view = grid.hu[box]
    view += share * (np.float32(hu) - view)
    grid.organ[box][share > 0.5] = ORGANS.index(organ)
