"""Laws of patching, over random sequences."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lib_lycoris.patching.session import Session

from ..patching.builtin import Builtin
from ..patching.helpers import assert_own_parameters, assert_untouched, generator, merge_by_hand, photograph, random_network
from ..patching.trees import Holder, OpenClipText


class Model(nn.Module):
    """A UNet of a few layers and an open_clip text encoder whose output it takes; any layer can be told to fail."""

    def __init__(self, tree=Holder):
        super().__init__()
        self.unet = tree(conv=nn.Conv2d(2, 4, 3, stride=2), norm=nn.GroupNorm(2, 4), linear=nn.Linear(4, 4), last=nn.Linear(4, 3, bias=False))
        self.text = OpenClipText(width=4, depth=1)
        self.error = None
        self.unet.norm.register_forward_hook(self._fail)

    def _fail(self, *args):
        if self.error is not None:
            raise self.error

    def forward(self):
        tokens = self.text(torch.tensor([[1, 2, 3]]))
        picture = torch.linspace(-1, 1, 2 * 5 * 5).reshape(1, 2, 5, 5).to(self.unet.conv.weight.dtype)
        return self.unet(picture, tokens) if isinstance(self.unet, Rooted) else run_unet(self.unet, picture, tokens)


def run_unet(unet, picture, tokens):
    return unet.last(unet.linear(unet.norm(unet.conv(picture)).flatten(2).transpose(1, 2) + tokens.mean()))


class Rooted(Holder):
    """Known as a UNet by its names, and so with its merged weights put in by its own forward."""

    input_blocks = middle_block = output_blocks = ()

    def forward(self, picture, tokens):
        return run_unet(self, picture, tokens)


class Interrupt(BaseException):
    """As the WebUI's own, which passes by every `except Exception`."""


class FailInside(nn.Linear):
    error = None

    def forward(self, x):
        if self.error is not None:
            raise self.error
        return super().forward(x)


def make_model(dtype=torch.float32, tree=Holder):
    torch.manual_seed(0)
    model = Model(tree)
    model.unet.linear.__class__ = FailInside
    return model.to(dtype)


def close(a, b, tolerance=1e-4):
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


STRENGTHS = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-2, 2), st.tuples(st.floats(-1, 1), st.floats(-1, 1)))
WANTED = st.lists(st.tuples(st.integers(0, 3), STRENGTHS), max_size=4)


@settings(max_examples=30, deadline=None)
@given(WANTED, st.booleans())
def test_patched_is_explicitly_merged_is_the_slow_reference(wanted, beside):
    model, reference = make_model(), make_model()
    session = Session(model.unet, [model.text], beside=beside)
    networks = [(random_network(session.targets, number, bias=number == 2), strength) for number, strength in wanted]
    merge_by_hand(Session(reference.unet, [reference.text]).targets, networks)
    session.apply(networks)
    with torch.no_grad():
        assert close(model(), reference())


@settings(max_examples=20, deadline=None)
@given(st.floats(-3, 3), st.booleans())
def test_strength_is_linear_in_the_output_of_a_linear_layer(strength, beside):
    model = make_model()
    session = Session(model.unet, [model.text], beside=beside)
    network = random_network(session.targets, 1, ["last"], bias=True)
    plain = model()
    session.apply([(network, 1.0)])
    effect = model() - plain
    session.apply([(network, strength)])
    assert close(model() - plain, strength * effect)


ACTIONS = st.one_of(
    st.tuples(st.sampled_from(["first", "second"]), WANTED),
    st.tuples(st.just("builtin"), st.lists(st.integers(0, 2), max_size=2, unique=True)),
    st.tuples(st.sampled_from(["run", "fail", "fail inside", "interrupt", "restore first", "restore second"]), st.none()),
)


@pytest.mark.parametrize("tree", [Holder, Rooted])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=30, deadline=None)
@given(st.lists(ACTIONS, max_size=12), st.sampled_from([contextlib.nullcontext, torch.no_grad, torch.inference_mode]))
def test_after_any_sequence_of_switches_and_failures_everything_is_as_before_bit_for_bit(dtype, tree, actions, mode):
    model = make_model(dtype, tree)
    with mode():
        plain = model().clone()
    pristine = copy.deepcopy(model)
    before = photograph(model)
    builtin = Builtin()
    with builtin.installed(model), mode():
        sessions = {name: Session(model.unet, [model.text], builtin.settle, beside=name == "second") for name in ("first", "second")}
        targets = sessions["first"].targets
        networks = [random_network(targets, number, path=str(number)) for number in range(4)]
        on = {"first": [], "second": []}
        theirs = []
        interrupted = False
        for action, wanted in actions:
            if action in sessions:
                on[action] = [(networks[number], strength) for number, strength in wanted]
                sessions[action].apply(on[action])
            elif action == "builtin":
                theirs = wanted
                builtin.networks = {str(number): deltas(model, number) for number in wanted}
            elif action.startswith("restore"):
                on[action.split()[1]] = []
                sessions[action.split()[1]].restore()
            elif action == "run":
                if dtype == torch.float32:
                    with torch.inference_mode(False):
                        reference = copy.deepcopy(pristine)
                        for number in theirs:
                            for (owner, name), delta in deltas(reference, number).items():
                                weight_of(owner, name).data.add_(delta)
                        merge_by_hand(Session(reference.unet, [reference.text]).targets, [*on["first"], *on["second"]])
                    with torch.no_grad():
                        assert close(model(), reference(), 1e-3)
                model()
            else:
                fail(model, action)
            interrupted = action == "interrupt" or (interrupted and action not in ("run", "fail inside"))
            if not interrupted:  # an interrupt passes by every hook: the next forward or restore cleans up
                assert [id(parameter) for parameter in model.parameters()] == [id(parameter) for _, parameter, _, _ in before[0]]
        for session in sessions.values():
            session.restore()
        builtin.networks = {}
        assert torch.equal(model(), plain)
        assert_own_parameters(model, before)
    assert_untouched(model, before)


def deltas(model, number):
    draw = generator(100 + number)
    attention = model.text.transformer.resblocks[0].attn
    places = [(model.unet.conv, "weight"), (model.unet.linear, "weight"), (attention, "in_proj_weight"), (attention, "out_proj")]
    return {(module, name): 0.1 * torch.randn(weight_of(module, name).shape, generator=draw) for module, name in places}


def weight_of(module, name):
    return module.out_proj.weight if name == "out_proj" else getattr(module, name)


def fail(model, how):
    holder, error = {"fail": (model, ValueError), "fail inside": (model.unet.linear, ValueError), "interrupt": (model.unet.linear, Interrupt)}[how]
    holder.error = error
    try:
        with pytest.raises(error):
            model()
    finally:
        holder.error = None
