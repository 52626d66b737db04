"""Every kind in training on small models: outputs and gradients against weights that are put together in the graph outside of the model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lib_lycoris.networks.adalora import AdaLoRALayer
from lib_lycoris.networks.dora import DecomposedLayer
from lib_lycoris.networks.full import FullLayer
from lib_lycoris.networks.ia3 import IA3Layer
from lib_lycoris.networks.loha import LohaLayer
from lib_lycoris.networks.lokr import LokrLayer
from lib_lycoris.networks.low_rank import LowRankLayer
from lib_lycoris.networks.norm import NormLayer
from lib_lycoris.patching.session import Session, attach
from lib_lycoris.patching.targets import find_targets
from lib_lycoris.patching.traced import TracedWeight

from .helpers import assert_own_parameters, assert_untouched, generator, photograph, random_network
from .test_attach import loss, text_case, unet_case
from .trees import Holder


def decomposed(target, draw):
    return DecomposedLayer.create(target.module, LowRankLayer.create(target.shape, 2, generator=draw), exact_gradient=True)


KINDS = {
    "lora": lambda target, draw: LowRankLayer.create(target.shape, 2, 1.0, draw),
    "lora, Tucker": lambda target, draw: LowRankLayer.create(target.shape, 2, 1.0, draw, tucker=True),
    "adalora": lambda target, draw: AdaLoRALayer.create(target.shape, 2, generator=draw),
    "loha, one rank": lambda target, draw: LohaLayer.create(target.shape, 1, generator=draw),
    "loha, many ranks": lambda target, draw: LohaLayer.create(target.shape, 3, generator=draw),
    "lokr": lambda target, draw: LokrLayer.create(target.shape, 2, generator=draw, factor=2),
    "dora": decomposed,
    "full": lambda target, draw: FullLayer.create(target.module),
    "ia3": lambda target, draw: IA3Layer.create(target.shape, on_input=True),
    "norm": lambda target, draw: NormLayer.create(target.module),
}


def suits(kind, target):
    if kind == "norm":
        return isinstance(target.module, nn.LayerNorm | nn.GroupNorm)
    fused = target.rows is not None or target.fused
    return isinstance(target.module, nn.Linear | nn.Conv2d) and not fused


def trainable(kind, targets):
    layers = {}
    for number, (key, target) in enumerate(targets.items()):
        if suits(kind, target):
            layers[key] = KINDS[kind](target, generator(number))
            with torch.no_grad():
                for value in layers[key].parameters():
                    value.add_(0.3 * torch.randn(value.shape, generator=generator(100 + number)))
    return layers


def reference(tree, targets, layers, inputs):
    """The tree run with weights and biases that are made outside of it, in the graph."""
    names = {id(parameter): name for name, parameter in tree.named_parameters()}
    made = {}
    for key, layer in layers.items():
        module = targets[key].module
        made[names[id(module.weight)]] = module.weight.detach() + layer.delta(module.weight.detach())
        own = None if module.bias is None else layer.delta_bias(module.bias.detach())
        if own is not None:
            made[names[id(module.bias)]] = module.bias.detach() + own
    return torch.func.functional_call(tree, made, inputs)


def gradients_of(layers):
    found = [(key, name, value.grad) for key, layer in layers.items() for name, value in layer.named_parameters()]
    for layer in layers.values():
        layer.zero_grad()
    return found


def assert_close_gradients(found, wanted):
    for (key, name, one), (_, _, other) in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=2e-3, atol=2e-4 * float(other.abs().max()) + 1e-6), (key, name)


@pytest.mark.parametrize("case", [unet_case, text_case])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_weights_made_in_the_graph(kind, case):
    tree, inputs, find = case()
    tree.requires_grad_(False)
    targets = find(tree)
    layers = trainable(kind, targets)
    if not layers:
        pytest.skip("the model has no such layer")
    wanted_output = reference(tree, targets, layers, inputs)
    loss(wanted_output).backward()
    wanted = gradients_of(layers)
    before = photograph(tree)
    with attach(targets, layers):
        output = tree(*inputs)
        assert_own_parameters(tree, before)
        torch.testing.assert_close(output, wanted_output, rtol=1e-4, atol=1e-4)
        loss(output).backward()
        assert_close_gradients(gradients_of(layers), wanted)
        with torch.no_grad():
            torch.testing.assert_close(tree(*inputs), wanted_output, rtol=1e-4, atol=1e-4)
    assert_untouched(tree, before)


@pytest.mark.parametrize(("way", "layer", "places"), [
    ("beside", nn.Linear(96, 96), 4), ("weight", nn.Linear(4, 8), 2048), ("factors", nn.Linear(96, 96), 2048), ("factors", nn.Conv2d(48, 96, 3, 2, 1), 1024),
], ids=["beside", "weight", "factors", "factors, convolution"])
def test_every_way_that_a_product_is_cheapest_by(way, layer, places, monkeypatch):
    tree = Holder(a=layer.requires_grad_(False))
    targets = find_targets(tree)
    layers = {("unet", "a"): LohaLayer.create(layer, 3, generator=generator(3))}
    with torch.no_grad():
        for value in layers["unet", "a"].parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=generator(4)))
    x = torch.randn(places, layer.in_features) if isinstance(layer, nn.Linear) else torch.randn(1, 48, 64, 64)
    wanted_output = torch.func.functional_call(layer, {"weight": layer.weight + layers["unet", "a"].delta(layer.weight)}, (x,))
    loss(wanted_output).backward()
    wanted, taken = gradients_of(layers), []
    asked = LohaLayer.way
    monkeypatch.setattr(LohaLayer, "way", lambda self, *args: taken.append((args, asked(self, *args))) or taken[-1][1])
    with attach(targets, layers):
        output = layer(x)
    assert [found for args, found in taken if args] == [way] and taken[-1][0] == (places, True)
    torch.testing.assert_close(output, wanted_output, rtol=1e-4, atol=1e-4)
    loss(output).backward()
    assert_close_gradients(gradients_of(layers), wanted)


def test_where_the_sum_would_be_rounded_a_product_of_its_own_is_weighed_against_the_factors():
    layer = LohaLayer.create((320, 320), 8)
    assert layer.way(4096) == "factors" and layer.way(4096, merges=False) == "beside"
    small = LohaLayer.create((80, 80), 8)
    assert small.way(4096) == "weight" and small.way(4096, merges=False) == "weight", "its ranks are nearly all that there are"


@pytest.mark.parametrize("kind", ["loha, many ranks", "dora", "full", "ia3"])
@pytest.mark.parametrize("layer", [nn.Linear(6, 8), nn.Conv2d(6, 8, 3, 2, 1), nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"),
                                   nn.Conv2d(6, 8, 3, padding="same"), nn.Conv2d(6, 8, 3, groups=2)], ids=["linear", "strided", "circular", "same", "grouped"])
def test_every_sort_of_layer(kind, layer):
    tree = Holder(a=layer.requires_grad_(False))
    targets = find_targets(tree)
    layers = trainable(kind, targets)
    x = torch.randn(2, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 6, 8, 8)
    output = torch.func.functional_call(layer, {"weight": layer.weight + layers["unet", "a"].delta(layer.weight), **_bias(layer, layers["unet", "a"])}, (x,))
    loss(output).backward()
    wanted = gradients_of(layers)
    with attach(targets, layers):
        torch.testing.assert_close(layer(x), output, rtol=1e-4, atol=1e-5)
        loss(layer(x)).backward()
    assert_close_gradients(gradients_of(layers), wanted)


def _bias(module, layer):
    own = layer.delta_bias(module.bias)
    return {} if own is None else {"bias": module.bias + own}


@pytest.mark.parametrize("kind", ["loha, many ranks", "dora", "full", "ia3", "lora", "adalora"])
def test_a_delta_is_never_rounded_into_a_half_precision_weight(kind):
    layer = nn.Linear(64, 64).requires_grad_(False)
    tree = Holder(a=layer)
    targets = find_targets(tree)
    layers = trainable(kind, targets)
    small = {"dora": ("inner.lora_up.weight",), "lora": ("lora_up.weight",), "adalora": ("lora_E",), "full": ("diff", "diff_b"), "ia3": ("weight",)}
    with torch.no_grad():
        for name, value in layers["unet", "a"].named_parameters():
            if name in small.get(kind, ("hada_w2_a",)):
                value.mul_(1e-5)
        if kind == "dora":
            fresh = layer.weight.float() + layers["unet", "a"].inner.delta(layer.weight)
            layers["unet", "a"].dora_scale.copy_(fresh.norm(dim=1, keepdim=True) * (1 + 1e-4))
    layer.bfloat16()
    x = torch.randn(32, 64).bfloat16()
    exact = x.double() @ layers["unet", "a"].delta(layer.weight).double().T
    plain = layer(x)
    with attach(targets, layers):
        seen = []
        handle = layer.register_forward_hook(lambda module, args, output: seen.append(module.weight))
        loss(layer(x).float()).backward()
        handle.remove()
    assert all(value.grad is not None and torch.isfinite(value.grad).all() for value in layers["unet", "a"].parameters())
    # the sum is rounded to bfloat16, so the delta alone is looked at where the layer gives nothing else
    with torch.no_grad():
        layer.weight.zero_(), layer.bias.zero_()
    if kind in ("loha, many ranks", "full", "lora", "adalora"):
        with attach(targets, layers), torch.no_grad():
            own = layers["unet", "a"].delta_bias(None)
            assert (layer(x).double() - exact - (0 if own is None else own.double())).norm() < 0.02 * exact.norm()
    assert plain.dtype == torch.bfloat16


def test_autocast_computes_in_half_precision_beside():
    layer = nn.Linear(64, 64).requires_grad_(False)
    tree = Holder(a=layer)
    targets = find_targets(tree)
    x = torch.randn(32, 64)
    for kind in ("loha, many ranks", "lora", "adalora", "dora"):
        layers = trainable(kind, targets)
        exact = layer(x) + x @ layers["unet", "a"].delta(layer.weight).T
        with attach(targets, layers):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output = layer(x)
            assert output.dtype == torch.bfloat16
            assert (output.float() - exact).norm() < 0.02 * exact.norm()
            loss(output.float()).backward()
        for value in layers["unet", "a"].parameters():
            assert value.grad.dtype == torch.float32 and float(value.grad.abs().sum()) > 0


def test_what_else_is_done_with_the_weight_is_done_with_the_sum_in_the_graph():
    layer = nn.Linear(4, 4).requires_grad_(False)
    targets = find_targets(Holder(a=layer))
    layers = trainable("full", targets)

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = layer

    effects_of = {}

    def forward(x):
        weight = layer.weight
        effects_of["type"], effects_of["shape"], effects_of["dtype"] = type(weight), weight.shape, weight.dtype
        return x @ weight.t()

    layer.forward = forward
    with attach(targets, layers):
        output = layer(torch.eye(4))
        loss(output).backward()
    del layer.forward
    assert effects_of == {"type": TracedWeight, "shape": torch.Size((4, 4)), "dtype": torch.float32}
    torch.testing.assert_close(output, (layer.weight + layers["unet", "a"].diff).T)
    assert layers["unet", "a"].diff.grad is not None


def test_gradients_flow_through_checkpointed_blocks():
    torch.manual_seed(0)
    tree = Holder(a=nn.Linear(6, 8), b=nn.Linear(8, 6)).requires_grad_(False)
    targets = find_targets(tree)
    layers = trainable("loha, many ranks", targets)
    x = torch.randn(2, 6, requires_grad=True)
    found = []
    for run in (lambda: tree.b(tree.a(x)), lambda: checkpoint(lambda y: tree.b(tree.a(y)), x, use_reentrant=False)):
        with attach(targets, layers):
            loss(run()).backward()
        found.append([(key, name, value.clone()) for key, name, value in gradients_of(layers)])
    assert_close_gradients(*found)


def test_a_session_on_the_same_layer_adds_up_with_what_is_trained():
    torch.manual_seed(0)
    layer = nn.Linear(6, 8).requires_grad_(False)
    tree = Holder(a=layer)
    targets = find_targets(tree)
    layers, network, x = trainable("loha, many ranks", targets), random_network(targets, 5), torch.randn(3, 6)
    plain = layer(x)
    wanted = plain + x @ layers["unet", "a"].delta(layer.weight).T + 0.5 * x @ network.layers["lora_unet_a"].delta(layer.weight).T
    session = Session(tree)
    with session:
        session.apply([(network, 0.5)])
        with attach(targets, layers):
            torch.testing.assert_close(layer(x), wanted)
            loss(layer(x)).backward()
        assert all(value.grad is not None for value in layers["unet", "a"].parameters())
    assert torch.equal(layer(x), plain)


def test_a_weight_that_changes_in_place_is_seen():
    layer = nn.Linear(4, 4).requires_grad_(False)
    targets = find_targets(Holder(a=layer))
    layers, x = trainable("full", targets), torch.randn(2, 4)
    with attach(targets, layers):
        layer(x)
        with torch.no_grad():
            layer.weight.mul_(2)
        wanted = x @ (layer.weight + layers["unet", "a"].diff).T + layer.bias + layers["unet", "a"].diff_b
        torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("layer", [nn.Linear(96, 96), nn.Conv2d(48, 96, 3, 2, 1)], ids=["linear", "convolution"])
def test_a_model_in_float64_is_trained_by_factors_too(layer):
    layer = copy.deepcopy(layer).double().requires_grad_(False)
    targets = find_targets(Holder(a=layer))
    layers = trainable("loha, many ranks", targets)
    x = torch.randn(2, 2048, 96).double() if isinstance(layer, nn.Linear) else torch.randn(2, 48, 64, 64).double()
    assert layers["unet", "a"].way(4096 if isinstance(layer, nn.Linear) else 2048) == "factors"
    wanted_output = torch.func.functional_call(layer, {"weight": layer.weight + layers["unet", "a"].delta(layer.weight)}, (x,))
    loss(wanted_output).backward()
    wanted = gradients_of(layers)
    with attach(targets, layers):
        output = layer(x)
    torch.testing.assert_close(output, wanted_output, rtol=1e-5, atol=1e-5)
    loss(output).backward()
    assert_close_gradients(gradients_of(layers), wanted)


@pytest.mark.parametrize(("kind", "width", "places"), [
    ("lora", 8, 4), ("adalora", 8, 4), ("loha, one rank", 96, 4), ("loha, many ranks", 8, 4), ("loha, many ranks", 96, 2048), ("lokr", 8, 4), ("full", 8, 4),
])
def test_a_gradient_of_a_gradient_is_refused_and_not_given_wrong(kind, width, places):
    layer = nn.Linear(width, width).requires_grad_(False)
    targets = find_targets(Holder(a=layer))
    layers = trainable(kind, targets)
    x = torch.randn(places, width, requires_grad=True)
    with attach(targets, layers):
        by_x, = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        by_x.square().sum().backward()
