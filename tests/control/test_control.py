"""Laws of several adapters in one sampling: sums, weights, steps, regions, the fuser's order, words behind texts, and off without a trace."""

from __future__ import annotations

import pytest
import torch

from lib_lycoris.control.control import Control
from lib_lycoris.control.part import Part
from lib_lycoris.errors import ConfigError
from lib_lycoris.functional.words import append_words, repeat_end
from lib_lycoris.networks.adapters.fuser import CoAdapterFuser
from lib_lycoris.patching.features import FeatureSession
from lib_lycoris.prompt.unit import Unit
from tests.networks import adapter_oracles as slow
from tests.patching.helpers import assert_untouched, photograph
from tests.patching.test_features import close, inputs, make, make_maps


def part(maps, task=None, region=None, **values):
    return Part(Unit(adapter="a", **values), tuple(maps), task, region)


def output(unet, given, maps):
    with FeatureSession(unet) as session:
        session.set(maps)
        return unet(*given)


@torch.no_grad()
def test_adapters_add_up_with_their_weights():
    unet, given = make("sd1"), inputs("sd1")
    one, two = make_maps("sd1", unet, seed=1), make_maps("sd1", unet, seed=2)
    with Control(unet) as control:
        control.add(part(one, weight=0.5))
        control.add(part(two, weight=2.0, level_weights="1, 0.5, 0, -1"))
        control.begin_step(0, 10)
        found = unet(*given)
    factors = (2.0, 1.0, 0.0, -2.0)
    close(found, output(unet, given, [0.5 * a + factor * b for a, b, factor in zip(one, two, factors, strict=True)]))


@torch.no_grad()
def test_parts_act_from_their_start_to_their_end_and_maps_change_only_there(monkeypatch):
    unet, given = make("sd1"), inputs("sd1")
    before, plain = photograph(unet), unet(*given)
    one, two = make_maps("sd1", unet, seed=1), make_maps("sd1", unet, seed=2)
    changes = []
    put = FeatureSession.set
    monkeypatch.setattr(FeatureSession, "set", lambda self, maps, rows=None: (changes.append(maps is not None), put(self, maps, rows)))
    control = Control(unet)
    control.add(part(one, end=0.5))
    control.add(part(two, start=0.25, end=0.75))
    first, second = output(unet, given, one), output(unet, given, two)
    both = output(unet, given, [a + b for a, b in zip(one, two, strict=True)])
    expected = [first, first, both, both, second, second, plain, plain]
    changes.clear()
    for step in range(8):
        for _ in range(2):  # a second-order sampler's two calls
            control.begin_step(step, 8)
            close(unet(*given), expected[step])
    assert changes == [True, True, True, False]
    assert_untouched(unet, before)  # nothing is left on when no part acts any more
    for step in (3, 1):  # the next pass
        control.begin_step(step, 8)
        close(unet(*given), expected[step])
    control.restore()
    assert_untouched(unet, before)


@torch.no_grad()
def test_a_region_keeps_the_rest_of_the_map_at_zero():
    unet = make("sd1")
    maps = make_maps("sd1", unet, (16, 16))
    region = torch.zeros(1, 1, 128, 128)
    region[..., :64] = 1
    with Control(unet) as control:
        control.add(part(maps, region=region))
        control.begin_step(0, 1)
        held = [entry.feature for entry in control.session._maps]
    for found, feature in zip(held, maps, strict=True):
        half = feature.shape[-1] // 2
        close(found[..., :half], feature[..., :half])
        assert found[..., half:].count_nonzero() == 0


@torch.no_grad()
def test_each_picture_of_a_batch_has_its_own_map_beside_one_that_is_for_all():
    unet, given = make("sd1"), inputs("sd1", batch=4)
    own, shared = make_maps("sd1", unet, pictures=2, seed=1), make_maps("sd1", unet, seed=2)
    rows = (0, 1, 0, 1)
    with Control(unet) as control:
        control.add(part(own))
        control.add(part(shared))
        control.begin_step(0, 4, rows)
        found = unet(*given)
        control.begin_step(1, 4, rows)
        halves = torch.cat([unet(*(each[:2] for each in given)), unet(*(each[2:] for each in given))])
        assert control.problems == []
    close(found, output(unet, given, [(a + b)[list(rows)] for a, b in zip(own, shared, strict=True)]))
    close(halves, found)


