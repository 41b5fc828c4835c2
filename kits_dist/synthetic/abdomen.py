"""Draw the abdomen around annotated kidneys, with what real slices hold and a phantom does without.

Muscles with streaks of fat, bowel with stool, gas and oral contrast, mesenteric vessels, strands in the fat, vertebrae
with processes, ribs, lungs, pelvis and table. Sizes, places and HU vary widely (`scene`), because the network must
learn the kidneys and not one abdomen.
"""

import numpy as np
from numpy.random import Generator

from kits_dist.synthetic.kidney_tissue import closed_in
from kits_dist.synthetic.organs import (
    AIR_HU,
    FAT_HU,
    ORGANS,
    WORK_STEP_MM,
    BackgroundGrid,
    DistanceMaps,
    Patient,
    cover,
)
from kits_dist.synthetic.scene import Scene
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

EVERYWHERE: Box3 = (slice(None), slice(None), slice(None))
GAS_HU, LUNG_HU = -900.0, -840.0
VERTEBRA_MM = 34.0  # from one to the next


class Canvas:
    """The working grid and its brushes: organs are wobbly ellipsoids and tubes in mm, inside the abdominal cavity."""

    def __init__(self, axes: Axes, rng: Generator) -> None:
        self.axes = axes
        self.grid = BackgroundGrid(axes, np.full(axes.shape, AIR_HU, np.float32), np.zeros(axes.shape, np.uint8))
        self.bumps = SmoothField(rng, 26.0).at(axes)
        self.medium = SmoothField(rng, 11.0).at(axes)
        self.fine = SmoothField(rng, 5.0).at(axes)
        self.cavity: np.ndarray = np.zeros(axes.shape, np.float32)  # distance to its wall, positive inside
        self.low_z, self.high_z = float(axes.z[0]) - 5.0, float(axes.z[-1]) + 5.0

    def cover(self, distance_mm: np.ndarray, hu: float | np.ndarray, organ: str, box: Box3 = EVERYWHERE) -> None:
        """Draw where `distance_mm` is positive."""
        cover(self.grid, box, distance_mm, hu, organ)

    def blob(
        self, center: Vec3, semi: Vec3, hu: float, organ: str, wobble_mm: float = 3.0, turn: np.ndarray | None = None
    ) -> None:
        """Draw an ellipsoid with an uneven surface, cut by the wall of the cavity."""
        shape = Ellipsoid(center, semi, np.eye(3) if turn is None else turn)
        box = shape.box(self.axes, 2.0 * wobble_mm + 2.0)
        if not is_empty(box):
            distance = shape.distance(self.axes.crop(box)) + wobble_mm * self.bumps[box]
            self.cover(np.minimum(distance, self.cavity[box] - 1.0), hu, organ, box)

    def tube(self, start: Vec3, end: Vec3, radius_mm: float, hu: float, organ: str) -> None:
        """Draw a tube with round ends."""
        ends = np.array((start, end))
        box = self.axes.box(vec3(ends.min(0) - radius_mm - 2.0), vec3(ends.max(0) + radius_mm + 2.0))
        if not is_empty(box):
            self.cover(capsule_distance(self.axes.crop(box), start, end, radius_mm), hu, organ, box)

    def texture(self, organ: str, change_hu: np.ndarray) -> None:
        """Add `change_hu`, of the shape of the grid, to an organ."""
        inside = self.grid.organ == ORGANS.index(organ)
        self.grid.hu[inside] += change_hu[inside]


