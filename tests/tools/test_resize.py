"""A network of smaller ranks."""

from __future__ import annotations

import pytest
import torch

from lib_lycoris.errors import ConfigError, NetworkFileError
from lib_lycoris.files.safetensors import read_header, read_tensors
from lib_lycoris.tools.resize import resize
from tests.tools.helpers import CONV, Q, assert_same, deltas, loha, lokr, lora, rand, write, write_locon


def every_kind(path):
    return write(
        path,
        lora(Q, (32, 24))
        | loha(CONV, (32, 32, 3, 3), 2)
        | lokr("lora_unet_mid_block_attentions_0_proj_out", (64, 64), rank=2)
        | {"lora_te_text_model_encoder_layers_0_mlp_fc2.diff": rand(5, 24, 96), "lora_unet_conv_norm_out.w_norm": rand(6, 8)},
    )


def matrices(path):
    return {key: delta for key, delta in deltas_with_norms(path).items() if delta.ndim > 1}


def deltas_with_norms(path):
    from lib_lycoris import open_network

    network = open_network(path)
    norm = {key: layer.w_norm for name, layer in network.layers.items() if layer.algorithm == "norm" and (key := network.targets[name])}
    rest = type("Part", (), {"layers": {name: layer for name, layer in network.layers.items() if layer.algorithm != "norm"}, "targets": network.targets})
    return {**deltas(rest), **norm}


def test_all_energy_is_the_same_network_of_the_ranks_that_it_needs(tmp_path):
    path = every_kind(tmp_path / "a.safetensors")
    done = resize(path, tmp_path / "b.safetensors", energy=1.0)
    assert_same(matrices(path), matrices(done.path), 1e-4)
    assert done.kept.share == pytest.approx(1.0, abs=1e-6)
    assert sorted(done.kept.ranks) == [4, 4, 8, 24]
    assert torch.equal(read_tensors(done.path)["lora_unet_conv_norm_out.w_norm"], rand(6, 8))


@pytest.mark.parametrize("amount", [{"rank": 2}, {"energy": 0.8}], ids=str)
def test_each_layer_is_the_best_approximation_and_its_alpha_is_its_rank(amount, tmp_path):
    path = every_kind(tmp_path / "a.safetensors")
    done = resize(path, tmp_path / "b.safetensors", **amount)
    found = matrices(done.path)
    kept, total = 0.0, 0.0
    for key, delta in matrices(path).items():
        values = torch.linalg.svdvals(delta.flatten(1).double())
        rest = (found[key].flatten(1) - delta.flatten(1)).double().square().sum()
        rank = torch.linalg.matrix_rank(found[key].flatten(1), atol=1e-4 * values[0].item()).item()
        assert rest == pytest.approx(values[rank:].square().sum().item(), rel=1e-2, abs=1e-5)
        assert rank <= 2 if "rank" in amount else rest <= 0.2001 * values.square().sum()
        kept, total = kept + values[:rank].square().sum().item(), total + values.square().sum().item()
    assert done.kept.share == pytest.approx(kept / total, rel=1e-4)
    stored = read_tensors(done.path)
    alphas = {name: tensor for name, tensor in stored.items() if name.endswith(".alpha")}
    assert len(alphas) == 4
    assert all(tensor.item() == stored[name.replace(".alpha", ".lora_down.weight")].shape[0] for name, tensor in alphas.items())
    assert "resize a to" in read_header(done.path).metadata["lyco.recipe"]


def test_the_file_keeps_its_precision_unless_another_is_asked_for(tmp_path):
    path = write_locon(tmp_path / "a.safetensors", dtype=torch.float16)
    for dtype, expected in ((None, torch.float16), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32)):
        done = resize(path, tmp_path / "b.safetensors", rank=2, dtype=dtype)
        assert {kind for name, (kind, _) in read_header(done.path).tensors.items() if not name.endswith("alpha")} == {expected}
    assert done.bytes_before == sum(tensor.numel() * tensor.element_size() for tensor in read_tensors(path).values())


def test_layers_that_do_nothing_are_left_out(tmp_path):
    empty = {name: torch.zeros_like(tensor) if "lora_up" in name else tensor for name, tensor in lora(CONV, (32, 32, 3, 3)).items()}
    done = resize(write(tmp_path / "a.safetensors", lora(Q, (32, 24)) | empty), tmp_path / "b.safetensors", energy=0.9)
    assert {name.partition(".")[0] for name in read_tensors(done.path)} == {Q}
    assert done.notes == ["layers that change nothing, left out: 1"]


def test_what_can_not_be_resized_is_told(tmp_path):
    path = write(tmp_path / "a.safetensors", lora(Q, (32, 24)) | {f"{Q}.dora_scale": torch.ones(32, 1)})
    with pytest.raises(NetworkFileError, match=r"dora.*merge OUT"):
        resize(path, tmp_path / "b.safetensors", rank=2)
    with pytest.raises(ConfigError, match="is the input"):
        resize(path, path, rank=2)
    with pytest.raises(ConfigError, match="either --rank or --energy"):
        resize(path, tmp_path / "b.safetensors")
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]
