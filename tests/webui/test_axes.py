"""X/Y/Z axes: what each makes of a prompt, and a real grid whose cells are the pictures of their prompts."""

from __future__ import annotations

import base64
import io
import sys
import urllib.error
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from .reply import distance

LABELS = ["[Lyco] network", "[Lyco] strength", "[Lyco] strength, text encoder", "[Lyco] strength, UNet", "[Lyco] block preset"]
NETWORK, STRENGTH, TEXT, UNET, BLOCKS = LABELS
OF_ADAPTERS = ["[Lyco] adapter", "[Lyco] adapter weight", "[Lyco] adapter start", "[Lyco] adapter end"]


def axis(webui, label):
    (option,) = [option for option in sys.modules["modules.scripts"].plot.axis_options if option.label == label]
    return option


def changed(webui, label, value, prompt, hires=""):
    p = SimpleNamespace(prompt=prompt, hr_prompt=hires)
    option = axis(webui, label)
    option.confirm(p, [value])
    option.apply(p, option.type(value), [value])
    return (p.prompt, p.hr_prompt) if hires else p.prompt


@pytest.mark.parametrize(("label", "value", "prompt", "expected"), [
    (NETWORK, "B", "x <lyco:A:0.5:lbw=INS>, <lyco:A:1>", "x <lyco:B:0.5:lbw=INS>, <lyco:A:1>"), (NETWORK, "B", "x", "x<lyco:B:1>"),
    (NETWORK, "None", "x <lyco:A:0.5> y", "x  y"), (NETWORK, "None", "x", "x"),
    (STRENGTH, 0.25, "<lora:A:1> <lyco:A:1:0.5:dyn=2>", "<lora:A:1> <lyco:A:0.25:dyn=2>"),
    (STRENGTH, -1.0, "<lyco:A>", "<lyco:A:-1>"), (STRENGTH, 0.1 + 0.2, "<lyco:A>", "<lyco:A:0.3>"), (TEXT, 0.0, "<lyco:A:0.7>", "<lyco:A:0:0.7>"),
    (UNET, 2.0, "<lyco:A:0.7>", "<lyco:A:0.7:2>"), (BLOCKS, "INS", "<lyco:A:0.7>", "<lyco:A:0.7:lbw=INS>"),
    (BLOCKS, ",".join("1" * 17), "<lyco:A:1:lbw=INS>", f"<lyco:A:1:lbw={','.join('1' * 17)}>"),
])
def test_an_axis_changes_the_first_tag_alone(stand_in_webui, label, value, prompt, expected):
    assert changed(stand_in_webui, label, value, prompt) == expected


def test_the_hires_prompt_follows_where_it_has_a_tag(stand_in_webui):
    assert changed(stand_in_webui, STRENGTH, 0.5, "<lyco:A:1>", "<lyco:B:1>") == ("<lyco:A:0.5>", "<lyco:B:0.5>")
    assert changed(stand_in_webui, STRENGTH, 0.5, "<lyco:A:1>", "plain") == ("<lyco:A:0.5>", "plain")


@pytest.mark.parametrize(("label", "value", "prompt", "word"), [
    (NETWORK, "Aa", "<lyco:A:1>", "near: A"), (NETWORK, "a>b", "<lyco:A:1>", "'>'"), (STRENGTH, 1.0, "no tag", "there is none"),
    (UNET, float("nan"), "<lyco:A:1>", "finite"), (TEXT, float("inf"), "<lyco:A:1>", "finite"), (BLOCKS, "NOSUCH", "<lyco:A:1>", "INS"),
    (BLOCKS, "1,0", "<lyco:A:1>", "17"), (BLOCKS, "INS", "<lora:A:1>", "there is none"),
])
def test_a_wrong_value_is_refused_before_any_picture(stand_in_webui, label, value, prompt, word):
    from lib_lycoris.errors import LycoError

    option = axis(stand_in_webui, label)
    fine = {NETWORK: "A", BLOCKS: "INS"}.get(label, 1.0)
    with pytest.raises(LycoError, match=word) as caught:
        option.confirm(SimpleNamespace(prompt=prompt), [fine, value])
    assert "\n" not in str(caught.value)


def test_choices_are_the_networks_and_the_presets_with_the_users_own(stand_in_webui):
    assert {"None", "A", "B"} <= set(axis(stand_in_webui, NETWORK).choices())
    stand_in_webui.set_options(lycoris_block_presets=f"MINE:{','.join('1' * 12)}\nELEMENT:IN00:attn:1")
    try:
        assert {"INS", "MINE"} <= set(axis(stand_in_webui, BLOCKS).choices()) and "ELEMENT" not in axis(stand_in_webui, BLOCKS).choices()
        assert changed(stand_in_webui, BLOCKS, "MINE", "<lyco:A:1>") == "<lyco:A:1:lbw=MINE>"
    finally:
        stand_in_webui.set_options(lycoris_block_presets="")


