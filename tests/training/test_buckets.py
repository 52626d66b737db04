from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_lycoris.errors import DatasetError
from lib_lycoris.training.buckets import PLACES, Frame, Sizes
from lib_lycoris.training.config import DataSettings

sides = st.integers(16, 6000)


def slow_sizes(resolution, step, low, high):
    """Every multiple of the step within the sides and the area to which nothing can be added in height, or lying."""
    fit = {(w, h) for w in range(step, high + 1, step) for h in range(step, high + 1, step) if min(w, h) >= low and w * h <= resolution**2}
    tall = {(w, max(h for v, h in fit if v == w)) for w, _ in fit}
    return tall | {(h, w) for w, h in tall} | {max((w, h) for w, h in fit if w == h)}


@pytest.mark.parametrize(("resolution", "step"), [(512, 64), (768, 64), (512, 8), (64, 64), (320, 32), (504, 64)])
def test_sizes_are_all_tallest_ones_within_the_area_and_the_sides(resolution, step):
    sizes = Sizes.from_settings(DataSettings(resolution=resolution, bucket_step=step))
    assert set(sizes.all) == slow_sizes(resolution, step, max(64, resolution // 2), resolution * 2)
    assert (resolution // step * step,) * 2 in sizes.all


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.booleans())
def test_a_picture_is_covered_its_bucket_is_within_the_area_and_none_fits_its_shape_better(width, height, upscale):
    sizes = Sizes(512, 512, upscale=upscale)
    frame = sizes.frame(width, height)
    assert frame.size[0] * frame.size[1] <= 512 * 512 and all(side % 64 == 0 for side in frame.size)
    left, top, right, bottom = frame.box()
    assert -1e-6 <= left <= right <= width + 1e-6 and -1e-6 <= top <= bottom <= height + 1e-6
    assert (right - left) * frame.scale == pytest.approx(frame.size[0]) and (bottom - top) * frame.scale == pytest.approx(frame.size[1])
    assert frame.cropped + 1e-9 >= 0 and frame.cropped == pytest.approx(1 - (right - left) * (bottom - top) / (width * height), abs=1e-6)
    if upscale:
        def error(size):
            return abs(math.log(size[0] / size[1]) - math.log(width / height))
        assert all(error(frame.size) <= error(size) + 1e-12 for size in sizes.all)
    elif min(width, height) >= 64:
        assert frame.scale <= 1 + 1e-6


def test_small_pictures_keep_their_size_where_none_is_scaled_up():
    assert Sizes(512, 512, upscale=False).frame(300, 200) == Frame((300, 200), (256, 192))
    assert Sizes(512, 512).frame(300, 200).scale > 1


def test_random_places_go_from_end_to_end_and_a_mirrored_crop_is_counted_from_the_other_side():
    frame = Frame((1000, 500), (512, 512))
    assert frame.spare == (512, 0) and frame.places == PLACES and frame.cropped == pytest.approx(0.5)
    assert frame.box(0) == (0, 0, 500, 500) and frame.box(PLACES - 1) == (500, 0, 1000, 500) and frame.box() == (250, 0, 750, 500)
    assert frame.framing(0).crop == (0, 0) and frame.framing(0, mirrored=True).crop == (0, 512) and frame.framing().original == (500, 1000)
    assert Frame((512, 512), (512, 512)).places == 1


def test_without_buckets_all_pictures_have_one_size():
    sizes = Sizes.from_settings(DataSettings(resolution=128, buckets=False))
    assert {sizes.frame(*size).size for size in [(10, 90), (128, 128), (3000, 20)]} == {(128, 128)}


@pytest.mark.parametrize("values", [{"step": 12}, {"buckets": False, "width": 100, "height": 64}, {"low": 600, "high": 1000}])
def test_sizes_that_nothing_fits_are_told(values):
    with pytest.raises(DatasetError, match="pixels"):
        Sizes(**{"width": 512, "height": 512, **values})
