"""The embedded checkpoint follows its captions."""
from __future__ import annotations

import struct
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from lib_lycoris.errors import ConfigError
from lib_lycoris.studio.checkpoint import load_checkpoint
from lib_lycoris.studio.world.evaluate import draw_scenes
from lib_lycoris.studio.world.files import CHECKPOINT, CLIP_FOLDER, CONFIG, EDGES, install_world
from lib_lycoris.studio.world.scenes import held_back_scenes


@pytest.fixture(scope="module")
def model():
    return load_checkpoint()


def test_it_follows_held_back_captions(model):
    found = draw_scenes(model, held_back_scenes(16, seed=1))
    assert found.share("colour") >= 0.85 and found.share("shape") >= 0.7, found.render()


@pytest.mark.slow
def test_of_200_held_back_captions_it_follows_90_percent_of_colours_and_80_percent_of_shapes(model):
    found = draw_scenes(model, held_back_scenes(200))
    print(found.render())
    assert found.share("colour") >= 0.9 and found.share("shape") >= 0.8, found.render()


def test_its_text_vectors_have_a_mean_that_emphasis_can_divide_by(model):
    import torch

    with torch.no_grad():
        vectors = model.text_encoder(torch.tensor([[49406, 320, 736, *[49407] * 74]])).last_hidden_state
    assert abs(vectors.mean().item()) > 0.1


def test_it_has_the_module_names_of_stable_diffusion_1(model):
    from diffusers import UNet2DConditionModel

    full = UNet2DConditionModel(block_out_channels=(32, 64, 128, 128), cross_attention_dim=32, attention_head_dim=4)
    names = {name for name, _ in full.named_modules() if "conv_shortcut" not in name}
    assert {name for name, _ in model.unet.named_modules() if "conv_shortcut" not in name} == names
    assert len(model.text_encoder.get_submodule("encoder.layers")) == 12


def test_it_is_one_file_of_at_most_40_megabytes_in_the_original_layout():
    with open(CHECKPOINT, "rb") as file:
        header = file.read(struct.unpack("<Q", file.read(8))[0]).decode()
    assert CHECKPOINT.stat().st_size <= 40_000_000
    for name in ("model.diffusion_model.input_blocks.11.0.in_layers.0.weight", "first_stage_model.decoder.up.3.block.2.conv2.weight",
                 "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc2.weight"):
        assert f'"{name}"' in header


def test_installing_it_puts_checkpoint_yaml_and_tokenizer_where_the_webui_looks(tmp_path):
    from lib_lycoris.files.hashes import file_hash

    (tmp_path / "models" / "Stable-diffusion").mkdir(parents=True)
    checkpoint, config, clip, adapter = install_world(tmp_path)
    assert adapter == tmp_path / "models" / "T2I-Adapter" / EDGES.name and adapter.read_bytes() == EDGES.read_bytes()
    assert file_hash(checkpoint) == file_hash(CHECKPOINT)
    assert str(clip) in config.read_text(encoding="utf-8").replace("\\\\", "\\")
    assert {path.name for path in clip.iterdir()} >= {"config.json", "vocab.json", "merges.txt", "tokenizer_config.json"}
    assert Path(CONFIG).is_file() and (CLIP_FOLDER / "config.json").is_file()


def test_a_folder_that_is_no_webui_is_refused_with_what_is_missing(tmp_path):
    with pytest.raises(ConfigError, match="no WebUI folder"):
        install_world(tmp_path)
