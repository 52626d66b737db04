from __future__ import annotations

import pytest
import torch
from torch import nn

from lib_lycoris.errors import ConfigError, NetworkFileError
from lib_lycoris.networks.hints import Hints
from lib_lycoris.networks.ia3 import IA3Layer
from lib_lycoris.networks.kinds import build_layer

from .oracles import relative
from .peers import lycoris_layer, peft_layer

MODULES = {
    "linear": lambda: nn.Linear(6, 4),
    "square linear": lambda: nn.Linear(5, 5),
    "conv": lambda: nn.Conv2d(6, 4, 3),
    "square conv": lambda: nn.Conv2d(5, 5, 3),
}
every_module = pytest.mark.parametrize("new", MODULES.values(), ids=MODULES)


@every_module
@pytest.mark.parametrize("on_input", [False, True])
def test_lycoris_makes_the_same_of_its_own_tensors(new, on_input):
    module = new()
    tensors, theirs = lycoris_layer("ia3", module, train_on_input=on_input)
    layer = build_layer("x", {name: tensors[name] for name in ("weight", "on_input")})
    assert relative(layer.delta(module.weight), theirs.get_diff_weight()[0]) < 1e-6
    assert layer.delta_bias(module.bias) is None


@every_module
@pytest.mark.parametrize("feedforward", [False, True])
def test_peft_makes_the_same_of_its_own_tensors(new, feedforward):
    module = new()
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    tensors, delta, delta_bias = peft_layer("IA3Config", module, feedforward_modules=["layer"] if feedforward else [])
    # without the hint a square linear layer's shape still tells, a square convolution's does not
    hints = Hints(feedforward=feedforward) if weight.shape[:2] == (5, 5) and weight.ndim == 4 else Hints()
    layer = build_layer("x", tensors, hints)
    assert relative(layer.delta(weight), delta) < 1e-6
    if feedforward:
        assert layer.delta_bias(bias) is None and not delta_bias.any()
    else:
        torch.testing.assert_close(layer.delta_bias(bias), delta_bias)


def test_a_square_convolution_without_a_config_is_scaled_on_outputs():
    vector, weight = torch.rand(1, 3, 1, 1), torch.randn(3, 3, 3, 3)
    torch.testing.assert_close(build_layer("x", {"ia3_l": vector}).delta(weight), weight * (vector.transpose(0, 1) - 1))


def test_the_bias_is_scaled_with_the_outputs_in_pefts_spelling_alone():
    module, x = nn.Linear(3, 4), torch.randn(2, 3)
    peft, lycoris = build_layer("x", {"ia3_l": torch.full((4, 1), 3.0)}), build_layer("x", {"weight": torch.full((4,), 2.0), "on_input": torch.tensor(0)})
    torch.testing.assert_close(peft.delta_output(x, module), 2 * module(x))
    torch.testing.assert_close(lycoris.delta_output(x, module), 2 * (module(x) - module.bias))


@pytest.mark.parametrize(
    "tensors",
    [
        {"on_input": torch.tensor(0)},
        {"weight": torch.ones(3), "on_input": torch.tensor(2)},
        {"weight": torch.ones(3), "on_input": torch.tensor([0, 1])},
        {"weight": torch.ones(3, 2), "on_input": torch.tensor(0)},
        {"weight": torch.ones(1, 3, 3, 3), "on_input": torch.tensor(0)},
        {"weight": torch.ones(3).int(), "on_input": torch.tensor(0)},
        {"ia3_l": torch.ones(3, 2)},
        {"ia3_l": torch.ones(0, 1)},
        {"ia3_l": torch.tensor(1.0)},
    ],
)
def test_tensors_that_are_no_vector_are_refused(tensors):
    with pytest.raises(NetworkFileError, match="lora_unet_x"):
        build_layer("lora_unet_x", tensors)


def test_a_weight_without_its_flag_is_no_network():
    with pytest.raises(NetworkFileError, match="no known kind"):
        build_layer("x", {"weight": torch.ones(4)})


def test_a_target_without_a_weight_of_two_dimensions_is_refused():
    with pytest.raises(ConfigError):
        IA3Layer.create((4,))
