"""The difference of two checkpoints as a network."""

from __future__ import annotations

import pytest
import torch

from lib_lycoris.errors import CheckpointError, ConfigError
from lib_lycoris.files.safetensors import read_header, read_tensors
from lib_lycoris.tools.bake import bake
from lib_lycoris.tools.extract import extract
from lib_lycoris.tools.merge import Part
from tests.tools.checkpoints import lora_for_all, make_trees, state_of, write_checkpoint
from tests.tools.helpers import assert_same, rand, write


@pytest.fixture(params=["sd2", "sdxl"])
def pair(request, tmp_path):
    """(kind, base, tuned, the network that was put into tuned)."""
    kind = request.param
    unet, text_encoders = make_trees(kind)
    base = write_checkpoint(tmp_path / "base.safetensors", state_of(kind, unet, text_encoders))
    network = write(tmp_path / "network.safetensors", lora_for_all(kind, unet, text_encoders, every=2))
    tuned = bake([Part(str(network))], base, tmp_path / "tuned.safetensors").path
    return kind, base, tuned, network


def test_a_network_that_was_merged_in_is_found_again(pair, tmp_path):
    _, base, tuned, network = pair
    done = extract(base, tuned, tmp_path / "found.safetensors", energy=0.999999)
    assert set(done.kept.ranks) <= {1, 2}
    assert_same_targets(network, done.path, 2e-3)
    again = bake([Part(str(done.path))], base, tmp_path / "again.safetensors")
    assert again.notes == []
    one, other = read_tensors(tuned), read_tensors(again.path)
    assert all(torch.allclose(one[name].float(), other[name].float(), atol=1e-3) for name in one)


def assert_same_targets(one, other, relative):
    assert_same(deltas_by_file(one), deltas_by_file(other), relative)


def deltas_by_file(path):
    """{(component, name): ΔW} without knowing the modules' shapes: of LoRA's factors."""
    from lib_lycoris import open_network
    from lib_lycoris.tools.products import exact_product

    network = open_network(path)
    return {network.targets[name]: torch.matmul(*exact_product(layer)) for name, layer in network.layers.items()}