def paint_background(
    axes: Axes, distances: DistanceMaps, patient: Patient, scene: Scene, rng: Generator
) -> BackgroundGrid:
    """Draw trunk and organs on a grid no finer than WORK_STEP_MM; what is annotated is left for `paint_tissue`."""
    canvas = Canvas(coarse_axes(axes, WORK_STEP_MM), rng)
    around = canvas.axes.box(*distances.bounds)
    outside_mm = interpolate(distances.outside_mm, distances.axes, canvas.axes.crop(around))

    def perirenal_fat(thickness_mm: float) -> None:
        wave = 1.0 + 0.7 * canvas.bumps[around]
        distance = np.minimum(thickness_mm * wave - outside_mm, canvas.cavity[around])
        canvas.cover(distance, FAT_HU, "fat", around)

    wall_mm = _trunk(canvas, patient, scene)
    half_x = patient.body_semi[1] - patient.fat_mm - patient.wall_mm
    front = patient.body_center_y - patient.body_semi[0] + patient.fat_mm + patient.wall_mm
    _upper_organs(canvas, patient, scene, front, half_x, rng)
    _bowel(canvas, scene, front, half_x, rng)
    _mesentery(canvas, patient, front, half_x, rng)
    perirenal_fat(scene.perirenal_fat_mm + 2.0)
    _muscles(canvas, patient, scene)
    perirenal_fat(0.4 * scene.perirenal_fat_mm)
    _strands(canvas, rng)
    _sinus(canvas, distances, patient, scene, rng)
    _vessels(canvas, patient, scene, rng)
    _bones(canvas, scene, wall_mm, rng)
    canvas.grid.hu[canvas.grid.hu > -400] += 7.0 * canvas.fine[canvas.grid.hu > -400]
    _table(canvas, patient, scene, rng)
    return canvas.grid


def _trunk(canvas: Canvas, patient: Patient, scene: Scene) -> np.ndarray:
    """Draw skin, fat, wall and the fat of the cavity. Returns the thickness of the wall in mm."""
    _, y, x = canvas.axes.mesh()
    yb = y - np.float32(patient.body_center_y)
    outline = superellipse_distance(yb[0], x[0], *patient.body_semi)[None] + 3.0 * canvas.bumps
    behind = np.clip(yb / patient.body_semi[0], 0.0, 1.0)
    aside = np.clip(np.abs(x) / patient.body_semi[1], 0.0, 1.0)
    fat_mm = patient.fat_mm * (1.0 - 0.5 * behind) * (1.0 - 0.35 * aside)
    wall_mm = patient.wall_mm * (0.7 + 0.8 * aside + 0.6 * behind**2)
    canvas.cavity = outline - fat_mm - wall_mm
    canvas.cover(outline, 10.0, "fat")  # skin
    canvas.cover(outline - 2.0, FAT_HU, "fat")
    canvas.cover(outline - fat_mm, patient.muscle_hu, "wall")
    # Fat lies between the layers of the wall.
    layer = 0.9 + 0.9 * canvas.medium - np.abs(canvas.cavity + 0.45 * wall_mm)
    canvas.cover(layer, patient.muscle_hu - 1.2 * scene.muscle_fat_hu, "wall")
    canvas.cover(canvas.cavity, FAT_HU, "fat")
    return wall_mm


