from __future__ import annotations

import pytest
import torch
from torch import nn

from lib_lycoris.errors import ConfigError, NetworkFileError
from lib_lycoris.networks.hints import Hints
from lib_lycoris.networks.kinds import build_layer
from lib_lycoris.networks.loha import LohaLayer

from .oracles import lycoris_addition, lycoris_layer, peft_layer, relative


def ones(*shape):
    return torch.ones(shape)


def loha(out=6, into=4, rank=2, **more):
    sides = {f"hada_w{half}_{side}": torch.randn(size) for half in (1, 2) for side, size in (("a", (out, rank)), ("b", (rank, into)))}
    return {**sides, **more}


MODULES = {
    "linear": (lambda: nn.Linear(12, 20), (3, 12)),
    "conv": (lambda: nn.Conv2d(12, 20, 3, padding=1), (2, 12, 5, 6)),
    "conv 1×1": (lambda: nn.Conv2d(12, 20, 1), (2, 12, 5, 6)),
}


@pytest.mark.parametrize(("make", "size"), MODULES.values(), ids=MODULES)
@pytest.mark.parametrize("more", [{}, {"use_tucker": True}, {"rs_lora": True}], ids=str)
def test_what_lycoris_trained_adds_here_what_it_added_there(make, size, more):
    module, x = make(), torch.randn(size)
    tensors, theirs = lycoris_layer("loha", module, lora_dim=4, alpha=2.5, **more)
    added = lycoris_addition(theirs, module, x)
    layer = build_layer("x", tensors)
    assert relative(layer.delta(module.weight), theirs.get_weight(module.weight.shape)) < 1e-5
    assert relative(layer.delta_output(x, module), added) < 1e-5


@pytest.mark.parametrize("make", [make for make, _ in MODULES.values()], ids=MODULES)
@pytest.mark.parametrize("tucker", [False, True])
def test_what_peft_trained_has_its_delta_here(make, tucker):
    module = make()
    tensors, delta = peft_layer("LoHaConfig", module, r=3, alpha=2, use_effective_conv2d=tucker)
    assert relative(build_layer("x", tensors, Hints(alpha=2)).delta(torch.zeros(delta.shape)), delta) < 1e-5


def test_the_tucker_form_is_the_sum_over_both_ranks_of_each_core():
    tensors = {"hada_w1_a": torch.randn(2, 3), "hada_w1_b": torch.randn(2, 4), "hada_w2_a": torch.randn(2, 3), "hada_w2_b": torch.randn(2, 4)}
    tensors.update(hada_t1=torch.randn(2, 2, 3, 2), hada_t2=torch.randn(2, 2, 3, 2))
    halves = [torch.einsum("ijkl,jq,ip->pqkl", tensors[f"hada_t{half}"], tensors[f"hada_w{half}_b"], tensors[f"hada_w{half}_a"]) for half in (1, 2)]
    delta = build_layer("x", {**tensors, "alpha": torch.tensor(1.0)}).delta(torch.zeros(3, 4, 3, 2))
    assert relative(delta, halves[0] * halves[1] / 2) < 1e-5


@pytest.mark.parametrize("alpha", [torch.tensor(1.5), torch.tensor([1.5]), torch.tensor(1.5).bfloat16(), torch.tensor(3)])
def test_alpha_over_the_rank_is_the_scale_once(alpha):
    tensors = loha(alpha=alpha)
    expected = (tensors["hada_w1_a"] @ tensors["hada_w1_b"]) * (tensors["hada_w2_a"] @ tensors["hada_w2_b"]) * (alpha.double().item() / 2)
    assert relative(build_layer("x", tensors).delta(torch.zeros(6, 4)), expected) < 1e-5


def test_what_the_file_says_of_the_scale_outranks_the_config():
    assert build_layer("x", loha()).scale == 1
    assert build_layer("x", loha(), Hints(alpha=1.0)).scale == 0.5
    assert build_layer("x", loha(), Hints(scale=0.3)).scale == pytest.approx(0.3)
    assert build_layer("x", loha(alpha=torch.tensor(3.0)), Hints(alpha=1.0)).scale == 1.5
    assert build_layer("x", loha(alpha=torch.tensor(3.0), scale=torch.tensor(0.25))).scale == 0.25


