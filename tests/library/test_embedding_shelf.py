"""Folders of embeddings: what counts as one, by which word it is found, and what is told, remarked and deleted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lib_lycoris.errors import ConfigError, LycoError, NetworkFileError, UnknownNetworkError
from lib_lycoris.files.embeddings import pack_embeddings, write_embedding, write_embedding_picture, write_legacy_embedding
from lib_lycoris.files.safetensors import write_tensors
from lib_lycoris.library.embedding_shelf import EmbeddingShelf

ONE = {"clip_l": torch.full((2, 768), 0.5)}
LORA = {"lora_te_a.lora_up.weight": torch.ones(8, 1), "lora_te_a.lora_down.weight": torch.ones(1, 4)}


@pytest.fixture
def folder(tmp_path):
    own = tmp_path / "own"
    (own / "sub").mkdir(parents=True)
    (own / "x-states").mkdir()
    write_embedding(own / "first.safetensors", ONE, {"ss_steps": "5"})
    write_legacy_embedding(own / "sub" / "Second.pt", "inner", {"clip_h": torch.ones(1, 1024)})
    picture = np.full((64, 64, 3), 200, np.uint8)
    write_embedding_picture(own / "shared.png", picture, "drawn word", ONE)
    write_embedding(own / "x-states" / "state.safetensors", ONE)
    write_tensors(own / "network.safetensors", {**LORA, **pack_embeddings({"packed": ONE})}, {})
    for name in ("first.png", "plain.png", "first.preview.png"):
        Image.fromarray(picture).save(own / name)
    torch.save({"emb_params": torch.full((1, 768), float("nan"))}, own / "spoilt.pt")
    (own / "notes.txt").write_text("x")
    return own


@pytest.fixture
def shelf(folder):
    return EmbeddingShelf(lambda: [folder, folder.parent / "none"])


def test_every_embedding_has_a_word_and_everything_else_is_passed_over(shelf, folder):
    assert {word: path.name for word, path in shelf.words().items()} == {
        "drawn word": "shared.png", "first": "first.safetensors", "Second": "Second.pt", "spoilt": "spoilt.pt"}
    vectors = shelf.vectors()
    assert list(vectors) == list(shelf.words()) and torch.equal(vectors["first"]["clip_l"], ONE["clip_l"])
    with pytest.raises(NetworkFileError, match="not finite"):
        vectors["spoilt"]
    with pytest.raises(KeyError):
        vectors["network"]


def test_rows_are_plain_values_and_tell_problems(shelf):
    rows = {row["name"]: row for row in shelf.rows()}
    first = rows["first"]
    assert (first["kind"], first["vectors"], first["base_model"], first["step"], first["problem"]) == ("embedding", 2, "sd_v1", 5, None)
    assert rows["Second"]["base_model"] == "sd_v2" and rows["Second"]["title"] == "inner"
    assert rows["spoilt"]["vectors"] is None and "not finite" in rows["spoilt"]["problem"]


def test_a_changed_file_is_read_anew_and_a_deleted_one_is_gone(shelf, folder):
    before = shelf.load(folder / "first.safetensors")
    assert shelf.load(folder / "first.safetensors") is before
    write_embedding(folder / "first.safetensors", {"clip_l": torch.ones(3, 768)})
    assert shelf.vectors()["first"]["clip_l"].shape[0] == 3
    (folder / "first.safetensors").unlink()
    assert "first" not in shelf.words()


def test_one_embedding_is_looked_into_by_word_or_path(shelf):
    for name in ("Second", "sub/Second", "sub/Second.pt"):
        seen = shelf.look_into(name)
        assert seen["name"] == "Second" and seen["norms"] == {"clip_h": [32.0]} and seen["metadata"] == {"name": "inner"} and seen["remarks"] == {}
    assert "error" not in shelf.look_into("spoilt") and "not finite" in shelf.look_into("spoilt")["problem"]
    with pytest.raises(UnknownNetworkError, match="near: first"):
        shelf.look_into("frist")
    with pytest.raises(UnknownNetworkError, match="near: first"):
        shelf.look_into("FIRST")


def test_remarks_and_deletion_are_of_the_folders_files_alone(shelf, folder):
    assert shelf.remark("first", {"notes": "good"})["remarks"]["notes"] == "good" and shelf.look_into("first")["remarks"]["notes"] == "good"
    assert sorted(shelf.delete("first")["deleted"]) == ["first.json", "first.png", "first.preview.png", "first.safetensors"]
    gone = shelf.delete("drawn word")
    assert gone["deleted"] == ["shared.png"] and "drawn word" not in shelf.words()
    assert shelf.trash.restore(gone["entry"]) == [folder / "shared.png"] and "drawn word" in shelf.words()
    outside = folder.parent / "outside"
    outside.mkdir()
    write_embedding(outside / "far.safetensors", ONE)
    (folder / "link").symlink_to(outside, target_is_directory=True)
    assert "far" in shelf.words()
    for change in (lambda: shelf.delete("far"), lambda: shelf.remark("far", {"notes": "x"})):
        with pytest.raises(LycoError, match="behind a link"):
            change()
    assert (outside / "far.safetensors").exists()


def test_of_two_with_one_word_the_first_folders_counts(tmp_path):
    for name, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        write_embedding(tmp_path / name / "word.safetensors", {"clip_l": torch.full((1, 768), value)})
    shelf = EmbeddingShelf(lambda: [tmp_path / "b", tmp_path / "a"])
    assert shelf.vectors()["word"]["clip_l"][0, 0] == 2 and len(shelf.rows()) == 1


def test_a_renamed_embedding_takes_what_is_its_own_along_and_is_found_by_its_new_word(folder):
    gone = []
    shelf = EmbeddingShelf(lambda: [folder], gone.append)
    shelf.remark("first", {"notes": "good"})
    renamed = shelf.rename("first", "third")
    assert renamed == {"name": "third", "renamed": {f"first{end}": f"third{end}" for end in (".json", ".png", ".preview.png", ".safetensors")}}
    assert shelf.describe("third")["remarks"] == {"notes": "good"} and shelf.picture("third").size == (64, 64) and "first" not in shelf.words()
    shelf.delete("Second")
    assert gone == [folder / "first.safetensors", folder / "sub" / "Second.pt"]
    with pytest.raises(ConfigError, match="can't"):
        shelf.rename("third", "../out")


def test_the_preview_of_a_picture_that_is_an_embedding_leaves_it_as_it_is(shelf, folder):
    before, data = (folder / "shared.png").read_bytes(), (folder / "plain.png").read_bytes()
    assert shelf.describe("drawn word")["preview"] == str(folder / "shared.png") and shelf.picture("drawn word") is not None
    assert shelf.set_preview("drawn word", data)["preview"] == str(folder / "shared.preview.png") == shelf.describe("drawn word")["preview"]
    assert (folder / "shared.png").read_bytes() == before and "drawn word" in shelf.words()
