"""Adapters in whole pictures of the studio: against a slow loop through diffusers' own arguments, and off again bit for bit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from lib_lycoris.control.preparing import Asked, Preparation
from lib_lycoris.errors import AdapterError, ConfigError
from lib_lycoris.library.adapters import AdapterShelf, open_adapter, write_adapter
from lib_lycoris.networks.adapters.full import FullAdapter
from lib_lycoris.networks.adapters.light import LightAdapter
from lib_lycoris.networks.adapters.style import StyleAdapter
from lib_lycoris.prompt.unit import Unit
from lib_lycoris.studio.conditioning import encode_prompt
from lib_lycoris.studio.generate import GenerateSettings, generate
from lib_lycoris.studio.noise import PictureNoise
from lib_lycoris.studio.schedule import NoiseLevels, alphas_cumprod, make_sigmas
from tests.networks import adapter_oracles as slow

PROMPT, NEGATIVE, SEED, STEPS, CFG = "a red circle", "blue dots", 5, 4, 3.0
CHANNELS = (32, 32, 64, 64)


@pytest.fixture
def shelf(tmp_path):
    def write(name, adapter, seed, **told):
        values = slow.random_tensors(adapter, seed)
        write_adapter(tmp_path / f"{name}.safetensors", adapter.fill(values), **told)

    write("edges", FullAdapter(channels=CHANNELS, in_channels=1), 0, base_model="sd_v1", preprocessor="canny")
    write("color", LightAdapter(channels=CHANNELS), 1, base_model="sd_v1")
    write("words", StyleAdapter(width=16, context=32, layers=1, tokens=3), 2, base_model="sd_v1")
    return AdapterShelf([tmp_path])


def picture(seed=0, height=64, width=64):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def see(given):
    return torch.from_numpy(np.resize(given, (1, 17, 16)).astype(np.float32) / 255)


def settings(**more):
    return GenerateSettings(**{"prompt": PROMPT, "negative": NEGATIVE, "width": 64, "height": 64, "steps": STEPS, "seed": SEED, "cfg": CFG,
                               "sampler": "Euler", **more})


def steps_of(model, shelf, units, **more):
    """For each step the pictures of the batch without noise."""
    seen = []
    made = generate(model, settings(**more), on_step=lambda step, count, denoised: seen.append(denoised.clone()), units=units,
                    preparation=Preparation(shelf, see))
    return seen, made


def features_of(shelf, name, given, weight=1.0):
    adapter = open_adapter(shelf.find(name))
    return [weight * feature for feature in adapter(torch.from_numpy(given).permute(2, 0, 1)[None] / 255)]


@torch.no_grad()
def check(model, denoised, features, size=(8, 8), number=0, words=None):
    """Compares each step's picture with Euler's method through the UNet's own arguments, one row at a time.

    Args:
        features: step → four maps, or None.
        words: what is behind the prompt.
    """
    levels = NoiseLevels(alphas_cumprod(model.betas))
    sigmas = make_sigmas(levels, "uniform", STEPS)
    x = PictureNoise([SEED + number], (4, *size), model.device).draw() * sigmas[0]
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        answers = []
        for text, negative in ((PROMPT, False), (NEGATIVE, True)):
            vectors = encode_prompt(model, text)
            if words is not None:
                vectors = torch.cat([vectors, vectors[:, -words.shape[1]:] if negative else words], dim=1)
            maps = features(step)
            more = {} if maps is None else {"down_intrablock_additional_residuals": [feature.clone() for feature in maps]}
            answers.append(model.unet(x / (sigma ** 2 + 1) ** 0.5, levels.sigma_to_t(sigma).expand(1), vectors, **more).sample)
        answer = (x - denoised[step][number:number + 1]) / sigma
        expected = answers[1] + CFG * (answers[0] - answers[1])
        assert ((answer - expected).norm() / expected.norm()).item() < 1e-3
        x = x + answer * (following - sigma)


def test_a_units_features_act_in_each_of_its_steps_on_both_prompts(model, shelf):
    unit = Unit(adapter="color", preprocessor="none", weight=0.8, start=0.25, end=0.75)
    found, made = steps_of(model, shelf, [Asked(unit, (picture(),))], batch=2)
    features = features_of(shelf, "color", picture(), 0.8)
    for number in range(2):
        check(model, found, lambda step: features if step in (1, 2) else None, number=number)
    assert made[0].problems == ()
    plain, _ = steps_of(model, shelf, [])
    torch.testing.assert_close(found[0][:1], plain[0], atol=1e-2, rtol=1e-3)
    assert (found[-1][:1] - plain[-1]).abs().max() > 0.05  # rounding alone comes to a hundredth of that


def test_each_picture_of_a_batch_follows_its_own_map(model, shelf):
    unit = Unit(adapter="color", preprocessor="none")
    pictures = (picture(1), picture(2))
    found, _ = steps_of(model, shelf, [Asked(unit, pictures)], batch=2)
    for number, given in enumerate(pictures):
        features = features_of(shelf, "color", given)
        check(model, found, lambda step, features=features: features, number=number)


@pytest.mark.parametrize(("width", "height"), [(72, 104), (136, 88)])
def test_adapters_act_at_sizes_that_are_multiples_of_eight_alone(model, shelf, width, height):
    unit, given = Unit(adapter="color", preprocessor="none"), picture(3, height, width)
    found, made = steps_of(model, shelf, [Asked(unit, (given,))], width=width, height=height)
    features = features_of(shelf, "color", given)
    check(model, found, lambda step: features, (height // 8, width // 8))
    assert made[0].pixels.shape == (height, width, 3)


def test_style_words_stand_behind_the_prompt_also_behind_a_long_negative_one(model, shelf):
    unit = Unit(adapter="words", weight=0.7)
    found, _ = steps_of(model, shelf, [Asked(unit, (picture(),))])
    words = 0.7 * open_adapter(shelf.find("words"))(see(picture()))[0]
    check(model, found, lambda step: None, words=words)
    longer, made = steps_of(model, shelf, [Asked(unit, (picture(),))], negative="dots, " * 60)
    assert made[0].problems == () and not torch.equal(longer[-1], found[-1])


@pytest.mark.parametrize("sampler", ["Heun", "Euler a", "DPM++ 2M", "DDIM"])
def test_start_and_end_count_a_samplers_steps_not_its_calls(model, shelf, sampler, monkeypatch):
    from lib_lycoris.control.control import Control

    acting, begin = [], Control.begin_step

    def spy(self, step, steps, rows=None):
        begin(self, step, steps, rows)
        acting.append((step, bool(self.session._maps)))

    monkeypatch.setattr(Control, "begin_step", spy)
    steps_of(model, shelf, [Asked(Unit(adapter="color", preprocessor="none", start=0.5), (picture(),))], sampler=sampler)
    assert {step for step, acts in acting if acts} == ({2, 3} if sampler != "DDIM" else {2})
    assert all(acts == (step >= 2) for step, acts in acting)
    assert len(acting) == {"Heun": 2 * STEPS - 1, "DDIM": STEPS - 1}.get(sampler, STEPS)


def test_the_model_is_bit_equal_afterwards_also_after_a_failure(model, shelf):
    before = generate(model, settings())[0].pixels
    units = [Asked(Unit(adapter="edges"), (picture(),)), Asked(Unit(adapter="color"), (picture(1),))]
    assert not np.array_equal(generate(model, settings(), units=units, preparation=Preparation(shelf))[0].pixels, before)
    assert np.array_equal(generate(model, settings())[0].pixels, before)

    def fail(step, count, denoised):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        generate(model, settings(), on_step=fail, units=units, preparation=Preparation(shelf))
    assert np.array_equal(generate(model, settings())[0].pixels, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.unet.modules())


def test_a_picture_tells_of_its_adapters_and_shows_its_maps(model, shelf):
    units = [Asked(Unit(adapter="edges", weight=0.5, save_map=True), (picture(),)), Asked(Unit(adapter="nothere"), (picture(),)),
             Asked(Unit(adapter="color", end=0.5), (picture(1),))]
    made, = generate(model, settings(), units=units, preparation=Preparation(shelf))
    assert "Lyco adapter 1: adapter=edges; preprocessor=canny; weight=0.5" in made.infotext
    assert "Lyco adapter 2" not in made.infotext
    assert "Lyco adapter 3: adapter=color; preprocessor=color_grid; weight=1.0; end=0.5" in made.infotext
    assert len(made.problems) == 1 and "adapter 2 (nothere) was left out" in made.problems[0]
    (shown,) = made.maps
    assert shown.shape == (64, 64, 3) and set(np.unique(shown)) <= {0, 255}


def test_a_strict_unit_stops_and_units_need_somebody_who_finds_them(model, shelf):
    with pytest.raises(AdapterError, match="nothere"):
        generate(model, settings(), units=[Asked(Unit(adapter="nothere", strict=True), (picture(),))], preparation=Preparation(shelf))
    with pytest.raises(ConfigError, match="preparation"):
        generate(model, settings(), units=[Asked(Unit(adapter="edges"), (picture(),))])


def test_a_sampling_has_four_additions_a_step_more_and_nothing_else(model, shelf):
    """Beyond the first step, in which maps are brought to the model's device and dtype."""
    preparation, units = Preparation(shelf), [Asked(Unit(adapter="color", preprocessor="none"), (picture(),))]

    def operations(steps, units):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            generate(model, settings(steps=steps), units=units, preparation=preparation)
        return {event.key: event.count for event in profile.key_averages() if event.key.startswith("aten::")}

    def a_step(units):
        few, many = operations(2, units), operations(6, units)
        return {name: (count - few.get(name, 0)) / 4 for name, count in many.items()}

    generate(model, settings(), units=units, preparation=preparation)
    plain, with_units = a_step([]), a_step(units)
    assert {name: count - plain.get(name, 0) for name, count in with_units.items() if count != plain.get(name, 0)} == {"aten::add": 4}
