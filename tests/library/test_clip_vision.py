"""CLIP's picture encoder gives what transformers' own gives, from each file that holds one."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from lib_lycoris.errors import NetworkFileError
from lib_lycoris.library.clip_vision import find_clip_vision, open_clip_vision
from lib_lycoris.networks.clip_vision import DEVIATION, MEAN

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}


@pytest.fixture(scope="module")
def oracle():
    torch.manual_seed(3)
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES, hidden_act="quick_gelu")).eval()


def write(path, oracle, prefix, **more):
    bare = {name.removeprefix("vision_model."): tensor for name, tensor in oracle.state_dict().items()}
    save_file({prefix + name: tensor.contiguous().clone() for name, tensor in bare.items()} | more, str(path))
    return path


@pytest.mark.parametrize("prefix", ["vision_model.", "", "clip.vision_model."])
def test_hidden_states_are_those_of_transformers(tmp_path, oracle, prefix):
    encoder = open_clip_vision(write(tmp_path / "clip.safetensors", oracle, prefix, other=torch.ones(3)))
    picture = torch.rand(2, 3, 56, 56)
    mean, deviation = (torch.tensor(each)[:, None, None] for each in (MEAN, DEVIATION))
    with torch.no_grad():
        expected = oracle(pixel_values=(picture - mean) / deviation).last_hidden_state
        assert torch.allclose(encoder(picture), expected, atol=2e-5)


def test_pictures_of_other_sizes_are_scaled_and_cut_in_the_middle(tmp_path, oracle):
    encoder = open_clip_vision(write(tmp_path / "clip.safetensors", oracle, ""))
    wide = torch.zeros(1, 3, 56, 84)
    wide[..., 14:70] = torch.rand(1, 3, 56, 56)
    assert torch.equal(encoder(wide), encoder(wide[..., 14:70]))
    large = torch.full((1, 3, 300, 200), 0.5)
    assert torch.allclose(encoder(large), encoder(large[..., :56, :56]), atol=1e-4)


def test_the_file_of_the_right_width_is_found_by_its_header(tmp_path, oracle):
    save_file({"x": torch.ones(1)}, str(tmp_path / "a.safetensors"))
    (tmp_path / "b.safetensors").write_bytes(b"no header")
    path = write(tmp_path / "c.safetensors", oracle, "vision_model.")
    assert find_clip_vision([tmp_path / "nowhere", tmp_path], 128) == path
    assert find_clip_vision([tmp_path], 1024) is None


def test_what_is_no_encoder_is_refused(tmp_path, oracle):
    save_file({"x": torch.ones(1)}, str(tmp_path / "a.safetensors"))
    bare = {name.removeprefix("vision_model."): tensor.clone() for name, tensor in oracle.state_dict().items()}
    bare.pop("encoder.layers.1.mlp.fc2.weight")
    save_file(bare, str(tmp_path / "b.safetensors"))
    for name, words in (("a", "no picture encoder"), ("b", "incomplete")):
        with pytest.raises(NetworkFileError, match=words):
            open_clip_vision(tmp_path / f"{name}.safetensors")
