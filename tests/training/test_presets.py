"""Presets are configs; the user's own are kept whole, and what is no way of training is left out of them."""

from __future__ import annotations

import pytest

from lib_lycoris.errors import ConfigError, UnknownPresetError
from lib_lycoris.networks.adapters.full import FullAdapter
from lib_lycoris.training.config import KINDS, KINDS_WITHOUT_LAYERS, TrainConfig, settings
from lib_lycoris.training.kinds import unknown_settings
from lib_lycoris.training.own_presets import PresetShelf
from lib_lycoris.training.presets import PRESETS, SD1, SDXL, nested


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_every_preset_is_a_config_of_settings_that_its_kind_knows(preset):
    config = preset.config()
    assert not set(preset.values) & set(unknown_settings()[config.network.kind])
    assert preset.about.endswith(".") and (preset.gib is None or f"{preset.gib:g} GB" in preset.name)
    assert not preset.base or preset.base in preset.name or "embedded" in preset.name


def test_there_are_presets_for_each_purpose_and_base_model():
    names = [preset.name for preset in PRESETS]
    assert len(set(names)) == len(names)
    for base in (SD1, SDXL):
        for purpose in ("character", "style", "object", "AdaLoRA", "embedding", "edges adapter"):
            assert any(purpose in name and base in name for name in names), (purpose, base)


def _sizes(which):
    """(shapes of the layers, numbers of UNet and text encoders) of a model in full size, without its memory."""
    diffusers = pytest.importorskip("diffusers")
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from lib_lycoris.patching.targets import find_targets

    shared = {"sample_size": 64, "layers_per_block": 2}
    with torch.device("meta"):
        if which == SD1:
            unet = diffusers.UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, **shared)
            texts = [CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408))]
        else:
            unet = diffusers.UNet2DConditionModel(
                cross_attention_dim=2048, attention_head_dim=[5, 10, 20], block_out_channels=(320, 640, 1280), use_linear_projection=True,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), transformer_layers_per_block=[1, 2, 10],
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time", addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816, **shared)
            wide = CLIPTextConfig(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, vocab_size=49408)
            narrow = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408)
            texts = [CLIPTextModel(narrow), CLIPTextModelWithProjection(wide)]
    return find_targets(unet, texts), sum(value.numel() for model in (unet, *texts) for value in model.parameters())


@pytest.mark.parametrize("base", [SD1, SDXL])
def test_weights_network_and_optimiser_of_a_preset_leave_room_for_a_step_within_the_memory_it_names(base):
    """What a checkpointed step of one picture keeps is under 1.5 GiB (SD 1.5, 512 px) or 3 GiB (SDXL, 1024 px); the rest is counted here."""
    import torch

    from lib_lycoris.training.memory import _OPTIMIZER_BYTES
    from lib_lycoris.training.methods import count_parameters
    from lib_lycoris.training.rates import learning_targets
    from lib_lycoris.training.selection import select_targets

    targets, numbers = _sizes(base)
    for preset in PRESETS:
        if preset.base != base:
            continue
        config = preset.config()
        assert config.training.precision in ("fp16", "bf16") and config.training.gradient_checkpointing and config.data.batch_size == 1
        chosen = {} if config.network.kind in KINDS_WITHOUT_LAYERS else learning_targets(select_targets(targets, config.network), config)
        trained = sum(count_parameters(target, config.network) for target in chosen.values())
        if config.network.kind == "adapter":
            with torch.device("meta"):
                adapter = FullAdapter(channels=(320, 640, 1280, 1280), layout="sdxl" if base == SDXL else "sd")
            trained = sum(value.numel() for value in adapter.parameters())
        assert trained or config.network.kind == "embedding"
        held = numbers * 2 + trained * (8 + _OPTIMIZER_BYTES[config.training.optimizer])
        assert held / 2**30 + (1.5 if base == SD1 else 3) < preset.gib, f"{preset.name}: {held / 2**30:.2f} GiB before a step"


