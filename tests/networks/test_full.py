from __future__ import annotations

import pytest
import torch
from torch import nn

from lib_lycoris.errors import NetworkFileError
from lib_lycoris.networks.full import FullLayer
from lib_lycoris.networks.hints import Hints
from lib_lycoris.networks.kinds import build_layer

from .oracles import lycoris_addition, lycoris_layer, relative


def ones(*shape):
    return torch.ones(shape)


@pytest.mark.parametrize(
    ("module", "size"),
    [(nn.Linear(6, 5), (3, 6)), (nn.Linear(6, 5, bias=False), (3, 6)), (nn.Conv2d(6, 5, 3, padding=1), (2, 6, 4, 5))],
    ids=["linear", "no bias", "conv"],
)
def test_what_lycoris_trained_adds_here_what_it_added_there(module, size):
    saved, theirs = lycoris_layer("full", module)
    # before it is put on a model, its parameters are the difference, and what it saves is something else
    own = {"diff": theirs.weight.detach().clone()} | ({} if theirs.bias is None else {"diff_b": theirs.bias.detach().clone()})
    assert saved.keys() == own.keys()
    x = torch.randn(size)
    assert relative(build_layer("x", own).delta_output(x, module), lycoris_addition(theirs, module, x)) < 1e-5


def test_a_difference_has_no_scale():
    diff = torch.randn(3, 4)
    assert torch.equal(build_layer("x", {"diff": diff, "alpha": torch.tensor(5.0)}, Hints(alpha=3.0, scale=2.0)).delta(ones(3, 4)), diff)


def test_a_bias_alone_leaves_the_weight_and_a_difference_alone_the_bias():
    bias, diff = build_layer("x", {"diff_b": ones(3)}), build_layer("x", {"diff": ones(3, 4)})
    assert torch.equal(bias.delta(ones(3, 4)), torch.zeros(3, 4)) and torch.equal(bias.delta_bias(None), ones(3))
    assert diff.delta_bias(ones(3)) is None
    assert bias.fits((3, 4, 3, 3)) and not bias.fits((4, 3))


def test_a_one_by_one_convolutions_difference_may_be_flat():
    layer = build_layer("x", {"diff": torch.arange(6.0).reshape(2, 3).half()})
    assert layer.delta(ones(2, 3, 1, 1)).shape == (2, 3, 1, 1)
    total = torch.zeros(2, 3, 1, 1)
    layer.add_to(total, total, 2.0)
    assert torch.equal(total.flatten(), 2 * torch.arange(6.0))
    assert not layer.fits((3, 2))


def test_a_replacement_leaves_nothing_of_the_base_at_strength_one():
    layer = build_layer("x", {"set_weight": torch.arange(6.0).reshape(2, 3)})
    base = torch.tensor([[1.0, 2.0, 4.0], [0.5, 8.0, 16.0]])
    assert layer.weight_dependent
    assert torch.equal(base + layer.delta(base), torch.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize(
    "tensors",
    [
        {"diff": ones(3, 4), "diff_b": ones(4)},
        {"diff": torch.tensor(1.0)},
        {"diff": ones(0, 4)},
        {"diff": ones(3, 4).int()},
        {"diff_b": ones(3, 1)},
        {"set_weight": torch.tensor(1.0)},
        {"set_weight": ones(3, 4), "diff": ones(3, 4)},
        {"set_weight": ones(3, 4), "diff_b": ones(3)},
        {"diff": torch.full((3, 4), float("nan"))},
        {"diff": ones(3, 4), "diff_b": torch.full((3,), float("inf"))},
    ],
)
def test_tensors_that_make_no_whole_layer_are_refused_by_the_layers_name(tensors):
    with pytest.raises(NetworkFileError, match="lora_unet_x"):
        build_layer("lora_unet_x", tensors)


def test_a_fresh_layer_has_a_bias_where_the_module_has_one():
    assert FullLayer.create(nn.Linear(3, 2)).tensors().keys() == {"diff", "diff_b"}
    assert FullLayer.create(nn.Conv2d(3, 2, 3, bias=False)).diff.shape == (2, 3, 3, 3)
    assert FullLayer.create(nn.Conv2d(3, 2, 3, bias=False)).tensors().keys() == {"diff"}
