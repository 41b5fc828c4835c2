"""Generate abdominal CT phantoms for demos and tests, where real KiTS scans are not available.

`make_case` draws anatomy, annotation and CT; `paint_case` draws a CT around a given annotation. Both are pure functions
of (seed, index). Anatomy is defined in mm, so spacing changes the voxels and not the patient. Array order
is KiTS's: slice 0 cranial, rows to posterior, columns to the left (axis codes I P L).

Steps: draw a Patient, place kidneys and masses on the voxel grid, draw everything else on a grid no finer than
WORK_STEP_MM, interpolate that to the voxels a few slices at a time, insert the annotated tissue, blur, add noise.

HU levels were measured on real KiTS slices, mean +- sd over voxels: kidney 113-138 +- 50, tumor 52-72 +- 35, cyst
14-28 +- 10, liver 102-112, muscle 59 +- 18, fat -103 +- 18, artery 150, veins 150-180, bone 323 +- 194, air -1005.
Tumor volume follows KiTS21 (median 33 ml, p10 4.4, p90 433), capped at what the trunk can hold.
A score reached on these cases is not a KiTS result.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, SeedSequence

from kits_dist.labels import CYST, KIDNEY, TUMOR
from kits_dist.synthetic.abdomen import paint_background
from kits_dist.synthetic.kidney_tissue import depth_below_cortex, paint_tissue
from kits_dist.synthetic.organs import MUSCLE_HU, ORGANS, BackgroundGrid, DistanceMaps, Patient, background
from kits_dist.synthetic.scene import draw_scene
from kits_dist.synthetic.shapes import (
    Axes,
    Ellipsoid,
    SmoothField,
    Vec3,
    distance_mm,
    grid_axes,
    interpolate,
    is_empty,
    rotation,
    scanner_noise,
    soften,
    vec3,
)

PSF_SIGMA_MM = 0.5  # about 1.2 mm full width, a standard body kernel
SLICES_AT_ONCE = 8  # bounds memory: 8 x 512 x 512 float32 is 8 MiB per temporary
TEXTURES_MM = {"coarse": 24.0, "medium": 8.0, "fine": 4.5}  # of annotated tissue in a painted CT
MARGIN_MM = 14.0  # fat around the kidneys is decided within this distance of the annotation


class PhantomCase(NamedTuple):
    """image int16 (D, H, W) HU; label uint8 (D, H, W), 0 background 1 kidney 2 tumor 3 cyst; spacing_mm (d, h, w)."""

    image: np.ndarray
    label: np.ndarray
    spacing_mm: Vec3


class Anatomy(NamedTuple):
    """What is drawn into the CT: organs, and annotated tissue with precedence."""

    background: BackgroundGrid
    distances: DistanceMaps
    tissue: Callable[[np.ndarray, Axes], np.ndarray]  # (labels of a box, its axes) -> HU of annotated voxels


def make_case(
    seed: int, index: int, size: tuple[int, int, int], spacing_mm: tuple[float, float, float] | None = None
) -> PhantomCase:
    """Make case `index` of the data set `seed`: the same patient at any size and spacing, the same bits anywhere.

    size         (D, H, W) voxels, at least (8, 64, 64)
    spacing_mm   (d, h, w); None fits 380-420 mm in plane and 160-220 mm along the body to the size
    """
    drawn = streams(seed, index)
    if spacing_mm is None:
        fov_z, fov_xy = drawn["view"].uniform((160.0, 380.0), (220.0, 420.0))
        pixel = round(float(fov_xy) / min(size[1:]), 4)
        spacing_mm = (round(float(fov_z) / size[0], 4), pixel, pixel)
    patient = _draw_patient(drawn["patient"])
    shift = drawn["position"].uniform(-8.0, 8.0, 3) + np.array((0.0, patient.body_center_y + 5.0, 0.0))
    first = vec3(float(o - (n - 1) / 2 * s) for o, n, s in zip(shift, size, spacing_mm, strict=True))
    axes = grid_axes(size, spacing_mm, first)
    label = _draw_annotation(axes, patient, drawn["lesions"])
    distances = _distance_maps(label, axes)
    fields = {"medium": SmoothField(drawn["tissue"], 11.0), "fine": SmoothField(drawn["tissue"], 5.0)}
    anatomy = Anatomy(
        background(axes, distances, patient, drawn["organs"]),
        distances,
        lambda marked, box: _tissue(marked, box, distances, patient, fields),
    )
    return PhantomCase(_render(label, axes, anatomy, patient, PSF_SIGMA_MM, drawn["noise"]), label, spacing_mm)


def paint_case(
    label: np.ndarray,
    spacing_mm: tuple[float, float, float],
    seed: int,
    index: int,
    variant: int = 0,
    around: np.ndarray | None = None,
) -> PhantomCase:
    """Draw a CT for a real annotation: (D, H, W) uint8 labels, axes I P L, not empty, which are returned unchanged.

    Spine, trunk and organs are placed around the annotated kidneys; annotated voxels take precedence.

    variant   another number gives other tissue and organs
    around    (D, H, W) the annotation that determines where spine and trunk are, when it is not `label`: the kidneys
              before a lesion was added, so that `room_for_lesions` stays valid
    """
    drawn = streams(seed, index, variant)
    patient, scene = draw_scene(drawn["patient"])
    axes, patient = _fit_patient(label if around is None else around, spacing_mm, patient)
    distances = _distance_maps(label, axes)
    depths = depth_below_cortex(distances)
    fields = {name: SmoothField(drawn["tissue"], scale) for name, scale in TEXTURES_MM.items()}
    anatomy = Anatomy(
        paint_background(axes, distances, patient, scene, drawn["organs"]),
        distances,
        lambda marked, box: paint_tissue(marked, box, depths, patient, scene, fields),
    )
    return PhantomCase(_render(label, axes, anatomy, patient, scene.psf_mm, drawn["noise"]), label, spacing_mm)


def room_for_lesions(
    label: np.ndarray, spacing_mm: tuple[float, float, float], seed: int, index: int, variant: int = 0
) -> np.ndarray:
    """Return (D, H, W) bool: where a lesion may be in the CT that `paint_case` draws with the same arguments.

    That is annotated tissue, and what a growing mass displaces: fat, vessels, liver, spleen and bowel. It is not bone,
    muscle, the wall of the trunk, gas, or air. Subcutaneous fat is included; the wall separates it from the kidneys.
    """
    drawn = streams(seed, index, variant)
    patient, scene = draw_scene(drawn["patient"])
    axes, patient = _fit_patient(label, spacing_mm, patient)
    grid = paint_background(axes, _distance_maps(label, axes), patient, scene, drawn["organs"])
    soft = np.isin(grid.organ, [ORGANS.index(organ) for organ in ("fat", "vessel", "liver", "spleen", "bowel")])
    nearest = (_nearest(coarse, fine) for coarse, fine in zip(grid.axes, axes, strict=True))
    return soft[np.ix_(*nearest)] | (label > 0)


def tissue_hu(seed: int, index: int, variant: int = 0) -> dict[str, float]:
    """Return the mean HU of each tissue in the CT that `paint_case` draws with the same arguments."""
    patient, scene = draw_scene(streams(seed, index, variant)["patient"])
    drawn = patient._asdict() | scene._asdict()
    return {name: round(float(hu), 1) for name, hu in drawn.items() if name.endswith("_hu")}


def streams(seed: int, index: int, variant: int = 0) -> dict[str, Generator]:
    """Return independent generators by purpose, so that a change to one part does not affect the draws of others."""
    names = ("view", "position", "patient", "lesions", "organs", "tissue", "noise")
    names += ("deformation", "donor", "transplant")  # of variants
    # A trailing zero adds no entropy to a SeedSequence: variant 0 is the case itself.
    children = SeedSequence([seed, index, variant]).spawn(len(names))
    return {n: Generator(np.random.Philox(c)) for n, c in zip(names, children, strict=True)}


def _nearest(ascending: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the index in `ascending` (2 or more values) of the value nearest to each of `wanted`."""
    return np.searchsorted((ascending[1:] + ascending[:-1]) / 2, wanted)


