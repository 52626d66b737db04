"""The preprocessors: what each makes, next to a slow second way or to what must hold; and what they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="OpenCV is not here; the WebUI and the studio have it")

from lib_lycoris.errors import ConfigError  # noqa: E402
from lib_lycoris.preprocess.sizes import RESIZE_MODES, fit, resize, shrink_or_grow  # noqa: E402
from lib_lycoris.preprocess.table import KEYPOINTS, TABLE, control_map, find_preprocessor  # noqa: E402

NAMES = [each.name for each in TABLE]
PERSON = [value for number in range(18) for value in (40 + 10 * (number % 4), 20 + 8 * number, 0.9)]
POSE = json.dumps({"people": [{"pose_keypoints_2d": PERSON}], "canvas_width": 128, "canvas_height": 192})


def a_photo(height=96, width=128, seed=0):
    """Smooth areas, an edge and a little noise."""
    y, x = np.mgrid[:height, :width]
    base = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], axis=-1)
    base[height // 4 : height // 2, width // 4 : width // 2] = (250, 20, 20)
    return (base + np.random.default_rng(seed).normal(0, 2, base.shape)).clip(0, 255).astype(np.uint8)


def run(name, picture=None, resolution=None, size=(128, 96), **values):
    each = find_preprocessor(name)
    if each.source == KEYPOINTS:
        values.setdefault("keypoints", POSE)
    return each.run(picture, resolution, each.values(**values), size)


def gray(picture):
    """ITU-R BT.601, in floating point."""
    return picture.astype(np.float64) @ (0.299, 0.587, 0.114)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("resolution", [None, 64, 100])
def test_every_one_gives_a_map_of_its_size_and_leaves_the_picture_alone(name, resolution):
    picture = a_photo()
    kept = picture.copy()
    found = run(name, picture, resolution)
    assert found.dtype == np.uint8 and found.shape[2] == 3 and (picture == kept).all()
    if resolution:
        assert min(found.shape[:2]) == resolution
    assert (run(name, picture, resolution) == found).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("size", [(64, 64), (72, 136), (200, 40)])
def test_a_control_map_has_the_size_of_the_picture_that_is_made(name, mode, size):
    each = find_preprocessor(name)
    values = each.make_values(keypoints=POSE)
    assert control_map(each, values, size, a_photo(), None, mode).shape == (size[1], size[0], 3)
    assert control_map(each, values, size, a_photo(), 64, mode).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("name", ["threshold", "threshold_otsu", "canny", "xdog"])
def test_drawings_in_black_and_white_stay_so_at_every_size(name):
    each = find_preprocessor(name)
    for size in ((64, 64), (300, 220)):
        assert set(np.unique(control_map(each, each.values(**({"low": 20.0, "high": 50.0} if name == "canny" else {})), size, a_photo(), 80))) == {0, 255}


def test_none_and_invert():
    picture = a_photo()
    assert (run("none", picture) == picture).all()
    assert (run("invert", picture).astype(int) + picture == 255).all()


def test_threshold_is_by_brightness():
    picture, level = a_photo(), 120.0
    light, found = gray(picture), run("threshold", picture, level=level)
    sure = abs(light - level) > 1
    assert ((found[..., 0] == 255) == (light >= level))[sure].all()


def test_otsus_level_parts_the_brightness_as_the_search_over_all_levels_does():
    picture = np.where(np.random.default_rng(1).random((40, 50, 1)) < 0.3, 60, 170).repeat(3, -1)
    picture = (picture + np.random.default_rng(2).normal(0, 20, picture.shape[:2])[..., None]).clip(0, 255).astype(np.uint8)
    light = picture[..., 0]

    def between(level):
        dark, bright = light[light <= level], light[light > level]
        return len(dark) * len(bright) * (dark.mean() - bright.mean()) ** 2 if len(dark) and len(bright) else 0

    best = max(range(256), key=between)
    assert ((run("threshold_otsu", picture)[..., 0] == 255) == (light > best)).all()


def test_canny_finds_the_border_of_a_square_and_nothing_else():
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[16:48, 16:48] = 255
    ys, xs = np.nonzero(run("canny", picture)[..., 0])
    assert len(ys) > 100
    assert all(min(abs(y - 15.5), abs(y - 47.5)) <= 1 or min(abs(x - 15.5), abs(x - 47.5)) <= 1 for y, x in zip(ys, xs, strict=True))


def test_lines_are_white_where_a_drawing_is_dark():
    picture = np.full((96, 96, 3), 255, np.uint8)
    picture[:, 46:50] = 0
    for name in ("lineart", "xdog"):
        found = run(name, picture)[..., 0]
        assert found[:, 47:49].min() > 200 and found[:, :30].max() < 60 and found[:, 66:].max() < 60
    edges = run("softedge", picture)[..., 0]
    assert edges[:, 44:46].max() > 200 and edges[:, :30].max() < 60


def test_a_flat_picture_has_no_lines():
    flat = np.full((64, 64, 3), 190, np.uint8)
    for name in ("canny", "lineart", "softedge"):
        assert run(name, flat).max() == 0


def test_softedge_is_the_gradient_by_differences():
    """Scharr's kernel on a ramp is the slope in every direction."""
    for angle in (0.0, 0.5, 1.2):
        y, x = np.mgrid[:80, :80]
        ramp = 120 + np.cos(angle) * (x - 40) + np.sin(angle) * (y - 40)
        found = run("softedge", ramp.clip(0, 255).round().astype(np.uint8)[..., None].repeat(3, -1), sigma=2.0)[20:60, 20:60, 0] / 255
        assert abs(found.mean() - 1) < 0.25 and found.std() < 0.15


