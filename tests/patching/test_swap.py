"""A UNet's merged weights go in and out with the forward of its root."""

from __future__ import annotations

import copy
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from lib_lycoris.patching.session import Session
from lib_lycoris.patching.weighting import Dial, Weighting

from .helpers import assert_own_parameters, assert_untouched, generator, merge_by_hand, photograph, random_network
from .trees import CONTEXT, LdmUNet


def make_unet():
    torch.manual_seed(0)
    return LdmUNet()


def inputs(rows=2):
    draw = generator(0)
    return torch.randn(rows, 4, 8, 8, generator=draw), torch.linspace(3, 500, rows), torch.randn(rows, 5, CONTEXT, generator=draw)


def merged_by_hand(unet, networks):
    reference = copy.deepcopy(unet)
    merge_by_hand(Session(reference).targets, networks)
    return reference


def close(a, b, tolerance=1e-4):
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * float(b.detach().abs().max()))


def operators(run):
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    events = sorted(found.events(), key=lambda event: (event.time_range.start, -event.time_range.end))
    return [event.name for event in events if event.name.startswith("aten::")]


@torch.no_grad()
def test_a_step_with_a_merged_network_runs_the_same_operators_as_one_without():
    unet = make_unet()
    without = operators(lambda: unet(*inputs()))
    session = Session(unet)
    session.apply([(random_network(session.targets, 1), 1.0)])
    unet(*inputs())
    assert operators(lambda: unet(*inputs())) == without and len(without) > 100


@torch.no_grad()
def test_the_layers_themselves_have_no_hooks_that_a_forward_looks_at():
    unet = make_unet()
    session = Session(unet)
    session.apply([(random_network(session.targets, 1), 1.0)])
    unet(*inputs())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules() if module is not unet)


class Interrupt(BaseException):
    """As the WebUI's own."""


@pytest.mark.parametrize("error", [ValueError, Interrupt])
def test_an_exception_within_the_tree_leaves_its_own_tensors(error):
    unet = make_unet()
    before, plain = photograph(unet), unet(*inputs()).detach()
    session = Session(unet)
    network = random_network(session.targets, 1)
    session.apply([(network, 1.0)])

    def fail(*args):
        raise error

    with torch.no_grad():
        good = unet(*inputs())
        handle = unet.middle_block[0].in_layers[2].register_forward_hook(fail)
        with pytest.raises(error):
            unet(*inputs())
        handle.remove()
        if error is Interrupt:
            assert any(now is not then for now, (_, then, _, _) in zip(unet.parameters(), before[0], strict=True))  # it passes by every hook
        else:
            assert_own_parameters(unet, before)
        assert torch.equal(unet(*inputs()), good)
        assert_own_parameters(unet, before)
        handle = unet.middle_block[0].in_layers[2].register_forward_hook(fail)
        with pytest.raises(error):
            unet(*inputs())
        handle.remove()
        session.restore()
    assert_untouched(unet, before)
    assert torch.equal(unet(*inputs()), plain)


def test_gradients_through_checkpointed_parts_that_run_again_are_those_of_the_merged_model():
    unet = make_unet()
    session = Session(unet)
    networks = [(random_network(session.targets, 1), 0.5)]
    reference = merged_by_hand(unet, networks)
    session.apply(networks)
    with torch.no_grad():
        unet(*inputs())  # the root has put the weights in before
    found = []
    for model in (unet, reference):
        block = model.middle_block[0]
        forward = block.forward
        block.forward = lambda *args, forward=forward: checkpoint(forward, *args, use_reentrant=False)
        x = inputs()
        x[0].requires_grad_(True)
        model(*x).square().sum().backward()
        found.append(x[0].grad)
    assert close(*found)
    with torch.no_grad():
        assert close(unet(*inputs()), reference(*inputs()))


@torch.no_grad()
@pytest.mark.parametrize("per_layer", [False, True])
def test_a_part_called_alone_is_merged_only_in_a_session_per_layer(per_layer):
    unet = make_unet()
    session = Session(unet, per_layer=per_layer)
    networks = [(random_network(session.targets, 1), 0.5)]
    x = torch.randn(1, 4, 8, 8)
    plain, merged = unet.input_blocks[0][0](x), merged_by_hand(unet, networks).input_blocks[0][0](x)
    session.apply(networks)
    assert close(unet.input_blocks[0][0](x), merged if per_layer else plain)


@torch.no_grad()
def test_a_session_per_layer_holds_no_copy_of_a_layer_that_does_not_run():
    unet = make_unet()
    session = Session(unet, per_layer=True)
    session.apply([(random_network(session.targets, 1), 1.0)])
    first, last, merged = unet.input_blocks[0][0], unet.out[2], []
    handles = [first.register_forward_pre_hook(lambda module, args: merged.append(weakref.ref(module.weight))),
               last.register_forward_pre_hook(lambda module, args: merged.append(merged[0]()))]
    unet(*inputs())
    for handle in handles:
        handle.remove()
    assert merged[0]() is None and merged[1] is None


