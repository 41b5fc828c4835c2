"""Whole programs on cases with a known answer: axis orders and flips, one slice, odd sizes, windows, other pixel sizes.

The networks are fakes that threshold HU, so the prediction equals the truth inside the window of the run.
"""

import csv
import re
import shutil
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from kits_dist import evaluate, phantom, predict, prepare
from kits_dist.data import augment_params, augment_reference
from kits_dist.data.samples import select_rows
from kits_dist.data.store import SliceTable, Store
from kits_dist.evaluation.metrics import dice, volume_counts
from kits_dist.imaging.nifti import Volume, kits_geometry, read_image, read_labels, write_nifti
from kits_dist.inference.predictor import Predictor
from kits_dist.labels import REGIONS
from kits_dist.utils.errors import JobFailed
from tests.helpers import DATA
from tests.helpers.runs import Threshold, export_run
from tests.unit.imaging.test_nifti import ORDERS, nifti_bytes, oblique, save, turned

REAL_CT = DATA / "real_ct" / "torso_3mm_noncontrast.nii.gz"
ALL = ("kidney_and_mass", "mass", "tumor")


def rows_of(folder) -> list[dict[str, str]]:
    with open(folder / "cases.csv") as file:
        return list(csv.DictReader(file))


def scored(predictions, truth, output) -> list[dict[str, str]]:
    evaluate.main(evaluate.Args(predictions=str(predictions), truth=str(truth), output=str(output)))
    return rows_of(output)


# --- 48 axis orders and flips ---------------------------------------------------------------------------------------