def test_a_stray_scalar_is_ignored():
    tensors = loha(scalar=torch.tensor(3.0))
    plain = {name: tensor for name, tensor in tensors.items() if name != "scalar"}
    assert torch.equal(build_layer("x", tensors).delta(torch.zeros(6, 4)), build_layer("x", plain).delta(torch.zeros(6, 4)))


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_one_product_is_the_delta_for_any_rank(rank):
    layer = build_layer("x", loha(rank=rank, alpha=torch.tensor(0.5)))
    up, down = layer.product()
    assert up.shape == (6, rank * rank)
    assert relative(up @ down, layer.delta(torch.zeros(6, 4))) < 1e-5
    assert (layer.factors() is None) == (rank > 4)
    torch.testing.assert_close(down.norm(dim=1), torch.ones(rank * rank))


def test_the_output_beside_stays_in_half_precisions_range():
    # rights of LoHa are of the order of one and its lefts small; inputs of a UNet go to thousands
    layer = LohaLayer.create((640, 640), 4, generator=torch.Generator().manual_seed(0)).requires_grad_(False)
    nn.init.constant_(layer.hada_w2_a, 0.00002)
    for part in (layer.hada_w1_b, layer.hada_w2_b):
        part.fill_(9.0)
    module = nn.Linear(640, 640)
    x = torch.full((1, 640), 1000.0)
    assert (x @ (layer.hada_w1_b * layer.hada_w2_b).T).min() > torch.finfo(torch.float16).max
    assert relative(layer.delta_output(x.half(), module), layer.delta_output(x, module)) < 0.01


@pytest.mark.parametrize(
    "tensors",
    [
        {key: tensor for key, tensor in loha().items() if key != "hada_w2_b"},
        loha(hada_t1=ones(2, 2, 3, 3)),
        loha(hada_w1_a=ones(6, 3)),
        loha(hada_w2_b=ones(2, 5)),
        loha(hada_w2_a=ones(5, 2)),
        loha(hada_w1_a=ones(6)),
        loha(hada_w1_a=torch.tensor(1.0)),
        loha(rank=0),
        loha(hada_w1_a=ones(6, 2).int()),
        loha(hada_t1=ones(2, 2, 3, 3), hada_t2=ones(2, 2, 3, 3)),
        loha(out=2, hada_t1=ones(2, 2, 3, 3), hada_t2=ones(2, 2)),
        loha(alpha=ones(2)),
        loha(alpha=torch.tensor(float("nan"))),
        loha(hada_w2_a=torch.full((6, 2), float("inf")).half()),
    ],
)
def test_tensors_that_make_no_whole_layer_are_refused_by_the_layers_name(tensors):
    with pytest.raises(NetworkFileError, match="lora_unet_x") as caught:
        build_layer("lora_unet_x", tensors)
    assert "\n" not in str(caught.value)


def test_a_fresh_layer_starts_as_lycoris_starts_it():
    layer = LohaLayer.create((200, 300), 40, generator=torch.Generator().manual_seed(1))
    spread = {name: parameter.std().item() for name, parameter in layer.named_parameters()}
    assert spread == pytest.approx({"hada_w1_a": 0.1, "hada_w1_b": 1, "hada_w2_a": 0, "hada_w2_b": 1}, rel=0.03)
    cores = LohaLayer.create((20, 30, 3, 3), 30, tucker=True)
    assert cores.hada_t1.shape == (30, 30, 3, 3) and cores.hada_w1_a.shape == (30, 20)
    assert cores.hada_t2.std().item() == pytest.approx(0.1, rel=0.05)
    assert LohaLayer.create((20, 30, 1, 1), 3, tucker=True).hada_t1 is None


@pytest.mark.parametrize("arguments", [((4, 4), 0), ((4, 4), 2.5), ((4, 4), 2, float("nan")), ((4,), 2)])
def test_arguments_that_make_no_layer_are_refused(arguments):
    with pytest.raises(ConfigError):
        LohaLayer.create(*arguments)
