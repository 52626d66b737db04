"""The hires pass and the refiner: strengths of their own, and their text encoders."""

from __future__ import annotations

import pytest

from .reply import distance
from .test_pictures import CHANGED, HIRES, ROUNDING, fresh


@pytest.mark.parametrize(("arguments", "later"), [("1:hr=0", "0"), ("1:hr=0.4", "0.4"), ("1:hrte=0", "0:1"), ("0.5:1:hrunet=0", "0.5:0"),
                                                 ("0:0:hrte=1:hrunet=0.5", "1:0.5")])
def test_strengths_of_the_hires_pass_are_those_of_a_tag_in_its_prompt(webui, arguments, later):
    prompt, first = next(fresh), arguments.split(":hr")[0]
    made = webui.picture(f"{prompt} <lyco:A:{arguments}>", **HIRES)
    wanted = webui.picture(f"{prompt} <lyco:A:{first}>", hr_prompt=f"{prompt} <lyco:A:{later}>", **HIRES)
    assert distance(made, wanted) <= ROUNDING
    assert distance(made, webui.picture(f"{prompt} <lyco:A:{first}>", **HIRES)) > ROUNDING
    assert not made.comments


def test_negative_tags_of_the_hires_pass_act_there(webui):
    prompt, against = next(fresh), next(fresh)
    base = webui.picture(prompt, negative_prompt=against, **HIRES)
    made = webui.picture(prompt, negative_prompt=against, hr_negative_prompt=f"{against} <lyco:A:1>", **HIRES)
    other = webui.picture(prompt, negative_prompt=f"{against} <lyco:A:hr=1>".replace(":hr=1", ":0:hr=1"), **HIRES)
    assert distance(made, base) > CHANGED
    assert distance(made, other) <= ROUNDING
    assert webui.picture(prompt, negative_prompt=against, **HIRES).pictures == base.pictures


def test_a_schedule_of_the_hires_pass_counts_its_own_steps(webui):
    prompt = next(fresh)
    settings = HIRES | {"hr_second_pass_steps": 4}
    made = webui.picture(f"{prompt} <lyco:B:0:hrunet=1@0,0@3>", **settings)
    wanted = webui.picture(prompt, hr_prompt=f"{prompt} <lyco:B:0:unet=1@0,0@3>", **settings)
    assert distance(made, wanted) <= ROUNDING
    assert distance(made, webui.picture(prompt, **settings)) > ROUNDING


def test_the_hires_pass_may_use_the_networks_of_the_first_for_its_text(webui):
    prompt = next(fresh)
    webui.set_options(hires_fix_use_firstpass_conds=True)
    try:
        ours = webui.picture(f"{prompt} <lyco:A:3:0>", hr_prompt=prompt, **HIRES)
        same = webui.picture(f"{prompt} <lyco:A:3:0>", hr_prompt=prompt, **HIRES)
    finally:
        webui.set_options(hires_fix_use_firstpass_conds=False)
    assert same.pictures == ours.pictures
    assert distance(ours, webui.picture(f"{prompt} <lyco:A:3:0>", **HIRES)) <= ROUNDING
    assert distance(ours, webui.picture(f"{prompt} <lyco:A:3:0>", hr_prompt=prompt, **HIRES)) > ROUNDING


@pytest.mark.parametrize("other", ["same_config", "own_config"])
@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("tag", ["<lyco:A:1>", "<lyco:A:3:0>", "<lyco:A:1:on=cond>"])
def test_networks_act_on_a_refiners_text_encoder_and_unet(webui, other, limit, tag):
    prompt, refiner = next(fresh), getattr(webui, other)
    plain, alone = (webui.picture(f"{prompt} {each}", checkpoint=refiner) for each in ("", tag))
    webui.picture("", checkpoint=webui.base)
    webui.set_options(sd_checkpoints_limit=limit)
    try:
        for _ in range(2):
            refined = webui.picture(f"{prompt} {tag}", refiner_checkpoint=refiner, refiner_switch_at=0)
            assert distance(refined, alone) <= ROUNDING < distance(plain, alone)
    finally:
        webui.set_options(sd_checkpoints_limit=1)
        webui.picture("", checkpoint=webui.base)


@pytest.mark.parametrize("other", ["same_config", "own_config"])
def test_a_refiner_has_its_own_strength(webui, other):
    prompt = next(fresh)
    refine = {"refiner_checkpoint": getattr(webui, other), "refiner_switch_at": 0}
    none, whole = (webui.picture(f"{prompt} <lyco:B:0:{strength}>", **refine) for strength in (0, 1))
    assert distance(none, whole) > CHANGED
    assert distance(webui.picture(f"{prompt} <lyco:B:0:1:refiner=0>", **refine), none) <= ROUNDING
    assert distance(webui.picture(f"{prompt} <lyco:B:0:0:refiner=1>", **refine), whole) <= ROUNDING
    assert distance(webui.picture(f"{prompt} <lyco:B:0:1:refiner=0>"), webui.picture(f"{prompt} <lyco:B:0:1>")) <= ROUNDING


def test_a_refiner_in_a_batch_keeps_every_picture_its_networks(webui):
    from .test_rows import assert_same, batch, singles

    prompts = [f"{next(fresh)} <lyco:A:1>", next(fresh), f"{next(fresh)} <lyco:B:1>"]
    refine = {"refiner_checkpoint": webui.own_config, "refiner_switch_at": 0.5}
    assert_same(batch(webui, prompts, **refine), singles(webui, prompts, **refine))
