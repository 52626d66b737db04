"""Ours and the built-in extension's networks on the same layers: the base weight, and random sequences of both."""

from __future__ import annotations

import random

import pytest

from .reply import distance
from .test_pictures import CHANGED, HIRES, ROUNDING, fresh


@pytest.mark.parametrize("on", ["", ":on=cond"])
def test_a_network_that_depends_on_the_weight_acts_on_the_weight_without_any_network(webui, on):
    prompt, settings = next(fresh), {"cfg_scale": 1}  # where on=cond is the whole
    alone, mixed = (webui.picture(f"{prompt} <lyco:I:1{on}>{tag}", **settings) for tag in ("", " <lora:A:1>"))
    assert not alone.comments and distance(alone, webui.picture(prompt, **settings)) > CHANGED < distance(mixed, alone)
    assert distance(mixed, webui.picture(f"{prompt} <lyco:I:1> <lyco:A:1>", **settings)) <= ROUNDING
    assert webui.picture(f"{prompt} <lora:A:1> <lyco:I:1{on}>", **settings).pictures == mixed.pictures
    assert webui.picture(f"{prompt} <lyco:I:1{on}>", **settings).pictures == alone.pictures


@pytest.mark.webui
def test_the_built_in_has_it_act_on_what_other_networks_left(real_webui):
    prompt = next(fresh)
    alone = [real_webui.picture(f"{prompt} <{tag}:I:1>") for tag in ("lyco", "lora")]
    assert distance(*alone) <= ROUNDING
    mixed = [real_webui.picture(f"{prompt} <lora:A:1> <{tag}:I:1>") for tag in ("lyco", "lora")]
    assert distance(*mixed) > ROUNDING  # if not, the test above shows nothing


TAGS = ["<lyco:A:1>", "<lyco:A:0.5:1>", "<lyco:B:-0.7>", "<lyco:I:0.5>", "<lora:A:0.6>", "<lora:B:1>", "<lora:B:1:0.2>", "<lyco:A:0.4:on=cond>",
        "<lyco:B:unet=0@0,1@1>", "<lyco:A:te=1@0,0@1:unet=0.3>", "<lyco:I:0.3:stop=3>", "<lyco:elsewhere:1>", "<lyco:missing:1>", "<lyco:A:loud>",
        "<lyco:B:1:hr=0.3>"]
NEGATIVE = ["", "", "<lyco:A:1>", "<lyco:B:0.4:on=all>", "<lyco:I:0:0.4>", "<lyco:broken:1>"]
SETTINGS = [{}, {}, {"sampler_name": "Heun"}, {"batch_size": 2}, HIRES]


@pytest.mark.parametrize("seed", range(3))
def test_after_any_sequence_each_state_gives_its_first_picture_and_the_model_is_the_hosts_own(webui, seed):
    choice, prompt = random.Random(seed), next(fresh)
    webui.picture(next(fresh))
    clean, base = webui.model(), webui.picture(prompt)
    states = [(" ".join(choice.sample(TAGS, choice.randint(0, 3))), choice.choice(NEGATIVE), choice.randrange(len(SETTINGS))) for _ in range(6)]
    first = {}
    for state in choice.choices(states, k=14):
        tags, against, number = state
        if choice.random() < 0.2:
            webui.break_at(1, choice.choice(["interrupt", "interrupt in a layer"]), "unet.middle_block.1.transformer_blocks.0.attn1.to_q")
            webui.picture(f"{prompt} {tags}", negative_prompt=against, **SETTINGS[number])
        made = webui.picture(f"{prompt} {tags}", negative_prompt=against, **SETTINGS[number]).pictures
        assert first.setdefault(state, made) == made, state
        if choice.random() < 0.3:
            assert webui.picture(prompt).pictures == base.pictures, state
    webui.picture(next(fresh))
    assert webui.model() == clean
    assert webui.picture(prompt).pictures == base.pictures