def body(shape) -> np.ndarray:
    """(D, H, W) int16 HU: noise, brighter towards one corner, in a box of air that lies off center."""
    _, h, w = shape
    hu = np.random.default_rng(5).integers(-100, 120, shape) + np.linspace(0, 90, w).astype(int)
    hu[:, : h // 9] = hu[:, :, : w // 5] = -1000
    return hu.astype(np.int16)


def torso() -> Volume:
    """Return 21 slices of a real scan as a case."""
    whole = read_image(REAL_CT)
    array = whole.array[40:61]
    return Volume(array, kits_geometry(array.shape, whole.spacing_mm))


ODD, FLAT = ((d, 63, 71) for d in (5, 1))
ODD_GRID, FLAT_GRID = (kits_geometry(shape, (3.0, 0.7, 0.9)) for shape in (ODD, FLAT))
CASES = {
    "odd sizes": lambda: Volume(body(ODD), ODD_GRID),
    "one slice": lambda: Volume(body(FLAT), FLAT_GRID),
    "oblique": lambda: Volume(body(ODD), ODD_GRID._replace(affine=oblique(ODD_GRID.affine))),
    "torso": torso,
}
NO_CT = pytest.mark.skipif(not REAL_CT.is_file(), reason="no real_ct/ in the data folder; set KITS_DATA to one with it")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.kits, NO_CT] if kind == "torso" else []) for kind in CASES],
)
def test_every_axis_order_and_flip_gives_the_same_store_prediction_and_score(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("os.fsync", lambda file: None)  # 48 stores need not survive a power cut
    case = CASES[kind]()
    label = (case.array > 90).astype(np.uint8) + (case.array > 130)  # 1 kidney, 2 tumor
    names = [f"case_{i:05d}" for i in range(len(ORDERS))]
    first = None
    for name, order in zip(names, ORDERS, strict=True):
        folder = tmp_path / "truth" / name
        folder.mkdir(parents=True)
        for file, array in (("imaging.nii", case.array), ("segmentation.nii", label)):
            save(folder / file, *turned(array, case.geometry.affine, order))
        alone = tmp_path / "alone" / name
        alone.parent.mkdir(exist_ok=True)
        alone.symlink_to(folder)
        prepare.main(prepare.Args(source=str(alone.parent), store=str(tmp_path / "store"), workers=1))
        store = Store(tmp_path / "store")
        arrays = np.array(store.image(0)), np.array(store.label(0))
        about = store.cases[0].spacing_mm, store.cases[0].body, store.cases[0].voxels
        first = first or (arrays, about)
        assert all(np.array_equal(a, b) for a, b in zip(arrays, first[0], strict=True)) and about == first[1]
        assert np.array_equal(arrays[1], label)
        shutil.rmtree(tmp_path / "alone")
        shutil.rmtree(tmp_path / "store")

    run = export_run(tmp_path / "run", monkeypatch, Threshold(100.0), size_px="64x64", pixel_mm=1.1, context=1)
    predict.main(predict.Args(run=str(run), input=str(tmp_path / "truth"), output=str(tmp_path / "out")))
    expected = read_labels(tmp_path / "out" / f"{names[0]}.nii.gz").array
    assert 0 < expected.mean() < 1
    for name, order in zip(names, ORDERS, strict=True):
        ours, ct = (
            nib.load(p) for p in (tmp_path / "out" / f"{name}.nii.gz", tmp_path / "truth" / name / "imaging.nii")
        )
        assert np.array_equal(np.asarray(ours.dataobj), turned(expected, case.geometry.affine, order)[0])
        assert np.array_equal(ours.affine, ct.affine)

    for name in names:
        (tmp_path / "first" / name).mkdir(parents=True)
        label_of_first = tmp_path / "truth" / names[0] / "segmentation.nii"
        (tmp_path / "first" / name / "segmentation.nii").symlink_to(label_of_first)
    for truth in ("truth", "first"):  # stored in the prediction's own order, and always in the first one
        rows = scored(tmp_path / "out", tmp_path / truth, tmp_path / f"{truth}_scores")
        assert len(rows) == 48 and all(row | {"case": ""} == rows[0] | {"case": ""} for row in rows)
        assert 0 < float(rows[0]["kidney_and_mass_dice"]) < 1


def test_no_program_guesses_an_orientation(tmp_path, capsys):
    (folder := tmp_path / "raw" / "case_00000").mkdir(parents=True)
    label = np.ones((3, 5, 7), np.uint8)
    for name, array in (("imaging.nii", body(label.shape)), ("segmentation.nii", label)):
        (folder / name).write_bytes(nifti_bytes(array, qform_code=0, sform_code=0))
    words = "no orientation .* left and right would be a guess"
    with pytest.raises(JobFailed, match="1 of 1 cases"):
        prepare.main(prepare.Args(source=str(folder.parent), store=str(tmp_path / "store"), workers=1))
    assert re.search(words, capsys.readouterr().out)
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "case_00000.nii").write_bytes(nifti_bytes(label))
    (tmp_path / "out").mkdir()
    shutil.copy(folder / "segmentation.nii", tmp_path / "out" / "case_00000.nii")
    with pytest.raises(JobFailed, match=words):
        scored(tmp_path / "out", tmp_path / "truth", tmp_path / "scores")


# --- windows and pixel sizes ----------------------------------------------------------------------------------------

HU_OF = np.array([10, 60, 180, 120], np.int16)  # of label 0, 1 kidney, 2 tumor, 3 cyst: nested thresholds find them
BETWEEN = (35.0, 90.0, 150.0)  # kidney_and_mass, mass, tumor
WIDE = (6, 45, 79)  # KiTS has 512x796


def painted(label: np.ndarray, air: tuple[slice, slice]) -> np.ndarray:
    """(D, H, W) labels -> HU that encode them, faintly noisy; -1000 outside the rows and columns `air` leaves out."""
    hu = HU_OF[label] + np.random.default_rng(3).integers(-4, 5, label.shape).astype(np.int16)
    inside = np.zeros(label.shape[1:], bool)
    inside[air] = True
    return np.where(inside, hu, np.int16(-1000))


def wide_label() -> np.ndarray:
    """All three labels, to all four sides of the body, on slices 1 to 4."""
    label = np.zeros(WIDE, np.uint8)
    label[1:5, 4:40, 20:30] = 1
    label[1:5, 12:24, 6:74] = 1
    label[2:4, 14:20, 60:74] = 2
    label[2:4, 30:39, 22:28] = 3
    return label


BODY = (slice(4, 40), slice(6, 74))  # its centre is row 22, column 40


