"""The networks on disk: what a list, a look, a remark and a deletion give, and what they refuse."""

from __future__ import annotations

import json

import pytest
import torch

from lib_lycoris.errors import ConfigError, LycoError, UnknownNetworkError
from lib_lycoris.files.safetensors import write_tensors
from lib_lycoris.library.catalogue import Catalogue
from lib_lycoris.library.facts import Facts, FactsCache, read_facts
from lib_lycoris.library.shelf import Shelf

LORA = {"lora_unet_x.lora_up.weight": torch.ones(6, 3), "lora_unet_x.lora_down.weight": torch.ones(3, 5)}
CROSS = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


def put(path, tensors=LORA, **metadata):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, {key.replace("__", "."): value for key, value in metadata.items()})
    return path


@pytest.fixture
def shelf(tmp_path):
    catalogue = Catalogue([tmp_path / "nets"])
    return Shelf(lambda: catalogue, lambda: [tmp_path / "nets"])


def test_a_row_says_what_the_header_says(tmp_path, shelf):
    path = put(tmp_path / "nets" / "sub" / "cat.safetensors", {**LORA, f"{CROSS}.lora_down.weight": torch.ones(3, 2048)}, ss_output_name="Kitty",
               modelspec__title="The cat", modelspec__trigger_phrase="zorb", sshs_model_hash="ab" * 32)
    (row,) = shelf.rows()
    assert row["modified"] == path.stat().st_mtime and row["bytes"] == path.stat().st_size and row["file"] == str(path)
    expected = {"name": "cat", "tag": "<lyco:cat:1>", "kind": "LoRA", "rank": 3, "base_model": "sdxl_base_v1-0", "alias": "Kitty", "title": "The cat",
                "trigger_phrase": "zorb", "tags": None, "hash": "ab" * 32, "problem": None}
    assert {key: row[key] for key in expected} == expected
    assert json.loads(json.dumps(row)) == row


@pytest.mark.parametrize(("tensors", "kind"), [
    ({"lora_unet_x.hada_w1_a": torch.ones(4, 2), "lora_unet_x.hada_w1_b": torch.ones(2, 4)}, "LoHa"),
    ({"lora_unet_x.lokr_w1": torch.ones(2, 2)}, "LoKr"), ({"lora_unet_x.diff": torch.ones(2, 2)}, "a full difference"),
])
def test_the_kind_is_told_by_the_parameters(tmp_path, tensors, kind):
    assert read_facts(put(tmp_path / "x.safetensors", tensors)).kind == kind


def test_a_damaged_file_and_a_foreign_one_are_listed_with_their_problem(tmp_path, shelf):
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "cut.safetensors").write_bytes(b"\xff" * 20)
    (tmp_path / "nets" / "old.pt").write_bytes(b"never read for a list")
    put(tmp_path / "nets" / "vae.safetensors", {"encoder.conv_in.weight": torch.ones(1)})
    rows = {row["name"]: row for row in shelf.rows()}
    assert "damaged" in rows["cut"]["problem"] and "VAE" in rows["vae"]["problem"] and rows["old"]["problem"] is None


@pytest.mark.parametrize(("name", "tag"), [("a b,c", "a b,c"), ("a>b", "abababababab"), ("x\ny", "abababababab")])
def test_a_name_that_cannot_stand_in_a_tag_is_called_by_its_hash(tmp_path, shelf, name, tag):
    put(tmp_path / "nets" / f"{name}.safetensors", sshs_model_hash="ab" * 32)
    assert shelf.rows()[0]["tag"] == f"<lyco:{tag}:1>"
    assert shelf.find(tag).name == name


def test_only_a_changed_file_is_read_again(tmp_path):
    path, reads = put(tmp_path / "cat.safetensors", ss_output_name="one"), []

    def recall(path, read):
        reads.append(path)
        return read()

    cache = FactsCache(recall)
    assert cache.find(path).alias == cache.find(path).alias == "one" and len(reads) == 1
    put(path, ss_output_name="another")
    assert cache.find(path).alias == "another" and len(reads) == 2
    assert FactsCache(lambda path, read: {"of": "another version"}).find(path).alias == "another"
    path.unlink()
    assert cache.find(path) == Facts()


