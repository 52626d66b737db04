from __future__ import annotations

import pytest
import torch
from torch import nn

from lib_lycoris.errors import ConfigError, NetworkFileError
from lib_lycoris.networks.kinds import build_layer
from lib_lycoris.networks.norm import NormLayer

from .oracles import lycoris_addition, lycoris_layer, relative


@pytest.mark.parametrize(("module", "size"), [(nn.LayerNorm(6), (2, 3, 6)), (nn.GroupNorm(2, 6), (2, 6, 4, 5))], ids=["layer norm", "group norm"])
def test_what_lycoris_trained_adds_here_what_it_added_there(module, size):
    tensors, theirs = lycoris_layer("norm", module)
    assert tensors.keys() == {"w_norm", "b_norm"}
    x = torch.randn(size)
    assert relative(build_layer("x", tensors).delta_output(x, module), lycoris_addition(theirs, module, x)) < 1e-5


def test_what_is_added_is_the_normalised_input_times_the_scales_difference():
    module, x = nn.LayerNorm(6), torch.randn(4, 6)
    w_norm, b_norm = torch.randn(6), torch.randn(6)
    normal = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + module.eps).sqrt()
    torch.testing.assert_close(build_layer("x", {"w_norm": w_norm, "b_norm": b_norm}).delta_output(x, module), normal * w_norm + b_norm, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(build_layer("x", {"b_norm": b_norm}).delta_output(x, module), b_norm.expand(4, 6))


def test_only_a_weight_of_its_own_length_fits():
    for tensors in ({"w_norm": torch.ones(6)}, {"b_norm": torch.ones(6)}):
        layer = build_layer("x", tensors)
        assert layer.fits((6,)) and not layer.fits((5,)) and not layer.fits((6, 1))


@pytest.mark.parametrize(
    "tensors",
    [
        {"w_norm": torch.ones(6), "b_norm": torch.ones(5)},
        {"w_norm": torch.ones(6, 1)},
        {"w_norm": torch.tensor(1.0)},
        {"w_norm": torch.ones(0)},
        {"b_norm": torch.ones(6).int()},
        {"w_norm": torch.full((6,), float("nan"))},
    ],
)
def test_tensors_that_make_no_whole_layer_are_refused_by_the_layers_name(tensors):
    with pytest.raises(NetworkFileError, match="lora_unet_x"):
        build_layer("lora_unet_x", tensors)


def test_a_fresh_layer_is_for_normalisations_with_a_weight_alone():
    assert NormLayer.create(nn.GroupNorm(2, 6)).tensors().keys() == {"w_norm", "b_norm"}
    for module in (nn.Linear(6, 6), nn.LayerNorm(6, elementwise_affine=False), nn.LayerNorm((2, 3))):
        with pytest.raises(ConfigError):
            NormLayer.create(module)