def write_cases(root, label, hu, spacing):
    """Two cases, one of which will be the test set: the second is the first upside down, with other noise."""
    geometry = kits_geometry(label.shape, spacing)
    for i, way in enumerate((1, -1)):
        write_nifti(root / f"case_{i:05d}" / "segmentation.nii.gz", label[::way], geometry)
        write_nifti(root / f"case_{i:05d}" / "imaging.nii.gz", hu[::way] + np.int16(i), geometry)


def evaluated(tmp_path, monkeypatch, model, **data):
    """prepare and evaluate run= on tmp_path/raw -> (the test case's row, its prediction, its label)."""
    prepare.main(prepare.Args(source=str(tmp_path / "raw"), store=str(tmp_path / "store"), workers=1))
    run = export_run(tmp_path / "run", monkeypatch, model, regions=ALL, **data)
    evaluate.main(evaluate.Args(run=str(run), store=str(tmp_path / "store")))
    (row,) = rows_of(run / "evaluation" / "test")
    found = read_labels(run / "evaluation" / "test" / "predictions" / f"{row['case']}.nii.gz")
    store = Store(tmp_path / "store")
    return row, found.array, np.array(store.label(store.row[row["case"]]))


@pytest.mark.parametrize(
    ("size", "window"),
    [
        ("32x64", (slice(6, 38), slice(8, 72))),  # 22 - 16, 40 - 32
        ("32x96", (slice(6, 38), slice(0, 79))),
        ("64x32", (slice(0, 45), slice(24, 56))),  # 40 - 16
        ("64x96", (slice(0, 45), slice(0, 79))),
    ],
)
def test_on_native_pixels_the_window_comes_back_exactly_and_the_rest_counts_as_missed(
    tmp_path, monkeypatch, size, window
):
    label = wide_label()
    write_cases(tmp_path / "raw", label, painted(label, BODY), (3.0, 0.8, 0.7))
    row, found, truth = evaluated(tmp_path, monkeypatch, Threshold(*BETWEEN), size_px=size)
    seen = np.zeros(WIDE, bool)
    seen[(slice(None), *window)] = True
    assert np.array_equal(found, np.where(seen, truth, 0))
    for region, labels in (("kidney_and_mass", (1, 2, 3)), ("mass", (2, 3)), ("tumor", (2,)), ("cyst", (3,))):
        wanted = np.isin(truth, labels)
        assert int(row[f"{region}_false_negative"]) == (wanted & ~seen).sum()
        assert int(row[f"{region}_true_positive"]) == (wanted & seen).sum()
        assert row[f"{region}_false_positive"] == "0"
    assert (row["kidney_and_mass_false_negative"] == "0") == (size == "64x96")


def discs(shape, spacing) -> np.ndarray:
    """A tumor (9 mm), in a cyst (14 mm), in a kidney (20 mm): discs, elsewhere on each slice, none on the first."""
    label = np.zeros(shape, np.uint8)
    y, x = ((np.arange(n) + 0.5) * mm for n, mm in zip(shape[1:], spacing[1:], strict=True))
    for one, (row_mm, column_mm) in zip(
        label[1:], np.random.default_rng(7).uniform(38, 60, (len(label), 2)), strict=False
    ):
        away = np.hypot(y[:, None] - row_mm, x[None] - column_mm)
        for value, radius in ((1, 20), (3, 14), (2, 9)):
            one[away < radius] = value
    return label


def centroids_mm(mask: np.ndarray, spacing) -> np.ndarray:
    """(D, H, W) bool -> (D, 2) (row, column) in mm, NaN where a slice has none."""
    return (
        np.array([(np.argwhere(one) + 0.5).mean(axis=0) if one.any() else (np.nan,) * 2 for one in mask]) * spacing[1:]
    )


