"""`<lyco:…>` in pictures: what it does, what it leaves behind, and what it says."""

from __future__ import annotations

import itertools
import random

import pytest

from .reply import distance

ROUNDING = 2
"""Steps of 256 by which two pictures may differ that were computed in another order of additions."""
CHANGED = 5
"""Steps of 256 by which a picture differs at least at one place when a network acts."""
fresh = map("a shape {}".format, itertools.count())
"""Prompts that no test has used: the host keeps encoded prompts."""


def test_a_tag_changes_the_picture_and_without_it_the_base_picture_comes_back_bit_for_bit(webui):
    base = webui.picture("a red circle")
    changed = webui.picture("a red circle <lyco:A:1>")
    assert distance(base, changed) > CHANGED
    assert not changed.comments and not changed.problems
    assert webui.picture("a red circle").pictures == base.pictures
    assert webui.picture("a red circle <lyco:A:1>").pictures == changed.pictures


def test_the_text_encoder_and_the_unet_have_their_own_strengths(webui):
    prompt = next(fresh)
    base, both = webui.picture(prompt), webui.picture(f"{prompt} <lyco:A:1>")
    te, unet = webui.picture(f"{prompt} <lyco:A:1:0>"), webui.picture(f"{prompt} <lyco:A:0:1>")
    for one, other in itertools.combinations((base, both, te, unet), 2):
        assert distance(one, other) > ROUNDING
    assert webui.picture(f"{prompt} <lyco:A:te=1:unet=0>").pictures == te.pictures
    assert webui.picture(f"{prompt} <lyco:A:0:0>").pictures == base.pictures


@pytest.mark.parametrize("arguments", ["A:1", "A:0.5", "A:1:0", "A:0.4:1", "A:-0.6", "B:1", "B:0.3"])
def test_a_picture_is_that_of_the_built_in_extension_up_to_rounding(webui, arguments):
    prompt = next(fresh)
    ours, theirs = webui.picture(f"{prompt} <lyco:{arguments}>"), webui.picture(f"{prompt} <lora:{arguments}>")
    assert distance(ours, webui.picture(prompt)) > ROUNDING
    assert distance(ours, theirs) <= ROUNDING


def test_our_network_and_the_built_ins_add_up_in_any_order(webui):
    prompt = next(fresh)
    theirs = webui.picture(f"{prompt} <lora:A:0.8> <lora:B:0.5>")
    mixed = webui.picture(f"{prompt} <lyco:A:0.8> <lora:B:0.5>")
    assert distance(mixed, webui.picture(prompt)) > CHANGED
    assert distance(mixed, theirs) <= ROUNDING
    assert webui.picture(f"{prompt} <lora:B:0.5> <lyco:A:0.8>").pictures == mixed.pictures
    assert distance(webui.picture(f"{prompt} <lora:A:0.8> <lyco:B:0.5>"), theirs) <= ROUNDING
    assert distance(webui.picture(f"{prompt} <lyco:A:0.8> <lyco:B:0.5>"), theirs) <= ROUNDING


def test_the_built_ins_functional_mode_runs_beside_ours(webui):
    prompt = next(fresh)
    base, merged = webui.picture(prompt), webui.picture(f"{prompt} <lyco:A:0.8> <lora:B:0.5>")
    webui.set_options(lora_functional=True)
    try:
        functional = webui.picture(f"{prompt} <lyco:A:0.8> <lora:B:0.5>")
        assert distance(functional, merged) <= ROUNDING
        assert webui.picture(f"{prompt} <lora:B:0.5> <lyco:A:0.8>").pictures == functional.pictures
        assert webui.picture(prompt).pictures == base.pictures
    finally:
        webui.set_options(lora_functional=False)
    assert webui.picture(f"{prompt} <lyco:A:0.8> <lora:B:0.5>").pictures == merged.pictures
    assert webui.picture(prompt).pictures == base.pictures


