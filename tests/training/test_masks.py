from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lib_lycoris.errors import DatasetError
from lib_lycoris.training.config import DataSettings
from lib_lycoris.training.dataset import read_dataset
from lib_lycoris.training.latents import Latents, Variant
from lib_lycoris.training.masks import to_cells
from lib_lycoris.training.pictures import open_image

from .fake import FakeBackbone, make_pictures


def encoded(folder, variant=Variant(), floor=0.0, **values):  # noqa: B008
    settings = {"resolution": 64, "masks": "files", "random_crop": variant.place is not None, "flip": True, **values}
    dataset = read_dataset(DataSettings(folders=(str(folder),), **settings))
    latents = Latents(FakeBackbone(), floor)
    latents.encode(dataset.pictures)
    return [latents.get(picture, variant) for picture in dataset.pictures], dataset


def grey(pixels, path):
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def upper_right(high=64, wide=64):
    """White in the upper right quarter."""
    pixels = np.zeros((high, wide))
    pixels[: high // 2, wide // 2 :] = 255
    return pixels


def quarter():
    cells = torch.zeros(1, 8, 8)
    cells[:, :4, 4:] = 1
    return cells


def test_each_cell_has_the_mean_of_its_pixels_between_the_floor_and_one():
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64)).astype(np.uint8)
    cells = to_cells(Image.fromarray(pixels), (0, 0, 64, 48), (64, 48), 0.2)
    slow = torch.tensor(pixels.reshape(6, 8, 8, 8).mean((1, 3)) / 255)[None].float()
    torch.testing.assert_close(cells, 0.2 + 0.8 * slow, atol=0.005, rtol=0)


@pytest.mark.parametrize("name", ["0-masklabel.png", "mask/0.png", "mask/0.jpg"])
def test_a_mask_beside_its_picture_is_found_and_no_picture_itself(tmp_path, name):
    make_pictures(tmp_path, 2)
    (tmp_path / "mask").mkdir()
    grey(upper_right(), tmp_path / name)
    (first, second), dataset = encoded(tmp_path)
    torch.testing.assert_close(first.mask, quarter(), atol=0.02, rtol=0)
    assert second.mask is None and len(dataset.pictures) == 2 and "1 of 2 pictures have no mask" in dataset.problems[0]
    assert len(encoded(tmp_path, masks="none")[1].pictures) == 2


def test_a_mask_is_mirrored_and_cropped_with_its_picture(tmp_path):
    make_pictures(tmp_path, 1, size=(128, 64))
    pixels = np.zeros((64, 128))
    pixels[:, :32] = 255
    grey(pixels, tmp_path / "0-masklabel.png")
    (plain,), _ = encoded(tmp_path)
    (left,), _ = encoded(tmp_path, Variant(0))
    (mirrored,), _ = encoded(tmp_path, Variant(0, True))
    assert plain.mask.sum() == 0 and torch.equal(left.mask[:, :, :4], torch.ones(1, 8, 4)) and left.mask.sum() == 32
    assert torch.equal(mirrored.mask, left.mask.flip(-1))
    assert torch.allclose(encoded(tmp_path, Variant(0), floor=0.25)[0][0].mask, left.mask * 0.75 + 0.25)


@pytest.mark.parametrize("own", [True, False])
def test_a_mask_is_turned_with_its_picture_whether_it_says_so_itself_or_not(tmp_path, own):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = np.zeros((96, 64))
    upright[:48, 32:] = 255
    turned = np.ascontiguousarray(np.rot90(upright)).astype(np.uint8)
    Image.fromarray(turned).convert("RGB").save(tmp_path / "0.png", exif=exif)
    (tmp_path / "0.txt").write_text("x")
    Image.fromarray(turned).save(tmp_path / "0-masklabel.png", **({"exif": exif} if own else {}))
    (found,), dataset = encoded(tmp_path, bucket_step=8)
    shown = open_image(tmp_path / "0.png").convert("L").resize(dataset.pictures[0].frame.size)
    expected = torch.tensor(np.asarray(shown)).float().reshape(shown.height // 8, 8, shown.width // 8, 8).mean((1, 3))[None] / 255
    torch.testing.assert_close(found.mask, expected, atol=0.1, rtol=0)
    assert found.mask[0, 0, -1] > 0.9 > 0.1 > found.mask[0, -1, 0]


def test_transparency_is_a_mask_and_the_colour_beneath_stays(tmp_path):
    rgba = np.full((64, 64, 4), 100, np.uint8)
    rgba[:, :, 3] = upper_right()
    Image.fromarray(rgba).save(tmp_path / "0.png")
    Image.new("RGB", (64, 64), (100, 100, 100)).save(tmp_path / "1.png")
    for name in "01":
        (tmp_path / f"{name}.txt").write_text("x")
    (masked, opaque), dataset = encoded(tmp_path, masks="alpha")
    torch.testing.assert_close(masked.mask, quarter(), atol=0.01, rtol=0)
    assert opaque.mask is None and "1 of 2 pictures have no transparency" in dataset.problems[0]
    assert (masked.latents - opaque.latents).abs().max() < 0.15 < (encoded(tmp_path, masks="none")[0][0].latents - opaque.latents).abs().max()


def test_a_mask_of_another_shape_is_told(tmp_path):
    make_pictures(tmp_path, 1)
    grey(upper_right(64, 32), tmp_path / "0-masklabel.png")
    with pytest.raises(DatasetError, match=r"0-masklabel\.png has 32×64 pixels, its picture 64×64"):
        encoded(tmp_path)
