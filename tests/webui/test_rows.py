"""Per row: every picture of a batch has its own networks, negative prompts have theirs, and the host's ways to cut a batch into calls change nothing."""

from __future__ import annotations

import itertools

import pytest

from .reply import Reply, distance
from .test_pictures import CHANGED, HIRES, ROUNDING, fresh

LONG = " ".join(f"{colour} {shape}" for colour in ("red", "green", "blue", "white", "black", "grey") for shape in ("circle", "square", "ring") * 3)
"""More than the tokens that one chunk of any text encoder here takes."""


def batch(webui, positive: list[str], negative: list[str] | None = None, seed: int = 1, when: str = "process", **settings) -> list[Reply]:
    """One reply for each picture of a batch with these prompts; only the first has the comments."""
    webui.plan_prompts(positive, negative, when=when)
    whole = webui.picture("replaced", seed=seed, batch_size=len(positive), **settings)
    pictures = whole.pictures[-len(positive):]
    return [Reply([picture], whole.comments, whole.parameters, whole.infotext) for picture in pictures]


def singles(webui, positive: list[str], negative: list[str] | None = None, seed: int = 1, **settings) -> list[Reply]:
    """The same pictures, made one at a time."""
    pairs = zip(positive, negative or [""] * len(positive), strict=True)
    return [webui.picture(text, negative_prompt=against, seed=seed + number, **settings) for number, (text, against) in enumerate(pairs)]


def assert_same(made: list[Reply], wanted: list[Reply], within: int = ROUNDING) -> None:
    """Picture by picture the same up to rounding."""
    assert len(made) == len(wanted)
    assert [number for number, pair in enumerate(zip(made, wanted, strict=True)) if distance(*pair) > within] == []


@pytest.mark.parametrize("when", ["process", "batch"])
def test_every_picture_of_a_batch_has_its_own_networks_and_strengths(webui, when):
    prompts = [f"{next(fresh)} {tag}" for tag in ("<lyco:A:1>", "", "<lyco:B:0.7>", "<lyco:A:-0.5> <lyco:B:1>")]
    plain = singles(webui, [prompt.split(" <")[0] for prompt in prompts])
    wanted = singles(webui, prompts)
    made = batch(webui, prompts, when=when)
    assert_same(made, wanted)
    assert min(distance(made[number], plain[number]) for number in (0, 2, 3)) > CHANGED
    assert not made[0].comments
    assert_same(batch(webui, [prompt.split(" <")[0] for prompt in prompts]), plain)
    assert webui.model()["hooks"] == {}


def test_networks_of_a_later_picture_alone_are_found_too(webui):
    prompts = [next(fresh), f"{next(fresh)} <lyco:A:1>"]
    assert_same(batch(webui, prompts), singles(webui, prompts))
    assert_same(batch(webui, prompts[::-1]), singles(webui, prompts[::-1]))


def test_several_batches_have_their_own_prompts(webui):
    prompts = [f"{next(fresh)} {tag}" for tag in ("", "<lyco:A:1>", "<lyco:B:1>", "<lyco:A:0.5>")]
    webui.plan_prompts(prompts)
    whole = webui.picture("replaced", batch_size=2, n_iter=2)
    assert_same([Reply([picture], [], {}, "") for picture in whole.pictures[-4:]], singles(webui, prompts))


@pytest.mark.parametrize("sampler", ["Euler", "Heun"])
def test_a_tag_in_the_negative_prompt_acts_on_the_negative_rows_alone(webui, sampler):
    prompt, against = next(fresh), next(fresh)
    base = webui.picture(prompt, negative_prompt=against, sampler_name=sampler)
    made = webui.picture(prompt, negative_prompt=f"{against} <lyco:A:1>", sampler_name=sampler)
    assert distance(made, base) > CHANGED and not made.comments
    # at a guidance of 1 only the positive rows count, at 0 only the negative ones
    one, other = (webui.picture(prompt, negative_prompt=f"{against}{tag}", cfg_scale=1, sampler_name=sampler) for tag in ("", " <lyco:A:1>"))
    assert distance(one, other) <= ROUNDING
    negative = webui.picture(prompt, negative_prompt=f"{against} <lyco:A:1>", cfg_scale=0, sampler_name=sampler)
    assert distance(negative, webui.picture(f"{against} <lyco:A:1>", cfg_scale=1, sampler_name=sampler)) <= ROUNDING
    assert webui.picture(prompt, negative_prompt=against, sampler_name=sampler).pictures == base.pictures