@pytest.mark.parametrize("seed", range(2))
def test_after_any_sequence_of_switches_each_state_gives_its_first_picture_again(webui, seed):
    prompt, choice = next(fresh), random.Random(seed)
    tags = ["<lyco:A:1>", "<lyco:A:0.5:1>", "<lyco:B:0.7>", "<lora:A:0.6>", "<lora:B:1>", "<lora:B:1:0.2>", "<lyco:elsewhere:1>", "<lyco:missing:1>"]
    states = ["", *(" ".join(choice.sample(tags, choice.randint(1, 3))) for _ in range(7))]
    before = webui.picture(prompt)
    first = {}
    for state in [*states, *choice.choices(states, k=12), ""]:
        pictures = webui.picture(f"{prompt} {state}").pictures
        assert first.setdefault(state, pictures) == pictures, state
    assert first[""] == before.pictures


def test_a_batch_and_several_batches_are_the_single_pictures(webui):
    prompt = next(fresh) + " <lyco:A:1>"
    batches = webui.picture(prompt, n_iter=2, batch_size=2)
    again = webui.picture(prompt, n_iter=2, batch_size=2)
    assert len(set(batches.pictures)) == len(batches.pictures)
    assert batches.pictures == again.pictures
    single = webui.picture(prompt, seed=1)
    grid = len(batches.pictures) - 4
    assert max(abs(a - b) for a, b in zip(batches.pictures[grid], single.pictures[0], strict=True)) <= ROUNDING


def test_img2img_takes_tags(webui):
    prompt = next(fresh)
    start = webui.picture(prompt)
    base = webui.picture(prompt, init=start)
    changed = webui.picture(f"{prompt} <lyco:B:1>", init=start)
    assert distance(base, changed) > CHANGED
    assert distance(changed, webui.picture(f"{prompt} <lora:B:1>", init=start)) <= ROUNDING
    assert distance(webui.picture(prompt, init=start), base) <= ROUNDING  # the host's encoder of pictures draws noise that no seed sets


HIRES = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "hr_second_pass_steps": 2, "denoising_strength": 0.7}


def test_the_hires_pass_takes_the_tags_of_its_own_prompt(webui):
    prompt = next(fresh)
    base = webui.picture(prompt, **HIRES)
    everywhere = webui.picture(f"{prompt} <lyco:B:1>", **HIRES)
    second = webui.picture(prompt, hr_prompt=f"{prompt} <lyco:B:1>", **HIRES)
    assert webui.model()["hooks"] == {}
    first = webui.picture(f"{prompt} <lyco:B:1>", hr_prompt=prompt, **HIRES)
    for one, other in itertools.combinations((base, everywhere, second, first), 2):
        assert distance(one, other) > ROUNDING
    assert distance(everywhere, webui.picture(f"{prompt} <lora:B:1>", **HIRES)) <= ROUNDING
    assert distance(second, webui.picture(prompt, hr_prompt=f"{prompt} <lora:B:1>", **HIRES)) <= ROUNDING
    assert webui.picture(prompt, **HIRES).pictures == base.pictures


def test_the_hires_pass_of_both_kinds_leaves_nothing_behind(webui):
    prompt = next(fresh)
    base = webui.picture(prompt)
    webui.picture(f"{prompt} <lora:A:1>", hr_prompt=f"{prompt} <lyco:A:0.5> <lora:B:1>", **HIRES)
    assert webui.picture(prompt).pictures == base.pictures


@pytest.mark.parametrize("other", ["same_config", "own_config"])
@pytest.mark.parametrize("limit", [1, 2])
def test_a_checkpoint_switch_and_back_gives_each_checkpoint_its_own_pictures(webui, other, limit):
    webui.set_options(sd_checkpoints_limit=limit)
    try:
        prompts = [next(fresh), f"{next(fresh)} <lyco:A:1>", f"{next(fresh)} <lyco:A:0.5> <lora:B:1>"]
        seen = {}
        for checkpoint in (webui.base, getattr(webui, other), webui.base, getattr(webui, other), webui.base):
            for prompt in prompts:
                pictures = webui.picture(prompt, checkpoint=checkpoint).pictures
                assert seen.setdefault((checkpoint, prompt), pictures) == pictures
        assert len({tuple(pictures) for pictures in seen.values()}) == len(seen)
    finally:
        webui.set_options(sd_checkpoints_limit=1)
        webui.picture("", checkpoint=webui.base)


