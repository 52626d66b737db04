from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lib_lycoris.errors import ConfigError, NetworkFileError
from lib_lycoris.networks.adalora import AdaLoRALayer
from lib_lycoris.networks.dora import DecomposedLayer
from lib_lycoris.networks.kinds import build_layer
from lib_lycoris.networks.low_rank import LowRankLayer

from .oracles import relative
from .peers import lycoris_layer, peft_layer


def lora(out: int, into: int, kernel: tuple[int, ...] = (), size: float = 1.0) -> dict[str, Tensor]:
    down = size * torch.randn(2, into, *kernel)
    return {"lora_up.weight": torch.randn(out, 2, *(1 for _ in kernel)), "lora_down.weight": down, "alpha": torch.tensor(1.0)}


def slow_delta(weight: Tensor, change: Tensor, magnitude: Tensor, axis: int) -> Tensor:
    """Slice by slice in float64."""
    changed = (weight.double() + change.double()).clone()
    for index, length in enumerate(magnitude.double().flatten()):
        one = changed.select(axis, index)
        one *= length / one.square().sum().sqrt()
    return changed - weight.double()


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("module", [nn.Linear(12, 8), nn.Conv2d(12, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 8)], ids=str)
@pytest.mark.parametrize("on_output", [False, True])
def test_lycoris_makes_the_same_of_its_own_tensors(kind, module, on_output):
    # alpha = rank: its merging of LoHa and LoKr counts the scale twice
    tensors, theirs = lycoris_layer(kind, module, lora_dim=2, alpha=2, weight_decompose=True, wd_on_out=on_output)
    layer = build_layer("x", tensors)
    assert layer.algorithm == kind
    assert relative(layer.delta(module.weight), theirs.get_merged_weight(shape=module.weight.shape)[0].detach() - module.weight) < 1e-5


@pytest.mark.parametrize("new", [lambda: nn.Linear(6, 4), lambda: nn.Linear(5, 5), lambda: nn.Conv2d(6, 4, 3), lambda: nn.Conv2d(5, 5, 3)])
def test_peft_makes_the_same_of_its_own_tensors(new):
    module = new()
    weight = module.weight.detach().clone()
    tensors, delta, _ = peft_layer("LoraConfig", module, r=2, lora_alpha=3, use_dora=True)
    named = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
    layer = build_layer("x", {**{named.get(name, name): tensor for name, tensor in tensors.items()}, "alpha": torch.tensor(3.0)})
    assert relative(layer.delta(weight), delta) < 1e-5


@pytest.mark.parametrize(("out", "into", "kernel"), [(6, 4, ()), (5, 5, ()), (6, 4, (3, 3)), (5, 5, (3, 3)), (1, 4, ()), (4, 1, (3, 3)), (1, 1, (3, 3))])
def test_the_shape_of_dora_scale_tells_the_axis(out, into, kernel):
    weight, tensors, ones = torch.randn(out, into, *kernel), lora(out, into, kernel), (1,) * len(kernel)
    change = build_layer("x", tensors).delta(weight)
    for axis, size in ((0, (out, 1, *ones)), (0, (out,)), (1, (1, into, *ones))):
        magnitude = torch.rand(size) + 0.5
        if axis == 0 and out == 1 and into > 1 and magnitude.ndim > 1:
            continue  # [1,1] of one output is neither
        assert relative(build_layer("x", {**tensors, "dora_scale": magnitude}).delta(weight), slow_delta(weight, change, magnitude, axis)) < 1e-5


def test_pefts_lengths_of_a_square_convolution_are_those_of_outputs():
    weight, tensors, magnitude = torch.randn(5, 5, 3, 3), lora(5, 5, (3, 3)), torch.rand(1, 5, 1, 1)
    change = build_layer("x", tensors).delta(weight)
    peft, lycoris = (build_layer("x", {**tensors, mark: magnitude}).delta(weight) for mark in ("lora_magnitude_vector", "dora_scale"))
    assert relative(peft, slow_delta(weight, change, magnitude, 0)) < 1e-5
    assert relative(lycoris, slow_delta(weight, change, magnitude, 1)) < 1e-5
    # and where a converter has only renamed them, their number still tells
    wide, named = torch.randn(4, 6, 3, 3), lora(4, 6, (3, 3))
    renamed = build_layer("x", {**named, "dora_scale": magnitude[:, :4]})
    assert relative(renamed.delta(wide), slow_delta(wide, build_layer("x", named).delta(wide), magnitude[:, :4], 0)) < 1e-5