def test_axes_change_the_first_adapter_that_is_on(stand_in_webui):
    from lib_lycoris.webui.adapter_axes import changed

    units = [{"enabled": False, "adapter": "off"}, {"adapter": "canny one", "weight": 0.5}, {"adapter": "more/second"}]
    p = SimpleNamespace()
    assert changed(p, units) == units
    for label, value in zip(OF_ADAPTERS, ("more/second", 1.5, 0.25, 0.75), strict=True):
        option = axis(stand_in_webui, label)
        option.confirm(p, [value])
        option.apply(p, option.type(value), [value])
    assert changed(p, units) == [units[0], {"adapter": "more/second", "weight": 1.5, "start": 0.25, "end": 0.75, "enabled": True}, units[2]]
    axis(stand_in_webui, OF_ADAPTERS[0]).apply(p, "None", [])
    for none in (changed(p, units[:1]), changed(p, [])):
        assert none == [{"enabled": False, "adapter": "", "weight": 1.5, "start": 0.25, "end": 0.75}]
    assert "canny one" in axis(stand_in_webui, OF_ADAPTERS[0]).choices()


@pytest.mark.parametrize(("label", "value", "words"), [
    (OF_ADAPTERS[0], "nowhere", "no adapter is called"), (OF_ADAPTERS[1], 99.0, "unit.weight"), (OF_ADAPTERS[2], 2.0, "unit.start"),
    (OF_ADAPTERS[3], -1.0, "unit.end"),
])
def test_wrong_values_of_adapters_axes_are_refused(stand_in_webui, label, value, words):
    from lib_lycoris.errors import LycoError

    with pytest.raises(LycoError, match=words):
        axis(stand_in_webui, label).confirm(SimpleNamespace(), [value])


def axes_of(webui):
    """The labels of the real plot's axes, in its order for txt2img."""
    (script,) = [info for info in webui.ask("/sdapi/v1/script-info") if info["name"] == "x/y/z plot" and not info["is_img2img"]]
    return script["args"][0]["choices"]


def grid(webui, prompt, x, y):
    """The cells of a grid, row by row: (axis label, values as text, values of the dropdown) for x and y."""
    labels = axes_of(webui)
    places = [value for label, text, chosen in (x, y, ("Nothing", "", [])) for value in (labels.index(label), text, chosen)]
    flags = [False, True, False, False, False, False, False, False, 0]  # legend, lone images, sub grids, seeds -1, vary seeds x, y, z, margin, csv
    answer = webui.ask("/sdapi/v1/txt2img", {"prompt": prompt, "seed": 1, "steps": 4, "width": 64, "height": 64, "sampler_name": "Euler", "cfg_scale": 5,
                                             "script_name": "x/y/z plot", "script_args": [*places, *flags[:8], 0, False]})
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB")) for image in answer["images"]]


@pytest.mark.webui
def test_a_real_grid_shows_the_pictures_of_its_cells(real_webui):
    assert [label for label in axes_of(real_webui) if "Lyco" in label] == LABELS + OF_ADAPTERS
    cells = grid(real_webui, "a shape <lyco:A:1>", (NETWORK, "", ["A", "B", "None"]), (STRENGTH, "0-1 (+1), -0.5", []))
    whole, singles = cells[0], cells[1:]
    assert whole.shape == (192, 192, 3) and len(singles) == 9
    for row, strength in enumerate(("0", "1", "-0.5")):
        for column, name in enumerate(("A", "B", "None")):
            prompt = f"a shape <lyco:{name}:{strength}>" if name != "None" else "a shape "
            own = np.frombuffer(real_webui.picture(prompt, steps=4).pictures[0], dtype=np.uint8).reshape(64, 64, 3)
            assert np.array_equal(whole[64 * row:64 * row + 64, 64 * column:64 * column + 64], own), (name, strength)
    assert distance(real_webui.picture("a shape <lyco:A:1>"), real_webui.picture("a shape <lyco:B:1>")) > 0


@pytest.mark.webui
def test_a_real_grid_over_block_presets(real_webui):
    real_webui.set_options(lycoris_block_presets=f"MINE:{','.join('0' * 26)}")
    try:
        cells = grid(real_webui, "a shape <lyco:A:1>", (BLOCKS, "", ["ALL", "MINE"]), (UNET, "1", []))
        expected = [real_webui.picture(prompt, steps=4).pictures[0] for prompt in ("a shape <lyco:A:1>", "a shape")]
    finally:
        real_webui.set_options(lycoris_block_presets="")
    assert [cell.tobytes() for cell in cells[1:]] == expected


@pytest.mark.webui
def test_the_real_plot_refuses_a_wrong_value(real_webui):
    before = len(real_webui.output())
    with pytest.raises(urllib.error.HTTPError) as refused:
        grid(real_webui, "a shape", (STRENGTH, "0.5", []), ("Nothing", "", []))
    with refused.value as error:
        assert error.code == 500 and b"there is none" in error.read()
    with pytest.raises(urllib.error.HTTPError) as refused:
        grid(real_webui, "a shape", (NETWORK, "", ["Aa"]), ("Nothing", "", []))
    refused.value.close()
    assert "near: A" in real_webui.output()[before:]
