import numpy as np
import pytest
import torch
from PIL import Image

from lib_lycoris.studio.picture import Picture, decode_latent, make_infotext, write_png


def make_picture():
    return Picture(np.arange(48, dtype=np.uint8).reshape(4, 4, 3), "a cat, \u00e9 \u732b\nSteps: 3", 1)


def test_a_png_holds_the_pixels_and_the_infotext(tmp_path):
    write_png(tmp_path / "new" / "cat.png", make_picture())
    with Image.open(tmp_path / "new" / "cat.png") as image:
        assert np.array_equal(np.array(image), make_picture().pixels)
        assert image.info["parameters"] == make_picture().infotext
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cat.png"]


def test_a_png_that_can_not_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "cat.png"
    write_png(path, make_picture())
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_png(path, Picture(np.zeros((4, 4, 7), dtype=np.uint8), "", 1))
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == ["cat.png"]


def test_values_with_commas_and_colons_are_quoted_and_missing_ones_left_out():
    assert make_infotext("a", "", {"Steps": 3, "Clip skip": None, "Model": 'x, "y"'}) == 'a\nSteps: 3, Model: "x, \\"y\\""'


@torch.no_grad()
def test_pixels_are_the_decoded_values_rounded_down(model):
    latent = torch.randn(1, 4, 4, 4)
    decoded = model.vae.decode(latent / 0.18215).sample[0].permute(1, 2, 0).numpy()
    expected = np.floor(np.clip((decoded + 1) / 2, 0, 1) * 255)
    assert np.abs(decode_latent(model, latent) - expected).max() <= 1
    assert np.mean(decode_latent(model, latent) != expected) < 0.01
