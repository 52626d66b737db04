"""Dials: strengths for each row, turned while a network is on; what a Weighting says; networks made for the base weight."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lib_lycoris.errors import ConfigError
from lib_lycoris.networks.kinds import build_layer
from lib_lycoris.networks.network import Network
from lib_lycoris.patching.session import Session
from lib_lycoris.patching.weighting import Dial, Weighting

from .helpers import assert_untouched, generator, merge_by_hand, photograph, random_layer, random_network
from .trees import CONTEXT, Holder, LdmUNet, OpenClipText


def make_unet(**layout):
    torch.manual_seed(0)
    return LdmUNet(**layout).requires_grad_(False)


def inputs(rows, seed=0):
    draw = generator(seed)
    return torch.randn(rows, 4, 8, 8, generator=draw), torch.linspace(3, 500, rows), torch.randn(rows, 5, CONTEXT, generator=draw)


def close(a, b, tolerance=1e-4):
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


def shuffled(kind, shape, seed):
    """A layer of some kind for a weight of this shape: low rank, without factors, or one that depends on the weight."""
    draw = generator(seed)
    if kind == "lora":
        return random_layer(shape, seed)
    if kind == "full":
        return build_layer("a", {"diff": 0.1 * torch.randn(shape, generator=draw)})
    return build_layer("a", {"weight": 0.3 * torch.randn(shape[0], generator=draw).reshape(-1, *(1,) * (len(shape) - 2)), "on_input": torch.tensor(False)})


def network_of(targets, kind, seed, names=None):
    layers, homes = {}, {}
    for number, (key, target) in enumerate(targets.items()):
        if len(target.shape) > 1 and not isinstance(target.module, nn.Embedding) and (names is None or any(name in key[1] for name in names)):
            layer = shuffled(kind, tuple(target.shape), 1000 * seed + number)
            if layer.fits(target.shape):
                layers["_".join(key)], homes["_".join(key)] = layer, key
    return Network(layers=layers, targets=homes)


@torch.no_grad()
def one_by_one(unet, networks, strengths, x):
    """The slow way: for each row the model with ΔW·strength added into its weights in float64."""
    model, own = copy.deepcopy(unet), Session(unet).targets
    targets, rows = Session(model).targets, []
    for row in range(len(x[0])):
        model.load_state_dict(unet.state_dict())
        for network, values in zip(networks, strengths, strict=True):
            for name, layer in network.layers.items():
                weight, base = (found[network.targets[name]].module.weight for found in (targets, own))
                weight.copy_((weight.double() + float(values[row]) * layer.delta(base).double()).float())
        rows.append(model(*(part[row:row + 1] for part in x)))
    return torch.cat(rows)


STRENGTHS = st.one_of(st.just(0.0), st.floats(-1, 1))


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["lora", "full", "ia3"]), st.lists(STRENGTHS, min_size=4, max_size=4)), min_size=1, max_size=3),
       st.sampled_from([(4,), (2, 2), (1, 3), (3, 1)]), st.booleans())
def test_rows_with_own_strengths_are_the_pictures_made_one_by_one(wanted, calls, constant):
    unet, x = make_unet(), inputs(4)
    session = Session(unet)
    networks = [network_of(session.targets, kind, seed, ["attn2", "conv1", "conv_in", "time_emb"]) for seed, (kind, _) in enumerate(wanted)]
    strengths = [torch.tensor(values) for _, values in wanted]
    weightings = [Weighting(0.0, Dial(values)) for values in strengths]
    if constant:  # one of them without a dial, merged
        weightings[0], strengths[0] = Weighting(0.0, 0.4), torch.full((4,), 0.4)
    before = photograph(unet)
    session.apply(zip(networks, weightings, strict=True))
    for _ in range(2):
        session.begin_step()
        with torch.no_grad():
            found = torch.cat([unet(*parts) for parts in zip(*(part.split(list(calls)) for part in x), strict=True)])
        assert close(found, one_by_one(unet, networks, strengths, x))
    assert session.problems == []
    session.restore()
    assert_untouched(unet, before)


@torch.no_grad()
def test_a_dial_is_turned_without_a_new_plan_and_a_merged_text_encoder_follows():
    torch.manual_seed(0)
    tree, text = Holder(a=nn.Linear(4, 4)), OpenClipText()
    session = Session(tree, [text])
    network = random_network(session.targets, 1)
    unet, te = Dial(0.0), Dial(0.5)
    session.apply([(network, Weighting(te, unet))])
    x, tokens = torch.randn(2, 4), torch.tensor([[3, 4, 5, 6, 1]])
    for value in (0.5, -1.0, torch.tensor([0.25, 0.25])):
        unet.set(value)
        te.set(value)
        number = float(torch.as_tensor(value).flatten()[0])
        reference, other = copy.deepcopy(text), copy.deepcopy(tree)
        merge_by_hand(Session(other, [reference]).targets, [(network, number)])
        assert close(text(tokens), reference(tokens)) and close(tree.a(x), other.a(x))


@torch.no_grad()
def test_tiles_of_a_picture_take_its_strength_and_parts_of_a_layers_batch_too():
    tree = Holder(a=nn.Linear(4, 4))
    session = Session(tree)
    network = random_network(session.targets, 1)
    values = torch.tensor([0.0, 1.0, 0.5])
    session.apply([(network, Weighting(unet=Dial(values)))])
    x = torch.randn(6, 4)
    effect = x @ network.layers["lora_unet_a"].delta(tree.a.weight).T
    plain = nn.functional.linear(x, tree.a.weight, tree.a.bias)
    assert close(tree.a(x), plain + values.repeat_interleave(2)[:, None] * effect)  # attention over parts of a picture
    tree.forward = lambda x: tree.a(x)
    assert close(tree(x), plain + values.repeat(2)[:, None] * effect)  # tiles, one after the other, of all pictures


@torch.no_grad()
def test_rows_that_cannot_be_told_apart_get_nothing_and_that_is_said_once():
    tree = Holder(a=nn.Linear(4, 4))
    session = Session(tree)
    network, dial = random_network(session.targets, 1), Dial(torch.tensor([0.0, 1.0, 0.5]))
    session.apply([(network, Weighting(unet=dial))])
    x = torch.randn(4, 4)
    plain = nn.functional.linear(x, tree.a.weight, tree.a.bias)
    assert torch.equal(tree.a(x), plain) and torch.equal(tree.a(x), plain)
    assert session.problems == ["strengths of single pictures were left out: a layer with a batch of 4 does not show which of the 3 rows it holds"]
    dial.set(torch.ones(3))  # where all agree there is nothing to tell apart
    assert close(tree.a(x), plain + x @ network.layers["lora_unet_a"].delta(tree.a.weight).T)
    session.apply([])
    assert session.problems == []


@pytest.mark.parametrize("value", [float("nan"), "much", torch.tensor([1.0, float("inf")]), torch.zeros(2, 2), torch.zeros(0)])
def test_a_dial_takes_finite_numbers_only_and_stays_where_it_was(value):
    dial = Dial(0.5)
    with pytest.raises(ConfigError, match="finite"):
        dial.set(value)
    assert dial.value == 0.5


def test_a_text_encoder_refuses_a_dial_whose_rows_differ():
    text = OpenClipText()
    session = Session(None, [text])
    session.apply([(random_network(session.targets, 1), Weighting(Dial(torch.tensor([0.0, 1.0]))))])
    with pytest.raises(ConfigError, match="encoded with one strength"):
        text(torch.tensor([[3, 4]]))


@torch.no_grad()
def test_a_factor_weighs_each_layer_and_zero_leaves_it_out():
    tree = Holder(a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    session = Session(tree)
    network = random_network(session.targets, 1)
    session.apply([(network, Weighting(unet=2.0, factor=lambda component, name: {"a": 0.25, "b": 0.0}[name]))])
    assert [(effect.target.name, effect.strength) for effect in session.plan.effects] == [("a", 0.5)]
    session.apply([(network, Weighting(unet=Dial(2.0), factor=lambda component, name: {"a": 0.25, "b": 0.0}[name]))])
    x = torch.randn(1, 4)
    assert close(tree.a(x), nn.functional.linear(x, tree.a.weight + 0.5 * network.layers["lora_unet_a"].delta(tree.a.weight), tree.a.bias))
    with pytest.raises(ConfigError, match="finite"):
        session.apply([(network, Weighting(factor=lambda component, name: float("nan")))])


@torch.no_grad()
def test_only_the_first_ranks_act_and_a_kind_without_ranks_is_left_over():
    tree = Holder(a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    session = Session(tree)
    network = random_network(session.targets, 1, rank=3)
    layers = {**network.layers, "lora_unet_b": build_layer("b", {"diff": torch.ones(4, 4)})}
    network = Network(layers=layers, targets=network.targets)
    weighting = Weighting(ranks=2)
    assert session.apply([(network, weighting)]) == ["lora_unet_b"]
    first = session.plan.effects[0].layer
    session.apply([(network, weighting)])
    assert session.plan.effects[0].layer is first  # nothing to merge anew
    layer = network.layers["lora_unet_a"]
    expected = tree.a.weight + layer.scale * layer.lora_up.weight[:, :2] @ layer.lora_down.weight[:2]
    x = torch.randn(2, 4)
    assert close(tree.a(x), nn.functional.linear(x, expected, tree.a.bias))


@torch.no_grad()
@pytest.mark.parametrize("strength", [0.7, Weighting(unet=Dial(0.7)), Weighting(unet=Dial(torch.tensor([0.7, 0.0])))], ids=["merged", "dial", "rows"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_first_layer_made_for_four_channels_goes_onto_the_first_four_of_an_inpainting_model(kind, strength):
    conv = nn.Conv2d(9, 6, 3, padding=1)
    tree = Holder(conv_in=conv)
    session = Session(tree)
    layer = shuffled(kind, (6, 4, 3, 3), 1)
    network = Network(layers={"a": layer, "b": random_layer((6, 5, 3, 3), 2)}, targets={"a": ("unet", "conv_in"), "b": ("unet", "conv_in")})
    assert session.apply([(network, strength)]) == ["b"]
    x = torch.randn(2, 9, 5, 5)
    effect = nn.functional.conv2d(x[:, :4], 0.7 * layer.delta(torch.zeros(6, 4, 3, 3)), padding=1)
    if isinstance(strength, Weighting) and isinstance(strength.unet.value, torch.Tensor):
        effect[1] = 0
    assert close(conv(x), nn.functional.conv2d(x, conv.weight, conv.bias, padding=1) + effect)


@torch.no_grad()
@pytest.mark.parametrize("dialled", [False, True])
def test_a_network_that_depends_on_the_weight_is_made_for_the_weight_without_any_other(dialled):
    torch.manual_seed(0)
    tree = Holder(a=nn.Linear(4, 4))
    original = {"weight": tree.a.weight.clone(), "bias": tree.a.bias.clone()}
    tree.a.weight += 1.0  # what a host's own network merged
    session = Session(tree, base=lambda module: original if module is tree.a else None)
    multiplier, other = network_of(session.targets, "ia3", 1), random_network(session.targets, 2)
    layer = multiplier.layers["unet_a"]
    assert layer.weight_dependent
    x = torch.randn(2, 4)
    expected = tree.a.weight + 1.5 * layer.delta(original["weight"]) + 0.5 * other.layers["lora_unet_a"].delta(tree.a.weight)
    def strength(value):
        return Weighting(unet=Dial(value)) if dialled else value

    for networks in ([(multiplier, strength(1.0)), (other, 0.5), (multiplier, 0.5)], [(other, 0.5), (multiplier, strength(1.5))]):
        session.apply(networks)
        assert close(tree.a(x), nn.functional.linear(x, expected, tree.a.bias))


@pytest.mark.parametrize("telling", [lambda x: [2, 3, 2, 3], lambda x: (), None])
def test_who_cuts_a_step_otherwise_tells_which_rows_a_call_holds(telling):
    unet, dial = make_unet(), Dial()
    with Session(unet) as session:
        network = network_of(session.targets, "lora", 3)
        session.apply([(network, Weighting(unet=dial))])
        values = [1.0, -0.5, 0.0, 0.7]
        dial.set(torch.tensor(values, dtype=torch.float64))
        x = inputs(4)
        session.begin_step(telling)
        made = unet(*x)
        problems = session.problems
    wanted = [values[row] for row in telling(x)] if telling and telling(x) else [0.0] * 4 if telling else values
    assert close(made, one_by_one(unet, [network], [wanted], x))
    assert bool(problems) == (telling is not None and not telling(x))
