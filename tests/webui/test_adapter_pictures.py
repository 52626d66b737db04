"""The forms in which a unit's pictures come, and what of them img2img's own crop leaves."""

from __future__ import annotations

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cv2", reason="OpenCV is not here; the WebUI has it")

from lib_lycoris.errors import ConfigError
from lib_lycoris.prompt.unit_values import FIELDS, split_unit, unit_values
from lib_lycoris.webui.adapter_pictures import answer, crop_to_masked, init_picture, read_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def a_file(pixels=PIXELS, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def test_every_form_of_a_picture_is_read(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(a_file())
    text = base64.b64encode(a_file()).decode()
    for given in (PIXELS, Image.fromarray(PIXELS), path, text, f"data:image/png;base64,{text}", {"image": text, "mask": None}):
        assert (read_picture(given) == PIXELS).all()
    clear = np.dstack([PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)])
    assert read_picture(base64.b64encode(a_file(clear)).decode()).max() == 0


def test_an_apis_text_is_never_a_path(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(a_file())
    with pytest.raises(ConfigError):
        read_picture(str(path))


@pytest.mark.parametrize("given", [7, None, "", "????", base64.b64encode(b"text").decode(), base64.b64encode(a_file()[:60]).decode()])
def test_what_is_no_picture_is_refused_in_one_line(given):
    with pytest.raises(ConfigError) as error:
        read_picture(given)
    assert "\n" not in str(error.value) and " object at " not in str(error.value)


def test_a_bomb_of_pixels_is_refused():
    large = base64.b64encode(a_file(np.zeros((9000, 9000), np.uint8))).decode()
    with pytest.raises(ConfigError, match="9000×9000"):
        read_picture(large)


def test_only_masked_cuts_pictures_of_the_same_scene():
    p = SimpleNamespace(init_images=[Image.new("RGB", (60, 40))], paste_to=(30, 10, 12, 20), inpaint_full_res=True)
    assert (crop_to_masked(p, PIXELS) == PIXELS[5:15, 15:21]).all()
    square = np.zeros((16, 16, 3), np.uint8)
    assert crop_to_masked(p, square) is square
    p.inpaint_full_res = False
    assert crop_to_masked(p, PIXELS) is PIXELS and crop_to_masked(SimpleNamespace(), PIXELS) is PIXELS


def test_the_init_picture_of_each_of_a_batch():
    p = SimpleNamespace(init_images=[Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)])
    assert (init_picture(p, 0) == PIXELS).all() and (init_picture(p, 1) == 255 - PIXELS).all() and (init_picture(p, 2) == PIXELS).all()
    assert init_picture(SimpleNamespace(), 0) is None


def test_a_routes_answer_is_a_png_of_the_asked_size():
    made = answer({"picture": base64.b64encode(a_file()).decode()}, lambda values, size: np.zeros((size[1], size[0], 3), np.uint8))
    assert (made["width"], made["height"]) == (30, 20)
    assert Image.open(io.BytesIO(base64.b64decode(made["map"]))).size == (30, 20)
    for wrong in ({"width": 5000}, {"height": "x"}, {"width": True}, {"width": 8.5}):
        with pytest.raises(ConfigError, match="whole number from 8 to 4096"):
            answer(wrong, lambda values, size: None)


def test_a_pages_values_and_an_apis_give_the_same_unit(tmp_path):
    plain = dict.fromkeys(FIELDS) | {"enabled": True, "adapter": "a", "picture": PIXELS, "preprocessor": "canny", "processor_resolution": 0,
                                     "threshold_a": 50.0,
                                     "threshold_b": -1, "weight": 0.5, "start": 0.0, "end": 0.5, "resize_mode": "just resize",
                                     "hires": "low", "save_map": False, "strict": True, "pictures": [SimpleNamespace(name=str(tmp_path / "b.png"))]}
    off = dict(plain, adapter="None", pictures=None, picture=None)
    page = unit_values([*plain.values(), *off.values(), *off.values()])
    api = unit_values([{"adapter": "a", "image": PIXELS, "module": "canny", "threshold_a": 50.0, "weight": 0.5, "guidance_end": 0.5,
                        "resize_mode": "just resize", "hires": "low", "strict": True}, *plain.values()])
    assert len(page) == 3 and len(api) == 1
    unit, pictures = split_unit(page[0])
    assert split_unit(api[0])[0] == unit and pictures["pictures"] == [tmp_path / "b.png"]
    assert not split_unit(page[1])[0].active and split_unit(page[1])[1] == {}
