from __future__ import annotations

import pytest
import torch
from torch import nn

from lib_lycoris.errors import ConfigError, NetworkFileError
from lib_lycoris.networks.hints import Hints
from lib_lycoris.networks.kinds import build_layer
from lib_lycoris.networks.lokr import LokrLayer

from .oracles import lycoris_addition, lycoris_layer, peft_layer, relative


def ones(*shape):
    return torch.ones(shape)


def lokr(**more):
    """Of a weight [6,20]: w1 [2,4], w2 [3,5] of rank 2."""
    factors = {"lokr_w1": torch.randn(2, 4), "lokr_w2_a": torch.randn(3, 2), "lokr_w2_b": torch.randn(2, 5), **more}
    return {name: tensor for name, tensor in factors.items() if tensor is not None}


MODULES = {
    "linear": (lambda: nn.Linear(24, 40), (3, 24)),
    "conv": (lambda: nn.Conv2d(24, 40, 3, padding=1), (2, 24, 5, 6)),
    "conv 1×1": (lambda: nn.Conv2d(24, 40, 1), (2, 24, 5, 6)),
}
SETTINGS = [
    {"lora_dim": 2},
    {"lora_dim": 2, "rs_lora": True},
    {"lora_dim": 1, "decompose_both": True},
    {"lora_dim": 2, "use_tucker": True},
    {"lora_dim": 2, "factor": 4},
    {"lora_dim": 2, "factor": 2, "unbalanced_factorization": True},
    {"lora_dim": 2, "full_matrix": True},
    {"lora_dim": 100},
]


@pytest.mark.parametrize(("make", "size"), MODULES.values(), ids=MODULES)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_lycoris_trained_adds_here_what_it_added_there(make, size, settings):
    module, x = make(), torch.randn(size)
    tensors, theirs = lycoris_layer("lokr", module, alpha=2.5, **settings)
    added = lycoris_addition(theirs, module, x)
    layer = build_layer("x", tensors)
    assert relative(layer.delta(module.weight), theirs.get_weight(module.weight.shape)) < 1e-5
    assert relative(layer.delta_output(x, module), added) < 1e-5


@pytest.mark.parametrize("make", [make for make, _ in MODULES.values()], ids=MODULES)
@pytest.mark.parametrize("settings", [{"r": 2}, {"r": 1, "decompose_both": True}, {"r": 2, "use_effective_conv2d": True}, {"r": 100}], ids=str)
def test_what_peft_trained_has_its_delta_here(make, settings):
    module = make()
    tensors, delta = peft_layer("LoKrConfig", module, alpha=3, **settings)
    layer = build_layer("x", tensors, Hints(alpha=3, scale=3 / settings["r"]))
    assert relative(layer.delta(torch.zeros(delta.shape)), delta) < 1e-5


def test_the_rank_is_that_of_the_large_factor_and_else_of_the_small_one():
    small = {"lokr_w1": None, "lokr_w1_a": ones(2, 1), "lokr_w1_b": ones(1, 4)}
    alpha = torch.tensor(3.0)
    assert build_layer("x", lokr(alpha=alpha)).scale == 1.5
    assert build_layer("x", lokr(alpha=alpha, **small)).scale == 1.5
    assert build_layer("x", lokr(alpha=alpha, **small, lokr_w2_a=None, lokr_w2_b=None, lokr_w2=ones(3, 5))).scale == 3
    assert build_layer("x", lokr()).scale == 1
    assert build_layer("x", lokr(), Hints(alpha=1.0)).scale == 0.5


def test_where_both_factors_are_whole_alpha_means_nothing():
    whole = lokr(lokr_w2_a=None, lokr_w2_b=None, lokr_w2=torch.randn(3, 5), alpha=torch.tensor(7.0))
    layer = build_layer("x", whole, Hints(alpha=9.0))
    assert layer.scale == 1
    assert relative(layer.delta(torch.zeros(6, 20)), torch.kron(whole["lokr_w1"], whole["lokr_w2"])) < 1e-6
    assert build_layer("x", whole, Hints(scale=0.5)).scale == 0.5
    scaled = build_layer("x", {**whole, "scale": torch.tensor(0.25)}, Hints(scale=0.5))
    assert scaled.scale == 0.25 and build_layer("x", scaled.tensors()).scale == 0.25