def test_looking_into_a_network_leaves_its_pictures_out(tmp_path, shelf):
    path = put(tmp_path / "nets" / "cat.safetensors", ss_output_name="Kitty", ssmd_cover_images='["aGVsbG8="]', modelspec__thumbnail="data:image/png;base64,xx")
    path.with_suffix(".json").write_text('{"notes": "n", "elsewhere": 1}')
    found = shelf.look_into("Kitty")
    assert found["metadata"] == {"ss_output_name": "Kitty"} and found["remarks"] == {"notes": "n"} and found["name"] == "cat"


def test_what_only_the_tensors_tell_is_asked_of_the_inspector(tmp_path):
    catalogue = Catalogue([tmp_path])
    path = put(tmp_path / "cat.safetensors")

    def inspect(of):
        if of != path:
            raise LycoError("damaged")
        return {"norms": {"unet": 3.0}, "metadata": {"twice": "x"}}

    shelf = Shelf(lambda: catalogue, lambda: [tmp_path], inspect=inspect)
    assert shelf.look_into("cat")["inspection"] == {"norms": {"unet": 3.0}}
    put(tmp_path / "dog.safetensors")
    shelf.scan()
    assert shelf.look_into("dog")["inspection"] == {"error": "damaged"}


def test_a_remark_is_written_beside_the_file(tmp_path, shelf):
    path = put(tmp_path / "nets" / "sub" / "cat.safetensors")
    assert shelf.remark("sub/cat", {"activation text": "zorb"})["remarks"] == {"activation text": "zorb"}
    assert json.loads(path.with_suffix(".json").read_text()) == {"activation text": "zorb"}
    with pytest.raises(ConfigError):
        shelf.remark("cat", {"../x": "y"})


def test_deleting_takes_the_file_and_what_belongs_to_it_alone(tmp_path, shelf):
    path = put(tmp_path / "nets" / "cat.safetensors")
    for ending in (".json", ".png", ".preview.png", "2.png"):
        (path.parent / f"cat{ending}").write_text("{}")
    assert set(shelf.delete("cat")["deleted"]) == {"cat.safetensors", "cat.json", "cat.png", "cat.preview.png"}
    assert sorted(each.name for each in path.parent.iterdir()) == [".lyco-trash", "cat2.png"]
    assert shelf.rows() == []
    with pytest.raises(UnknownNetworkError):
        shelf.delete("cat")


OUTSIDE = ["../outside", "nets/../../outside", "/etc/passwd", "..\\outside", "%2e%2e/outside", "cat.json", "cat/../../outside", "", ".", "\0"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_out_of_the_folders(tmp_path, shelf, name):
    put(tmp_path / "nets" / "cat.safetensors").with_suffix(".json").write_text("{}")
    outside = put(tmp_path / "outside.safetensors")
    for work in (shelf.delete, shelf.look_into, lambda name: shelf.remark(name, {"notes": "x"})):
        with pytest.raises(UnknownNetworkError):
            work(name)
    assert outside.exists() and not outside.with_suffix(".json").exists() and (tmp_path / "nets" / "cat.safetensors").exists()


def test_an_alias_or_a_hash_is_not_enough_to_delete(tmp_path, shelf):
    path = put(tmp_path / "nets" / "cat.safetensors", ss_output_name="Kitty", sshs_model_hash="ab" * 32)
    for name in ("Kitty", "ab" * 6):
        assert shelf.look_into(name)["name"] == "cat"
        with pytest.raises(LycoError, match="'cat'"):
            shelf.delete(name)
    assert path.exists()


def test_behind_a_link_nothing_is_deleted_and_of_a_link_only_the_link(tmp_path, shelf):
    real = put(tmp_path / "elsewhere" / "cat.safetensors")
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "linked").symlink_to(real.parent)
    with pytest.raises(LycoError, match="outside"):
        shelf.delete("linked/cat")
    (tmp_path / "nets" / "dog.safetensors").symlink_to(real)
    shelf.delete("dog")
    assert real.exists() and not (tmp_path / "nets" / "dog.safetensors").is_symlink()