@torch.no_grad()
def test_one_map_is_for_every_row_however_the_host_cuts_them():
    unet, given = make("sd1"), inputs("sd1", batch=3)
    maps = make_maps("sd1", unet)
    with Control(unet) as control:
        control.add(part(maps))
        control.begin_step(0, 4, (0, 1, 0, 1))
        close(unet(*given), output_in(unet, given, control, maps))


def output_in(unet, given, control, maps):
    control.restore()
    return output(unet, given, maps)


@torch.no_grad()
def test_the_fuser_hears_weighted_features_and_others_just_add_up():
    """Weights come before the fuser, as the authors have it; regions after it."""
    unet, given = make("sd1"), inputs("sd1")
    fuser = CoAdapterFuser(channels=(4, 8, 8, 8), width=32, layers=2)
    values = slow.random_tensors(fuser)
    fuser.fill(values)
    canny, color, other = (make_maps("sd1", unet, seed=seed) for seed in (1, 2, 3))
    words = torch.randn(1, 5, 32)
    with Control(unet, fuser) as control:
        control.add(part(canny, "canny", weight=0.8))
        control.add(part([words], "style", weight=0.6))
        control.add(part(other))
        control.add(part(color, "color", weight=1.2))
        control.begin_step(0, 1)
        found = unet(*given)
        texts = control.extend(torch.zeros(2, 7, 32), [(0, False), (0, False)])
    maps, fused = slow.fuser(values, [(4, [0.8 * each for each in canny]), (5, 0.6 * words), (6, [1.2 * each for each in color])])
    close(found, output(unet, given, [a.float() + b for a, b in zip(maps, other, strict=True)]), atol=1e-4, rtol=1e-4)
    close(texts[:, 7:].double(), fused.expand(2, -1, -1))
    with pytest.raises(ConfigError, match="another model"):
        Control(unet, CoAdapterFuser(channels=(4, 4, 4, 4), width=32, layers=1))


def test_words_go_behind_positive_texts_and_negative_ones_repeat_their_own_end():
    unet = make("sd1")
    words = torch.arange(2 * 3 * 4.0).reshape(2, 3, 4)
    text = torch.randn(4, 77, 4)
    with Control(unet) as control:
        assert control.extend(text, [(0, False)] * 4) is text
        control.add(part([words], weight=0.5, end=0.5))
        control.begin_step(0, 4)
        found = control.extend(text, [(0, False), (1, False), (0, True), (1, True)])
        assert found.shape == (4, 80, 4)
        close(found[:, :77], text)
        close(found[:2, 77:], words * 0.5)
        close(found[2:, 77:], text[2:, -3:])
        with pytest.raises(ConfigError, match="words are 4 wide, the model's 6"):
            control.extend(torch.randn(1, 77, 6), [(0, False)])
        control.begin_step(3, 4)
        assert control.extend(text, [(0, False)] * 4) is text


def test_the_end_of_a_short_text_is_repeated_over_and_over():
    text = torch.arange(3.0).reshape(1, 3, 1)
    assert repeat_end(text, 2).flatten().tolist() == [0, 1, 2, 1, 2]
    assert repeat_end(text, 3).flatten().tolist() == [0, 1, 2, 0, 1, 2]
    assert len(repeat_end(text, 8).flatten()) == 11
    assert append_words(text.half(), torch.ones(1, 2, 1)).dtype == torch.float16


def test_maps_of_another_model_are_refused_before_anything_runs():
    unet = make("sd1")
    with pytest.raises(ConfigError, match=r"\[4, 4, 4, 4\] channels.*another model"):
        Control(unet).add(part([torch.zeros(1, 4, 2, 2)] * 4))
