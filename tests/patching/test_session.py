from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn

import lib_lycoris
from lib_lycoris.errors import ConfigError
from lib_lycoris.networks.low_rank import LowRankLayer
from lib_lycoris.networks.network import Network
from lib_lycoris.patching.hooks import ModulePatch
from lib_lycoris.patching.session import Session

from .helpers import assert_own_parameters, assert_untouched, generator, merge_by_hand, photograph, random_layer, random_network
from .trees import CONTEXT, SD1, SDXL, Holder, LdmUNet, OpenClipText, clip_text

TOKENS = torch.tensor([[3, 4, 5, 6, 1], [7, 8, 9, 10, 1]])


def inputs(seed=0):
    draw = generator(seed)
    return torch.randn(2, 4, 8, 8, generator=draw), torch.tensor([3.0, 500.0]), torch.randn(2, 5, CONTEXT, generator=draw)


def make_unet(seed=0, **layout):
    torch.manual_seed(seed)
    return LdmUNet(**layout)


def make_text(seed=0):
    torch.manual_seed(seed)
    return OpenClipText()


def close(a, b, tolerance=1e-5):
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * float(b.detach().abs().max()))


@pytest.mark.parametrize("layout", [SD1, {**SDXL, "vector": None}], ids=["sd1", "sdxl"])
@pytest.mark.parametrize("beside", [False, True], ids=["merged", "beside"])
def test_a_patched_unet_gives_what_the_explicitly_merged_one_gives(layout, beside):
    unet = make_unet(**layout)
    session = Session(unet, beside=beside)
    networks = [(random_network(session.targets, 1, bias=True), 0.7), (random_network(session.targets, 2, ["attn", "proj"]), (9.0, -0.4))]
    reference = copy.deepcopy(unet)
    merge_by_hand(Session(reference).targets, networks)
    before = photograph(unet)
    plain = unet(*inputs())
    assert session.apply(networks) == []
    with torch.no_grad():
        assert close(unet(*inputs()), reference(*inputs()))
        assert not close(unet(*inputs()), plain, 1e-2)
    assert_own_parameters(unet, before)
    session.restore()
    assert_untouched(unet, before)
    assert torch.equal(unet(*inputs()), plain)


@pytest.mark.parametrize("make", [make_text, lambda: clip_text()], ids=["open_clip", "clip"])
def test_a_patched_text_encoder_gives_what_the_explicitly_merged_one_gives(make):
    torch.manual_seed(0)
    text = make().eval()
    session = Session(None, [text])
    networks = [(random_network(session.targets, 1, bias=True), (0.7, 100.0)), (random_network(session.targets, 2, ["q_proj", "out_proj"]), 0.5)]
    reference = copy.deepcopy(text)
    merge_by_hand(Session(None, [reference]).targets, networks)

    def run(tree):
        return tree(TOKENS) if isinstance(tree, OpenClipText) else tree(TOKENS).last_hidden_state

    before, plain = photograph(text), run(text)
    session.apply(networks)
    with torch.no_grad():
        assert close(run(text), run(reference))
        assert not close(run(text), plain, 1e-2)
    assert_own_parameters(text, before)
    session.restore()
    assert_untouched(text, before)
    assert torch.equal(run(text), plain)


def test_a_file_with_only_v_of_a_fused_projection_changes_only_its_rows():
    text = make_text()
    attention = text.transformer.resblocks[0].attn
    session = Session(None, [text])
    session.apply([(random_network(session.targets, 1, ["layers_0_self_attn_v_proj"]), 1.0)])
    seen = []
    handle = attention.register_forward_pre_hook(lambda module, args: seen.append(module.in_proj_weight.detach().clone()))
    text(TOKENS)
    handle.remove()
    same = (seen[0] == attention.in_proj_weight).all(dim=1)
    assert same[:16].all() and not same[16:].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_sum_is_rounded_once_and_never_the_delta_first(dtype):
    torch.manual_seed(0)
    linear = nn.Linear(16, 16).to(dtype)
    tree = Holder(a=linear)
    session = Session(tree)
    networks = [(random_network(session.targets, seed, dtype=dtype), 0.01) for seed in (1, 2, 3)]
    session.apply(networks)
    used = weight_in_forward(linear, torch.zeros(1, 16, dtype=dtype))
    exact = linear.weight.double()
    for network, strength in networks:
        layer = network.layers["lora_unet_a"]
        exact = exact + strength * layer.scale * (layer.lora_up.weight.double() @ layer.lora_down.weight.double())
    ideal = exact.to(dtype)
    wrong = (used != ideal).float().mean()
    assert used.dtype == dtype and wrong < 0.01  # float32's own rounding may tip a tie, no more


