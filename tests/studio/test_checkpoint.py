import json
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_lycoris.errors import CheckpointError
from lib_lycoris.studio import ldm
from lib_lycoris.studio.checkpoint import load_checkpoint

from .tiny import TEXT, make_modules, write_checkpoint


@pytest.fixture(scope="module")
def modules():
    return make_modules()


@pytest.fixture(scope="module")
def path(tmp_path_factory, modules):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), modules)


@pytest.fixture(scope="module")
def tensors(path):
    return load_file(path)


def refused(path):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message and str(path.stem) in message
    return message


def test_the_loaded_modules_compute_what_the_saved_ones_computed(path, modules):
    model = load_checkpoint(path, device="cpu")
    unet, vae, text = modules
    ids, latents = torch.tensor([[49406, 320, 49407]]), torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(model.text_encoder(input_ids=ids).last_hidden_state, text(input_ids=ids).last_hidden_state)
        assert torch.equal(model.vae.decode(latents).sample, vae.decode(latents).sample)
        context = torch.randn(1, 5, 32)
        assert torch.equal(model.unet(latents, 10, context).sample, unet(latents, 10, context).sample)
    assert (model.name, model.prediction, model.latent_scale, model.side, model.dtype) == ("tiny", "eps", 0.18215, 64, torch.float32)
    assert not any(module.training for module in (model.unet, model.vae, model.text_encoder))


def test_the_hash_is_the_beginning_of_the_files_sha256(path):
    import hashlib
    assert load_checkpoint(path, device="cpu").hash == hashlib.sha256(path.read_bytes()).hexdigest()[:10]


def test_half_precision_files_load_in_single_precision_on_the_cpu(tmp_path, modules):
    model = load_checkpoint(write_checkpoint(tmp_path, modules, dtype=torch.float16), device="cpu")
    assert model.dtype == torch.float32
    assert {p.dtype for module in (model.unet, model.vae, model.text_encoder) for p in module.parameters()} == {torch.float32}


def test_the_autoencoder_stays_in_single_precision_when_the_rest_is_half(path):
    model = load_checkpoint(path, device="cpu", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 == next(model.text_encoder.parameters()).dtype
    assert next(model.vae.parameters()).dtype == torch.float32


def test_without_a_yaml_the_heads_are_those_of_sd_1(tmp_path, modules):
    model = load_checkpoint(write_checkpoint(tmp_path, modules, yaml=False), device="cpu")
    assert model.unet.config.attention_head_dim == 8
    assert model.text_encoder.config.num_attention_heads == 1


def test_a_yaml_written_as_yaml_reads_like_one_written_as_json(tmp_path, modules):
    import yaml
    path = write_checkpoint(tmp_path, modules)
    path.with_suffix(".yaml").write_text(yaml.safe_dump(json.loads(path.with_suffix(".yaml").read_text())))
    model = load_checkpoint(path, device="cpu")
    assert (model.unet.config.attention_head_dim, model.text_encoder.config.num_attention_heads) == (4, TEXT["num_attention_heads"])


def test_v_prediction_is_told_by_yaml_or_metadata(tmp_path, modules):
    assert load_checkpoint(write_checkpoint(tmp_path, modules, "a", prediction="v"), device="cpu").prediction == "v"
    by_metadata = write_checkpoint(tmp_path, modules, "b", metadata={"modelspec.prediction_type": "v"}, yaml=False)
    assert load_checkpoint(by_metadata, device="cpu").prediction == "v"


def test_an_old_ckpt_file_loads_without_running_what_it_names(tmp_path, tensors, path):
    torch.save({"state_dict": tensors, "global_step": 3}, tmp_path / "old.ckpt")
    model, same = load_checkpoint(tmp_path / "old.ckpt", device="cpu"), load_checkpoint(path, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.unet.state_dict().values(), same.unet.state_dict().values(), strict=True))


def test_the_classes_of_training_frameworks_in_old_ckpt_files_are_passed_over(tmp_path, tensors, monkeypatch):
    name = "pytorch_lightning.callbacks.model_checkpoint"
    kind = type("ModelCheckpoint", (), {"__module__": name})
    with monkeypatch.context() as patch:  # only the writer has the framework
        module = types.ModuleType(name)
        module.ModelCheckpoint = kind
        for place in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
            patch.setitem(sys.modules, place, module)
        torch.save({"state_dict": tensors, "callbacks": {kind: {"best": 1.0}}}, tmp_path / "v1.ckpt")
    assert load_checkpoint(tmp_path / "v1.ckpt", device="cpu").name == "v1"


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    assert "safetensors" in refused(tmp_path / "evil.ckpt")
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize(("name", "content", "says"), [
    ("empty.safetensors", b"", "empty"), ("noise.safetensors", b"x" * 100, "no complete safetensors"), ("noise.ckpt", b"x" * 100, ".ckpt"),
    ("picture.png", b"x", "ending"), ("missing.safetensors", None, "does not exist")])
def test_files_that_are_no_checkpoints_are_refused(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert says in refused(tmp_path / name)


def test_a_truncated_file_is_refused(tmp_path, path):
    (tmp_path / "half.safetensors").write_bytes(path.read_bytes()[:200_000])
    assert "no complete safetensors" in refused(tmp_path / "half.safetensors")


@pytest.mark.parametrize(("key", "says"), [
    ("lora_unet_mid_block.lora_up.weight", "network"), ("conditioner.embedders.0.x", "SDXL"), ("cond_stage_model.model.ln", "SD 2"),
    ("control_model.x", "ControlNet"), ("down_blocks.0.x", "diffusers"), ("something.else", "something.else"), ("first_stage_model.x", "no UNet")])
def test_other_kinds_of_files_are_named(tmp_path, key, says):
    save_file({key: torch.zeros(1)}, tmp_path / "other.safetensors")
    assert says in refused(tmp_path / "other.safetensors")


def changed(tmp_path, tensors, changes):
    path = tmp_path / "changed.safetensors"
    save_file({key: value for key, value in {**tensors, **changes}.items() if value is not None}, path)
    return path


def test_an_inpainting_checkpoint_is_named(tmp_path, tensors):
    assert "inpainting" in refused(changed(tmp_path, tensors, {f"{ldm.UNET}input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)}))


def test_a_missing_tensor_is_named(tmp_path, tensors):
    assert "conv_in.bias" in refused(changed(tmp_path, tensors, {f"{ldm.UNET}input_blocks.0.0.bias": None}))


def test_a_tensor_of_another_shape_is_named(tmp_path, tensors):
    assert "decoder.conv_out.bias" in refused(changed(tmp_path, tensors, {f"{ldm.VAE}decoder.conv_out.bias": torch.zeros(4)}))


def test_a_text_encoder_of_another_width_than_the_unet_takes_is_named(tmp_path, tensors):
    words = f"{ldm.TEXT}text_model.embeddings.token_embedding.weight"
    assert "width 32" in refused(changed(tmp_path, tensors, {words: torch.zeros(49408, 64)}))


@pytest.mark.parametrize("text", ["model: [", "model: 3", "{}"])
def test_a_broken_yaml_is_named(tmp_path, modules, text):
    path = write_checkpoint(tmp_path, modules)
    path.with_suffix(".yaml").write_text(text)
    assert "tiny.yaml" in refused(path)