@pytest.mark.parametrize(("pixel_mm", "size"), [(0.5, "192x224"), (1.0, "96x128"), (1.6, "96x64")])
@pytest.mark.parametrize("spacing", [(3.0, 0.8, 0.8), (3.0, 0.7, 0.93)])
def test_other_pixels_come_back_to_the_right_place(tmp_path, monkeypatch, pixel_mm, size, spacing):
    label = discs((33, 131, 127), spacing)
    write_cases(tmp_path / "raw", label, painted(label, (slice(3, 128), slice(5, 120))), spacing)
    model = Threshold(*BETWEEN)
    row, found, truth = evaluated(tmp_path, monkeypatch, model, size_px=size, pixel_mm=pixel_mm)
    assert np.array_equal(found.any(axis=(1, 2)), truth.any(axis=(1, 2)))  # no slice more, none less
    for name, labels, radius in (("kidney_and_mass", (1, 2, 3), 20), ("mass", (2, 3), 14), ("tumor", (2,), 9)):
        # an edge off by e everywhere costs e / radius of the Dice, and each rounding to pixels a quarter of one
        edge_mm = (pixel_mm + max(spacing[1:])) / 4
        assert float(row[f"{name}_dice"]) > 1 - edge_mm / radius
        # one slice's sampling moves a centroid by up to 0.35 mm either way, half a pixel too many by 0.25 or more
        moved = centroids_mm(np.isin(found, labels), spacing) - centroids_mm(np.isin(truth, labels), spacing)
        assert np.abs(np.nanmean(moved, axis=0)).max() < 0.1


def test_outside_the_window_is_background_at_other_pixel_sizes_too(tmp_path, monkeypatch):
    shape, spacing = (3, 131, 127), (3.0, 0.8, 0.8)
    label = np.zeros(shape, np.uint8)
    label[1:, 10:120, 10:120] = 1
    write_cases(tmp_path / "raw", label, painted(label, (slice(5, 125), slice(5, 125))), spacing)
    row, found, truth = evaluated(tmp_path, monkeypatch, Threshold(*BETWEEN), size_px="32x64", pixel_mm=1.0)
    # 32 mm about row 65 are rows 45 to 85; 64 mm about column 65 are columns 25 to 105
    expected = np.zeros(shape, np.uint8)
    expected[:, 45:85, 25:105] = truth[:, 45:85, 25:105]
    assert np.array_equal(found, expected)
    assert int(row["kidney_and_mass_false_negative"]) == 2 * (110 * 110 - 40 * 80)


# --- slices=kidney --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        (0, [2, 3, 7, 13]),
        (1, [1, 2, 3, 4, 6, 7, 8, 12, 13]),  # 14 would be beyond the end
        (2, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13]),
        (99, [*range(10), 10, 11, 12, 13]),
    ],
)
def test_kidney_slices_by_hand(margin, expected):
    """Cases of 10, 4 and 3 slices; foreground on slices 2, 3 and 7 of the first, 3 of the second, none of the third."""
    counts = np.zeros((3, 17), np.int32)
    counts[0, 2] = counts[1, 3] = counts[2, 7] = counts[0, 13] = 1  # kidney, tumor or cyst alone
    index = np.array([*range(10), *range(4), *range(3)], np.int32)
    table = SliceTable(np.zeros(17, np.int8), np.repeat(np.arange(3, dtype=np.int32), (10, 4, 3)), index, *counts)
    store = SimpleNamespace(slices=table, row={"a": 0, "b": 1, "c": 2}, planes=["axial"])
    assert select_rows(store, ["a", "b", "c"], "kidney", margin, ["axial"]).tolist() == expected
    assert select_rows(store, ["b"], "kidney", margin, ["axial"]).tolist() == [n for n in expected if n >= 10]
    assert select_rows(store, ["c"], "kidney", margin, ["axial"]).tolist() == []
    assert select_rows(store, ["c", "a"], "all", margin, ["axial"]).tolist() == [*range(10), 14, 15, 16]


def test_evaluation_covers_every_slice_whatever_was_trained_on(tmp_path, monkeypatch):
    label = wide_label()
    hu = painted(label, BODY)
    hu[0, 10:20, 30:40] = hu[5, 10:12, 30:40] = 60  # like kidney, above and below all foreground
    write_cases(tmp_path / "raw", label, hu, (3.0, 0.8, 0.8))
    row, found, _ = evaluated(tmp_path, monkeypatch, Threshold(*BETWEEN), size_px="64x96", slices="kidney", margin=0)
    assert sorted([(found[0] > 0).sum(), (found[5] > 0).sum()]) == [20, 100]
    assert row["kidney_and_mass_false_positive"] == "120" and row["kidney_and_mass_false_negative"] == "0"


