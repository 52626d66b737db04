"""Every kind of picture file that people have, with real bytes of each."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from lib_lycoris.errors import DatasetError
from lib_lycoris.training.config import DataSettings
from lib_lycoris.training.dataset import read_dataset
from lib_lycoris.training.pictures import has_alpha, measure, open_image, read_bytes, read_picture, to_rgb

TURNS = {1: 0, 3: 2, 6: 1, 8: 3}
"""EXIF's orientation → quarter turns against the clock that lead from the upright picture to the file's."""


def scene():
    """12 high, 8 wide, no symmetry."""
    pixels = np.zeros((12, 8, 3), np.uint8)
    pixels[:4, :3], pixels[6:, 5:], pixels[10:] = (255, 0, 0), (0, 255, 0), (40, 60, 250)
    return pixels


def pixels_of(path):
    return np.asarray(to_rgb(open_image(path)))


@pytest.mark.parametrize("orientation", TURNS)
def test_pictures_are_turned_and_measured_as_they_are_looked_at(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "x.png"
    Image.fromarray(np.ascontiguousarray(np.rot90(scene(), TURNS[orientation]))).save(path, exif=exif)
    assert measure(path, read_bytes(path)) == (8, 12) and np.array_equal(pixels_of(path), scene())


@pytest.mark.parametrize(("ending", "options"), [("png", {}), ("webp", {"lossless": True}), ("bmp", {}), ("tif", {}), ("gif", {})])
def test_lossless_kinds_come_back_as_they_were(tmp_path, ending, options):
    path = tmp_path / f"x.{ending}"
    Image.fromarray(scene()).save(path, **options)
    assert np.array_equal(pixels_of(path), scene())


def test_sixteen_bits_are_rounded_to_eight_whatever_the_values(tmp_path):
    grey = np.linspace(0, 200, 96).reshape(12, 8).round()
    for top, name in ((257, "x.png"), (1, "dark.png")):
        Image.fromarray((grey * top).astype(np.uint16)).save(tmp_path / name)
    assert np.array_equal(pixels_of(tmp_path / "x.png")[:, :, 1], grey.astype(np.uint8))
    Image.fromarray((scene()[:, :, 0] / 255).astype(np.float32)).save(tmp_path / "float.tif")
    assert np.array_equal(pixels_of(tmp_path / "float.tif")[:, :, 2], scene()[:, :, 0])


def test_cmyk_and_palettes_keep_their_colours(tmp_path):
    Image.fromarray(scene()).convert("CMYK").save(tmp_path / "x.tif")
    Image.fromarray(scene()).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "x.png")
    for name in ("x.tif", "x.png"):
        assert np.abs(pixels_of(tmp_path / name).astype(int) - scene()).max() <= 3


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_of_an_animation_the_first_picture_counts(tmp_path, ending):
    frames = [Image.fromarray(np.roll(scene(), turn, 0)) for turn in (0, 4, 8)]
    frames[0].save(tmp_path / f"x.{ending}", save_all=True, append_images=frames[1:], duration=50, **({"lossless": True} if ending == "webp" else {}))
    assert np.array_equal(pixels_of(tmp_path / f"x.{ending}"), scene())


def test_what_is_transparent_is_known_and_keeps_its_colour_where_wanted(tmp_path):
    rgba = np.dstack([scene(), np.full((12, 8), 255, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "opaque.png")
    rgba[:6, :, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "x.png")
    image = open_image(tmp_path / "x.png")
    assert has_alpha(image) and not has_alpha(open_image(tmp_path / "opaque.png"))
    assert np.array_equal(np.asarray(to_rgb(image, None)), scene()) and np.asarray(to_rgb(image))[:6].min() == 255


def damaged(kind):
    buffer = io.BytesIO()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    noise.save(buffer, format=kind)
    data = buffer.getvalue()
    return data[: len(data) // 2]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_told_by_name(tmp_path, kind):
    path = tmp_path / f"x.{kind.lower()}"
    path.write_bytes(damaged(kind))
    with pytest.raises(DatasetError, match=rf"x\.{kind.lower()} can't be read"):
        open_image(path)


def test_huge_pictures_are_told_and_large_ones_read_without_a_warning(tmp_path, monkeypatch):
    Image.new("RGB", (40, 30)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert read_picture(tmp_path / "x.png", 8).shape == (3, 8, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(DatasetError, match="million pixels"):
        open_image(tmp_path / "x.png")


def test_an_extremely_long_picture_and_a_tiny_one_are_trained_too(tmp_path):
    for size, name in (((2000, 3), "long.png"), ((1, 1), "tiny.png")):
        Image.new("RGB", size).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("x")
    assert [picture.frame.size for picture in read_dataset(DataSettings(folders=(str(tmp_path),))).pictures] == [(1024, 256), (512, 512)]


def test_pixels_are_between_minus_one_and_one(tmp_path):
    Image.fromarray(np.tile(np.array([0, 255], np.uint8), (8, 4))).save(tmp_path / "x.png")
    found = read_picture(tmp_path / "x.png", 8)
    assert torch.equal(found[:, :, 0], -torch.ones(3, 8)) and torch.equal(found[:, :, 1], torch.ones(3, 8))
