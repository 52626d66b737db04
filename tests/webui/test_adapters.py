"""T2I-Adapters in pictures: what they do, what they leave behind, and what is said where they can't act."""

from __future__ import annotations

import base64
import io
import itertools
import urllib.error
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cv2", reason="OpenCV is not here; the WebUI has it")

from .reply import distance

ROUNDING = 2
CHANGED = 5
fresh = map("a form {}".format, itertools.count())


def a_map(shift=0, height=64, width=64):
    """A white square in base64."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[height // 4 : height // 2, width // 4 + shift : width // 2 + shift] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def a_unit(adapter="canny one", **values):
    return {"adapter": adapter, "preprocessor": "none", "picture": a_map(), **values}


def controlled(webui, prompt, *units, **settings):
    return webui.picture(prompt, alwayson_scripts={"lyco adapters": {"args": list(units)}}, **settings)


def clean(reply):
    assert not reply.comments and not reply.problems, (reply.comments, reply.problems)
    return reply


def test_an_adapter_changes_the_picture_and_without_it_the_base_picture_comes_back_bit_for_bit(webui):
    prompt = next(fresh)
    before, model = webui.picture(prompt), webui.model()
    changed = clean(controlled(webui, prompt, a_unit()))
    assert distance(before, changed) > CHANGED
    assert webui.model() == model
    assert webui.picture(prompt).pictures == before.pictures
    assert controlled(webui, prompt, a_unit()).pictures == changed.pictures
    assert controlled(webui, prompt, a_unit(enabled=False)).pictures == before.pictures
    assert controlled(webui, prompt, a_unit(weight=0)).pictures == before.pictures
    assert controlled(webui, prompt, a_unit(start=0.5, end=0.5)).pictures == before.pictures


def test_maps_weights_levels_and_regions_count(webui):
    prompt = next(fresh)
    plain = clean(controlled(webui, prompt, a_unit()))
    others = [a_unit(picture=a_map(20)), a_unit(weight=0.5), a_unit(level_weights="1, 0, 0, 0"), a_unit("more/second"), a_unit(mask=a_map(10)),
              a_unit(preprocessor="invert")]
    replies = [plain, *(clean(controlled(webui, prompt, unit)) for unit in others)]
    for one, other in itertools.combinations(replies, 2):
        assert one.pictures != other.pictures
    white = {"mask": base64.b64encode(_png(np.full((64, 64, 3), 255, np.uint8))).decode()}
    assert distance(controlled(webui, prompt, a_unit(**white)), plain) <= ROUNDING
    black = {"mask": base64.b64encode(_png(np.zeros((64, 64, 3), np.uint8))).decode()}
    assert controlled(webui, prompt, a_unit(**black)).pictures == webui.picture(prompt).pictures


def test_several_adapters_add_up_in_any_order_and_halves_make_a_whole(webui):
    prompt = next(fresh)
    one, two = a_unit(weight=0.6), a_unit("more/second", weight=0.7, picture=a_map(20))
    both = clean(controlled(webui, prompt, one, two))
    assert distance(both, controlled(webui, prompt, two, one)) <= ROUNDING
    assert both.pictures not in (controlled(webui, prompt, one).pictures, controlled(webui, prompt, two).pictures)
    halves = clean(controlled(webui, prompt, a_unit(weight=0.3), a_unit(weight=0.3)))
    assert distance(halves, controlled(webui, prompt, one)) <= ROUNDING


@pytest.mark.parametrize("sampler", ["Euler", "Heun"])
def test_start_and_end_part_the_steps_also_of_second_order(webui, sampler):
    prompt = next(fresh)
    whole = clean(controlled(webui, prompt, a_unit(), sampler_name=sampler, steps=6))
    parted = clean(controlled(webui, prompt, a_unit(end=0.5), a_unit(start=0.5), sampler_name=sampler, steps=6))
    first = clean(controlled(webui, prompt, a_unit(end=0.5), sampler_name=sampler, steps=6))
    assert parted.pictures == whole.pictures != first.pictures
    assert first.pictures != webui.picture(prompt, sampler_name=sampler, steps=6).pictures


def test_each_picture_of_a_batch_has_its_own_map(webui):
    prompt, maps = next(fresh), [a_map(shift) for shift in (0, 10, 20, 30)]
    batch = clean(controlled(webui, prompt, a_unit(pictures=maps), batch_size=2, n_iter=2, seed=5))
    for number, each in enumerate(maps):
        alone = clean(controlled(webui, prompt, a_unit(picture=each), seed=5 + number))
        assert max(abs(a - b) for a, b in zip(batch.pictures[number + len(batch.pictures) - 4], alone.pictures[0], strict=True)) <= ROUNDING


@pytest.mark.parametrize("prompt", ["x AND y :0.6", "one"])
def test_rows_are_found_where_the_host_cuts_a_step_into_calls(webui, prompt):
    settings = {"negative_prompt": "bad", "batch_size": 2}
    units = [a_unit(pictures=[a_map(), a_map(25)])]
    whole = clean(controlled(webui, prompt, *units, **settings))
    webui.set_options(batch_cond_uncond=False)
    try:
        assert distance(clean(controlled(webui, prompt, *units, **settings)), whole) <= ROUNDING
    finally:
        webui.set_options(batch_cond_uncond=True)
    webui.set_options(skip_early_cond=0.4)
    try:
        assert clean(controlled(webui, prompt, *units, **settings)).pictures != whole.pictures
    finally:
        webui.set_options(skip_early_cond=0.0)


def test_the_hires_pass_has_features_of_its_own_size(webui):
    prompt, hires = next(fresh), {"enable_hr": True, "denoising_strength": 0.7}
    if webui.kind == "real":
        hires |= {"hr_upscaler": "Latent", "hr_scale": 1.5}
    base = webui.picture(prompt, **hires)
    both, low, high = (clean(controlled(webui, prompt, a_unit(hires=name), **hires)) for name in ("both", "low", "high"))
    for one, other in itertools.combinations((base, both, low, high), 2):
        assert one.pictures != other.pictures
    assert webui.picture(prompt, **hires).pictures == base.pictures


def test_beside_networks(webui):
    prompt = next(fresh)
    base, model = webui.picture(prompt), webui.model()
    network, adapter = webui.picture(f"{prompt} <lyco:A:1>"), controlled(webui, prompt, a_unit())
    both = clean(controlled(webui, f"{prompt} <lyco:A:1>", a_unit()))
    for one, other in itertools.combinations((base, network, adapter, both), 2):
        assert distance(one, other) > ROUNDING
    assert distance(clean(controlled(webui, f"{prompt} <lora:A:1>", a_unit())), both) <= ROUNDING
    assert clean(controlled(webui, prompt, a_unit())).pictures == adapter.pictures
    assert webui.picture(f"{prompt} <lyco:A:1>").pictures == network.pictures
    assert webui.picture(prompt).pictures == base.pictures
    assert webui.model()["hooks"] == model["hooks"]


@pytest.mark.parametrize("refiner", ["same_config", "own_config"])
def test_a_refiner_gets_the_features_too(webui, refiner):
    prompt, name = next(fresh), getattr(webui, refiner)
    base = webui.picture(prompt)
    settings = {"refiner_checkpoint": name, "refiner_switch_at": 0.5}
    plain, guided = webui.picture(prompt, **settings), clean(controlled(webui, prompt, a_unit(), **settings))
    early, late = (clean(controlled(webui, prompt, a_unit(**ends), **settings)) for ends in ({"end": 0.5}, {"start": 0.5}))
    for one, other in itertools.combinations((plain, guided, early, late), 2):
        assert one.pictures != other.pictures
    assert webui.picture(prompt).pictures == base.pictures
    assert webui.model()["hooks"] == {}


def test_an_adapter_ends_where_sdxls_refiner_takes_over_and_says_so(stand_in_webui, monkeypatch):
    from lib_lycoris.webui import host

    prompt, name = next(fresh), stand_in_webui.own_config
    settings = {"refiner_checkpoint": name, "refiner_switch_at": 0.5}
    plain, early = stand_in_webui.picture(prompt, **settings), clean(controlled(stand_in_webui, prompt, a_unit(end=0.5), **settings))
    monkeypatch.setattr(host, "is_refiner", lambda model: model.sd_checkpoint_info.name == name)
    for unit in (a_unit(), a_unit(strict=True)):
        guided = controlled(stand_in_webui, prompt, unit, **settings)
        assert "until SDXL's refiner took over" in guided.problems
        assert guided.pictures == early.pictures != plain.pictures
    assert stand_in_webui.model()["hooks"] == {}


@pytest.mark.parametrize("what", ["exception", "interrupt", "interrupt in a layer"])
def test_nothing_stays_on_where_a_picture_breaks_off(webui, what):
    prompt = next(fresh)
    base, model = webui.picture(prompt), webui.model()
    webui.break_at(2, what, "unet.input_blocks.1.0")
    settings = {"alwayson_scripts": {"lyco adapters": {"args": [a_unit()]}}}
    (webui.failing_picture if what == "exception" else webui.picture)(prompt, **settings)
    assert webui.model() == model
    assert webui.picture(prompt).pictures == base.pictures


@pytest.mark.parametrize(("unit", "words"), [
    (a_unit("nowhere"), "no adapter is called 'nowhere'"), (a_unit("xl"), "another model"), (a_unit("wide"), "another model"),
    (a_unit("broken"), "cut off"), (a_unit(weight="heavy"), "unit.weight"), (a_unit(wieght=1), "did you mean weight"),
    ({"adapter": "canny one"}, "needs a picture"), (a_unit(picture="????"), "no picture in base64"), (a_unit(picture="aGFsbG8="), "can't be read"),
    (a_unit(preprocessor="cany"), "did you mean canny"), (a_unit(preprocessor="skeleton"), "needs key points"),
    (a_unit("../../../../etc/hostname"), "no adapter is called"), (a_unit("", enabled=True), "no adapter is chosen"),
    (a_unit(""), "no adapter is chosen"),
])
def test_what_can_not_act_is_told_and_a_strict_unit_stops_the_picture(webui, unit, words):
    prompt = next(fresh)
    base = webui.picture(prompt)
    told = controlled(webui, prompt, unit)
    assert words in "\n".join(told.comments) and words in told.problems and told.problems.count("lyco") + told.problems.count("did not act") == 1
    assert told.pictures == base.pictures
    with pytest.raises((RuntimeError, urllib.error.HTTPError)) as error:
        controlled(webui, prompt, unit | {"strict": True})
    said = str(error.value) if not hasattr(error.value, "read") else error.value.read().decode()
    assert words.replace("'", "") in said.replace("\\", "").replace("'", "")
    assert webui.picture(prompt).pictures == base.pictures and webui.model()["hooks"] == {}


def test_a_unit_may_name_the_fuser_for_all_and_one_that_is_not_here_is_told(webui):
    prompt, units = next(fresh), (a_unit(), a_unit("more/second"))
    plain = clean(controlled(webui, prompt, *units))
    assert clean(controlled(webui, prompt, units[0] | {"fuser": "none"}, units[1])).pictures == plain.pictures
    told = controlled(webui, prompt, units[0], units[1] | {"fuser": "nowhere"})
    assert "the fuser was left out: no adapter is called 'nowhere'" in told.problems and told.pictures == plain.pictures


def test_an_adapter_that_can_not_act_leaves_the_others_alone(webui):
    prompt = next(fresh)
    alone = controlled(webui, prompt, a_unit())
    beside = controlled(webui, prompt, a_unit("xl"), a_unit())
    assert beside.pictures == alone.pictures and "adapter 1 (xl)" in beside.problems


def test_the_infotext_says_what_was_done(webui):
    text = controlled(webui, next(fresh), a_unit(preprocessor="auto", weight=0.8, threshold_a=50, end=0.7)).parameters["Lyco adapter 1"]
    assert text == "adapter=canny one; preprocessor=canny; threshold_a=50.0; weight=0.8; end=0.7"


def test_the_control_map_comes_with_the_results_where_it_is_asked_for(webui):
    prompt = next(fresh)
    without, with_map = (controlled(webui, prompt, a_unit(save_map=wanted)) for wanted in (False, True))
    assert with_map.pictures[:-1] == without.pictures
    assert with_map.pictures[-1] == np.asarray(Image.open(io.BytesIO(base64.b64decode(a_map())))).tobytes()


@pytest.mark.webui
def test_a_program_in_the_unets_place_is_told(real_webui):
    prompt = next(fresh)
    real_webui.set_options(sd_unet="[probe] <b>plain</b>")
    try:
        assert "runs in the model's place, so adapters can't reach" in controlled(real_webui, prompt, a_unit()).problems
    finally:
        real_webui.set_options(sd_unet="None")
    clean(controlled(real_webui, prompt, a_unit()))


@pytest.mark.webui
def test_img2img_is_controlled_by_its_own_picture_where_none_is_given(real_webui):
    prompt = next(fresh)
    init = real_webui.picture("a red circle", seed=9)
    own = clean(controlled(real_webui, prompt, a_unit(preprocessor="invert", picture=None, save_map=True), init=init))
    assert own.pictures[-1] == bytes(255 - value for value in init.pictures[0])
    # img2img's encoder draws from torch's own random numbers, so that two of its pictures are a little different anyway.
    assert distance(real_webui.picture(prompt, init=init), replace(own, pictures=own.pictures[:1])) > CHANGED


@pytest.mark.webui
def test_only_masked_is_controlled_by_the_same_part_of_the_map(real_webui):
    prompt, init = next(fresh), real_webui.picture("a red circle", seed=9)
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[8:40, 24:56] = 255
    settings = {"init": init, "mask": base64.b64encode(_png(mask)).decode(), "inpaint_full_res": True, "inpaint_full_res_padding": 0, "mask_blur": 0,
                "inpainting_fill": 1}
    whole = clean(controlled(real_webui, prompt, a_unit(save_map=True), **settings))
    cut = np.asarray(Image.open(io.BytesIO(base64.b64decode(a_map()))))[8:40, 24:56]
    made = np.frombuffer(whole.pictures[-1], np.uint8).reshape(64, 64, 3)
    assert np.abs(made[::2, ::2].astype(int) - cut).mean() < 8


def test_send_to_img2img_hands_over_every_control_but_files(stand_in_webui):
    from lib_lycoris.prompt.unit_values import FIELDS
    from lib_lycoris.webui.adapter_script import make_script

    def draw(tab, size):
        units = [{name: f"{tab} {number} {name}" for name in FIELDS} for number in (1, 2, 3)]
        return SimpleNamespace(units=units, rest=[{"colours": object(), "told": object()}] * 3, controls=[], fuser=f"{tab} fuser")

    def sent(tab):  # as the host looks for them
        script = make_script(None, draw, dict)()
        script.ui(tab == "img2img")
        return [component for component, name in script.infotext_fields if name in script.paste_field_names]

    assert sent("txt2img") == [f"txt2img {number} {name}" for number in (1, 2, 3) for name in FIELDS if name != "pictures"] + ["txt2img fuser"]
    source, target = make_script(None, draw, dict)(), make_script(None, draw, dict)()
    source.ui(False)
    target.ui(True)
    found = [component for component, name in target.infotext_fields if name in source.paste_field_names]
    assert found == [each.replace("txt2img", "img2img") for each in sent("txt2img")]


@pytest.mark.webui
def test_a_pasted_infotext_gives_the_same_picture(real_webui):
    prompt = next(fresh)
    unit = {"adapter": "canny one", "preprocessor": "palette", "palette": "#ff0000:2, #00ff00", "threshold_a": 7, "threshold_b": 16, "weight": 0.7, "end": 0.8}
    made = clean(controlled(real_webui, prompt, unit))
    assert 'palette=\\"#ff0000:2, #00ff00\\"' in made.infotext or "palette=#ff0000:2, #00ff00" in made.infotext
    assert real_webui.picture(prompt, infotext=made.infotext).pictures == made.pictures != real_webui.picture(prompt).pictures


@pytest.mark.webui
@pytest.mark.parametrize("size", [(72, 88), (104, 64)])
def test_sizes_that_are_multiples_of_8_alone(real_webui, size):
    prompt, settings = next(fresh), dict(zip(("width", "height"), size, strict=True))
    base, changed = real_webui.picture(prompt, **settings), clean(controlled(real_webui, prompt, a_unit(), **settings))
    assert distance(base, changed) > CHANGED and real_webui.picture(prompt, **settings).pictures == base.pictures


@pytest.mark.webui
def test_the_routes_list_adapters_and_make_maps(real_webui):
    listed = {row["name"]: row for row in real_webui.ask("/lycoris/v1/adapters")["adapters"]}
    assert {name for name, row in listed.items() if row["fits"]} - {"lyco-world-edges"} == {"canny one", "more/second"}
    assert listed["canny one"]["recommended"] == "canny" and "cut off" in listed["broken"]["problem"]
    made = real_webui.ask("/lycoris/v1/preprocess", {"picture": a_map(), "preprocessor": "invert", "width": 48, "height": 40})
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(made["map"]))))
    assert pixels.shape == (40, 48, 3) and set(np.unique(pixels)) == {0, 255}
    for wrong in ({"picture": "x", "preprocessor": "canny"}, {"preprocessor": "canny"}, {"picture": a_map(), "width": 9999}, {"picture": a_map(), "x": 1}):
        with pytest.raises(urllib.error.HTTPError) as refused:
            real_webui.ask("/lycoris/v1/preprocess", wrong)
        with refused.value as error:
            assert error.code == 400


def test_a_model_whose_blocks_do_not_run_is_told(stand_in_webui):
    import sys

    unet = sys.modules["modules.sd_models"].model_data.sd_model.model.diffusion_model
    unet.forward = lambda x, *rest, **named: 0.5 * x
    try:
        assert "did not act" in controlled(stand_in_webui, next(fresh), a_unit()).problems
        with pytest.raises(RuntimeError, match="did not act"):
            controlled(stand_in_webui, next(fresh), a_unit(strict=True))
        clean(controlled(stand_in_webui, next(fresh), a_unit(start=1.0)))
    finally:
        del unet.forward
    clean(controlled(stand_in_webui, next(fresh), a_unit()))


def test_the_hires_pass_makes_its_map_anew_from_the_picture_as_much_finer_as_it_is_larger(stand_in_webui, monkeypatch):
    from lib_lycoris.control import preparing

    made, make = [], preparing.make_map
    monkeypatch.setattr(preparing, "make_map", lambda unit, facts, picture, size: made.append((unit.processor_resolution, size, picture.shape)) or make(
        unit, facts, picture, size))
    settings = {"enable_hr": True, "denoising_strength": 0.7}
    large = a_map(height=256, width=256)
    clean(controlled(stand_in_webui, next(fresh), a_unit(picture=large, preprocessor="softedge", processor_resolution=48), **settings))
    (resolution, size, looked_at), (finer, larger, again) = made
    grown = min(larger) / min(size)
    assert resolution == 48 and finer == round(48 * grown) and grown > 1 and looked_at == again == (256, 256, 3)
    made.clear()
    clean(controlled(stand_in_webui, next(fresh), a_unit(picture=a_map(height=50, width=50), preprocessor="softedge", processor_resolution=48), **settings))
    assert [resolution for resolution, _, _ in made] == [48, min(50, finer)]


def test_nothing_stays_on_where_another_keeps_our_stand_in_for_sample_of_an_earlier_run(stand_in_webui, monkeypatch):
    """As ControlNet does it, which comes after us, where a script makes several runs with one picture in work."""
    from modules import processing, scripts

    class Keeping(scripts.Script):
        def process(self, p, *args):
            if not hasattr(p, "sample_of_before"):
                p.sample_of_before = p.sample
            p.sample = lambda *values: p.sample_of_before(*values)

    prompt, run, script = next(fresh), processing.process_images, Keeping()
    base, wanted = stand_in_webui.picture(prompt), controlled(stand_in_webui, prompt, a_unit())
    stand_in_webui._scripts.append(script)
    monkeypatch.setattr(processing, "process_images", lambda p: (run(p), run(p), run(p))[-1])
    try:
        made = clean(controlled(stand_in_webui, prompt, a_unit()))
        assert "needs a picture" in controlled(stand_in_webui, prompt, a_unit(picture=None)).problems
    finally:
        stand_in_webui._scripts.remove(script)
    assert made.pictures == wanted.pictures and stand_in_webui.model()["hooks"] == {}
    monkeypatch.undo()
    assert stand_in_webui.picture(prompt).pictures == base.pictures


def test_a_style_adapter_needs_clips_encoder_and_acts_with_it(stand_in_webui, monkeypatch):
    import torch
    from safetensors.torch import save_file

    from lib_lycoris.control import seeing
    from lib_lycoris.library.adapters import write_adapter
    from lib_lycoris.networks.adapters.style import StyleAdapter
    from lib_lycoris.networks.clip_vision import ClipVision

    monkeypatch.setattr(seeing, "WIDTH", 128)
    models, prompt = stand_in_webui.networks.parent, next(fresh)
    torch.manual_seed(8)
    write_adapter(models / "T2I-Adapter" / "some style.safetensors", StyleAdapter(width=128, context=16, layers=1, tokens=4))
    base, unit = stand_in_webui.picture(prompt, negative_prompt="bad"), a_unit("some style")
    told = controlled(stand_in_webui, prompt, unit, negative_prompt="bad")
    assert "needs CLIP's picture encoder" in told.problems and told.pictures == base.pictures
    encoder = ClipVision(128, 1, 14, 28, 64)
    values = {name: 0.1 * torch.randn(tensor.shape) for name, tensor in encoder.state_dict().items()}
    (models / "CLIP-vision").mkdir()
    save_file({f"vision_model.{name}": tensor for name, tensor in values.items()}, str(models / "CLIP-vision" / "model.safetensors"))
    for more in ({}, {"sampler_name": "Heun"}, {"batch_size": 2}):
        settings = {"negative_prompt": "bad", **more}
        styled = clean(controlled(stand_in_webui, prompt, unit, **settings))
        assert distance(styled, stand_in_webui.picture(prompt, **settings)) > 0
        beside = clean(controlled(stand_in_webui, prompt, unit, a_unit(), **settings))
        assert beside.pictures != styled.pictures
    assert stand_in_webui.picture(prompt, negative_prompt="bad").pictures == base.pictures


def test_words_of_a_style_adapter_go_behind_prompts_of_any_length(stand_in_webui):
    """Each row of the positive side gets its picture's words, the negative one its own last vectors; the host's conds stay as they were."""
    from types import SimpleNamespace

    import torch

    from lib_lycoris.webui.adapter_texts import extend_texts

    class Words:
        def extend(self, text, rows):
            return torch.cat([text, torch.tensor([[[float(picture), float(negative)]] for picture, negative in rows])], dim=1)

    for wrapped in (False, True):
        cond, uncond = torch.zeros(3, 154, 2), torch.ones(2, 77, 2)
        params = SimpleNamespace(text_cond={"crossattn": cond, "vector": 1} if wrapped else cond, text_uncond={"crossattn": uncond} if wrapped else uncond)
        held = params.text_cond
        extend_texts(params, Words(), [(0, False), (0, False), (1, False), (0, True), (1, True)])
        longer, other = ((params.text_cond["crossattn"], params.text_uncond["crossattn"]) if wrapped else (params.text_cond, params.text_uncond))
        assert longer[:, -1].tolist() == [[0, 0], [0, 0], [1, 0]] and other[:, -1].tolist() == [[0, 1], [1, 1]]
        assert longer.shape[1] == 155 and other.shape[1] == 78
        assert (held["crossattn"] if wrapped else held) is cond and cond.shape[1] == 154


def _png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