def test_on_cond_spares_the_negative_rows(webui):
    prompt, against = next(fresh), next(fresh)
    full, cond = (webui.picture(f"{prompt} <lyco:A:1{on}>", negative_prompt=against) for on in ("", ":on=cond"))
    assert distance(full, cond) > CHANGED
    one = [webui.picture(f"{prompt} <lyco:A:1{on}>", negative_prompt=against, cfg_scale=1) for on in ("", ":on=cond")]
    assert distance(*one) <= ROUNDING
    none = [webui.picture(f"{prompt}{tag}", negative_prompt=against, cfg_scale=0) for tag in ("", " <lyco:A:1:on=cond>")]
    assert distance(*none) <= ROUNDING


def test_every_picture_of_a_batch_has_its_own_negative_networks(webui):
    prompts = [f"{next(fresh)} <lyco:B:0.5>", next(fresh), next(fresh)]
    against = [next(fresh), f"{next(fresh)} <lyco:A:1>", f"{next(fresh)} <lyco:A:0.3:0> <lyco:B:0:1>"]
    assert_same(batch(webui, prompts, against), singles(webui, prompts, against))


def test_the_text_of_a_tag_in_the_negative_prompt_is_not_encoded_but_stands_in_the_parameters(webui):
    prompt, against = next(fresh), next(fresh)
    base = webui.picture(prompt, negative_prompt=against)
    nothing = webui.picture(prompt, negative_prompt=f"{against}<lyco:A:0>")
    assert nothing.pictures == base.pictures
    assert f"Negative prompt: {against}<lyco:A:0>" in nothing.infotext
    assert "A: " in webui.picture(prompt, negative_prompt=f"{against} <lyco:A:1>").parameters["Lyco hashes"]


def test_pictures_after_such_ones_are_bit_for_bit_as_before(webui):
    prompt, against = next(fresh), next(fresh)
    states = [("", ""), ("<lyco:A:1>", ""), ("<lyco:A:1:on=cond>", ""), ("", "<lyco:A:1>"), ("<lyco:A:1:on=cond>", "<lyco:A:1>"), ("<lora:A:1>", "")]
    seen = {}
    for tag, negative_tag in [*states, *itertools.chain(*zip(states[::-1], states, strict=True))]:
        made = webui.picture(f"{prompt} {tag}", negative_prompt=f"{against} {negative_tag}").pictures
        assert seen.setdefault((tag, negative_tag), made) == made, (tag, negative_tag)
    assert len({tuple(made) for made in seen.values()}) >= 4
    webui.picture(next(fresh))
    assert webui.model()["hooks"] == {}


@pytest.mark.parametrize("length", ["equal", "longer positive", "longer negative"])
def test_the_hosts_ways_to_cut_a_batch_change_nothing(webui, length):
    prompts = [f"{next(fresh)} {tag}" for tag in ("<lyco:A:1>", "<lyco:B:1>", "")]
    against = [f"{next(fresh)} {tag}" for tag in ("", "<lyco:A:0.7>", "<lyco:B:1>")]
    if length != "equal":
        longer = prompts if length == "longer positive" else against
        longer[:] = [f"{LONG} {text}" for text in longer]
    made = {}
    try:
        for whole in (True, False):
            webui.set_options(batch_cond_uncond=whole)
            made[whole] = batch(webui, prompts, against)
    finally:
        webui.set_options(batch_cond_uncond=True)
    assert_same(made[False], made[True])
    assert_same(made[True], singles(webui, prompts, against))