def _draw_patient(rng: Generator) -> Patient:
    half = rng.uniform(61.0, 74.0)  # KiTS23 labels: kidney centroids 125-160 mm apart
    tilt = rng.normal(0.0, 8.0)
    # Early (cortex far above medulla) or late (nearly even) enhancement.
    kidney = float(np.clip(rng.normal(128.0, 28.0), 80.0, 200.0))
    contrast = rng.uniform(10.0, 80.0)
    tumor = kidney - 22.0 if rng.random() < 0.12 else rng.normal(64.0, 17.0)  # a few enhance almost like kidney
    return Patient(
        body_semi=(rng.uniform(98.0, 118.0), rng.uniform(150.0, 178.0)),
        body_center_y=rng.uniform(-24.0, -12.0),
        fat_mm=rng.uniform(10.0, 26.0),
        wall_mm=rng.uniform(9.0, 14.0),
        kidneys=((8.0 + tilt, rng.normal(0, 4), -half), (-8.0 - tilt, rng.normal(0, 4), half)),
        cortex_hu=kidney + 0.35 * contrast,
        medulla_hu=kidney - 0.65 * contrast,
        tumor_hu=float(np.clip(tumor, 30.0, kidney - 18.0)),
        tumor_rough_hu=rng.uniform(7.0, 18.0),
        necrosis=float(rng.uniform(0.35, 0.7)) if rng.random() < 0.45 else 0.0,
        core_hu=rng.uniform(15.0, 32.0),
        cyst_hu=rng.uniform(12.0, 26.0),
        artery_hu=rng.normal(160.0, 18.0),
        vein_hu=rng.normal(155.0, 18.0),
        liver_hu=rng.normal(106.0, 12.0),
        spleen_hu=rng.normal(110.0, 18.0),
        muscle_hu=rng.normal(MUSCLE_HU, 4.0),
        noise_factor=rng.uniform(0.88, 1.12),
        noise_lag1=rng.uniform(0.36, 0.54),
    )