def _upper_organs(canvas: Canvas, patient: Patient, scene: Scene, front: float, half_x: float, rng: Generator) -> None:
    """Draw lungs, liver, gall bladder, spleen, stomach and pancreas."""
    for side in (-1.0, 1.0):
        canvas.blob((-190, 10, side * 85), (rng.uniform(60, 130), 100, 80), LUNG_HU, "gas", 4.0)
    low = rng.uniform(-40.0, 45.0)  # lower end of the liver
    width = rng.uniform(50.0, 85.0)
    liver = rng.uniform(-40.0, -5.0), rng.uniform(70.0, 110.0)
    canvas.blob((low - 105, liver[0], 0.8 * width - half_x), (105, liver[1], width), patient.liver_hu, "liver", 6.0)
    canvas.blob(
        (low - 100, front + 40, rng.uniform(-40, 10)), (rng.uniform(50, 90), 42, 75), patient.liver_hu, "liver", 4.0
    )
    vessels = np.clip(0.22 - np.abs(canvas.medium), 0.0, 0.1) * 10.0
    canvas.texture("liver", np.float32(scene.liver_vessel_hu) * vessels * (canvas.medium > -0.1))
    bladder = rng.uniform(0.6, 1.4) * np.array((26, 15, 13))
    canvas.blob((low - 20, front + 40, rng.uniform(-85, -45)), vec3(bladder), rng.uniform(2, 25), "bowel", 2.0)

    large = rng.uniform(0.7, 1.35)
    spleen = (rng.uniform(-115, -40), rng.uniform(-20, 45), half_x - 24 * large)
    canvas.blob(
        spleen, (rng.uniform(45, 75) * large, 46 * large, 27 * large), patient.spleen_hu, "spleen", 5.0,
        rotation(rng.uniform(-20, 35), 0, rng.uniform(-20, 20)),
    )  # fmt: skip
    canvas.texture("spleen", np.float32(scene.spleen_band_hu) * np.sin(3.0 * canvas.medium))

    at = (rng.uniform(-110, -50), front + rng.uniform(30, 50), rng.uniform(20, 75))
    semi = rng.uniform((35, 20, 30), (60, 42, 60))
    turn = rotation(rng.uniform(-40, 40), 0, 0)
    canvas.blob(at, vec3(semi), scene.bowel_wall_hu, "bowel", 4.0, turn)
    _filling(canvas, at, semi - rng.uniform(3, 8), turn, scene, rng)

    pancreas = scene.bowel_wall_hu * rng.uniform(0.85, 1.2)
    height = rng.uniform(-45, 0)
    for step in range(6):  # from the duodenum to the spleen
        center = (height - 5 * step, -48 + 7 * abs(step - 2), -42 + 22 * step)
        canvas.blob(center, vec3(rng.uniform(8, 15, 3)), pancreas, "bowel", 4.0)


def _filling(canvas: Canvas, center: Vec3, semi: np.ndarray, turn: np.ndarray, scene: Scene, rng: Generator) -> None:
    """Draw what is in a piece of bowel: fluid, oral contrast, stool, food or gas; nothing where it is collapsed."""
    if min(semi) < 3.0:
        return
    kind = rng.random()
    if 0.3 < rng.random() < 0.6 and kind > scene.oral_contrast:
        return
    hu = rng.uniform(120.0, 500.0) if kind < scene.oral_contrast else rng.uniform(-5.0, 70.0)
    canvas.blob(center, vec3(semi), hu, "bowel", 2.0, turn)
    if kind > 0.8:  # stool: gas and solid mixed
        box = Ellipsoid(center, vec3(semi), turn).box(canvas.axes, 2.0)
        if not is_empty(box):
            mottled = np.minimum(Ellipsoid(center, vec3(semi), turn).distance(canvas.axes.crop(box)),
                                 2.0 * canvas.fine[box] - 1.0)  # fmt: skip
            canvas.cover(np.minimum(mottled, canvas.cavity[box] - 1.0), -350.0, "gas", box)
    elif kind > 0.5:  # gas rises to the front
        above = (center[0], center[1] - 0.45 * float(semi[1]), center[2])
        canvas.blob(above, vec3(semi * (0.85, 0.5, 0.85)), GAS_HU, "gas", 1.5, turn)