def test_own_presets_are_kept_without_folders_and_names_and_come_last(tmp_path):
    shelf = PresetShelf(tmp_path / "presets")
    config = TrainConfig.from_dict({"network": {"rank": 7}, "data": {"folders": ["a"], "flip": True}, "output": {"name": "cat", "folder": "elsewhere"}})
    saved = shelf.save(" My cats (2) ", config)
    assert saved.own and dict(saved.values) == {"network.rank": 7, "data.flip": True}
    assert shelf.all()[-1] == saved and [preset.own for preset in shelf.all()] == [False] * len(PRESETS) + [True]
    assert shelf.find("My cats (2)").config().network.rank == 7
    shelf.save("My cats (2)", TrainConfig())
    assert shelf.find("My cats (2)").values == {}
    shelf.delete("My cats (2)")
    assert len(shelf.all()) == len(PRESETS) and list((tmp_path / "presets").iterdir()) == []


@pytest.mark.parametrize("name", ["", "a/b", "..", "../x", "a\\b", "x" * 61, ".hidden", "a:b", PRESETS[0].name, None, "dot."])
def test_names_that_no_file_or_another_preset_has(tmp_path, name):
    with pytest.raises(ConfigError, match="preset"):
        PresetShelf(tmp_path / "presets").save(name, TrainConfig())
    assert list(tmp_path.iterdir()) == []


def test_only_own_presets_can_be_deleted(tmp_path):
    shelf = PresetShelf(tmp_path)
    with pytest.raises(ConfigError, match="comes with the program"):
        shelf.delete(PRESETS[0].name)
    with pytest.raises(UnknownPresetError, match="no preset"):
        shelf.delete("mine")


def test_a_file_that_is_no_preset_is_not_listed(tmp_path):
    (tmp_path / "broken.toml").write_text("[network]\nrank = 'many'")
    assert len(PresetShelf(tmp_path).all()) == len(PRESETS)


def test_a_key_without_a_section_is_named():
    with pytest.raises(ConfigError, match="'rank'"):
        nested({"rank": 4})


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_of_a_kind_takes_every_setting_that_it_is_said_to_know(kind):
    unknown = unknown_settings()
    assert set(unknown) == set(KINDS)
    assert "network.kind" not in unknown[kind] and "training.steps" not in unknown[kind] and "data.folders" not in unknown[kind]


def test_what_a_kind_does_not_know_is_known_by_another():
    unknown = unknown_settings()
    ranks = {f"network.{name}" for name in ("init_rank", "target_rank", "warmup", "final", "interval", "orthogonality")}
    assert ranks <= set(unknown["lora"]) - set(unknown["adalora"])
    assert "network.conv_rank" in set(unknown["lora"]) - set(unknown["locon"])
    assert "network.rank" in unknown["norm"] and "network.rank" not in unknown["lora"]
    assert set.intersection(*map(set, unknown.values())) == set()
    parts = {section: {setting.key for setting in settings() if setting.section == section} for section in ("adapter", "embedding")}
    assert parts["adapter"] <= set(unknown["locon"]) & set(unknown["embedding"]) and not parts["adapter"] & set(unknown["adapter"])
    assert parts["embedding"] <= set(unknown["adapter"]) and not parts["embedding"] & (set(unknown["locon"]) | set(unknown["embedding"]))


@pytest.mark.parametrize(("kind", "given", "rate"), [("lora", None, 1e-4), ("adapter", None, 1e-5), ("adapter", 1e-4, 1e-4), ("lora", 1e-5, 1e-5)])
def test_a_learning_rate_that_is_left_out_is_that_of_the_kind(kind, given, rate):
    config = TrainConfig.from_dict({"network": {"kind": kind}, "training": {} if given is None else {"learning_rate": given}})
    assert config.learning_rate == rate
    assert TrainConfig.from_dict(config.to_dict()).learning_rate == rate
