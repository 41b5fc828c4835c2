"""The share of the kidneys that the window holds: boxes drawn by hand."""

import pytest

from kits_dist.config import DataConfig
from kits_dist.data.coverage import coverage_line, kidney_share_in_window, refuse_narrow_window
from kits_dist.data.intensity import Box
from kits_dist.data.kidneys import Kidney
from kits_dist.utils.errors import InputError

RIGHT = Kidney(((2, 6), (30, 50), (10, 30)))  # 4 slices of 20x20 pixels
LEFT = Kidney(((2, 4), (30, 50), (70, 90)))  # 2 slices


@pytest.fixture
def case(store):
    """Return a slice of 100x100 pixels of 2 mm, whose body fills it."""
    body = dict.fromkeys(("axial",), Box(0, 100, 0, 100))
    return store.cases[0]._replace(shape=(10, 100, 100), spacing_mm=(5.0, 2.0, 2.0), body=body, kidneys=(RIGHT, LEFT))


def share(case, size_px, **more):
    return kidney_share_in_window([case], DataConfig(store="-", size_px=size_px, **more))


def test_of_a_window_on_the_slices_own_pixels(case):
    assert share(case, (128, 128)) == 1
    assert share(case, (32, 32)) == 0  # columns 34..66, between the kidneys
    assert share(case, (96, 64)) == pytest.approx((4 * 20 * 12 + 2 * 20 * 12) / (4 * 400 + 2 * 400))  # columns 18..82
    assert share(case, (32, 96)) == pytest.approx(16 / 20)  # rows 34..66


def test_larger_pixels_hold_more(case):
    assert share(case, (32, 32), pixel_mm=4.0) == pytest.approx(share(case, (64, 64)))
    assert share(case, (32, 32), pixel_mm=6.25) == 1


def test_a_window_that_follows_the_kidneys_misses_nothing(case):
    assert share(case, (32, 32), box="kidney") is None
    assert kidney_share_in_window([case._replace(kidneys=())], DataConfig(store="-", size_px=(32, 32))) is None


def test_a_window_without_kidneys_is_refused_and_a_narrow_one_is_said(store, case, monkeypatch):
    monkeypatch.setattr(store, "cases", [case._replace(case_id=one.case_id) for one in store.cases])
    told = r"data.size_px=32x32: the window holds 0% .* data.pixel_mm=6.3, or a larger data.size_px"
    with pytest.raises(InputError, match=told):
        refuse_narrow_window(store, DataConfig(store="-", size_px=(32, 32), fold=1))
    narrow, wide = (DataConfig(store="-", size_px=size, fold=1) for size in ((96, 64), (96, 96)))
    refuse_narrow_window(store, narrow)
    assert coverage_line(store, narrow).startswith("warning  the window of 96x64 holds 60.0% of the kidneys")
    assert coverage_line(store, wide) == "the window of 96x96 holds 100.0% of the kidneys in validation cases"
    assert coverage_line(store, DataConfig(store="-", size_px=(32, 32), box="kidney")) == ""