def _bowel(canvas: Canvas, scene: Scene, front: float, half_x: float, rng: Generator) -> None:
    """Draw duodenum, colon and small bowel."""
    for side in (-1.0, 1.0):  # ascending and descending colon, lateral to the kidneys
        x = side * (half_x - rng.uniform(18, 34))
        y = rng.uniform(-45, 15)
        width = rng.uniform(9, 26)
        for height in np.arange(-60.0 if side > 0 else -20.0, 170.0, 26.0):
            at = (height, y + rng.uniform(-8, 8), x + rng.uniform(-6, 6))
            semi = np.array((22, width, width)) * rng.uniform(0.75, 1.15, 3)
            canvas.blob(at, vec3(semi), scene.bowel_wall_hu * 0.85, "bowel", 3.0)
            _filling(canvas, at, semi - 2.5, np.eye(3), scene, rng)
    low_y = min(front + 45.0, -25.0)
    for _ in range(scene.bowel_loops):
        at = (rng.uniform(-50, 170), rng.uniform(front + 12, max(low_y, -12.0)), rng.uniform(-0.85, 0.85) * half_x)
        semi, turn = rng.uniform((8, 8, 14), (17, 17, 42)), rotation(*rng.uniform(-70, 70, 3))
        canvas.blob(at, vec3(semi), scene.bowel_wall_hu * rng.uniform(0.6, 1.1), "bowel", 4.0, turn)
        _filling(canvas, at, semi - rng.uniform(1.5, 4), turn, scene, rng)
    at = (rng.uniform(-5, 25), rng.uniform(-42, -25), rng.uniform(-48, -30))
    canvas.blob(at, (35, 13, 14), scene.bowel_wall_hu, "bowel", 3.0)  # duodenum
    _filling(canvas, at, np.array((32, 9, 10)), np.eye(3), scene, rng)
    canvas.texture("bowel", 9.0 * canvas.medium)


def _mesentery(canvas: Canvas, patient: Patient, front: float, half_x: float, rng: Generator) -> None:
    """Draw small vessels from the middle to the bowel."""
    for _ in range(70):
        start = np.array((rng.uniform(-60, 150), rng.uniform(front + 15, -15), rng.uniform(-0.7, 0.7) * half_x))
        end = start + rng.normal(0.0, (14.0, 14.0, 20.0))
        hu = patient.artery_hu if rng.random() < 0.4 else patient.vein_hu
        canvas.tube(vec3(start), vec3(end), rng.uniform(0.8, 2.8), hu, "vessel")


def _muscles(canvas: Canvas, patient: Patient, scene: Scene) -> None:
    """Draw psoas, quadratus lumborum and the erector muscles, with streaks of fat."""
    y0, depth, width = scene.spine
    low_z, high_z = canvas.low_z, canvas.high_z
    for side in (-1.0, 1.0):
        for height in range(int(max(low_z, -80.0)), int(high_z), 8):  # psoas: wider and further out towards the pelvis
            down = np.clip((height + 75) / 110, 0.05, 1)
            x = side * (width + 2 + 0.7 * scene.psoas_mm * down)
            radius = 3 + (scene.psoas_mm - 3) * down
            canvas.tube((height, y0 + 4, x), (height + 8, y0 + 4, x), radius, patient.muscle_hu, "muscle")
        back_y = y0 + depth + 12 + 0.8 * scene.back_mm
        for x in (0.9, 1.7, 2.4):  # side by side: wider than deep
            radius = scene.back_mm * (1.1 - 0.18 * x)
            at = (back_y - 3 * x, side * scene.back_mm * x)
            canvas.tube((low_z, *at), (high_z, *at), radius, patient.muscle_hu, "muscle")
        at = (y0 + depth + 4, side * (width + 1.6 * scene.psoas_mm + 12))
        canvas.tube((-5, *at), (high_z, *at), 0.55 * scene.psoas_mm, patient.muscle_hu, "muscle")
    streaks = np.clip(canvas.medium - 0.7 + 0.5 * canvas.fine, 0.0, 1.0)
    for organ in ("muscle", "wall"):
        canvas.texture(organ, np.float32(-scene.muscle_fat_hu) * streaks)


def _strands(canvas: Canvas, rng: Generator) -> None:
    """Draw septa in the fat of the cavity, where the medium field crosses a level: sheets a millimeter or two thick."""
    inside = (canvas.grid.organ == ORGANS.index("fat")) & (canvas.cavity > 0)
    for level in (-0.6, 0.5):
        sheet = np.clip(1.0 - np.abs(canvas.medium - level) / 0.14, 0.0, 1.0) * rng.uniform(0.2, 1.0)
        canvas.grid.hu[inside] += 170.0 * sheet[inside] * np.clip(0.4 + canvas.bumps[inside], 0.0, 1.0)