def test_a_whole_factor_outranks_its_parts_and_a_core_that_none_uses_is_ignored():
    plain, more = lokr(), lokr(lokr_w1_a=ones(9, 1), lokr_t1=ones(2, 2, 3, 3))
    more.update({name: plain[name] for name in plain})
    assert torch.equal(build_layer("x", plain).delta(ones(6, 20)), build_layer("x", more).delta(ones(6, 20)))


@pytest.mark.parametrize(
    "tensors",
    [
        lokr(lokr_w1=None),
        lokr(lokr_w2_b=None),
        lokr(lokr_w2_a=None),
        lokr(lokr_w2_a=None, lokr_w2_b=None),
        lokr(lokr_w2_a=None, lokr_w2_b=None, lokr_t2=ones(2, 2, 3, 3)),
        lokr(lokr_w2_b=ones(3, 5)),
        lokr(lokr_w1=None, lokr_w1_a=ones(2, 3), lokr_w1_b=ones(2, 4)),
        lokr(lokr_t2=ones(2, 2, 3, 3)),
        lokr(lokr_w2_a=ones(2, 3), lokr_t2=ones(2, 2)),
        lokr(lokr_w1=ones(4)),
        lokr(lokr_w1=torch.tensor(1.0)),
        lokr(lokr_w1=ones(2, 0)),
        lokr(lokr_w1=ones(2, 4).long()),
        lokr(alpha=ones(3)),
        lokr(lokr_w2_a=torch.full((3, 2), float("nan"))),
    ],
)
def test_tensors_that_make_no_whole_layer_are_refused_by_the_layers_name(tensors):
    with pytest.raises(NetworkFileError, match="lora_unet_x") as caught:
        build_layer("lora_unet_x", tensors)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("more", [{}, {"decompose_both": True}, {"full_matrix": True}, {"factor": 4}, {"factor": 7}, {"use_tucker": True}], ids=str)
@pytest.mark.parametrize("shape", [(40, 24), (40, 24, 3, 3), (40, 24, 1, 1), (37, 24)], ids=str)
@pytest.mark.parametrize("rank", [1, 2, 50])
def test_a_fresh_layer_has_the_factors_that_lycoris_would_make(more, shape, rank):
    modules = pytest.importorskip("lycoris.modules.lokr")
    target = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], shape[2:])
    theirs = modules.LokrModule("x", target, lora_dim=rank, alpha=1, **more)
    ours = LokrLayer.create(target, rank, 1.0, **{"tucker" if name == "use_tucker" else name: value for name, value in more.items()})
    assert {name: tuple(part.shape) for name, part in ours.named_parameters()} == {name: tuple(part.shape) for name, part in theirs.named_parameters()}
    zero = {name: not part.any() for name, part in theirs.named_parameters()}
    assert {name: not part.any() for name, part in ours.named_parameters()} == zero
    assert ours.scale == pytest.approx(theirs.scale)


def test_a_fresh_layer_is_drawn_as_a_linear_layer_is():
    layer = LokrLayer.create((1024, 1600), 8, generator=torch.Generator().manual_seed(1))
    assert layer.lokr_w1.shape == (32, 40)
    assert layer.lokr_w1.abs().max() <= 40**-0.5
    assert layer.lokr_w1.std().item() == pytest.approx((3 * 40) ** -0.5, rel=0.05)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"rank": 2.5}, {"alpha": float("inf")}, {"factor": 0}, {"factor": -2}, {"factor": 1.5}], ids=str)
def test_arguments_that_make_no_layer_are_refused(wrong):
    with pytest.raises(ConfigError):
        LokrLayer.create((4, 4), **{"rank": 2, **wrong})
