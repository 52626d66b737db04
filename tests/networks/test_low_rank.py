from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lib_lycoris.errors import ConfigError, NetworkFileError
from lib_lycoris.networks.kinds import build_layer
from lib_lycoris.networks.low_rank import LowRankLayer


def lora(out=6, into=4, rank=2, **more):
    return {"lora_up.weight": torch.randn(out, rank), "lora_down.weight": torch.randn(rank, into), **more}


@pytest.mark.parametrize("alpha", [torch.tensor(1.5), torch.tensor([1.5]), torch.tensor(1.5).bfloat16(), torch.tensor(3), torch.tensor([1.0]).double()])
def test_alpha_of_any_dtype_over_rank_is_the_scale(alpha):
    tensors = lora(alpha=alpha)
    expected = tensors["lora_up.weight"] @ tensors["lora_down.weight"] * (alpha.double().item() / 2)
    torch.testing.assert_close(build_layer("x", tensors).delta(torch.zeros(6, 4)), expected)


def test_no_alpha_means_scale_one_and_a_stored_scale_outranks_alpha():
    assert build_layer("x", lora()).scale == 1
    assert build_layer("x", lora(alpha=torch.tensor(1.0), scale=torch.tensor(0.25))).scale == 0.25


def test_two_and_four_dimensional_tensors_mean_the_same():
    flat = lora(alpha=torch.tensor(1.0))
    tall = {name: tensor[..., None, None] if tensor.ndim == 2 else tensor for name, tensor in flat.items()}
    linear, conv = nn.Linear(4, 6), nn.Conv2d(4, 6, 1)
    x = torch.randn(2, 4, 3, 3)
    for module, inputs in ((linear, x.movedim(1, -1)), (conv, x)):
        one, other = build_layer("x", flat), build_layer("x", tall)
        assert torch.equal(one.delta(module.weight), other.delta(module.weight))
        assert one.delta(module.weight).shape == module.weight.shape
        torch.testing.assert_close(one.delta_output(inputs, module), other.delta_output(inputs, module))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_the_delta_of_half_precision_tensors_is_float32_and_the_weight_is_left_alone(dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in lora().items()}
    weight = torch.randn(6, 4, dtype=torch.float16)
    before = weight.clone()
    delta = build_layer("x", tensors).delta(weight)
    assert delta.dtype == torch.float32 and delta.shape == weight.shape
    torch.testing.assert_close(delta, tensors["lora_up.weight"].float() @ tensors["lora_down.weight"].float())
    assert torch.equal(weight, before)


def test_a_bias_of_pefts_spelling_is_scaled_and_added():
    layer = build_layer("x", lora(alpha=torch.tensor(1.0), **{"lora_up.bias": torch.arange(6.0)}))
    torch.testing.assert_close(layer.delta_bias(torch.zeros(6)), torch.arange(6.0) / 2)
    module, x = nn.Linear(4, 6), torch.randn(3, 4)
    torch.testing.assert_close(layer.delta_output(x, module), x @ layer.delta(module.weight).T + torch.arange(6.0) / 2)
    assert build_layer("x", lora()).delta_bias(torch.zeros(6)) is None


def test_a_weight_of_another_shape_does_not_fit():
    layer = build_layer("x", lora())
    assert layer.fits((6, 4)) and layer.fits((6, 4, 1, 1)) and layer.fits((6, 1, 2, 2))
    for shape in ((6, 5), (4, 6), (24,), (6, 4, 3, 3)):
        assert not layer.fits(shape)
        with pytest.raises(NetworkFileError, match="another model"):
            layer.delta(torch.zeros(shape))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_reach_float32_parameters_through_an_input_of_any_dtype(dtype, autocast):
    module = nn.Conv2d(4, 6, 3, padding=1).to(dtype)
    layer = LowRankLayer.create(module, 3, 1.5)
    nn.init.ones_(layer.lora_up.weight)
    x = torch.randn(1, 4, 5, 5, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = layer.delta_output(x, module)
        assert output.dtype == module(x).dtype
    output.float().square().sum().backward()
    for parameter in layer.parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert parameter.grad.abs().sum() > 0


def test_a_fresh_layer_starts_as_torchs_own_linear_layer_does():
    layer = LowRankLayer.create((8, 400), 500, generator=torch.Generator().manual_seed(1))
    bound = 1 / math.sqrt(400)
    down = layer.lora_down.weight
    assert down.abs().max() <= bound
    assert down.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert dict(layer.named_parameters()).keys() == {"lora_down.weight", "lora_up.weight"}
    assert all(parameter.requires_grad for parameter in layer.parameters())


def test_one_seed_gives_one_start_and_leaves_torchs_own_generator_alone():
    state = torch.get_rng_state()
    one, other = (LowRankLayer.create(nn.Linear(4, 4, device="meta"), 2, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one.lora_down.weight, other.lora_down.weight)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("arguments", [((4, 4), 0), ((4, 4), 2.5), ((4, 4), True), ((4, 4), 2, float("nan")), ((4,), 2)])
def test_arguments_that_make_no_layer_are_refused(arguments):
    with pytest.raises(ConfigError):
        LowRankLayer.create(*arguments)


def test_tiling_is_followed():
    module = nn.Conv2d(3, 5, 3, padding=1)
    module.padding_mode = "circular"  # as the WebUI's tiling option sets it
    layer = build_layer("x", {"lora_up.weight": torch.randn(5, 2, 1, 1), "lora_down.weight": torch.randn(2, 3, 3, 3)})
    x = torch.randn(1, 3, 6, 6)
    with torch.no_grad():
        changed = nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular")
        changed.weight.copy_(module.weight + layer.delta(module.weight))
        changed.bias.copy_(module.bias)
        torch.testing.assert_close(module(x) + layer.delta_output(x, module), changed(x), atol=1e-5, rtol=1e-5)


def test_the_factors_product_is_the_delta():
    layer = build_layer("x", {"lora_up.weight": torch.randn(5, 2, 1, 1), "lora_down.weight": torch.randn(2, 3, 3, 3), "alpha": torch.tensor(0.5)})
    up, down = layer.factors()
    torch.testing.assert_close((up @ down).reshape(5, 3, 3, 3), layer.delta(torch.zeros(5, 3, 3, 3)))


@pytest.mark.parametrize("core", [False, True])
def test_a_truncated_layer_has_the_first_ranks_and_the_scale_of_all(core):
    tensors = {"lora_up.weight": torch.randn(5, 4, 1, 1), "lora_down.weight": torch.randn(4, 3, 1, 1), "alpha": torch.tensor(2.0)}
    if core:
        tensors["lora_mid.weight"] = torch.randn(4, 4, 1, 1)
    layer = build_layer("x", tensors)
    middle = tensors["lora_mid.weight"][:3, :3, 0, 0] if core else torch.eye(3)
    expected = tensors["lora_up.weight"][:, :3, 0, 0] @ middle @ tensors["lora_down.weight"][:3, :, 0, 0] / 2
    cut = layer.truncated(3)
    torch.testing.assert_close(cut.delta(torch.zeros(5, 3)), expected)
    assert cut.rank == 3 and cut.scale == layer.scale == 0.5
    assert cut.lora_down.weight.data_ptr() == layer.lora_down.weight.data_ptr()
    assert layer.truncated(4) is layer and layer.truncated(100) is layer
    for ranks in (0, -1, 1.5, True):
        with pytest.raises(ConfigError):
            layer.truncated(ranks)