@pytest.mark.parametrize("other", ["same_config", "own_config"])
def test_a_refiner_leaves_nothing_behind_and_repeats_itself(webui, other):
    prompt = next(fresh)
    refine = {"refiner_checkpoint": getattr(webui, other), "refiner_switch_at": 0.5}
    base, plain = webui.picture(prompt), webui.picture(prompt, **refine)
    changed = webui.picture(f"{prompt} <lyco:B:1>", **refine)
    assert len({tuple(reply.pictures) for reply in (base, plain, changed)}) == 3
    assert webui.picture(f"{prompt} <lyco:B:1>", **refine).pictures == changed.pictures
    assert webui.picture(prompt).pictures == base.pictures
    assert webui.picture(prompt, **refine).pictures == plain.pictures


@pytest.mark.parametrize("other", ["same_config", "own_config"])
@pytest.mark.parametrize("limit", [1, 2])
def test_networks_act_on_a_refiners_unet_whichever_way_it_was_loaded(webui, other, limit):
    prompt, refiner = next(fresh), getattr(webui, other)
    plain, alone = (webui.picture(f"{prompt} {tag}", checkpoint=refiner) for tag in ("", "<lyco:B:1>"))
    webui.picture("", checkpoint=webui.base)
    webui.set_options(sd_checkpoints_limit=limit)
    try:
        for _ in range(2):
            refined = webui.picture(f"{prompt} <lyco:B:1>", refiner_checkpoint=refiner, refiner_switch_at=0)
            assert distance(refined, alone) <= ROUNDING < CHANGED < distance(plain, alone)
    finally:
        webui.set_options(sd_checkpoints_limit=1)
        webui.picture("", checkpoint=webui.base)


def test_a_hires_checkpoint_gets_the_networks_and_is_left_clean(webui):
    prompt = next(fresh)
    settings = HIRES | {"hr_checkpoint_name": webui.own_config}
    base, plain = webui.picture(prompt), webui.picture(prompt, **settings)
    changed = webui.picture(f"{prompt} <lyco:B:1>", **settings)
    assert distance(plain, changed) > ROUNDING
    assert distance(changed, webui.picture(f"{prompt} <lora:B:1>", **settings)) <= ROUNDING
    assert webui.picture(prompt).pictures == base.pictures
    assert webui.picture(prompt, **settings).pictures == plain.pictures


BREAKS = [("interrupt", ""), ("exception", "unet.middle_block.1.transformer_blocks.0.attn1.to_q"), ("exception", "unet.middle_block.1"),
          ("interrupt in a layer", "unet.middle_block.0.in_layers.2"),
          ("interrupt in a layer", "unet.middle_block.1.transformer_blocks.0.attn2.to_k")]


@pytest.mark.parametrize(("what", "layer"), BREAKS)
@pytest.mark.parametrize("tags", ["<lyco:A:1> <lyco:B:1>", "<lora:B:1> <lyco:A:0.7>"])
def test_after_a_break_in_the_middle_the_pictures_are_as_before(webui, what, layer, tags):
    prompt = next(fresh)
    base, whole = webui.picture(prompt), webui.picture(f"{prompt} {tags}")
    webui.picture(next(fresh))
    clean = webui.model()
    webui.break_at(1, what, layer)
    if what == "exception":
        webui.failing_picture(f"{prompt} {tags}")
    else:
        assert webui.picture(f"{prompt} {tags}").pictures != whole.pictures
    assert webui.picture(prompt).pictures == base.pictures
    assert webui.picture(f"{prompt} {tags}").pictures == whole.pictures
    webui.picture(next(fresh))
    assert webui.model() == clean


def test_a_skip_ends_one_batch_alone(webui):
    prompt = next(fresh)
    base, whole = webui.picture(prompt), webui.picture(f"{prompt} <lyco:A:1> <lyco:B:unet=0@0,1@1>", n_iter=2)
    webui.break_at(1, "skip")
    skipped = webui.picture(f"{prompt} <lyco:A:1> <lyco:B:unet=0@0,1@1>", n_iter=2)
    assert skipped.pictures[-1] == whole.pictures[-1]
    assert skipped.pictures[-2] != whole.pictures[-2]
    assert webui.picture(prompt).pictures == base.pictures


def test_after_an_exception_no_hook_stays_even_before_the_next_picture(webui):
    webui.picture(next(fresh))
    webui.break_at(1, "exception", "unet.middle_block.1")
    webui.failing_picture(f"{next(fresh)} <lyco:A:1>")
    assert webui.model()["hooks"] == {}