def _sinus(canvas: Canvas, distances: DistanceMaps, patient: Patient, scene: Scene, rng: Generator) -> None:
    """Draw pelvis and vessels into the sinus: what is not annotated but closed in by annotated kidney."""
    box = canvas.axes.box(*distances.bounds)
    closed = interpolate(closed_in(distances), distances.axes, canvas.axes.crop(box)) - np.float32(0.33)
    medium = canvas.medium[box]
    share = rng.uniform(-0.4, 0.7)  # how much of it is not fat
    inside = 12.0 * closed
    canvas.cover(np.minimum(inside, 3.0 * (medium + share)), patient.vein_hu, "vessel", box)
    canvas.cover(np.minimum(inside, 3.0 * (share - 0.4 - medium)), scene.urine_hu, "vessel", box)


def _vessels(canvas: Canvas, patient: Patient, scene: Scene, rng: Generator) -> None:
    """Draw aorta, cava and the vessels of kidneys and bowel."""
    y0, depth, _ = scene.spine
    radius, flat = rng.uniform(8, 13), rng.uniform(8, 13)
    aorta, cava = (y0 - depth - radius, rng.uniform(3, 16)), (y0 - depth - flat + 3, rng.uniform(-27, -16))
    low_z, high_z = canvas.low_z, canvas.high_z
    canvas.tube((low_z, *aorta), (high_z, *aorta), radius, patient.artery_hu, "vessel")
    canvas.tube((low_z, *cava), (high_z, *cava), flat, patient.vein_hu, "vessel")
    front = (aorta[0] - radius - 8, aorta[1] - 4)
    canvas.tube((-20, *front), (high_z, *front), rng.uniform(2.5, 4.5), patient.artery_hu, "vessel")
    canvas.tube((-20, front[0], front[1] - 14), (high_z, front[0], front[1] - 14), rng.uniform(4, 7),
                patient.vein_hu, "vessel")  # fmt: skip
    for side, (kz, ky, kx) in zip((-1.0, 1.0), patient.kidneys, strict=True):
        hilum = np.array((kz, ky - 4, kx - side * 22))
        canvas.tube((kz - 6, *aorta), vec3(hilum), rng.uniform(2, 3.5), patient.artery_hu, "vessel")
        start = (kz + 3, cava[0] - 6 * (side > 0), cava[1])
        canvas.tube(start, vec3(hilum + np.array((4, -4, 0))), rng.uniform(3, 6), patient.vein_hu, "vessel")
        ureter = (y0 - 12, side * 38)
        canvas.tube((kz + 8, ky, kx - side * 25), (kz + 45, *ureter), 2.5, scene.urine_hu, "vessel")
        canvas.tube((kz + 45, *ureter), (high_z, *ureter), 2.0, scene.urine_hu, "vessel")
        crus = (y0 - depth + 3, side * 13)  # of the diaphragm
        canvas.tube((low_z, *crus), (10, *crus), rng.uniform(3, 6), patient.muscle_hu, "muscle")


