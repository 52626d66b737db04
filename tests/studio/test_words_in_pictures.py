"""Embeddings in generated pictures: from folders, and packed with networks."""

from __future__ import annotations

import pytest
import torch

from lib_lycoris.errors import NetworkFileError
from lib_lycoris.files.embeddings import pack_embeddings
from lib_lycoris.files.safetensors import write_tensors
from lib_lycoris.generation import Generation
from lib_lycoris.library.cache import NetworkCache
from lib_lycoris.library.catalogue import Catalogue
from lib_lycoris.patching.session import Session
from lib_lycoris.studio.generate import GenerateSettings, generate


@pytest.fixture(scope="module")
def model(tiny_path):
    from lib_lycoris.studio.checkpoint import load_checkpoint

    return load_checkpoint(tiny_path, device="cpu")


def rows(count, width=32, seed=0):
    return {"clip_l": 2 * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))}


def draw(model, prompt, networks=None, **other):
    settings = GenerateSettings(prompt=prompt, negative=other.pop("negative", ""), seed=1, steps=2, width=64, height=64)
    return generate(model, settings, networks, **other)[0]


class Unreadable(dict):
    """A folder with one file in it, that can't be read."""

    def __iter__(self):
        return iter(["damagedword"])

    def __missing__(self, word):
        raise NetworkFileError(f"{word}.pt is damaged; get it again")


def test_a_word_of_a_folder_changes_the_picture_and_leaves_nothing(model):
    plain = draw(model, "a zorbix")
    given = {"zorbix": rows(2), "spoilt": rows(1, 33)}
    used = draw(model, "a zorbix", embeddings=given)
    assert (used.pixels != plain.pixels).any() and used.problems == ()
    assert (draw(model, "a", negative="zorbix", embeddings=given).pixels != draw(model, "a", negative="zorbix").pixels).any()
    assert (draw(model, "a zorbix").pixels == plain.pixels).all()


def test_what_is_wrong_with_a_word_is_told_under_the_picture(model):
    used = draw(model, "a spoiltword, circle", embeddings={"spoiltword": rows(1, 33), "circle": rows(1), "untouched": rows(1, 34)})
    assert len(used.problems) == 2
    assert "33" in used.problems[0] and "spoiltword" in used.problems[0] and "is a token already" in used.problems[1] and "circle" in used.problems[1]


def test_a_file_that_can_t_be_read_is_told_and_read_as_words(model):
    used = draw(model, "a damagedword", embeddings=Unreadable())
    assert used.problems == ("damagedword.pt is damaged; get it again: it was read as plain words",)
    assert (used.pixels == draw(model, "a damagedword").pixels).all()


def test_words_packed_with_a_network_count_while_its_tag_is_there(model, tmp_path):
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    lora = {f"{name}.lora_up.weight": torch.zeros(64, 1), f"{name}.lora_down.weight": torch.zeros(1, 32)}
    write_tensors(tmp_path / "net.safetensors", {**lora, **pack_embeddings({"zorbix": rows(2)})}, {})
    write_tensors(tmp_path / "odd.safetensors", {**lora, "bundle_emb.other.clip_g": torch.ones(1, 1280)}, {})
    networks = Generation(Catalogue([tmp_path]), NetworkCache(1 << 20), Session(model.unet, [model.text_encoder]))
    plain, wanted = draw(model, "a zorbix", networks), draw(model, "a zorbix", embeddings={"zorbix": rows(2)})
    used = draw(model, "a zorbix <lyco:net:1>", networks)
    assert (used.pixels == wanted.pixels).all() and (plain.pixels != used.pixels).any() and used.problems == ()
    folders = draw(model, "a zorbix <lyco:net:1>", networks, embeddings={"zorbix": rows(1, seed=3)})
    assert (folders.pixels == draw(model, "a zorbix", embeddings={"zorbix": rows(1, seed=3)}).pixels).all(), "the folder's goes before"
    assert (draw(model, "a zorbix", networks).pixels == plain.pixels).all() and networks.embeddings == {}
    odd = draw(model, "a zorbix <lyco:odd:1>", networks)
    assert len(odd.problems) == 1 and "packed embedding other" in odd.problems[0] and (odd.pixels == plain.pixels).all()
