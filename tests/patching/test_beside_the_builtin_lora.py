from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from lib_lycoris.patching.session import Session

from .builtin import Builtin
from .helpers import assert_own_parameters, assert_untouched, generator, photograph, random_network
from .trees import Holder, ResidualAttentionBlock


class Tree(nn.Module):
    """A convolution, a linear layer and open_clip's attention, run one after the other."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(8, 8)
        self.token_embedding = nn.Embedding(3, 8)
        self.transformer = Holder(resblocks=nn.ModuleList([ResidualAttentionBlock(8)]))

    def forward(self, x):
        return self.transformer.resblocks[0](self.linear(self.conv(x[None])[0]))


def delta_of(tree, seed):
    draw = generator(seed)
    attention = tree.transformer.resblocks[0].attn
    places = [(tree.conv, "weight", tree.conv.weight), (tree.linear, "weight", tree.linear.weight),
              (attention, "in_proj_weight", attention.in_proj_weight), (attention, "out_proj", attention.out_proj.weight)]
    return {(module, name): 0.2 * torch.randn(weight.shape, generator=draw) for module, name, weight in places}


def weights_used(tree, builtin, x):
    """The weights that the forwards really ran with, in float64."""
    tree(x)
    modules = (tree.conv, tree.linear, tree.transformer.resblocks[0].attn)
    return [weight.double() for module in modules for weight in builtin.used[module]]


def our_deltas(tree, session, network, strength):
    def delta(name, shape):
        key = session.targets[("te1", name)].key
        layer = next(network.layers[layer] for layer, home in network.targets.items() if home == key)
        return strength * layer.delta(torch.zeros(shape)).double()

    head = "text_model_encoder_layers_0_self_attn"
    return [delta("conv", (2, 2, 3, 3)), delta("linear", (8, 8)), torch.cat([delta(f"{head}_{part}_proj", (8, 8)) for part in "qkv"]),
            delta(f"{head}_out_proj", (8, 8))]


SWITCHES = ("ours", "theirs")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [order for length in (2, 4) for order in itertools.product(SWITCHES, repeat=length)], ids="-".join)
def test_switched_in_any_order_both_act_and_both_go_bit_for_bit(order, dtype):
    torch.manual_seed(0)
    tree = Tree().to(dtype)
    x = torch.randn(2, 3, 8).to(dtype)
    session, builtin = None, Builtin()
    before, plain = photograph(tree), tree(x)
    attention = tree.transformer.resblocks[0].attn
    weights = (tree.conv.weight, tree.linear.weight, attention.in_proj_weight, attention.out_proj.weight)
    base = [weight.detach().double().clone() for weight in weights]
    with builtin.installed(tree):
        session = Session(None, [tree], settle=builtin.settle)
        network = random_network(session.targets, 1)
        on = dict.fromkeys(SWITCHES, False)
        for switch in order:
            on[switch] = not on[switch]
            session.apply([(network, 0.5)] if on["ours"] else [])
            builtin.networks = {"theirs": delta_of(tree, 7)} if on["theirs"] else {}
            expected = base
            if on["theirs"]:
                theirs = list(delta_of(tree, 7).values())
                expected = [(weight + delta).to(dtype).double() for weight, delta in zip(expected, theirs, strict=True)]
            if on["ours"]:
                expected = [weight + delta for weight, delta in zip(expected, our_deltas(tree, session, network, 0.5), strict=True)]
            for seen, wanted in zip(weights_used(tree, builtin, x), expected, strict=True):
                assert torch.allclose(seen, wanted, rtol=1e-5 if dtype == torch.float32 else 2**-8, atol=1e-6)
            assert [id(parameter) for parameter in tree.parameters()] == [id(parameter) for _, parameter, _, _ in before[0]]
        session.restore()
        builtin.networks = {}
        assert torch.equal(tree(x), plain)
        assert_own_parameters(tree, before)
    assert_untouched(tree, before)
    assert torch.equal(tree(x), plain)


def test_a_session_without_settle_still_leaves_the_models_own_tensors_alone():
    torch.manual_seed(0)
    tree = Tree()
    x, builtin = torch.randn(2, 3, 8), Builtin()
    before, plain = photograph(tree), tree(x)
    with builtin.installed(tree):
        session = Session(None, [tree])
        session.apply([(random_network(session.targets, 1), 0.5)])
        tree(x)
        session.restore()
        assert torch.equal(tree(x), plain)
    assert_untouched(tree, before)