def _draw_annotation(axes: Axes, patient: Patient, rng: Generator) -> np.ndarray:
    """Draw kidneys, then cysts, then tumors over them: uint8 of axes.shape."""
    label = np.zeros(axes.shape, np.uint8)
    bumps = SmoothField(rng, 22.0)
    shapes = []
    for side, center in zip((-1.0, 1.0), patient.kidneys, strict=True):
        semi = rng.uniform((50.0, 24.0, 27.0), (60.0, 30.0, 33.0))  # 136-249 ml before the sinus is taken out
        # Upper poles lean toward the spine and the back; the hilum faces the midline and slightly forward.
        turn = rotation(side * rng.uniform(15, 40), -side * rng.uniform(6, 18), rng.uniform(4, 16))
        shape = Ellipsoid(center, tuple(semi), turn)
        inward = turn.T @ (np.array((rng.uniform(-0.1, 0.1), 0.0, -0.85 * side)) * semi)
        sinus = Ellipsoid(tuple(np.asarray(center) + inward), tuple(semi * (0.42, 0.4, 0.75)), turn)
        box = shape.box(axes, 6.0)
        if not is_empty(box):
            own = axes.crop(box)
            field = bumps.at(own)
            inside = (shape.distance(own) + 1.6 * field > 0) & (sinus.distance(own) + 1.5 * field < 0)
            label[box][inside] = KIDNEY
        shapes.append(shape)

    for _ in range(int(rng.integers(1, 4)) if rng.random() < 0.5 else 0):  # KiTS21: cysts in 148 of 300 cases
        radius = float(np.exp(rng.normal(np.log(9.0), 0.45)).clip(4.5, 24.0))
        _draw_mass(label, CYST, axes, bumps, _place_mass(axes, shapes, patient, radius, rng), 0.04)

    count = int(rng.choice((1, 2, 3), p=(0.85, 0.12, 0.03)))
    for number in range(count):
        # Median 33 ml; sd of the log between what p10 (1.57) and p90 (2.0) of KiTS21 ask for. 330 ml still fits.
        volume = (
            float(np.exp(rng.normal(np.log(33.0), 1.7)).clip(2.8, 330.0)) if number == 0 else rng.uniform(2.8, 15.0)
        )
        radius = float((volume * 750.0 / np.pi) ** (1 / 3))
        _draw_mass(label, TUMOR, axes, bumps, _place_mass(axes, shapes, patient, radius, rng), rng.uniform(0.05, 0.1))
    return label


def _place_mass(axes: Axes, kidneys: list[Ellipsoid], patient: Patient, radius: float, rng: Generator) -> Ellipsoid:
    """Place a round mass on the outer surface of a kidney, embedded or exophytic, inside the trunk and the image."""
    side = int(rng.integers(2))
    kidney = kidneys[side]
    outward = 2.0 * side - 1.0
    angle = np.deg2rad(rng.uniform(-75.0, 60.0))  # in plane from lateral; negative is anterior
    unit = np.array((rng.uniform(-0.85, 0.85), 0.0, 0.0))
    unit[1:] = np.sqrt(1 - unit[0] ** 2) * np.array((np.sin(angle), outward * np.cos(angle)))
    if radius > 28.0:  # large masses find room only in front
        unit[1] = -abs(unit[1])
    surface = np.asarray(kidney.turn).T @ (unit * kidney.semi)
    world = np.asarray(kidney.turn).T @ unit
    center = np.asarray(kidney.center) + surface + world / np.linalg.norm(world) * radius * rng.uniform(-0.35, 0.45)
    room_y, room_x = (max(s - patient.fat_mm - patient.wall_mm - 1.15 * radius, 10.0) for s in patient.body_semi)
    y, x = center[1] - patient.body_center_y, center[2]
    excess = max(float(np.hypot(y / room_y, x / room_x)), 1.0)
    center[1:] = patient.body_center_y + y / excess, x / excess
    for dim, a in enumerate(axes):  # a short scan still shows most of it
        margin = min(radius, 0.3 * float(a[-1] - a[0]))
        center[dim] = np.clip(center[dim], a[0] + margin, a[-1] - margin)
    semi = radius * np.exp(rng.normal(0.0, 0.08, 3))
    return Ellipsoid(tuple(center), tuple(semi), rotation(*rng.uniform(0, 180, 3)))


