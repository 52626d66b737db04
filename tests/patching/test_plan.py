from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lib_lycoris.errors import ConfigError
from lib_lycoris.networks.network import Network
from lib_lycoris.patching.plan import Plan, make_plan
from lib_lycoris.patching.targets import find_targets

from .helpers import random_layer, random_network
from .trees import Holder, OpenClipText

TARGETS = find_targets(Holder(a=nn.Linear(4, 4), b=nn.Linear(4, 6)), [OpenClipText(depth=1)])


def network(seed, path=None, names=None):
    return random_network(TARGETS, seed, names, path=path)


def strengths(plan):
    return {(effect.target.key, id(effect.layer)): effect.strength for effect in plan.effects}


def test_a_pair_of_strengths_is_text_encoder_then_unet():
    found = {effect.target.component: effect.strength for effect in make_plan([(network(1), (0.25, 0.75))], TARGETS).effects}
    assert found == {"unet": 0.75, "te1": 0.25}
    assert {effect.strength for effect in make_plan([(network(1), 0.5)], TARGETS).effects} == {0.5}


def test_the_same_network_twice_counts_with_the_sum_and_opposites_cancel():
    one = network(1)
    assert strengths(make_plan([(one, 0.5), (one, 0.25)], TARGETS)) == strengths(make_plan([(one, 0.75)], TARGETS))
    assert make_plan([(one, 0.5), (one, -0.5)], TARGETS) == Plan()


def test_strength_zero_and_no_network_are_the_empty_plan():
    assert make_plan([], TARGETS) == make_plan([(network(1), 0)], TARGETS) == Plan()
    assert {effect.target.component for effect in make_plan([(network(1), (0.0, 1.0))], TARGETS).effects} == {"unet"}


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-2, 2)), max_size=6), st.randoms(use_true_random=False))
def test_the_plan_is_the_same_in_any_order(asked, shuffler: random.Random):
    wanted = [(NETWORKS[number], strength) for number, strength in asked]
    shuffled = list(wanted)
    shuffler.shuffle(shuffled)
    assert make_plan(shuffled, TARGETS) == make_plan(wanted, TARGETS)


NETWORKS = [network(seed, f"{seed}.safetensors") for seed in range(4)]


def test_each_layer_without_a_home_is_left_over_once_with_its_reason():
    stranger = Network(layers={"x": random_layer((4, 4), 1), "y": random_layer((5, 4), 1), "z": random_layer((4, 4), 1)},
                       targets={"x": ("unet", "nowhere"), "y": ("unet", "a")})
    plan = make_plan([(stranger, 1.0), (stranger, 0.0), (network(1, names=["b"]), 1.0)], TARGETS)
    assert [(leftover.name, leftover.reason) for leftover in plan.leftovers] == [
        ("x", "the model has no such layer"), ("y", "made for another shape than the model's [4, 4]"), ("z", "the model has no such layer")]
    assert [effect.target.key for effect in plan.effects] == [("unet", "b")]


def test_a_convolution_of_one_pixel_takes_a_linear_layers_delta():
    targets = find_targets(Holder(a=nn.Conv2d(4, 4, 1)), [])
    given_linear = Network(layers={"a": random_layer((4, 4), 1)}, targets={"a": ("unet", "a")})
    assert not make_plan([(given_linear, 1.0)], targets).leftovers


def test_a_quantised_weight_that_is_fused_is_left_over():
    text = OpenClipText(depth=1)
    attention = text.transformer.resblocks[0].attn
    attention.in_proj_weight = nn.Parameter(torch.zeros(24, 8, dtype=torch.int8), requires_grad=False)
    targets = find_targets(None, [text])
    plan = make_plan([(random_network(targets, 1, ["self_attn"]), 1.0)], targets)
    assert {leftover.reason for leftover in plan.leftovers} == {"its weight is quantised and fused with others"}
    assert [effect.target.name for effect in plan.effects] == ["text_model_encoder_layers_0_self_attn_out_proj"]


def test_a_strength_must_be_finite():
    with pytest.raises(ConfigError, match="strength nan is not a finite number"):
        make_plan([(network(1), float("nan"))], TARGETS)