def _bones(canvas: Canvas, scene: Scene, wall_mm: np.ndarray, rng: Generator) -> None:
    """Draw vertebrae with their processes, ribs and pelvis."""
    y0, depth, width = scene.spine
    z, y, x = canvas.axes.mesh()
    first = rng.uniform(0, VERTEBRA_MM)
    hard = rng.uniform(280.0, 600.0)
    box = canvas.axes.box((-1e9, y0 - depth - 4, -width - 4), (1e9, y0 + depth + 4, width + 4))
    if not is_empty(box):
        zb, yb, xb = canvas.axes.crop(box).mesh()
        round_mm = (1.0 - np.hypot((yb - y0) / depth, xb / width)) * depth + 0.0 * zb
        along = np.abs((zb + first) % VERTEBRA_MM - VERTEBRA_MM / 2)  # 0 in the middle of a vertebra
        body = np.minimum(round_mm - 1.2 * (1.0 - along / VERTEBRA_MM), VERTEBRA_MM / 2 - 3.5 - along)
        canvas.cover(round_mm, rng.uniform(70.0, 110.0), "bone", box)  # disc
        canvas.cover(body, hard, "bone", box)
        canvas.cover(body - 2.0, scene.bone_hu + 30.0 * canvas.fine[box], "bone", box)

    canal = y0 + depth + 9
    canvas.tube((canvas.low_z, canal, 0), (canvas.high_z, canal, 0), 10.5, FAT_HU, "fat")
    canvas.tube((canvas.low_z, canal, 0), (canvas.high_z, canal, 0), 8.0, rng.uniform(15, 45), "muscle")
    middle = VERTEBRA_MM / 2 - first + VERTEBRA_MM * np.floor((canvas.low_z + first) / VERTEBRA_MM)
    for height in np.arange(middle, canvas.high_z + VERTEBRA_MM, VERTEBRA_MM):
        low = height + 16
        spike = rng.uniform(20, 32)
        canvas.tube((height, canal + 13, 0), (low, canal + spike, 0), 3.5, hard, "bone")
        for side in (-1.0, 1.0):
            joint = (low - 4, canal + 3, side * 17)
            canvas.tube((height - 4, y0 + depth - 2, side * 14), (height, canal, side * 15), 4.5, hard, "bone")
            canvas.tube((height, canal, side * 15), (low - 8, canal + 13, side * 2), 3.0, hard, "bone")
            canvas.tube(joint, (low + 8, canal + 4, side * 16), 6.0, hard, "bone")
            canvas.tube((height, canal - 4, side * 16), (height, canal, side * rng.uniform(28, 44)), 3.0, hard, "bone")

    # Ribs lie in the wall and drop towards the front, so one slice cuts several of them.
    rise, tilt = rng.uniform(0.6, 1.1), rng.uniform(0.3, 0.8)
    along = (z - rise * y - tilt * np.abs(x) + first) % 30.0 - 15.0
    rib = np.minimum(
        rng.uniform(2.5, 4.5) - np.abs(canvas.cavity + 0.4 * wall_mm), rng.uniform(4.0, 7.0) - np.abs(along)
    )
    allowed = (np.abs(x) > 60.0) & (z < rng.uniform(0.0, 45.0) + 0.4 * y) & (y > -75.0)
    canvas.cover(np.where(allowed, rib, -9.0), hard, "bone")
    canvas.cover(np.where(allowed, rib - 2.0, -9.0), scene.bone_hu, "bone")
    crest = rng.uniform(115.0, 160.0)
    for side in (-1.0, 1.0):
        turn = rotation(side * rng.uniform(20, 50), 0, 0)
        canvas.blob((crest + 70, y0 + 15, side * 95), (75, 60, 9), hard, "bone", 2.0, turn)


def _table(canvas: Canvas, patient: Patient, scene: Scene, rng: Generator) -> None:
    """Draw the table, two shells with foam between them."""
    _, y, x = canvas.axes.mesh()
    outside = canvas.grid.organ == ORGANS.index("air")
    curve = patient.body_center_y + patient.body_semi[0] + rng.uniform(6.0, 20.0) - np.float32(scene.table_bend) * x * x
    half = rng.uniform(180.0, 260.0)
    for depth, thick in ((0.0, rng.uniform(1.2, 3.0)), (rng.uniform(20.0, 60.0), rng.uniform(0.0, 2.5))):
        shell = (np.abs(y - curve - depth) < thick) & (np.abs(x) < half) & outside
        canvas.grid.hu[shell] = scene.table_hu
        canvas.grid.organ[shell] = ORGANS.index("table")
