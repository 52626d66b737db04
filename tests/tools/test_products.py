"""Every kind's ΔW as one product: the same matrix, the same norm, the same singular values."""

from __future__ import annotations

import pytest
import torch

from lib_lycoris import open_network
from lib_lycoris.errors import NetworkFileError
from lib_lycoris.tools.products import capped, delta_norm, dense_delta, exact_product, layer_kind, singular_values
from tests.tools.helpers import CONV, Q, loha, lokr, lora, rand, write

LINEAR, KERNEL = (32, 24), (16, 8, 3, 3)


def adalora(name, shape, rank=3):
    parts = {"lora_A": rand(1, rank, shape[1]), "lora_E": rand(2, rank, 1), "lora_B": rand(3, shape[0], rank), "ranknum": torch.tensor([5.0])}
    return {f"{name}.{part}": tensor for part, tensor in parts.items()} | {f"{name}.alpha": torch.tensor(4.0)}


KINDS = {
    "lora": (lora(Q, LINEAR), LINEAR, 4),
    "locon": (lora(CONV, KERNEL), KERNEL, 4),
    "locon tucker": (lora(CONV, KERNEL, tucker=True), KERNEL, 4),
    "adalora": (adalora(Q, LINEAR), LINEAR, 3),
    "loha": (loha(Q, LINEAR), LINEAR, 9),
    "loha conv": (loha(CONV, KERNEL), KERNEL, 9),
    "loha tucker": (loha(CONV, KERNEL, tucker=True), KERNEL, 9),
    "lokr whole": (lokr(Q, LINEAR), LINEAR, 4 * 6),
    "lokr": (lokr(Q, LINEAR, rank=2), LINEAR, 4 * 2),
    "lokr conv": (lokr(CONV, KERNEL, rank=2), KERNEL, 4 * 2),
    "lokr conv whole": (lokr(CONV, KERNEL), KERNEL, 4 * 4),
}


def only_layer(tmp_path, tensors):
    network = open_network(write(tmp_path / "a.safetensors", tensors))
    assert len(network.layers) == 1
    return next(iter(network.layers.values()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_product_of_any_low_rank_kind_is_its_delta(kind, tmp_path):
    tensors, shape, rank = KINDS[kind]
    layer = only_layer(tmp_path, tensors)
    delta = layer.delta(torch.zeros(shape)).flatten(1)
    up, down = exact_product(layer)
    assert up.shape[1] == down.shape[0] == rank
    assert torch.allclose(up @ down, delta, rtol=1e-4, atol=1e-5)
    assert delta_norm(layer) == pytest.approx(delta.norm().item(), rel=1e-4)
    values = singular_values(layer)
    expected = torch.linalg.svdvals(delta.double()).float()
    count = min(len(values), len(expected))
    assert torch.allclose(values[:count], expected[:count], rtol=1e-3, atol=1e-4 * expected[0])


def test_a_product_longer_than_the_matrix_is_multiplied_out():
    for rows, columns in ((6, 9), (9, 6)):
        up, down = rand(0, rows, 20), rand(1, 20, columns)
        short_up, short_down = capped((up, down))
        assert short_up.shape[1] == 6
        assert torch.allclose(short_up @ short_down, up @ down, rtol=1e-4, atol=1e-4)
    same = rand(0, 6, 3), rand(1, 3, 9)
    assert capped(same) is same


def test_full_differences_and_norms_have_no_product_but_a_norm(tmp_path):
    diff = rand(0, 6, 5)
    layer = only_layer(tmp_path, {f"{Q}.diff": diff})
    assert exact_product(layer) is None
    assert torch.equal(dense_delta(layer, Q), diff)
    assert delta_norm(layer) == pytest.approx(diff.norm().item())
    assert torch.allclose(singular_values(layer), torch.linalg.svdvals(diff), rtol=1e-4)
    norm = only_layer(tmp_path, {"lora_unet_conv_norm_out.w_norm": rand(1, 7), "lora_unet_conv_norm_out.b_norm": rand(2, 7)})
    assert delta_norm(norm) == pytest.approx(rand(1, 7).norm().item())
    assert singular_values(norm) is None
    bias = only_layer(tmp_path, {f"{Q}.diff_b": rand(3, 6)})
    assert delta_norm(bias) == 0


def test_what_depends_on_the_base_weight_says_so(tmp_path):
    layer = only_layer(tmp_path, lora(Q, LINEAR) | {f"{Q}.dora_scale": rand(0, 32, 1).abs()})
    assert layer_kind(layer) == "dora"
    assert exact_product(layer) is None
    assert delta_norm(layer) is None
    assert singular_values(layer) is None
    with pytest.raises(NetworkFileError, match=r"dora.*base weight.*merge OUT"):
        dense_delta(layer, Q)
