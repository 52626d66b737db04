"""Strengths that change over the sampling, held against the built-in extension turned step by step, and texts swapped step by step."""

from __future__ import annotations

import pytest

from .reply import distance
from .test_pictures import CHANGED, ROUNDING, fresh

STEPS = 6


def turned(webui, prompt: str, strengths: list[float], **settings):
    """The built-in's picture, its network's strength on the UNet set anew at every call of the denoiser."""
    webui.plan_turns(strengths=strengths)
    return webui.picture(prompt, **{"steps": STEPS, **settings})


@pytest.mark.parametrize(("argument", "strengths"), [
    ("0:unet=0@0,1@1", [step / 5 for step in range(STEPS)]),
    ("0:unet=1@0,0.2@3", [1, 1 - 0.8 / 3, 1 - 1.6 / 3, 0.2, 0.2, 0.2]),
    ("0:1:stop=3", [1, 1, 1, 0, 0, 0]),
    ("0:1:start=0.5", [0, 0, 0, 1, 1, 1]),
])
@pytest.mark.parametrize("sampler", ["Euler", "Heun"])
def test_a_schedule_on_the_unet_is_the_built_in_turned_at_every_step(webui, argument, strengths, sampler):
    prompt, calls = next(fresh), 2 if sampler == "Heun" else 1
    ours = webui.picture(f"{prompt} <lyco:A:{argument}>", steps=STEPS, sampler_name=sampler)
    theirs = turned(webui, f"{prompt} <lora:A:0:1>", [value for value in strengths for _ in range(calls)], sampler_name=sampler)
    assert distance(ours, theirs) <= ROUNDING
    assert distance(ours, webui.picture(f"{prompt} <lyco:A:0:1>", steps=STEPS, sampler_name=sampler)) > CHANGED
    assert not ours.comments


def test_a_schedule_in_img2img_counts_the_steps_that_are_run(webui):
    prompt, start = next(fresh), webui.picture(next(fresh))
    settings = {"steps": 10, "denoising_strength": 0.5, "init": start}  # six are run
    ours = webui.picture(f"{prompt} <lyco:A:0:unet=0@0,1@1>", **settings)
    assert distance(ours, turned(webui, f"{prompt} <lora:A:0:1>", [step / 5 for step in range(6)], **settings)) <= ROUNDING


@pytest.mark.parametrize("sampler", ["Euler", "Heun"])
def test_a_schedule_on_the_text_encoder_encodes_the_prompt_anew(webui, sampler):
    prompt, calls = next(fresh), 2 if sampler == "Heun" else 1
    settings = {"steps": STEPS, "sampler_name": sampler, "negative_prompt": next(fresh)}
    webui.plan_turns(keep="plain")
    plain = webui.picture(prompt, **settings)
    webui.plan_turns(texts={str(call): "plain" for call in range(3 * calls, STEPS * calls)})
    wanted = webui.picture(f"{prompt} <lora:A:3:0>", **settings)
    ours = webui.picture(f"{prompt} <lyco:A:3:0:stop=3>", **settings)
    assert distance(ours, wanted) <= ROUNDING < distance(plain, ours)
    assert webui.picture(prompt, **settings).pictures == plain.pictures
    assert webui.picture(f"{prompt} <lyco:A:3:0:stop=3>", **settings).pictures == ours.pictures


def test_a_text_schedule_meets_the_prompts_own(webui):
    prompt = "a [red:blue:4] " + next(fresh)
    webui.plan_turns(keep="plain")
    plain = webui.picture(prompt, steps=STEPS)
    webui.plan_turns(texts={str(call): "plain" for call in range(2, STEPS)})
    wanted = webui.picture(f"{prompt} <lora:A:3:0>", steps=STEPS)
    ours = webui.picture(f"{prompt} <lyco:A:3:0:stop=2>", steps=STEPS)
    assert distance(ours, wanted) <= ROUNDING < distance(plain, ours)


def test_a_schedule_that_never_changes_is_a_plain_strength(webui):
    prompt = next(fresh)
    assert distance(webui.picture(f"{prompt} <lyco:A:te=0.5@0,0.5@1:unet=1@0,1@1>"), webui.picture(f"{prompt} <lyco:A:0.5:1>")) <= ROUNDING


def test_after_schedules_the_model_is_the_hosts_own(webui):
    prompt = next(fresh)
    base = webui.picture(prompt)
    webui.picture(next(fresh))
    clean = webui.model()
    webui.picture(f"{prompt} <lyco:A:te=1@0,0@1:unet=0@0,1@1> <lora:B:1>", negative_prompt="<lyco:B:unet=1@0,0@1>")
    webui.picture(next(fresh))
    assert webui.model() == clean
    assert webui.picture(prompt).pictures == base.pictures
    webui.break_at(2, "exception", "unet.middle_block.1")
    webui.failing_picture(f"{prompt} <lyco:A:te=1@0,0@1:unet=0@0,1@1>")
    assert webui.model()["hooks"] == {}
    assert webui.picture(prompt).pictures == base.pictures
