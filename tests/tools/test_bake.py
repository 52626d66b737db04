"""Networks in a checkpoint: the same as on the model, the rest untouched."""

from __future__ import annotations

import pytest
import torch

import lib_lycoris
from lib_lycoris.errors import CheckpointError, ConfigError
from lib_lycoris.files.safetensors import read_header, read_tensors
from lib_lycoris.patching.targets import find_targets
from lib_lycoris.tools.bake import bake
from lib_lycoris.tools.merge import Part
from lib_lycoris.tools.slots import checkpoint_base, find_slots
from tests.tools.checkpoints import load_trees, lora_for_all, make_trees, state_of, write_checkpoint
from tests.tools.helpers import Q, lora, rand, write

KINDS = ("sd2", "sdxl")


@pytest.mark.parametrize("kind", KINDS)
def test_the_names_in_a_checkpoint_are_those_of_the_modules_that_are_made_of_it(kind):
    unet, text_encoders = make_trees(kind)
    state = state_of(kind, unet, text_encoders)
    slots = find_slots(state, "x")
    targets = find_targets(unet, text_encoders)
    assert set(targets) <= set(slots)
    for key, target in targets.items():
        slot = slots[key]["weight"]
        assert slot.of(state[slot.name]).shape == target.shape, key
    assert {name for _, name in set(slots) - set(targets)} <= {"text_model_embeddings_token_embedding", "text_model_embeddings_position_embedding"}
    assert checkpoint_base({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}) == {"sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}[kind]


def outputs(kind, unet, text_encoders):
    torch.manual_seed(1)
    x, t, context, y = torch.randn(1, 4, 16, 16), torch.tensor([3.0]), torch.randn(1, 5, 6), torch.randn(1, 12)
    texts = [tree(torch.arange(5)[None]) for tree in text_encoders]
    with torch.no_grad():
        return [unet(x, t, context, y) if kind == "sdxl" else unet(x, t, context), *(getattr(text, "last_hidden_state", text) for text in texts)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_with_networks_in_it_draws_what_the_patched_model_draws(kind, tmp_path):
    unet, text_encoders = make_trees(kind)
    path = write_checkpoint(tmp_path / "base.safetensors", state_of(kind, unet, text_encoders))
    one = write(tmp_path / "one.safetensors", lora_for_all(kind, unet, text_encoders))
    partly = lora_for_all(kind, unet, text_encoders, seed=500, every=3)
    magnitudes = {
        f"{name.partition('.')[0]}.dora_scale": 1 + rand(9, tensor.shape[0], *(1 for _ in tensor.shape[1:])).abs()
        for name, tensor in partly.items()
        if name.endswith("lora_up.weight")
    }
    two = write(tmp_path / "two.safetensors", partly | magnitudes)
    done = bake([Part(str(one), 0.5, 0.25), Part(str(two), -0.5, -0.5)], path, tmp_path / "out.safetensors")
    assert done.notes == []
    assert done.layers == len(lib_lycoris.open_network(one).layers) + len(lib_lycoris.open_network(two).layers)
    baked = outputs(kind, *load_trees(kind, done.path))
    plain = outputs(kind, unet, text_encoders)
    with lib_lycoris.patch(unet, text_encoders) as session, torch.no_grad():
        session.apply([(lib_lycoris.open_network(one), (0.5, 0.25)), (lib_lycoris.open_network(two), -0.5)])
        patched = outputs(kind, unet, text_encoders)
    for ours, theirs, before in zip(baked, patched, plain, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(ours, before, rtol=1e-2, atol=1e-2)


def test_dtypes_metadata_and_everything_without_a_layer_stay(tmp_path):
    unet, text_encoders = make_trees("sd2")
    path = write_checkpoint(tmp_path / "base.safetensors", state_of("sd2", unet, text_encoders), torch.float16, {"a": "b", "modelspec.hash_sha256": "0xold"})
    tensors = lora_for_all("sd2", unet, text_encoders, every=5)
    done = bake([Part(str(write(tmp_path / "a.safetensors", tensors)))], path, tmp_path / "out.safetensors")
    before, after = read_tensors(path), read_tensors(done.path)
    assert read_header(done.path).metadata == {"a": "b", "lyco.recipe": "base with a:1"}
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in before.items()} == {name: (tensor.dtype, tensor.shape) for name, tensor in after.items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    network = lib_lycoris.open_network(tmp_path / "a.safetensors")
    slots = find_slots(before, "x")
    assert changed == {slots[network.targets[name]]["weight"].name for name in network.layers}
    for name, layer in network.layers.items():  # the sum is made in float32 and rounded once
        slot = slots[network.targets[name]]["weight"]
        if slot.third is None:
            weight = before[slot.name].float()
            assert torch.equal(after[slot.name], (weight + layer.delta(weight)).half())


def test_layers_without_a_home_are_counted_and_named_and_a_network_for_another_model_is_refused(tmp_path):
    unet, text_encoders = make_trees("sd2")
    path = write_checkpoint(tmp_path / "base.safetensors", state_of("sd2", unet, text_encoders))
    few = write(tmp_path / "few.safetensors", lora_for_all("sd2", unet, text_encoders, every=9) | lora("lora_unet_strange_place", (4, 4)))
    done = bake([Part(str(few))], path, tmp_path / "out.safetensors")
    assert done.notes == [f"layers without a home in this checkpoint, left out: 1 of {done.layers + 1} (unet strange_place)"]
    (tmp_path / "out.safetensors").unlink()
    none = write(tmp_path / "none.safetensors", lora(Q, (320, 320)))
    with pytest.raises(CheckpointError, match="another model"):
        bake([Part(str(none))], path, tmp_path / "out.safetensors")
    with pytest.raises(CheckpointError, match="holds no Stable Diffusion UNet"):
        bake([Part(str(few))], few, tmp_path / "out.safetensors")
    with pytest.raises(ConfigError, match="is the input"):
        bake([Part(str(few))], path, path)
    assert not (tmp_path / "out.safetensors").exists()


def test_what_half_precision_can_not_hold_is_an_error_and_no_file(tmp_path):
    unet, text_encoders = make_trees("sd2")
    path = write_checkpoint(tmp_path / "base.safetensors", state_of("sd2", unet, text_encoders), torch.float16)
    network = write(tmp_path / "a.safetensors", lora_for_all("sd2", unet, text_encoders, every=40))
    with pytest.raises(CheckpointError, match=r"exceeds what torch\.float16"):
        bake([Part(str(network), 1e9, 1e9)], path, tmp_path / "out.safetensors")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.safetensors", "base.safetensors"]


def test_text_encoders_of_every_layout_are_found():
    part = "encoder.layers.3.self_attn.q_proj.weight"
    for start in ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.", "conditioner.embedders.0.transformer.text_model."):
        name = start + part
        slots = find_slots(["model.diffusion_model.input_blocks.0.0.weight", name], "x")
        assert slots[("te1", "text_model_encoder_layers_3_self_attn_q_proj")]["weight"].name == name
    bare = find_slots(["down_blocks.0.resnets.0.conv1.weight", "conv_in.bias", "unrelated.weight"], "x")
    assert set(bare) == {("unet", "down_blocks_0_resnets_0_conv1"), ("unet", "conv_in")}


@pytest.mark.skipif(not hasattr(torch, "float8_e4m3fn"), reason="this torch has no fp8")
def test_a_checkpoint_in_fp8_stays_in_fp8(tmp_path):
    unet, text_encoders = make_trees("sd2")
    path = write_checkpoint(tmp_path / "base.safetensors", state_of("sd2", unet, text_encoders), torch.float8_e4m3fn)
    network = write(tmp_path / "a.safetensors", lora_for_all("sd2", unet, text_encoders, every=10))
    done = bake([Part(str(network))], path, tmp_path / "out.safetensors")
    before, after = read_tensors(path), read_tensors(done.path)
    assert all(after[name].dtype == before[name].dtype for name in before)
    assert 0 < sum(not torch.equal(before[name].float(), after[name].float()) for name in before) <= done.layers