@torch.no_grad()
@pytest.mark.parametrize("second", [{}, {"per_layer": True}, {"beside": True}], ids=["root", "per layer", "beside"])
@pytest.mark.parametrize("first_off", [0, 1])
def test_two_sessions_in_any_two_ways_add_up_and_either_may_end_first(second, first_off):
    unet = make_unet()
    before = photograph(unet)
    sessions = [Session(unet), Session(unet, **second)]
    networks = [random_network(sessions[0].targets, seed) for seed in (1, 2)]
    for session, network in zip(sessions, networks, strict=True):
        session.apply([(network, 0.5)])
    assert close(unet(*inputs()), merged_by_hand(unet, [(network, 0.5) for network in networks])(*inputs()))
    sessions[first_off].restore()
    assert close(unet(*inputs()), merged_by_hand(unet, [(networks[1 - first_off], 0.5)])(*inputs()))
    assert_own_parameters(unet, before)
    sessions[1 - first_off].restore()
    assert_untouched(unet, before)


@torch.no_grad()
def test_merge_does_now_what_the_next_forward_would_and_it_finds_nothing_left_to_do():
    unet = make_unet()
    session = Session(unet)
    session.apply([(random_network(session.targets, 1), 1.0)])
    seen = []
    unet.input_blocks[0][0].register_forward_pre_hook(lambda module, args: seen.append(module.weight))
    session.merge()
    unet(*inputs())
    session.merge()
    unet(*inputs())
    assert seen[0] is seen[1] and seen[0] is not unet.input_blocks[0][0].weight


@torch.no_grad()
def test_a_switch_takes_over_the_memory_of_the_network_before():
    unet = make_unet()
    session = Session(unet)
    networks = [random_network(session.targets, seed) for seed in (1, 2)]
    pointers = []
    handle = unet.out[2].register_forward_pre_hook(lambda module, args: pointers.append({parameter.data_ptr() for parameter in unet.parameters()}))
    for network in networks:
        session.apply([(network, 1.0)])
        unet(*inputs())
    handle.remove()
    assert pointers[0] == pointers[1]
    assert close(unet(*inputs()), merged_by_hand(unet, [(networks[1], 1.0)])(*inputs()))


def test_a_switch_leaves_alone_what_a_graph_still_needs():
    unet = make_unet()
    session = Session(unet)
    networks = [random_network(session.targets, seed) for seed in (1, 2)]
    grads = []
    for switch in (False, True):
        session.apply([(networks[0], 1.0)])
        x = inputs()
        x[0].requires_grad_(True)
        output = unet(*x).square().sum()
        if switch:
            session.apply([(networks[1], 1.0)])
            with torch.no_grad():
                unet(*inputs())
        output.backward()
        grads.append(x[0].grad)
    assert torch.equal(*grads)


class Counting:
    """A host's settle, with a token that stays while its networks do."""

    def __init__(self):
        self.networks = ()
        self.calls = []

    def token(self):
        return self.networks

    def __call__(self, module):
        self.calls.append(module)
        return self.networks


@torch.no_grad()
def test_a_settle_with_a_token_is_called_only_where_something_changed():
    unet, settle = make_unet(), Counting()
    session = Session(unet, settle=settle)
    session.apply([(random_network(session.targets, 1), 1.0)])
    unet(*inputs())
    assert set(settle.calls) == {effect.target.hooked for effect in session.plan.effects}
    settle.calls.clear()
    unet(*inputs())
    assert settle.calls == []
    unet.input_blocks[0][0].weight += 1.0
    unet(*inputs())
    assert settle.calls == [unet.input_blocks[0][0]]
    settle.networks = ("other",)
    settle.calls.clear()
    unet(*inputs())
    assert len(settle.calls) >= len({effect.target.hooked for effect in session.plan.effects})


@torch.no_grad()
def test_two_threads_in_one_tree_both_run_merged_and_the_last_puts_back():
    unet = make_unet()
    before = photograph(unet)
    session = Session(unet)
    session.apply([(random_network(session.targets, 1), 1.0)])
    merged, results, inside, go = unet(*inputs()), [], threading.Event(), threading.Event()

    def wait(*args):
        if not inside.is_set():
            inside.set()
            assert go.wait(10)

    def run():
        with torch.no_grad():
            results.append(unet(*inputs()))

    handle = unet.middle_block[0].in_layers[2].register_forward_pre_hook(wait)
    first = threading.Thread(target=run)
    first.start()
    assert inside.wait(10)
    session.apply([])  # in the middle of it
    session.apply([(random_network(session.targets, 1), 1.0)])
    go.set()
    first.join()
    handle.remove()
    assert torch.equal(unet(*inputs()), merged)
    assert_own_parameters(unet, before)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_that_can_take_no_sum_are_beside_in_the_midst_of_others(dtype):
    class Casting(nn.Conv2d):
        def forward(self, x, emb=None, context=None):
            return nn.functional.conv2d(x, self.weight.to(x.dtype), self.bias, padding=1)

    unet = make_unet()
    unet.input_blocks[0][0].__class__ = Casting
    unet.input_blocks[0][0].weight = nn.Parameter(unet.input_blocks[0][0].weight.to(dtype), requires_grad=False)
    before, plain = photograph(unet), unet(*inputs())
    reference = copy.deepcopy(unet)
    reference.input_blocks[0][0].weight = nn.Parameter(reference.input_blocks[0][0].weight.float(), requires_grad=False)
    session = Session(unet)
    networks = [(random_network(session.targets, 1), 0.01), (random_network(session.targets, 2), Weighting(unet=Dial(0.02)))]
    session.apply(networks)
    merge_by_hand(Session(reference).targets, [(networks[0][0], 0.01), (networks[1][0], 0.02)])
    for _ in range(2):
        assert close(unet(*inputs()), reference(*inputs()))
    session.restore()
    assert torch.equal(unet(*inputs()), plain)
    after = photograph(unet)
    assert after[1:] == before[1:]
