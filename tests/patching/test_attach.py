from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lib_lycoris.errors import ConfigError
from lib_lycoris.networks.low_rank import LowRankLayer
from lib_lycoris.patching.hooks import ModulePatch
from lib_lycoris.patching.session import Session, attach
from lib_lycoris.patching.targets import find_targets

from .helpers import assert_own_parameters, assert_untouched, generator, photograph, random_layer, random_network
from .trees import CONTEXT, Holder, LdmUNet, OpenClipText

TOKENS = torch.tensor([[3, 4, 5, 6, 1]])


def trainable(targets):
    layers = {}
    for number, (key, target) in enumerate(targets.items()):
        if len(target.shape) > 1 and not isinstance(target.module, nn.Embedding):
            layers[key] = random_layer(target.shape, number).requires_grad_(True)
    return layers


def functional_reference(tree, targets, layers, run):
    """The tree run with weights that are made outside of it, one by one, with the layers' parameters in the graph."""
    weights = {name: parameter.detach() for name, parameter in tree.named_parameters()}
    names = {id(parameter): name for name, parameter in tree.named_parameters()}
    for key, layer in layers.items():
        target = targets[key]
        name = names[id(getattr(target.module, target.weight))]
        delta = layer.scale * torch.einsum("or,ri->oi", layer.lora_up.weight.flatten(1), layer.lora_down.weight.flatten(1)).reshape(target.shape)
        rows = target.rows or slice(0, len(weights[name]))
        weights[name] = torch.cat([weights[name][: rows.start], weights[name][rows] + delta, weights[name][rows.stop :]])
    return torch.func.functional_call(tree, weights, run)


def loss(output):
    """Not the sum of squares, which a last LayerNorm makes a constant."""
    return (output * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum()


def unet_case():
    torch.manual_seed(0)
    draw = generator(1)
    inputs = (torch.randn(1, 4, 4, 4, generator=draw), torch.tensor([3.0]), torch.randn(1, 5, CONTEXT, generator=draw))
    return LdmUNet(), inputs, find_targets


def text_case():
    torch.manual_seed(0)
    return OpenClipText(), (TOKENS,), lambda tree: find_targets(None, [tree])


@pytest.mark.parametrize("case", [unet_case, text_case])
@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_of_attached_layers_are_those_of_weights_merged_in_the_graph(case, frozen):
    tree, inputs, find = case()
    tree.requires_grad_(not frozen)
    targets = find(tree)
    layers = trainable(targets)
    reference = functional_reference(tree, targets, layers, inputs)
    loss(reference).backward()
    wanted = {key: layer.lora_up.weight.grad.clone() for key, layer in layers.items()}
    for layer in layers.values():
        layer.zero_grad()
    before = photograph(tree)
    with attach(targets, layers):
        output = tree(*inputs)
        assert torch.allclose(output, reference, rtol=1e-4, atol=1e-5)
        assert_own_parameters(tree, before)
        loss(output).backward()
    assert_untouched(tree, before)
    for key, layer in layers.items():
        assert torch.allclose(layer.lora_up.weight.grad, wanted[key], rtol=1e-3, atol=1e-4 * float(wanted[key].abs().max()) + 1e-7), key


def test_a_step_of_an_optimiser_counts_in_the_next_forward_also_in_fused_layers():
    tree, inputs, find = text_case()
    targets = find(tree)
    layers = {key: LowRankLayer.create(target.shape, 2, generator=generator(1)) for key, target in targets.items() if target.fused}
    plain = tree(*inputs)
    with attach(targets, layers):
        fresh = tree(*inputs)
        assert torch.allclose(fresh, plain, atol=1e-6)
        optimiser = torch.optim.SGD([parameter for layer in layers.values() for parameter in layer.parameters()], lr=1.0)
        loss(fresh).backward()
        optimiser.step()
        assert not torch.allclose(tree(*inputs), plain, atol=1e-4)
    assert torch.equal(tree(*inputs), plain)


def test_gradients_flow_through_checkpointed_blocks():
    torch.manual_seed(0)
    tree = Holder(a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    targets = find_targets(tree)
    layers = trainable(targets)
    grads = []
    x = torch.randn(2, 4, requires_grad=True)
    for run in (lambda: tree.b(tree.a(x)), lambda: checkpoint(lambda y: tree.b(tree.a(y)), x, use_reentrant=False)):
        with attach(targets, layers):
            loss(run()).backward()
        grads.append([parameter.grad.clone() for layer in layers.values() for parameter in layer.parameters()])
        for layer in layers.values():
            layer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_attached_layers_are_no_part_of_the_models_tree():
    tree, _, find = text_case()
    targets = find(tree)
    before = photograph(tree)
    handle = attach(targets, trainable(targets))
    assert [name for name, _, _, _ in photograph(tree)[0]] == [name for name, _, _, _ in before[0]]
    assert list(tree.state_dict()) == before[3]
    handle.remove()
    handle.remove()
    assert_untouched(tree, before)


def test_strength_scales_what_is_attached_and_a_session_adds_to_it():
    torch.manual_seed(0)
    tree = Holder(a=nn.Linear(4, 4))
    targets = find_targets(tree)
    layers, x = trainable(targets), torch.ones(1, 4)
    plain = tree.a(x)
    effect = layers["unet", "a"].delta(tree.a.weight) @ x[0]
    session = Session(tree)
    network = random_network(targets, 5)
    with attach(targets, layers, strength=-0.5), session:
        assert torch.allclose(tree.a(x), plain - 0.5 * effect, atol=1e-6)
        session.apply([(network, 1.0)])
        assert torch.allclose(tree.a(x), plain - 0.5 * effect + network.layers["lora_unet_a"].delta(tree.a.weight) @ x[0], atol=1e-6)
    assert torch.equal(tree.a(x), plain)


def test_a_layer_without_a_target_or_of_another_shape_is_refused_and_leaves_no_trace():
    tree = Holder(a=nn.Linear(4, 4))
    before = photograph(tree)
    targets = find_targets(tree)
    good = trainable(targets)
    with pytest.raises(ConfigError, match="no layer 'b' in 'unet'"):
        attach(targets, {**good, ("unet", "b"): random_layer((4, 4), 1)})
    with pytest.raises(ConfigError, match=r"does not fit its weight of shape \[4, 4\]"):
        attach(targets, {("unet", "a"): random_layer((4, 5), 1)})
    assert_untouched(tree, before)


def test_an_interrupt_while_attaching_leaves_no_trace(monkeypatch):
    tree = Holder(a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    targets = find_targets(tree)
    before, claim, calls = photograph(tree), ModulePatch.claim, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        claim(*args)

    monkeypatch.setattr(ModulePatch, "claim", interrupted)
    with pytest.raises(KeyboardInterrupt):
        attach(targets, trainable(targets))
    assert_untouched(tree, before)


def test_the_layers_of_a_copied_model_are_not_shared_with_it():
    tree = Holder(a=nn.Linear(4, 4))
    targets = find_targets(tree)
    x = torch.ones(1, 4)
    plain = tree.a(x)
    with attach(targets, trainable(targets)):
        assert torch.equal(copy.deepcopy(tree).a(x), plain)
