"""The public opener of textual inversions, and what both openers say of the other's files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lib_lycoris
from lib_lycoris.errors import NetworkFileError
from lib_lycoris.files.embeddings import pack_embeddings, write_embedding, write_embedding_picture
from lib_lycoris.files.safetensors import write_tensors
from lib_lycoris.library.embeddings import packed_embeddings

LAYER = "lora_te_text_model_encoder_layers_0_mlp_fc1"
LORA = {f"{LAYER}.lora_up.weight": torch.ones(8, 1), f"{LAYER}.lora_down.weight": torch.ones(1, 4)}


def test_the_public_opener_gives_vectors_name_and_metadata(tmp_path):
    vectors = {"clip_l": torch.randn(4, 768), "clip_g": torch.randn(4, 1280)}
    write_embedding(tmp_path / "my-word.safetensors", vectors, {"ss_steps": "12"})
    embedding = lib_lycoris.open_embedding(tmp_path / "my-word.safetensors")
    assert embedding.name == embedding.word == "my-word" and embedding.count == 4 and embedding.step == 12 and embedding.metadata["ss_steps"] == "12"
    assert all(torch.equal(embedding.vectors[key], vectors[key]) for key in vectors) and embedding.path == tmp_path / "my-word.safetensors"
    assert embedding.fits("sdxl_base_v1-0") and not embedding.fits("sd_v1") and not embedding.fits("sd_v2") and not embedding.fits("other")


@pytest.mark.parametrize("content", [{"<cat-toy>": torch.ones(768)}, {"emb_params": torch.ones(2, 8)}, {"clip_l": torch.ones(2, 8), "clip_g": torch.ones(2, 8)},
                                     {"string_to_param": {"*": torch.ones(1, 768)}}])
def test_the_opener_of_networks_names_an_embedding_and_its_opener(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(NetworkFileError, match=r"textual-inversion embedding.*open_embedding"):
        lib_lycoris.open_network(tmp_path / "a.pt")


def test_the_opener_of_networks_points_a_picture_to_the_opener_of_embeddings(tmp_path):
    write_embedding_picture(tmp_path / "a.png", np.zeros((64, 64, 3), np.uint8), "a", {"clip_l": torch.ones(1, 768)})
    with pytest.raises(NetworkFileError, match=r"picture.*open_embedding"):
        lib_lycoris.open_network(tmp_path / "a.png")


def test_the_opener_of_embeddings_names_a_network_and_its_opener(tmp_path):
    write_tensors(tmp_path / "a.safetensors", LORA, {})
    with pytest.raises(NetworkFileError, match=r"a network.*open_network"):
        lib_lycoris.open_embedding(tmp_path / "a.safetensors")
    with pytest.raises(NetworkFileError, match="does not exist"):
        lib_lycoris.open_embedding(tmp_path / "b.safetensors")


def test_a_network_gives_the_embeddings_that_are_packed_with_it(tmp_path):
    one, two = {"clip_l": torch.randn(2, 768)}, {"clip_l": torch.randn(1, 768), "clip_g": torch.randn(1, 1280)}
    write_tensors(tmp_path / "a.safetensors", {**LORA, **pack_embeddings({"one": one, "two words": two})}, {})
    found = packed_embeddings(lib_lycoris.open_network(tmp_path / "a.safetensors"))
    assert list(found) == ["one", "two words"] and torch.equal(found["one"].vectors["clip_l"], one["clip_l"])
    assert torch.equal(found["two words"].vectors["clip_g"], two["clip_g"]) and found["two words"].word == "two words"
    with pytest.raises(NetworkFileError, match="name the one you mean"):
        lib_lycoris.open_embedding(tmp_path / "a.safetensors")
    assert lib_lycoris.open_embedding(tmp_path / "a.safetensors", "one").count == 2
    write_tensors(tmp_path / "a.safetensors", {**LORA, **pack_embeddings({"one": one})}, {})
    assert lib_lycoris.open_embedding(tmp_path / "a.safetensors").name == "one"


def test_a_packed_embedding_that_is_none_is_named(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {**LORA, "bundle_emb.odd.clip_g": torch.ones(1, 1280)}, {})
    with pytest.raises(NetworkFileError, match="packed embedding odd"):
        packed_embeddings(lib_lycoris.open_network(tmp_path / "a.safetensors"))