def test_convolutions_have_four_dimensions_and_names_as_kohya_has_them(pair, tmp_path):
    kind, base, tuned, _ = pair
    stored = read_tensors(extract(base, tuned, tmp_path / "found.safetensors", rank=1).path)
    prefixes = {"sd2": ("lora_unet_", "lora_te_"), "sdxl": ("lora_unet_", "lora_te1_", "lora_te2_")}[kind]
    assert all(name.startswith(prefixes) for name in stored)
    assert any(tensor.ndim == 4 and tensor.shape[-1] == 3 for tensor in stored.values())
    metadata = read_header(tmp_path / "found.safetensors").metadata
    assert metadata["ss_base_model_version"] == {"sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}[kind]
    assert metadata["ss_network_dim"] == metadata["ss_network_alpha"].removesuffix(".0") == "1"
    assert metadata["lyco.recipe"] == "extract tuned from base, rank 1"
    assert metadata["sshs_model_hash"]


def test_a_rank_keeps_the_best_of_each_layer_and_the_energy_that_it_tells(tmp_path):
    unet, text_encoders = make_trees("sd2")
    state = state_of("sd2", unet, text_encoders)
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.ff.net.0.proj.weight"
    change = rand(3, *state[name].shape)
    base = write_checkpoint(tmp_path / "base.safetensors", state)
    tuned = write_checkpoint(tmp_path / "tuned.safetensors", state | {name: state[name] + change})
    for amount in ({"rank": 3}, {"energy": 0.7}):
        done = extract(base, tuned, tmp_path / "found.safetensors", **amount)
        (found,) = deltas_by_file(done.path).values()
        u, values, vt = torch.linalg.svd(change, full_matrices=False)
        rank = done.kept.ranks[0]
        assert torch.allclose(found, (u[:, :rank] * values[:rank]) @ vt[:rank], atol=1e-3)
        share = (values[:rank].square().sum() / values.square().sum()).item()
        assert done.kept.share == pytest.approx(share, rel=1e-3)
        assert done.kept.worst == pytest.approx(share, rel=1e-3)
        if "energy" in amount:
            assert share >= 0.7 > (values[: rank - 1].square().sum() / values.square().sum()).item()
        else:
            assert rank == 3


def test_norms_biases_and_what_is_outside_are_counted_or_kept_when_asked(tmp_path):
    unet, text_encoders = make_trees("sd2")
    state = state_of("sd2", unet, text_encoders)
    unet_name = "model.diffusion_model."
    changed = {
        unet_name + "out.0.weight": 0.1,
        unet_name + "out.0.bias": 0.2,
        unet_name + "out.2.weight": 0.3,
        unet_name + "out.2.bias": 0.4,
        unet_name + "time_embed.0.bias": 0.5,
        "first_stage_model.decoder.conv_in.weight": 1.0,
        "cond_stage_model.model.token_embedding.weight": 1.0,
        "cond_stage_model.model.text_projection": 1.0,
    }
    base = write_checkpoint(tmp_path / "base.safetensors", state)
    tuned = write_checkpoint(tmp_path / "tuned.safetensors", {name: tensor + changed.get(name, 0) for name, tensor in state.items()})
    done = extract(base, tuned, tmp_path / "bare.safetensors", rank=4)
    assert len(done.kept.ranks) == 1
    assert any(note.startswith("modules whose biases, norms or embeddings differ, left out: 4;") for note in done.notes)
    assert any(note.endswith("(a VAE's, a text projection): 2") for note in done.notes)
    full = extract(base, tuned, tmp_path / "full.safetensors", rank=4, full=True)
    assert any(note == "modules whose embeddings differ, left out: 1" for note in full.notes)
    stored = read_tensors(full.path)
    for name, value in (
        ("lora_unet_conv_norm_out.w_norm", 0.1),
        ("lora_unet_conv_norm_out.b_norm", 0.2),
        ("lora_unet_conv_out.lora_up.bias", 0.4),
        ("lora_unet_time_embedding_linear_1.diff_b", 0.5),
    ):
        assert torch.allclose(stored[name], torch.tensor(value), atol=1e-6), name
    again = read_tensors(bake([Part(str(full.path))], base, tmp_path / "again.safetensors").path)
    there = read_tensors(tuned)
    outside = ("first_stage", "cond_stage_model.model.t")
    assert all(torch.allclose(again[name], there[name], atol=1e-5) for name in there if not name.startswith(outside))


def test_half_precision_checkpoints_give_a_half_precision_network_and_rounding_is_no_difference(tmp_path):
    unet, text_encoders = make_trees("sd2")
    state = state_of("sd2", unet, text_encoders)
    name = "model.diffusion_model.out.2.weight"
    base = write_checkpoint(tmp_path / "base.safetensors", state, torch.float16)
    tuned = write_checkpoint(tmp_path / "tuned.safetensors", state | {name: state[name] + 1}, torch.float16)
    done = extract(base, tuned, tmp_path / "found.safetensors", rank=2)
    assert {kind for key, (kind, _) in read_header(done.path).tensors.items() if not key.endswith("alpha")} == {torch.float16}
    wide = write_checkpoint(tmp_path / "wide.safetensors", state | {name: state[name] + 1})
    mixed = extract(base, wide, tmp_path / "mixed.safetensors", rank=2)
    assert len(mixed.kept.ranks) == 1
    assert {kind for kind, _ in read_header(mixed.path).tensors.values()} == {torch.float32}


def test_what_can_not_be_extracted_is_told(pair, tmp_path):
    kind, base, _, network = pair
    out = tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError, match="do not differ"):
        extract(base, base, out, rank=4)
    with pytest.raises(CheckpointError, match="holds no Stable Diffusion UNet"):
        extract(base, network, out, rank=4)
    other = {"sd2": "sdxl", "sdxl": "sd2"}[kind]
    foreign = write_checkpoint(tmp_path / "foreign.safetensors", state_of(other, *make_trees(other)))
    with pytest.raises(CheckpointError, match="is of another model"):
        extract(base, foreign, out, rank=4)
    for wrong in ({"rank": 0}, {"energy": 0.0}, {"energy": 1.5}, {}, {"rank": 4, "energy": 0.5}):
        with pytest.raises(ConfigError):
            extract(base, base, out, **wrong)
    with pytest.raises(ConfigError, match="is the input"):
        extract(base, foreign, foreign, rank=4)
    assert not out.exists()