def test_the_color_grid_has_one_colour_a_cell_near_the_cells_mean():
    picture = cv2.GaussianBlur(a_photo(192, 256), (0, 0), 20)
    found = run("color_grid", picture)
    for top in range(0, 192, 64):
        for left in range(0, 256, 64):
            cell = found[top : top + 64, left : left + 64].reshape(-1, 3)
            assert (cell == cell[0]).all()
            assert np.abs(cell[0] - picture[top : top + 64, left : left + 64].mean(axis=(0, 1))).max() < 20


def test_blur_is_a_gaussians_convolution():
    picture = a_photo(40, 40)
    sigma, reach = 2.0, 12
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    padded = np.pad(picture.astype(float), ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    rows = sum(weight * padded[start : start + 40] for start, weight in enumerate(weights))
    slow = sum(weight * rows[:, start : start + 40] for start, weight in enumerate(weights))
    assert np.abs(run("blur", picture, sigma=sigma) - slow).max() < 1.5


@pytest.mark.parametrize("shuffle", [0, 1, 77])
def test_a_palette_has_the_chosen_colours_by_their_shares(shuffle):
    found = run("palette", palette="#ff0000:3 #00f", shuffle=shuffle, cell=8, size=(64, 64))
    red, blue = (int((found == colour).all(axis=-1).sum()) for colour in ((255, 0, 0), (0, 0, 255)))
    assert (red, blue) == (48 * 64, 16 * 64)
    if not shuffle:
        assert (found[:48] == (255, 0, 0)).all() and (found[48:] == (0, 0, 255)).all()


def test_other_numbers_shuffle_otherwise():
    one, two = (run("palette", palette="#000 #fff #f00", shuffle=number, cell=8) for number in (1, 2))
    assert (one != two).any()


def test_a_palette_beside_a_picture_takes_the_nearest_colours():
    picture = np.zeros((128, 128, 3), np.uint8)
    picture[:, 64:] = (200, 210, 220)
    found = run("palette", picture, palette="#101010 #ffffff")
    assert (found[:, :64] == 16).all() and (found[:, 64:] == 255).all()


@pytest.mark.parametrize("text", ["red", "#12", "#gg0000", "#ff0000:0", "#ff0000:x", "ff0000", "#ff0000:inf"])
def test_what_is_no_palette_is_refused(text):
    with pytest.raises(ConfigError, match="no colour"):
        run("palette", palette=text)


@pytest.mark.parametrize(("name", "values", "words"), [
    ("canny", {"low": 300.0, "high": 100.0}, "canny.low"), ("threshold", {"level": 999.0}, "threshold.level"), ("blur", {"sigma": 0.0}, "blur.sigma"),
    ("canny", {"low": "1"}, "canny.low"),
])
def test_values_out_of_range_are_refused(name, values, words):
    with pytest.raises(ConfigError, match=words):
        run(name, a_photo(), **values)


def test_a_units_two_thresholds_are_the_first_two_numbers():
    canny = find_preprocessor("canny")
    assert canny.make_values(50, None) == canny.values(low=50.0)
    assert canny.make_values(50, 60, "#fff", "{}") == canny.values(low=50.0, high=60.0)
    assert find_preprocessor("invert").make_values(1, 2) == find_preprocessor("invert").values()
    palette = find_preprocessor("palette")
    assert palette.make_values(0, 32, "#fff") == palette.values(shuffle=0, cell=32, palette="#fff")


def test_what_needs_a_picture_says_so_and_a_wrong_picture_is_refused():
    with pytest.raises(ConfigError, match="canny needs a picture"):
        run("canny")
    for wrong in (np.zeros((8, 8, 2), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8), np.zeros((8, 9000, 3), np.uint8), "picture"):
        with pytest.raises(ConfigError, match="picture of"):
            run("canny", wrong)
    with pytest.raises(ConfigError, match="did you mean canny"):
        find_preprocessor("cany")


def test_gray_and_transparent_pictures_are_taken_too():
    light = a_photo()[..., 0]
    assert (run("none", light) == light[..., None]).all() and (run("none", light[..., None]) == light[..., None]).all()
    half = np.dstack([a_photo(), np.full(a_photo().shape[:2], 0, np.uint8)])
    assert run("none", half).max() == 0
    half[..., 3] = 255
    assert (run("none", half) == a_photo()).all()


@pytest.mark.parametrize("size", [(100, 100), (50, 200), (300, 90), (13, 7)])
def test_modes_keep_shapes_as_they_promise(size):
    """A white disc in the middle: cropped and filled it stays round and in the middle, stretched it fills the same share."""
    y, x = np.mgrid[:120, :160]
    disc = np.where((x - 79.5) ** 2 + (y - 59.5) ** 2 < 30**2, 255, 0).astype(np.uint8)[..., None].repeat(3, -1)
    width, height = size
    for mode in RESIZE_MODES:
        found = fit(disc, width, height, mode)[..., 0] > 127
        assert found.shape == (height, width)
        scale = {"just resize": None, "crop and resize": max(width / 160, height / 120), "resize and fill": min(width / 160, height / 120)}[mode]
        ys, xs = np.nonzero(found)
        if scale is not None and 60 * scale > 12 and 60 * scale < min(size):
            assert abs(np.ptp(xs) + 1 - 60 * scale) < 3 and abs(np.ptp(ys) + 1 - 60 * scale) < 3
            assert abs(xs.mean() - (width - 1) / 2) < 1.5 and abs(ys.mean() - (height - 1) / 2) < 1.5
        if mode == "just resize" and min(size) > 20:
            assert abs(found.mean() - (disc > 127).mean()) < 0.03


def test_filling_takes_the_borders_colour():
    picture = np.full((50, 100, 3), 90, np.uint8)
    picture[20:30, 40:60] = (1, 2, 3)
    assert (fit(picture, 100, 100, "resize and fill")[:20] == 90).all()


def test_flat_colours_stay_the_same_and_thin_lines_stay_lines():
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:32, :32], picture[:32, 32:], picture[32:] = (10, 0, 0), (0, 99, 0), (0, 0, 200)
    for size in ((30, 30), (200, 150)):
        assert {tuple(colour) for colour in resize(picture, *size).reshape(-1, 3).tolist()} == {(10, 0, 0), (0, 99, 0), (0, 0, 200)}
    line = np.zeros((128, 128, 3), np.uint8)
    line[:, 50] = 255
    assert (resize(line, 64, 64).max(axis=1) == 255).all()


def test_the_shorter_side_is_what_was_asked_for():
    assert shrink_or_grow(a_photo(90, 180), 45).shape == (45, 90, 3) and shrink_or_grow(a_photo(180, 90), 45).shape == (90, 45, 3)
