"""Which preprocessor belongs to an adapter."""

from __future__ import annotations

import pytest

from lib_lycoris.preprocess.choose import choose_preprocessor, choose_resolution
from lib_lycoris.preprocess.table import TABLE


@pytest.mark.parametrize(("names", "expected"), [
    (["t2iadapter_canny_sd15v2"], "canny"), (["t2iadapter_sketch_sd14v1"], "xdog"), (["t2iadapter_color_sd14v1"], "color_grid"),
    (["coadapter-color-sd15v1"], "color_grid"), (["t2i-adapter-lineart-sdxl-1.0"], "lineart"), (["t2iadapter_openpose_sd14v1"], "none"),
    (["t2iadapter_keypose_sd14v1"], "none"), (["t2iadapter_seg_sd14v1"], "none"), (["T2I Colour"], "color_grid"), (["pidinet"], "softedge"),
    (["canny", "t2iadapter_sketch"], "canny"), ([None, "", "sketch"], "xdog"), (["softedge", "x"], "softedge"), (["my own"], "none"), ([], "none"),
    (["sedgewick", "zoe"], "none"), (["uncanny-valley"], "none"), (["threshold_otsu"], "threshold_otsu"),
    (["diffusion_pytorch_model", "t2i-adapter-sketch"], "xdog"),
])
def test_by_metadata_or_name(names, expected):
    assert choose_preprocessor(names) == expected


def test_what_needs_weights_is_chosen_only_where_it_is():
    known = {each.name for each in TABLE}
    assert choose_preprocessor(["t2iadapter_depth_sd15v2"], known | {"depth"}) == "depth"
    assert choose_preprocessor(["t2iadapter_depth_sd15v2"], known) == "none"


def test_resolutions():
    assert choose_resolution(None, "sdxl", "canny") == 384 and choose_resolution(512, "sdxl", "canny") == 512
    assert choose_resolution(None, "sd", "canny") is None and choose_resolution(None, None, "none") is None
