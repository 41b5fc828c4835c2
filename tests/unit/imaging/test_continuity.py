"""Two scans in one file and duplicated slices are reported, single scans are not."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from kits_dist.imaging import continuity
from kits_dist.imaging.nifti import read_image
from kits_dist.synthetic.phantom import make_case

KITS = Path(os.environ.get("KITS_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
needs_kits = pytest.mark.skipif(
    not (KITS / "real_ct").is_dir(), reason=f"no real files in {KITS.name}/; set KITS_DATA to a folder of them"
)

SIZE = (24, 64, 64)


@pytest.fixture(scope="module")
def scans() -> list[np.ndarray]:
    return [make_case(0, index, SIZE).image for index in range(4)]


def check_order(image: np.ndarray) -> list[tuple[str, str]]:
    return list(continuity.check_slice_order(image))


def test_two_scans_in_one_file_are_reported_and_single_ones_are_not(scans):
    for scan in scans:
        assert check_order(scan) == []
    for one, other in pairwise(scans):
        ((kind, said),) = check_order(np.concatenate([one, other]))
        assert kind == "break" and "slices 0..23 and 24..47 do not continue each other" in said
    ((_, said),) = check_order(np.concatenate([scans[0], scans[1][:10], scans[2]]))
    assert "slices 0..23 and 24..33 and 34..57 do not" in said
    kinds = {kind: said for kind, said in check_order(np.concatenate([scans[0], scans[0]]))}
    assert set(kinds) == {"break", "repeat"} and "slices 24..47 repeat 0..23" in kinds["repeat"]
    ((_, said),) = check_order(np.concatenate([scans[0], scans[0][::-1]]))
    assert "slices 24..47 repeat 23..0" in said  # a mirror continues itself; only the repeat gives it away


def test_blank_slices_are_neither_a_break_nor_a_repeat(scans):
    scan, other = scans[:2]
    blank = np.full((6, 64, 64), -1024, scan.dtype)
    assert check_order(np.concatenate([blank, scan[:12], blank, scan[12:], blank])) == []
    ((_, said),) = check_order(np.concatenate([blank, scan, blank, other]))
    assert "slices 0..35 and 36..59 do not" in said
    assert check_order(np.zeros((9, 8, 8), np.int16)) == []
    faint = np.tile(np.arange(8, dtype=np.float32), (12, 8, 1))
    faint[6:] += 4  # the only step, but of 4 HU
    assert continuity.find_discontinuities(continuity.block_means(faint)) == []
    assert check_order(scan[:1]) == check_order(scan[:3]) == []


def test_means_of_blocks_are_means():
    image = np.arange(3 * 5 * 70, dtype=np.int16).reshape(3, 5, 70) % 200
    blocks = continuity.block_means(image)
    assert blocks.shape == (3, 5, 32)
    assert blocks[1, 2, 0] == image[1, 2, :2].mean() and blocks[2, 4, 31] == image[2, 4, 67:].mean()


@pytest.mark.kits
@needs_kits
def test_a_real_scan_is_continuous_and_a_restarted_one_is_not():
    torso = read_image(KITS / "real_ct" / "torso_3mm_noncontrast.nii.gz").array
    for step in (1, 2, 3):  # 3, 6 and 9 mm
        assert check_order(torso[::step]) == []
    for first in (30, 60, 90):
        again = np.concatenate([torso[:first], torso[20:]])
        kinds = {kind: said for kind, said in check_order(again)}
        assert f"slices 0..{first - 1} and {first}..{first + 91} do not" in kinds["break"]
    ((kind, said),) = check_order(np.concatenate([torso, torso[::-1]]))
    assert kind == "repeat" and "slices 112..223 repeat 111..0" in said
    ((kind, said),) = check_order(np.concatenate([torso, torso[:, :, ::-1]]))
    assert kind == "break" and "slices 0..111 and 112..223" in said