def weight_in_forward(module, x, name="weight"):
    seen = []
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(getattr(module, name).detach().clone()))
    module(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("tucker", [False, True])
def test_the_merge_ignores_the_hosts_autocast(tucker):
    draw = generator(1)
    conv, x = nn.Conv2d(8, 8, 3), torch.zeros(1, 8, 3, 3)
    mid = torch.randn(2, 2, 3, 3, generator=draw) if tucker else None
    down = torch.randn(2, 8, *((1, 1) if tucker else (3, 3)), generator=draw)
    network = Network(layers={"a": LowRankLayer(down, torch.randn(8, 2, 1, 1, generator=draw), mid=mid)}, targets={"a": ("unet", "a")})
    session = Session(Holder(a=conv))
    session.apply([(network, 1.0)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = weight_in_forward(conv, x)
    session.restore()
    session.apply([(network, 1.0)])
    assert torch.equal(under_autocast, weight_in_forward(conv, x))


def test_a_bias_delta_reaches_a_layer_that_has_no_bias():
    torch.manual_seed(0)
    for make, x in ((lambda: nn.Linear(4, 4, bias=False), torch.zeros(1, 4)), (lambda: nn.Conv2d(4, 4, 1, bias=False), torch.zeros(1, 4, 1, 1))):
        layer = make()
        session = Session(Holder(a=layer))
        network = random_network(session.targets, 1, bias=True)
        session.apply([(network, 2.0)])
        assert torch.allclose(layer(x).flatten(), 2.0 * network.layers["lora_unet_a"].delta_bias(None))
        assert layer.bias is None
        session.restore()
        assert torch.equal(layer(x), torch.zeros_like(x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_works_in_every_grad_mode_and_a_merge_made_in_one_serves_the_others(mode):
    unet, x = make_unet(), inputs()
    session = Session(unet)
    networks = [(random_network(session.targets, 1), 0.5)]
    reference = copy.deepcopy(unet)
    merge_by_hand(Session(reference).targets, networks)
    session.apply(networks)
    with mode():
        assert close(unet(*x), reference(*x))
    latent = x[0].clone().requires_grad_(True)
    unet(latent, *x[1:]).sum().backward()
    theirs = x[0].clone().requires_grad_(True)
    reference(theirs, *x[1:]).sum().backward()
    assert close(latent.grad, theirs.grad, 1e-4)


def test_a_model_made_in_inference_mode_can_be_patched():
    with torch.inference_mode():
        linear = nn.Linear(4, 4)
    session = Session(Holder(a=linear))
    network = random_network(session.targets, 1)
    plain = linear(torch.ones(1, 4)).clone()
    session.apply([(network, 1.0)])
    with torch.no_grad():
        expected = plain + network.layers["lora_unet_a"].delta(linear.weight) @ torch.ones(4)
        assert close(linear(torch.ones(1, 4)), expected)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_in_fp8_stay_as_they_are_and_get_their_delta_beside(dtype):
    class Casting(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))

    torch.manual_seed(0)
    linear = Casting(8, 8).to(dtype)
    session = Session(Holder(a=linear))
    network = random_network(session.targets, 1)
    x = torch.randn(3, 8)
    plain = linear(x)
    session.apply([(network, 0.001)])
    delta = network.layers["lora_unet_a"].delta(torch.zeros(8, 8))
    assert close(linear(x) - plain, 0.001 * x @ delta.T, 1e-3)
    assert weight_in_forward(linear, x).dtype == dtype


def test_a_layer_called_by_keyword_gets_its_delta_beside_too():
    linear = nn.Linear(4, 4)
    session = Session(Holder(a=linear), beside=True)
    session.apply([(random_network(session.targets, 1), 1.0)])
    x = torch.randn(2, 4)
    assert torch.equal(linear(input=x), linear(x))


def test_channels_last_weights_stay_channels_last():
    conv = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    plain = nn.Conv2d(4, 8, 3)
    plain.load_state_dict(conv.state_dict())
    outputs = []
    for module in (conv, plain):
        session = Session(Holder(a=module))
        session.apply([(random_network(session.targets, 1), 1.0)])
        strides = []
        module.register_forward_pre_hook(lambda module, args, strides=strides: strides.append(module.weight.stride()))
        outputs.append(module(torch.ones(1, 4, 5, 5)))
        assert strides == [module.weight.stride()]
    assert close(*outputs)


def test_leftovers_are_named_and_what_fits_is_on():
    unet = make_unet()
    session = Session(unet)
    good = random_network(session.targets, 1, ["mid_block_resnets_0_conv1"])
    stranger = random_layer((4, 4), 1)
    layers = {**good.layers, "lora_unet_nowhere": stranger, "lora_unet_conv_in": random_layer((7, 7), 2), "no_target": stranger}
    network = Network(layers=layers, targets={**good.targets, "lora_unet_nowhere": ("unet", "nowhere"), "lora_unet_conv_in": ("unet", "conv_in")})
    plain = unet(*inputs())
    assert sorted(session.apply([(network, 1.0), (network, 0.5)])) == ["lora_unet_conv_in", "lora_unet_nowhere", "no_target"]
    assert {leftover.name: leftover.reason for leftover in session.plan.leftovers} == {
        "lora_unet_nowhere": "the model has no such layer",
        "no_target": "the model has no such layer",
        "lora_unet_conv_in": "made for another shape than the model's [4, 4, 3, 3]",
    }
    both = unet(*inputs())
    session.apply([(good, 1.5)])
    assert not torch.equal(both, plain) and torch.equal(unet(*inputs()), both)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), (0.0, float("-inf"))])
def test_a_strength_that_is_not_finite_is_refused_and_what_was_on_stays(strength):
    unet = make_unet()
    session = Session(unet)
    network = random_network(session.targets, 1)
    session.apply([(network, 1.0)])
    on = unet(*inputs())
    with pytest.raises(ConfigError, match="not a finite number"):
        session.apply([(network, strength)])
    assert torch.equal(unet(*inputs()), on)


@pytest.mark.parametrize(("arguments", "words"), [
    (lambda: ("x",), "x.*is no module"), (lambda: (make_unet(), make_text()), "give a list of them"), (lambda: (None, ["te1"]), "te1.*is no module")])
def test_what_is_no_model_is_refused_with_what_to_give(arguments, words):
    with pytest.raises(ConfigError, match=words):
        lib_lycoris.patch(*arguments())


@pytest.mark.parametrize("wrong", ["net.safetensors", ("net.safetensors", 1.0), (None, 1.0), 5], ids=str)
def test_what_is_no_network_with_a_strength_is_refused_and_what_was_on_stays(wrong):
    unet = make_unet()
    with Session(unet) as session, torch.no_grad():
        session.apply([(random_network(session.targets, 1, ["conv_in"]), 1.0)])
        patched = unet(*inputs())
        with pytest.raises(ConfigError, match=r"give pairs, like \(open_network"):
            session.apply([wrong])
        assert torch.equal(unet(*inputs()), patched)


def test_a_model_without_its_first_text_encoder_keeps_the_second_ones_place():
    text = make_text()
    with lib_lycoris.patch(None, [None, text]) as session:
        assert session.targets.keys() and {component for component, _ in session.targets} == {"te2"}


def test_the_order_of_networks_changes_no_bit():
    unet = make_unet()
    session = Session(unet)
    strengths = ((1, 0.3), (2, -0.9), (3, 1.7), (1, 0.1))
    networks = [(random_network(session.targets, seed, path=f"{seed}.safetensors"), strength) for seed, strength in strengths]
    outputs = []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        session.apply([networks[number] for number in order])
        outputs.append(unet(*inputs()))
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


def test_applying_the_same_again_merges_nothing_again():
    unet = make_unet()
    session = Session(unet)
    network = random_network(session.targets, 1, ["conv_in"])
    session.apply([(network, 1.0)])
    kept = []
    unet.input_blocks[0][0].register_forward_pre_hook(lambda module, args: kept.append(module.weight))
    with torch.no_grad():
        unet(*inputs())
        session.apply([(network, 1.0)])
        unet(*inputs())
        session.apply([(network, 0.5)])
        unet(*inputs())
    assert kept[0] is kept[1] and kept[1] is not kept[2]


def test_where_one_weight_changes_the_other_copies_stay_and_gradients_flow():
    unet = make_unet()
    with Session(unet) as session:
        session.apply([(random_network(session.targets, 1), 1.0)])
        kept = []
        unet.middle_block[0].in_layers[2].register_forward_pre_hook(lambda module, args: kept.append(module.weight))
        with torch.no_grad():
            unet(*inputs())
            unet.input_blocks[0][0].weight.mul_(1.5)
            unet(*inputs())
            unet.input_blocks[0][0].weight.mul_(1.5)
        x, *rest = inputs()
        x.requires_grad_(True)
        output = unet(x, *rest)
        output.square().sum().backward()
    assert kept[0] is kept[1]
    assert torch.isfinite(x.grad).all() and float(x.grad.abs().sum()) > 0


@pytest.mark.parametrize(("options", "grad", "hooked"), [
    ({}, False, [""]), ({}, True, ["", "input_blocks.0.0"]), ({"per_layer": True}, False, ["input_blocks.0.0"]),
    ({"beside": True}, True, ["input_blocks.0.0"])])
def test_only_the_root_or_touched_modules_have_hooks_and_strength_zero_touches_none(options, grad, hooked):
    unet = make_unet()
    session = Session(unet, **options)
    network = random_network(session.targets, 1, ["conv_in"])
    before = photograph(unet)
    session.apply([(network, 1.0)])
    with torch.set_grad_enabled(grad):
        unet(*inputs())
    assert [path for path, module in unet.named_modules() if module._forward_hooks or module._forward_pre_hooks] == hooked
    session.apply([(network, 0.0)])
    assert_untouched(unet, before)
    session.apply([(network, (1.0, 0.0))])
    assert_untouched(unet, before)


def test_merged_copies_are_freed_on_restore():
    linear = nn.Linear(4, 4)
    session = Session(Holder(a=linear))
    session.apply([(random_network(session.targets, 1), 1.0)])
    merged = []
    handle = linear.register_forward_pre_hook(lambda module, args: merged.append(weakref.ref(module.weight)))
    linear(torch.zeros(1, 4))
    handle.remove()
    assert merged[0]() is not None and merged[0]() is not linear.weight
    session.restore()
    assert merged[0]() is None


def test_a_patched_model_that_nobody_holds_is_freed():
    unet = make_unet()
    session = Session(unet)
    session.apply([(random_network(session.targets, 1), 1.0)])
    unet(*inputs())
    gone = weakref.ref(unet.input_blocks[0][0])
    del unet, session
    gc.collect()
    assert gone() is None


def delete_and_replace(linear):
    """The new parameter is likely to get the id and the memory of the old one."""
    values = torch.ones(4, 4)
    del linear.weight
    linear.weight = nn.Parameter(torch.empty(4, 4).copy_(values))
    with torch.no_grad():
        linear.weight.mul_(1.0)


@pytest.mark.parametrize("change", [
    lambda linear: linear.load_state_dict({"weight": torch.ones(4, 4), "bias": torch.zeros(4)}),
    lambda linear: linear.load_state_dict({"weight": torch.ones(4, 4), "bias": torch.zeros(4)}, assign=True),
    lambda linear: setattr(linear, "weight", nn.Parameter(torch.ones(4, 4))),
    delete_and_replace,
    lambda linear: torch.no_grad()(linear.weight.copy_)(torch.ones(4, 4)),
    lambda linear: torch.inference_mode()(linear.weight.copy_)(torch.ones(4, 4)),
    lambda linear: setattr(linear.weight, "data", torch.ones(4, 4)),
], ids=["load", "assign", "replace", "delete and replace", "in place", "in place in inference mode", "data"])
def test_a_change_of_the_weight_underneath_is_merged_anew_and_stays(change):
    linear = nn.Linear(4, 4)
    session = Session(Holder(a=linear))
    network = random_network(session.targets, 1)
    session.apply([(network, 1.0)])
    linear(torch.zeros(1, 4))
    change(linear)
    now = linear.weight
    assert close(weight_in_forward(linear, torch.zeros(1, 4)), torch.ones(4, 4) + network.layers["lora_unet_a"].delta(now))
    session.restore()
    assert linear.weight is now and torch.equal(linear.weight, torch.ones(4, 4))


def test_moving_the_model_to_another_dtype_merges_anew_in_that_dtype():
    linear = nn.Linear(4, 4)
    session = Session(Holder(a=linear))
    session.apply([(random_network(session.targets, 1), 1.0)])
    linear(torch.zeros(1, 4))
    linear.to(torch.bfloat16)
    assert weight_in_forward(linear, torch.zeros(1, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_what_writes_into_our_copy_during_a_forward_spoils_no_later_one():
    linear = nn.Linear(4, 4)
    session = Session(Holder(a=linear))
    session.apply([(random_network(session.targets, 1), 1.0)])
    first = linear(torch.ones(1, 4))

    def spoil(module, args):
        with torch.no_grad():
            module.weight.zero_()

    handle = linear.register_forward_pre_hook(spoil)
    assert torch.equal(linear(torch.ones(1, 4)), linear.bias[None])
    handle.remove()
    assert torch.equal(linear(torch.ones(1, 4)), first)


def test_at_rest_copies_state_dicts_and_pickles_see_nothing_of_ours():
    unet = make_unet()
    before, plain = photograph(unet), unet(*inputs())
    session = Session(unet)
    session.apply([(random_network(session.targets, 1), 1.0)])
    patched = unet(*inputs())
    twin = copy.deepcopy(unet)
    assert torch.equal(twin(*inputs()), plain)
    assert len(pickle.dumps(unet)) < 1.5 * len(pickle.dumps(make_unet()))
    saved = io.BytesIO()
    torch.save(unet.state_dict(), saved)
    assert list(unet.state_dict()) == before[3]
    assert torch.equal(unet(*inputs()), patched)
    other = Session(twin)
    other.apply([(random_network(other.targets, 1), 1.0)])
    assert torch.equal(twin(*inputs()), patched)


class Interrupt(BaseException):
    """As the WebUI's own."""


class Failing(nn.Linear):
    error = None

    def forward(self, x):
        if self.error is not None:
            raise self.error
        return super().forward(x)


@pytest.mark.parametrize("first_patched", [True, False], ids=["others after", "others before"])
def test_an_exception_in_forward_or_in_a_hook_leaves_the_own_tensors(first_patched):
    tree = Holder(a=Failing(4, 4))
    before = photograph(tree)
    session = Session(tree)
    network = random_network(session.targets, 1)
    if first_patched:
        session.apply([(network, 1.0)])
    fail = []

    def hook(*args):
        if fail:
            raise ValueError("theirs")

    handles = [tree.a.register_forward_pre_hook(hook), tree.a.register_forward_hook(hook)]
    session.apply([(network, 1.0)])
    good = tree.a(torch.ones(1, 4))
    for handle in handles:
        fail.append(True)
        with pytest.raises(ValueError, match="theirs"):
            tree.a(torch.ones(1, 4))
        assert_own_parameters(tree, before)
        fail.clear()
        handle.remove()
    tree.a.error = RuntimeError("the layer's")
    with pytest.raises(RuntimeError, match="the layer's"):
        tree.a(torch.ones(1, 4))
    assert_own_parameters(tree, before)
    tree.a.error = None
    assert torch.equal(tree.a(torch.ones(1, 4)), good)


def interrupted_tree(error):
    tree = Holder(a=Failing(4, 4))
    session = Session(tree)
    before, plain = photograph(tree), tree.a(torch.ones(1, 4))
    session.apply([(random_network(session.targets, 1), 1.0)])
    good = tree.a(torch.ones(1, 4))
    tree.a.error = error
    with pytest.raises(error):
        tree.a(torch.ones(1, 4))
    tree.a.error = None
    return tree, session, before, plain, good


@pytest.mark.parametrize("error", [Interrupt, KeyboardInterrupt])
def test_after_an_interrupt_the_next_forward_and_a_restore_put_the_own_tensors_back(error):
    tree, session, before, plain, good = interrupted_tree(error)
    assert torch.equal(tree.a(torch.ones(1, 4)), good)
    assert_own_parameters(tree, before)

    tree, session, before, plain, good = interrupted_tree(error)
    session.restore()
    assert_untouched(tree, before)
    assert torch.equal(tree.a(torch.ones(1, 4)), plain)

    tree, session, before, plain, good = interrupted_tree(error)
    session.apply([(effect_network(session), 1.0)])
    assert_own_parameters(tree, before)


def test_what_changed_since_an_interrupt_counts_in_the_next_forward():
    tree, _, before, _, good = interrupted_tree(Interrupt)
    weight = before[0][0][1]
    with torch.no_grad():
        weight += 1.0
    assert close(tree.a(torch.ones(1, 4)), good + 4.0)
    assert tree.a.weight is weight


def test_other_hooks_see_the_own_tensors_before_and_after_the_forward():
    tree = Holder(a=nn.Linear(4, 4))
    seen = []
    tree.a.register_forward_pre_hook(lambda module, args: seen.append(module.weight))
    tree.a.register_forward_hook(lambda module, args, output: seen.append(module.weight))
    session = Session(tree)
    session.apply([(random_network(session.targets, 1), 1.0)])
    tree.a(torch.ones(1, 4))
    assert all(weight is tree.a.weight for weight in seen) and len(seen) == 2


def effect_network(session):
    """The network whose effect is on, as a network given again."""
    effect = session.plan.effects[0]
    return Network(layers={"a": effect.layer}, targets={"a": effect.target.key})


def test_a_merge_that_fails_leaves_the_own_tensors_and_no_trace():
    class Broken:
        def fits(self, shape):
            return True

        def factors(self):
            return None

        def delta(self, weight):
            raise RuntimeError("out of memory")

        def delta_bias(self, bias):
            return None

    tree = Holder(a=nn.Linear(4, 4))
    before = photograph(tree)
    session = Session(tree)
    session.apply([(Network(layers={"a": Broken()}, targets={"a": ("unet", "a")}), 1.0)])
    with pytest.raises(RuntimeError, match="out of memory"):
        tree.a(torch.ones(1, 4))
    assert_own_parameters(tree, before)
    session.restore()
    assert_untouched(tree, before)


class Twice(nn.Linear):
    """Calls itself once more from within its own forward."""

    deep = 0

    def forward(self, x):
        if self.deep < 1:
            self.deep += 1
            try:
                x = self(x)
            finally:
                self.deep -= 1
        return super().forward(x)


def test_a_module_that_calls_itself_is_merged_in_both_calls():
    tree = Holder(a=Twice(4, 4))
    session = Session(tree)
    network = random_network(session.targets, 1)
    reference = copy.deepcopy(tree)
    merge_by_hand(Session(reference).targets, [(network, 1.0)])
    before = photograph(tree)
    session.apply([(network, 1.0)])
    assert close(tree.a(torch.ones(1, 4)), reference.a(torch.ones(1, 4)))
    assert_own_parameters(tree, before)


@pytest.mark.parametrize("first_off", [0, 1])
@pytest.mark.parametrize("beside", [False, True])
def test_two_sessions_on_one_model_add_up_and_either_may_end_first(first_off, beside):
    tree = Holder(a=nn.Linear(4, 4))
    before, x = photograph(tree), torch.ones(1, 4)
    plain = tree.a(x)
    sessions = [Session(tree), Session(tree, beside=beside)]
    networks = [random_network(sessions[0].targets, seed) for seed in (1, 2)]
    effect = [network.layers["lora_unet_a"].delta(tree.a.weight) @ torch.ones(4) for network in networks]
    for session, network in zip(sessions, networks, strict=True):
        session.apply([(network, 1.0)])
    assert close(tree.a(x), plain + effect[0] + effect[1])
    sessions[first_off].restore()
    assert close(tree.a(x), plain + effect[1 - first_off])
    assert_own_parameters(tree, before)
    sessions[1 - first_off].restore()
    assert_untouched(tree, before)


def test_a_session_ends_with_its_with_block_also_by_an_exception():
    tree = Holder(a=nn.Linear(4, 4))
    before = photograph(tree)
    with pytest.raises(KeyError), lib_lycoris.patch(tree) as session:
        session.apply([(random_network(session.targets, 1), 1.0)])
        tree.a(torch.ones(1, 4))
        raise KeyError
    assert_untouched(tree, before)


class Waiting(nn.Linear):
    inside, go = None, None

    def forward(self, x):
        if self.inside is not None:
            self.inside.set()
            assert self.go.wait(10)
        return super().forward(x)


def test_two_threads_in_one_module_both_run_merged_and_the_last_puts_back():
    tree = Holder(a=Waiting(4, 4))
    session = Session(tree)
    before = photograph(tree)
    session.apply([(random_network(session.targets, 1), 1.0)])
    x, results = torch.ones(1, 4), []
    merged = tree.a(x)
    tree.a.inside, tree.a.go = threading.Event(), threading.Event()
    first = threading.Thread(target=lambda: results.append(tree.a(x)))
    first.start()
    assert tree.a.inside.wait(10)
    tree.a.inside = None
    assert torch.equal(tree.a(x), merged)
    tree.a.go.set()
    first.join()
    assert torch.equal(results[0], merged)
    assert_own_parameters(tree, before)


def test_a_restore_while_another_thread_runs_the_module_leaves_the_own_tensors():
    tree = Holder(a=Waiting(4, 4))
    session = Session(tree)
    before = photograph(tree)
    session.apply([(random_network(session.targets, 1), 1.0)])
    tree.a.inside, tree.a.go = threading.Event(), threading.Event()
    runner = threading.Thread(target=lambda: tree.a(torch.ones(1, 4)))
    runner.start()
    assert tree.a.inside.wait(10)
    session.restore()
    tree.a.go.set()
    runner.join()
    assert_untouched(tree, before)


def test_an_interrupt_in_another_thread_does_not_leave_ours_in_for_ever():
    tree = Holder(a=Failing(4, 4))
    session = Session(tree)
    before = photograph(tree)
    session.apply([(random_network(session.targets, 1), 1.0)])
    tree.a.error = Interrupt

    def run():
        with pytest.raises(Interrupt):
            tree.a(torch.ones(1, 4))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    tree.a.error = None
    tree.a(torch.ones(1, 4))
    assert_own_parameters(tree, before)


def test_a_module_has_at_most_one_patch():
    linear = nn.Linear(2, 2)
    assert ModulePatch.of(linear) is ModulePatch.of(linear)