def _draw_mass(label: np.ndarray, value: int, axes: Axes, bumps: SmoothField, mass: Ellipsoid, rough: float) -> None:
    """Write a lobulated mass into the label, on any grid at least the voxel nearest to its center."""
    box = mass.box(axes, 0.3 * max(mass.semi))
    if not is_empty(box):
        own = axes.crop(box)
        label[box][mass.distance(own) + rough * min(mass.semi) * bumps.at(own) > 0] = value
    nearest = tuple(int(np.abs(a - c).argmin()) for a, c in zip(axes, mass.center, strict=True))
    label[nearest] = value


def _fit_patient(label: np.ndarray, spacing_mm: Vec3, patient: Patient) -> tuple[Axes, Patient]:
    """Return axes with their origin between the annotated kidneys, and a trunk that holds everything annotated."""
    step = tuple(max(1, round(4.0 / s)) for s in spacing_mm)  # every 4 mm is enough to find the middle
    found = np.argwhere(label[:: step[0], :: step[1], :: step[2]])
    if len(found) == 0:  # a few voxels between the sampled ones
        found, step = np.argwhere(label), (1, 1, 1)
    points = found * step * np.asarray(spacing_mm)
    kidney = points[label[tuple((found * step).T)] == KIDNEY]
    kidney = points if len(kidney) == 0 else kidney
    low, high = float(kidney[:, 2].min()), float(kidney[:, 2].max())
    middle_x = (low + high) / 2
    left, right = kidney[kidney[:, 2] >= middle_x], kidney[kidney[:, 2] < middle_x]
    half = 68.0
    if high - low > 130.0 and len(left) and len(right):  # two kidneys; one alone is rarely wider than 100 mm
        middle_x = float(left[:, 2].mean() + right[:, 2].mean()) / 2
        half = float(left[:, 2].mean() - right[:, 2].mean()) / 2
        ends = tuple(right.mean(0)), tuple(left.mean(0))
    else:  # one kidney: the middle of the image tells its side, the usual distance gives the midline
        on_left = kidney[:, 2].mean() > label.shape[2] * spacing_mm[2] / 2
        middle_x = float(kidney[:, 2].mean()) - (half if on_left else -half)
        ends = (tuple(kidney.mean(0)),) * 2
    origin = np.array((kidney[:, 0].mean(), kidney[:, 1].mean(), middle_x))
    axes = grid_axes(label.shape, spacing_mm, vec3(-origin))

    inner = points - origin
    field_x = label.shape[2] * spacing_mm[2]
    semi = np.array((patient.body_semi[0], min(patient.body_semi[1], 0.5 * field_x)))
    layers = patient.fat_mm + patient.wall_mm + 3.0
    reach = np.hypot((inner[:, 1] - patient.body_center_y) / (semi[0] - layers), inner[:, 2] / (semi[1] - layers)).max()
    semi = (semi - layers) * max(float(reach), 1.0) + layers
    centers = tuple(tuple(np.asarray(e) - origin) for e in ends)
    return axes, patient._replace(body_semi=(float(semi[0]), float(semi[1])), kidneys=centers)


