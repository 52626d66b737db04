"""What is read from the host, for models and settings that the real WebUI of these tests does not have."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from lib_lycoris.errors import CheckpointError, ConfigError


@pytest.fixture
def host(stand_in_webui):
    from lib_lycoris.webui import host

    return host


def module(**children) -> nn.Module:
    made = nn.Module()
    for name, child in children.items():
        setattr(made, name, child)
    return made


def wrapped_clip() -> nn.Module:
    return module(wrapped=module(transformer=module(text_model=nn.Linear(1, 1))))


def wrapped_open_clip() -> nn.Module:
    return module(wrapped=module(model=module(transformer=nn.Linear(1, 1))))


UNET = module(input_blocks=nn.ModuleList())


def test_sd1_has_clips_text_model(host):
    clip = wrapped_clip()
    assert host.trees_of(module(model=module(diffusion_model=UNET), cond_stage_model=clip)).text_encoders == (clip.wrapped.transformer,)


def test_sd2_has_open_clips_text_model(host):
    clip = wrapped_open_clip()
    assert host.trees_of(module(model=module(diffusion_model=UNET), cond_stage_model=clip)).text_encoders == (clip.wrapped.model,)


def test_sdxl_has_both_in_their_order(host):
    one, two = wrapped_clip(), wrapped_open_clip()
    conditioner = module(embedders=nn.ModuleList([one, two, nn.Identity()]))
    trees = host.trees_of(module(model=module(diffusion_model=UNET), conditioner=conditioner))
    assert trees.text_encoders == (one.wrapped.transformer, two.wrapped.model)


def test_sdxls_refiner_has_the_second_text_encoder_alone(host):
    two = wrapped_open_clip()
    trees = host.trees_of(module(model=module(diffusion_model=UNET), conditioner=module(embedders=nn.ModuleList([two]))))
    assert trees.text_encoders[1] is two.wrapped.model
    assert not list(trees.text_encoders[0].parameters())


def test_the_identity_of_trees_changes_with_any_module(host):
    model = module(model=module(diffusion_model=module(input_blocks=nn.ModuleList([nn.Linear(1, 1)]))), cond_stage_model=wrapped_clip())
    before = host.trees_of(model).identity()
    assert host.trees_of(model).identity() == before
    replaced = model.model.diffusion_model.input_blocks[0]
    model.model.diffusion_model.input_blocks[0] = nn.Linear(1, 1)
    assert host.trees_of(model).identity() != before
    assert replaced is not model.model.diffusion_model.input_blocks[0]


@pytest.mark.parametrize("model", [module(model=module(diffusion_model=nn.Linear(1, 1))), module(model=nn.Linear(1, 1))])
def test_another_architecture_is_named_in_the_error(host, model):
    with pytest.raises(CheckpointError, match=r"\(Linear|\(Module"):
        host.trees_of(model)


def test_a_checkpoint_of_another_architecture_is_told_under_the_picture(stand_in_webui):
    model = stand_in_webui._models.model_data.sd_model
    model.is_sd3 = True
    try:
        reply = stand_in_webui.picture("sd3 <lyco:A:1>")
    finally:
        del model.is_sd3
    assert reply.pictures == stand_in_webui.picture("sd3").pictures
    assert len(reply.comments) == 1 and "SDXL" in reply.comments[0]


def test_a_program_in_the_unets_place_is_told_under_the_picture(stand_in_webui, monkeypatch):
    import modules.sd_unet

    monkeypatch.setattr(modules.sd_unet, "current_unet", SimpleNamespace(option=SimpleNamespace(label="[TRT] fast")))
    reply = stand_in_webui.picture("trt <lyco:A:1>")
    assert len(reply.comments) == 1 and "[TRT] fast" in reply.comments[0]
    assert not stand_in_webui.picture("trt").comments


def test_the_folders_are_those_of_the_built_ins_flags_where_it_set_them(host, monkeypatch):
    from modules import shared

    assert host.network_folders() == [Path(shared.models_path, "LyCORIS"), Path(shared.models_path, "Lora")]
    monkeypatch.setattr(shared, "cmd_opts", SimpleNamespace(lyco_dir_backcompat="/somewhere/lyco", lora_dir="/somewhere/lora"))
    assert host.network_folders() == [Path("/somewhere/lyco"), Path("/somewhere/lora")]
    monkeypatch.setattr(shared, "cmd_opts", SimpleNamespace(lyco_dir_backcompat="/one", lora_dir="/one"))
    assert host.network_folders() == [Path("/one")]


def test_without_the_built_in_there_is_nothing_to_settle(host, stand_in_webui):
    assert host.make_settle() is not None
    stand_in_webui._builtin.undo()
    try:
        assert host.make_settle() is None
    finally:
        stand_in_webui._builtin.patch()


def test_a_file_that_the_metadata_gives_a_hash_is_known_by_it(host, tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, str(tmp_path / "told.safetensors"), {"sshs_model_hash": "0123456789abcdef"})
    assert host.short_hash(tmp_path / "told.safetensors") == "0123456789ab"
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    assert host.short_hash(tmp_path / "bad.safetensors") is None


def test_where_others_reach_the_webui_no_autoencoder_but_those_it_lists_is_read(host, monkeypatch, tmp_path):
    from modules import sd_vae, shared

    listed, other = tmp_path / "listed.safetensors", tmp_path / "other.safetensors"
    for path in (listed, other):
        path.write_bytes(b"")
    monkeypatch.setitem(sd_vae.vae_dict, listed.name, str(listed))
    assert host.find_vae(str(other)) == str(other)
    monkeypatch.setattr(shared.cmd_opts, "disable_extension_access", True, raising=False)
    assert host.find_vae(listed.name) == host.find_vae(str(listed)) == str(listed)
    said = []
    for path in (other, tmp_path / "not there.safetensors"):
        with pytest.raises(ConfigError) as refused:
            host.find_vae(str(path))
        said.append(str(refused.value).replace(str(path), ""))
    assert said[0] == said[1]  # nobody learns from it which files there are