@pytest.mark.parametrize("whole", [True, False])
def test_where_the_host_leaves_the_negative_rows_out_their_networks_do_nothing(webui, whole):
    prompts, against = [next(fresh), f"{next(fresh)} <lyco:A:1:on=cond>"], next(fresh)
    webui.set_options(skip_early_cond=1.0, batch_cond_uncond=whole)
    try:
        made = batch(webui, prompts, [f"{against} <lyco:A:1>", f"{against} <lyco:B:1>"])
        wanted = singles(webui, [prompt.replace(":on=cond", "") for prompt in prompts], [against, against])
    finally:
        webui.set_options(skip_early_cond=0.0, batch_cond_uncond=True)
    assert_same(made, wanted)


@pytest.mark.parametrize("sampler", ["Euler", "Heun"])
def test_parts_of_a_prompt_share_its_networks(webui, sampler):
    prompts = [f"{next(fresh)} AND {next(fresh)} :0.5 <lyco:A:1>", next(fresh), f"{next(fresh)} <lyco:B:1> AND {next(fresh)} AND {next(fresh)} :0.3"]
    assert_same(batch(webui, prompts, sampler_name=sampler), singles(webui, prompts, sampler_name=sampler))
    assert distance(webui.picture(prompts[0]), webui.picture(prompts[0].replace("lyco:", "lora:"))) <= ROUNDING


def test_a_prompts_own_schedule_is_kept(webui):
    prompts = [f"a [{one}:{other}:2] thing {tag}" for one, other, tag in (("red", "blue", "<lyco:A:1>"), ("big", "small", ""))]
    assert_same(batch(webui, prompts), singles(webui, prompts))
    assert distance(webui.picture(prompts[0]), webui.picture(prompts[0].replace("lyco:", "lora:"))) <= ROUNDING
    cond = [webui.picture(prompts[0].replace(":1>", f":1{on}>"), cfg_scale=1) for on in ("", ":on=cond")]
    assert distance(*cond) <= ROUNDING


def test_img2img_batches_have_their_own_networks(webui):
    prompts, start = [f"{next(fresh)} <lyco:A:1>", next(fresh)], webui.picture(next(fresh))
    made = batch(webui, prompts, init=start)
    # neither with single pictures nor bit for bit: the host's encoder of pictures draws noise that no seed sets
    texts = [prompt.split(" <")[0] for prompt in prompts]
    everywhere, nowhere = (batch(webui, [f"{text} {tag}" for text in texts], init=start) for tag in ("<lora:A:1>", ""))
    for number, (wanted, other) in enumerate(((everywhere[0], nowhere[0]), (nowhere[1], everywhere[1]))):
        assert distance(made[number], wanted) < distance(made[number], other) / 2
        assert distance(made[number], other) > CHANGED


def test_the_hires_pass_of_a_batch_has_its_own_networks(webui):
    prompts = [f"{next(fresh)} <lyco:B:1>", next(fresh)]
    later, against = [next(fresh), f"{next(fresh)} <lyco:A:1>"], [f"{next(fresh)} <lyco:A:0.5>", next(fresh)]
    webui.plan_prompts(prompts, hr_positive=later, hr_negative=against)
    whole = webui.picture("replaced", batch_size=2, **HIRES)
    wanted = []
    for number in range(2):
        settings = HIRES | {"hr_prompt": later[number], "hr_negative_prompt": against[number], "seed": 1 + number}
        wanted.append(webui.picture(prompts[number], **settings))
    assert_same([Reply([picture], [], {}, "") for picture in whole.pictures[-2:]], wanted)


def test_without_extra_networks_a_negative_tag_is_no_text_either(webui):
    prompt, against = next(fresh), next(fresh)
    base = webui.picture(prompt, negative_prompt=against, disable_extra_networks=True)
    made = webui.picture(f"{prompt}<lyco:A:1>", negative_prompt=f"{against}<lyco:A:1>", disable_extra_networks=True)
    assert made.pictures == base.pictures


def test_a_problem_of_any_prompt_is_told_once(webui):
    made = batch(webui, [next(fresh), f"{next(fresh)} <lyco:nowhere:1>", f"{next(fresh)} <lyco:nowhere:1>"], ["", "<lyco:A:loud>", "<lyco:A:loud>"])
    assert len(made[0].comments) == 2
    assert sorted(word for word in ("nowhere", "loud") if any(word in comment for comment in made[0].comments)) == ["loud", "nowhere"]