def test_between_pictures_the_model_is_the_hosts_own_bit_for_bit(webui):
    webui.picture(next(fresh))
    clean = webui.model()
    assert clean["hooks"] == {}
    webui.picture(f"{next(fresh)} <lyco:A:1> <lyco:B:0.5>")
    assert webui.model() == clean


def test_the_empty_prompt_that_the_host_encodes_after_a_load_knows_no_network(webui):
    webui.picture(next(fresh))
    clean = webui.empty_cond()
    webui.break_at(1, "exception", "unet.middle_block.1")
    webui.failing_picture(f"{next(fresh)} <lyco:A:1>")
    assert webui.empty_cond() == clean


def test_an_unknown_name_is_told_and_the_picture_is_made(webui):
    prompt = next(fresh)
    reply = webui.picture(f"{prompt} <lyco:nowhere:1>")
    assert reply.pictures == webui.picture(prompt).pictures
    assert len(reply.comments) == 1 and "nowhere" in reply.comments[0]
    assert reply.problems == reply.comments[0]
    assert "Lyco problems" not in reply.infotext


@pytest.mark.parametrize("tag", ["<lyco:A:loud>", "<lyco:A:1:2:3:4:5>", "<lyco:A:volume=3>", "<lyco:A:nan>"])
def test_a_bad_argument_stops_its_tag_alone(webui, tag):
    prompt = next(fresh)
    alone, both = webui.picture(f"{prompt} {tag}"), webui.picture(f"{prompt} {tag} <lyco:B:1>")
    assert alone.pictures == webui.picture(prompt).pictures
    assert both.pictures == webui.picture(f"{prompt} <lyco:B:1>").pictures
    assert len(alone.comments) == len(both.comments) == 1
    assert "A" in alone.comments[0]


def test_layers_without_a_home_are_counted_under_the_picture(webui):
    prompt = next(fresh)
    reply = webui.picture(f"{prompt} <lyco:elsewhere:1>")
    assert distance(reply, webui.picture(prompt)) > 0
    assert len(reply.comments) == 1
    assert "elsewhere" in reply.comments[0] and "9 of 10" in reply.comments[0] and "this file is for SDXL" in reply.comments[0]


def test_what_a_tag_says_is_told_in_one_line_of_printable_text(webui):
    reply = webui.picture(f"{next(fresh)} <lyco:<img src=x onerror=1\u202e\nx:1>")
    assert len(reply.comments) == 1 and all(letter.isprintable() for letter in reply.comments[0])


def test_a_damaged_file_is_told_and_the_picture_is_made(webui):
    prompt = next(fresh)
    reply = webui.picture(f"{prompt} <lyco:broken:1> <lyco:B:1>")
    assert reply.pictures == webui.picture(f"{prompt} <lyco:B:1>").pictures
    assert len(reply.comments) == 1 and "broken" in reply.comments[0]


def test_problems_are_told_once_for_several_batches_and_passes(webui):
    reply = webui.picture(f"{next(fresh)} <lyco:nowhere:1>", n_iter=2, **HIRES)
    assert len(reply.comments) == 1


def test_hashes_stand_in_the_parameters_like_the_built_ins(webui):
    prompt = next(fresh)
    ours, theirs = webui.picture(f"{prompt} <lyco:A:1> <lyco:B:1>"), webui.picture(f"{prompt} <lora:A:1> <lora:B:1>")
    assert ours.parameters["Lyco hashes"] == theirs.parameters["Lora hashes"]
    assert f'Lyco hashes: "{ours.parameters["Lyco hashes"]}"' in ours.infotext
    assert "Lyco hashes" not in webui.picture(prompt).parameters


def test_a_file_that_changed_counts_from_the_next_picture_on(webui):
    from .network_files import write_network

    prompt = next(fresh) + " <lyco:late:1:0>"
    before = webui.picture(prompt)
    assert "late" in before.comments[0]
    path = webui.networks / "late.safetensors"
    try:
        write_network(path, webui.shapes, seed=21)
        first = webui.picture(prompt)
        assert not first.comments
        write_network(path, webui.shapes, seed=22)
        second = webui.picture(prompt)
    finally:
        path.unlink()
    assert len({tuple(reply.pictures) for reply in (before, first, second)}) == 3