# --- a real annotation, 512x796 -------------------------------------------------------------------------------------


class Seer(nn.Module):
    """A network that answers with the truth inside its window, slice by slice, whatever the CT."""

    def __init__(self, label, matrix, size_px):
        super().__init__()
        self.label, self.matrix, self.size_px, self.next = label, matrix, size_px, 0

    def forward(self, image):
        slices = self.label[self.next : self.next + len(image)]
        self.next += len(image)
        seen = np.stack([augment_reference.warp_nearest(one, self.matrix, self.size_px) for one in slices])
        nested = np.stack([seen > 0, seen >= 2, seen == 2], axis=1)
        return torch.from_numpy(nested).float() * 20 - 10


@pytest.fixture(scope="module")
def painted_00160(tmp_path_factory):
    """A folder with a CT painted onto the annotation of case_00160."""
    root = tmp_path_factory.mktemp("painted")
    (root / "labels").mkdir()
    (root / "labels" / "case_00160").symlink_to(DATA / "kits23_labels" / "case_00160")
    phantom.main(phantom.Args(output=str(root / "raw"), labels=str(root / "labels"), workers=1))
    return root / "raw"


@pytest.mark.slow
@pytest.mark.kits
@pytest.mark.skipif(
    not (DATA / "kits23_labels" / "case_00160").is_dir(),
    reason="no kits23_labels/case_00160 in the data folder; set KITS_DATA to one with it",
)
@pytest.mark.parametrize(
    "data", [{"size_px": "352x448"}, {"size_px": "128x192", "pixel_mm": 1.0}], ids=["native", "1 mm"]
)
def test_a_ct_painted_onto_a_real_512x796_annotation(painted_00160, tmp_path, monkeypatch, data):
    ct = read_image(painted_00160 / "case_00160" / "imaging.nii.gz")
    truth = read_labels(painted_00160 / "case_00160" / "aggregated_MAJ_seg.nii.gz")
    assert truth.array.shape[1:] == (512, 796)
    run = export_run(tmp_path / "run", monkeypatch, Threshold(100.0), regions=ALL, **data)
    seer = Predictor(run, batch_size=8)
    grid = augment_params.OutputGrid(seer.config.data.size_px, seer.config.data.pixel_mm)
    matrix = augment_params.centered(
        grid, [seer.case_of(seer.window.to_levels(ct.array), ct).slice_geometry("axial")]
    ).matrix[0]
    seer.members[0].model = Seer(truth.array, matrix, grid.size_px)
    found = seer.predict(ct)
    write_nifti(tmp_path / "out" / "case_00160.nii.gz", found, ct.geometry)
    (row,) = scored(tmp_path / "out", painted_00160, tmp_path / "scores")

    # the window in native pixels, from the matrix alone: native (x, y) -> where the network has it
    y, x = (np.arange(n) + 0.5 for n in truth.array.shape[1:])
    rows, columns = (y - matrix[1, 2]) / matrix[1, 1], (x - matrix[0, 2]) / matrix[0, 0]
    seen = ((rows >= 0) & (rows <= grid.size_px[0]))[:, None] & ((columns >= 0) & (columns <= grid.size_px[1]))
    outside = int((truth.array[:, ~seen] > 0).sum())
    assert outside > 1000 and not found[:, ~seen].any()  # this patient's kidneys reach beyond the window
    if grid.pixel_mm is None:
        assert np.array_equal(found[:, seen], truth.array[:, seen])
        assert int(row["kidney_and_mass_false_negative"]) == outside and row["kidney_and_mass_false_positive"] == "0"
    else:
        missed = int(row["kidney_and_mass_false_negative"])
        within = volume_counts(found[:, None, seen], truth.array[:, None, seen], REGIONS)
        assert missed == within["kidney_and_mass"][2] + outside
        assert dice(within["kidney_and_mass"]) > 0.97