@pytest.mark.parametrize("axis", [0, 1])
def test_a_small_change_of_a_large_weight_keeps_its_digits(axis):
    weight, tensors = torch.randn(400, 300), lora(400, 300, size=1e-3)
    magnitude = weight.double().square().sum(1 - axis, keepdim=True).sqrt().float() * (1 + 1e-3 * torch.randn((400, 1) if axis == 0 else (1, 300)))
    layer = build_layer("x", {**tensors, "dora_scale": magnitude})
    expected = slow_delta(weight, layer.inner.delta(weight), magnitude, axis)
    assert expected.norm() < 0.01 * weight.norm()
    total = torch.zeros_like(weight)
    layer.add_to(total, weight, 1.0)
    assert relative(layer.delta(weight), expected) < 1e-5 and relative(total, expected) < 1e-5


def test_a_row_without_length_stays_finite():
    weight = torch.randn(4, 6)
    tensors = lora(4, 6)
    tensors["lora_up.weight"][0], weight[0] = 0, 0
    delta = build_layer("x", {**tensors, "dora_scale": torch.ones(4, 1)}).delta(weight)
    assert torch.isfinite(delta).all() and not delta[0].any()


def test_a_bias_of_the_layer_inside_is_not_stretched():
    layer = build_layer("x", {**lora(4, 6), "lora_up.bias": torch.ones(4), "dora_scale": torch.full((4, 1), 9.0)})
    torch.testing.assert_close(layer.delta_bias(torch.zeros(4)), torch.full((4,), 0.5))


def test_the_base_weight_counts_not_the_one_with_other_networks():
    module, other = nn.Linear(6, 4), torch.randn(4, 6)
    layer = build_layer("x", {**lora(4, 6), "dora_scale": torch.rand(4, 1)})
    x = torch.randn(3, 6)
    with torch.no_grad():
        torch.testing.assert_close(layer.delta_output(x, module, other), x @ layer.delta(other).T, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("magnitude", [torch.ones(4, 6), torch.ones(2, 2), torch.ones(0), torch.tensor(1.0), torch.ones(4).int(), torch.full((4,), torch.nan)])
@pytest.mark.parametrize("mark", ["dora_scale", "lora_magnitude_vector"])
def test_lengths_that_are_no_vector_are_refused(mark, magnitude):
    with pytest.raises(NetworkFileError, match="lora_unet_x"):
        build_layer("lora_unet_x", {**lora(4, 6), mark: magnitude})


def test_lengths_of_another_model_do_not_fit():
    layer = build_layer("x", {**lora(4, 6), "dora_scale": torch.ones(5, 1)})
    assert not layer.fits((4, 6))
    with pytest.raises(NetworkFileError, match="another model"):
        layer.delta(torch.zeros(4, 6))


def test_lengths_alone_make_no_layer():
    with pytest.raises(NetworkFileError, match="without what it decomposes"):
        build_layer("x", {"dora_scale": torch.ones(4, 1)})


@pytest.mark.parametrize("exact", [False, True])
def test_the_gradient_goes_through_the_lengths_only_where_that_is_wanted(exact):
    module = nn.Linear(6, 4).double().requires_grad_(False)
    layer = DecomposedLayer.create(module, LowRankLayer.create(module, 2), exact_gradient=exact)
    nn.init.normal_(layer.inner.lora_up.weight)
    up, down = layer.inner.lora_up.weight, layer.inner.lora_down.weight
    target = torch.randn(4, 6).double()
    found = torch.autograd.grad((layer.delta(module.weight) * target).sum(), [up, layer.dora_scale])
    changed = module.weight + (up @ down).double()
    lengths = changed.norm(dim=1, keepdim=True)
    expected = torch.autograd.grad((layer.dora_scale.double() * changed / (lengths if exact else lengths.detach()) * target).sum(), [up, layer.dora_scale])
    for one, other in zip(found, expected, strict=True):
        assert relative(one, other) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_fresh_layers_add_exactly_nothing_to_a_weight_of_any_dtype(dtype):
    module = nn.Conv2d(16, 24, 3).to(dtype)
    for on_output in (False, True):
        layer = DecomposedLayer.create(module, AdaLoRALayer.create(module, 3), on_output)
        assert not layer.delta(module.weight).any()
        total = torch.zeros(24, 16, 3, 3)
        layer.add_to(total, module.weight, 1.0)
        assert not total.any()


def test_what_is_not_made_for_the_target_is_refused():
    with pytest.raises(ConfigError, match="decomposed"):
        DecomposedLayer.create(nn.Linear(6, 4), LowRankLayer.create((6, 4), 2))
    with pytest.raises(ConfigError):
        DecomposedLayer.create(nn.LayerNorm(4), LowRankLayer.create((4, 4), 2))
