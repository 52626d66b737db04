"""CLIP's picture encoder, read from files as transformers writes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_lycoris.errors import CheckpointError
from lib_lycoris.studio.clip_vision import load_clip_vision, prepare_picture

transformers = pytest.importorskip("transformers")

TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8, "image_size": 32}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TINY)).eval()


def picture(height=40, width=56):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@torch.no_grad()
def test_what_it_sees_is_what_transformers_sees(model, tmp_path):
    model.save_pretrained(tmp_path)
    found = load_clip_vision(tmp_path)(picture())
    torch.testing.assert_close(found, model(pixel_values=prepare_picture(picture(), 32)).last_hidden_state)
    assert found.shape == (1, 17, 64)
    state = {f"vision_model.{name.removeprefix('vision_model.')}": value for name, value in load_file(tmp_path / "model.safetensors").items()}
    (tmp_path / "alone").mkdir()
    save_file({**state, "text_model.final_layer_norm.bias": torch.zeros(4)}, tmp_path / "alone" / "clip.safetensors")
    alone = load_clip_vision(tmp_path / "alone" / "clip.safetensors")(picture())
    assert alone.shape == (1, 17, 64)  # without its config the heads are those that go with the width


def test_what_is_no_picture_encoder_is_refused_in_words(model, tmp_path):
    save_file({"something": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="no picture encoder"):
        load_clip_vision(tmp_path / "a.safetensors")
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop(next(name for name in state if name.endswith("layers.1.mlp.fc2.weight")))
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks .*fc2\.weight"):
        load_clip_vision(tmp_path)


def test_pictures_are_cut_to_their_middle_square_and_normalised():
    made = np.zeros((32, 64, 3), np.uint8)
    made[:, 16:48] = (255, 0, 128)
    seen = prepare_picture(made, 32)
    expected = (torch.tensor([1.0, 0.0, 128 / 255]) - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor([0.26862954, 0.26130258, 0.27577711])
    assert seen.shape == (1, 3, 32, 32)
    torch.testing.assert_close(seen[0, :, 16, 16], expected)
    torch.testing.assert_close(seen[0, :, 4, 2], expected)