def _distance_maps(label: np.ndarray, axes: Axes) -> DistanceMaps:
    spans = [np.flatnonzero(label.any(axis=tuple(d for d in range(3) if d != dim))) for dim in range(3)]
    low_mm = vec3(float(a[span[0]]) - MARGIN_MM for a, span in zip(axes, spans, strict=True))
    high_mm = vec3(float(a[span[-1]]) + MARGIN_MM for a, span in zip(axes, spans, strict=True))
    near = axes.box(low_mm, high_mm)
    steps = [max(1, round(2.4 / float(a[1] - a[0]))) for a in axes]
    own = Axes(*(a[s][::k] for a, s, k in zip(axes, near, steps, strict=True)))
    small = label[near][:: steps[0], :: steps[1], :: steps[2]]
    spacing = [float(a[1] - a[0]) * k for a, k in zip(axes, steps, strict=True)]
    outside = distance_mm(small == 0, spacing) if small.any() else np.full(small.shape, MARGIN_MM)
    inside = distance_mm(np.pad(small > 0, 1, mode="edge"), spacing)[1:-1, 1:-1, 1:-1]
    tumor = distance_mm(small == TUMOR, spacing)
    share = tumor / max(float(tumor.max()), 8.0)  # a tumor less than 16 mm wide has hardly a core
    return DistanceMaps(
        own, (low_mm, high_mm), outside.astype(np.float32), inside.astype(np.float32), share.astype(np.float32), near
    )


def _tissue(
    label: np.ndarray, axes: Axes, distances: DistanceMaps, patient: Patient, fields: dict[str, SmoothField]
) -> np.ndarray:
    """Return HU float32 of annotated voxels; `label` and `axes` are part of the grid, other voxels are undefined."""
    medium, fine = fields["medium"].at(axes), fields["fine"].at(axes)
    depth = interpolate(distances.inside_mm, distances.axes, axes)
    # Cortex is 6-9 mm thick and reaches down between the pyramids, which the medium field stands for.
    medulla = np.clip((depth - 6.5) / 3.0, 0.0, 1.0) * np.clip(0.75 + 0.6 * medium, 0.0, 1.0)
    hu = np.float32(patient.cortex_hu) + np.float32(patient.medulla_hu - patient.cortex_hu) * medulla + 7.0 * fine
    tumor = np.float32(patient.tumor_hu) + np.float32(patient.tumor_rough_hu) * (0.8 * medium + 0.6 * fine)
    if patient.necrosis:
        share = interpolate(distances.tumor_share, distances.axes, axes) + 0.12 * medium
        core = np.clip((share - patient.necrosis) * 6.0, 0.0, 1.0)
        tumor += core * (np.float32(patient.core_hu) - tumor + 4.0 * fine)
    np.copyto(hu, tumor, where=label == TUMOR)
    np.copyto(hu, np.float32(patient.cyst_hu), where=label == CYST)
    return hu


def _render(
    label: np.ndarray, axes: Axes, anatomy: Anatomy, patient: Patient, psf_mm: float, noise: Generator
) -> np.ndarray:
    """Draw the CT of a label and its anatomy: int16 HU (D, H, W). `psf_mm` is the sd of the point spread in plane."""
    grid, distances, tissue_of = anatomy
    steps = [float(a[1] - a[0]) for a in axes]
    # Side weights of a blur [w, 1 - 2w, w] with the variance of the point spread; 1/24 is the width of the voxel.
    # Slices are acquired separately, so they blur less.
    row_blur, column_blur = (min(0.5 * (psf_mm / step) ** 2 + 1 / 24, 0.25) for step in steps[1:])
    blur = (0.04, row_blur, column_blur)
    sd_hu = noise_sd_hu(steps[0]) * patient.noise_factor

    image = np.empty(label.shape, np.int16)
    rows, columns = distances.box[1:]
    for start in range(0, len(axes.z), SLICES_AT_ONCE):
        stop = min(start + SLICES_AT_ONCE, len(axes.z))
        low, high = max(start - 1, 0), min(stop + 1, len(axes.z))  # one more slice on each side for the blur
        piece = axes.crop((slice(low, high), slice(None), slice(None)))
        hu = interpolate(grid.hu, grid.axes, piece)
        hu = hu.copy() if np.shares_memory(hu, grid.hu) else hu
        z_near = slice(max(low, distances.box[0].start), min(high, distances.box[0].stop))
        if z_near.start < z_near.stop:
            marked = label[z_near, rows, columns]
            tissue = tissue_of(marked, axes.crop((z_near, rows, columns)))
            np.copyto(hu[z_near.start - low : z_near.stop - low, rows, columns], tissue, where=marked > 0)
        hu = soften(hu, blur)[start - low : stop - low]
        hu += scanner_noise(noise, hu.shape, sd_hu, patient.noise_lag1)
        np.rint(np.clip(hu, -1024.0, 3071.0, out=hu), out=hu)  # 12-bit scanners
        image[start:stop] = hu
    return image


def noise_sd_hu(slice_mm: float) -> float:
    """Photon noise falls with the root of slice thickness; measured 18-28 at 0.5-1.6 mm and 10-15 at 3-5 mm."""
    return float(np.clip(25.0 / np.sqrt(slice_mm), 10.0, 27.0))
