"""Deleted files come back as they were, no record in a trash leads out of its folder, and a rename is whole or not at all."""

from __future__ import annotations

import io
import json
import os

import pytest
import torch
from PIL import Image

from lib_lycoris.errors import ConfigError, LycoError, UnknownNetworkError
from lib_lycoris.files.preview import LARGEST_FILE, SIDE
from lib_lycoris.files.safetensors import write_tensors
from lib_lycoris.library import renaming
from lib_lycoris.library.catalogue import EXTENSIONS, Catalogue
from lib_lycoris.library.renaming import checked_name
from lib_lycoris.library.shelf import Shelf
from lib_lycoris.library.trash import FOLDER

LORA = {"lora_unet_x.lora_up.weight": torch.ones(6, 3), "lora_unet_x.lora_down.weight": torch.ones(3, 5)}


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, LORA, {})
    return path


def a_picture(size=(40, 30), form="PNG", **more):
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(file, form, **more)
    return file.getvalue()


def everything(folder):
    """Every file below a folder but the trash, with its bytes."""
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file() and FOLDER not in each.parts}


@pytest.fixture
def nets(tmp_path):
    return tmp_path / "nets"


@pytest.fixture
def shelf(nets):
    catalogue = Catalogue([nets])
    return Shelf(lambda: catalogue, lambda: [nets])


def test_what_was_deleted_comes_back_as_it_was(nets, shelf):
    path = put(nets / "sub" / "cat.safetensors")
    path.with_suffix(".json").write_text('{"notes": "n"}')
    path.with_suffix(".png").write_bytes(a_picture())
    before = everything(nets)
    gone = shelf.delete("cat")
    assert everything(nets) == {} and shelf.rows() == []
    (entry,) = shelf.trash.entries()
    assert (entry.id, entry.name, entry.kind, sorted(entry.files)) == (gone["entry"], "cat", "networks", ["sub/cat.json", "sub/cat.png", "sub/cat.safetensors"])
    assert entry.bytes == sum(map(len, before.values()))
    assert sorted(shelf.restore(entry.id)["restored"]) == ["cat.json", "cat.png", "cat.safetensors"]
    assert everything(nets) == before and shelf.trash.entries() == [] and [row["name"] for row in shelf.rows()] == ["cat"]


def test_no_program_finds_a_network_in_the_trash(nets, shelf):
    put(nets / "cat.safetensors")
    shelf.delete("cat")
    assert [each.name for each in nets.rglob("*") if each.name.lower().endswith(EXTENSIONS)] == []
    with pytest.raises(UnknownNetworkError):
        shelf.find("cat")


def test_what_is_there_again_is_not_written_over(nets, shelf):
    path = put(nets / "cat.safetensors")
    path.with_suffix(".json").write_text("{}")
    entry = shelf.delete("cat")["entry"]
    path.write_bytes(b"another")
    with pytest.raises(LycoError, match="is there again"):
        shelf.restore(entry)
    assert path.read_bytes() == b"another" and not path.with_suffix(".json").exists()
    path.unlink()
    assert len(shelf.restore(entry)["restored"]) == 2


def test_a_deletion_that_fails_in_the_middle_moves_nothing(nets, shelf, monkeypatch):
    path = put(nets / "cat.safetensors")
    path.with_suffix(".json").write_text("{}")
    before = everything(nets)
    move = __import__("shutil").move

    def fail(source, goal):
        if str(source).endswith(".safetensors"):
            raise OSError(28, "No space left on device")
        return move(source, goal)

    monkeypatch.setattr("lib_lycoris.library.trash.shutil.move", fail)
    with pytest.raises(LycoError, match="No space left"):
        shelf.delete("cat")
    assert everything(nets) == before and shelf.trash.entries() == []


@pytest.mark.parametrize("path", ["../outside.safetensors", "sub/../../outside.safetensors", "/tmp/outside.safetensors", "..\\outside.safetensors"])
def test_no_record_leads_out_of_the_folder(nets, shelf, path):
    put(nets / "cat.safetensors")
    entry = shelf.delete("cat")["entry"]
    record = nets / FOLDER / entry / "entry.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "files": [path]}))
    with pytest.raises(ConfigError, match="nothing in the trash"):
        shelf.restore(entry)


def test_nothing_is_restored_through_a_link_that_leads_elsewhere(tmp_path, nets, shelf):
    put(nets / "sub" / "cat.safetensors")
    entry = shelf.delete("cat")["entry"]
    (nets / "sub").rmdir()
    (tmp_path / "elsewhere").mkdir()
    (nets / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LycoError, match="outside"):
        shelf.restore(entry)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_trash_that_is_a_link_is_not_used(tmp_path, nets, shelf):
    path = put(nets / "cat.safetensors")
    (tmp_path / "elsewhere").mkdir()
    (nets / FOLDER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LycoError, match="is a link"):
        shelf.delete("cat")
    assert path.exists() and list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("text", ["[1]", "{", '{"files": []}', '{"files": ["a"], "name": "x", "kind": "networks", "deleted": "soon", "bytes": 1}'])
def test_damaged_records_are_passed_over(nets, shelf, text):
    folder = nets / FOLDER / "20260101-000000-0123abcd"
    folder.mkdir(parents=True)
    (folder / "entry.json").write_text(text)
    (nets / FOLDER / "notes").mkdir()
    assert shelf.trash.entries() == []


def test_the_trash_is_emptied_by_entry_or_whole(nets, shelf):
    entries = []
    for name in ("a", "b", "c"):
        put(nets / f"{name}.safetensors")
        entries.append(shelf.delete(name)["entry"])
    assert shelf.trash.empty(entries[1]) == [entries[1]]
    assert {entry.name for entry in shelf.trash.entries()} == {"a", "c"}
    assert len(shelf.trash.empty()) == 2 and shelf.trash.entries() == [] and list((nets / FOLDER).iterdir()) == []
    with pytest.raises(ConfigError):
        shelf.trash.empty("../..")


def test_a_peft_folder_is_deleted_with_its_config_and_renamed_as_a_folder(nets, shelf):
    path = put(nets / "cat" / "adapter_model.safetensors")
    path.with_name("adapter_config.json").write_text("{}")
    assert shelf.rename("cat", "dog") == {"name": "dog", "renamed": {"cat": "dog"}}
    assert (nets / "dog" / "adapter_config.json").exists() and not (nets / "cat").exists()
    assert set(shelf.delete("dog")["deleted"]) == {"adapter_model.safetensors", "adapter_config.json"}


def test_a_rename_takes_remarks_and_previews_along(nets, shelf):
    path = put(nets / "sub" / "cat.v1.safetensors")
    for ending in (".json", ".preview.png"):
        path.with_name(f"cat.v1{ending}").write_text("{}")
    (nets / "sub" / "cat.png").write_text("another's")
    done = shelf.rename("cat.v1", "dog.v2")
    assert done["name"] == "dog.v2" and len(done["renamed"]) == 3
    assert sorted(everything(nets)) == ["sub/cat.png", "sub/dog.v2.json", "sub/dog.v2.preview.png", "sub/dog.v2.safetensors"]
    assert shelf.rename("dog.v2", "Dog.v2.safetensors")["name"] == "Dog.v2"


def test_a_rename_onto_what_is_there_changes_nothing(nets, shelf):
    put(nets / "cat.safetensors").with_suffix(".json").write_text("{}")
    (nets / "dog.json").write_text("another's")
    before = everything(nets)
    with pytest.raises(LycoError, match=r"'dog.json' is there already"):
        shelf.rename("cat", "dog")
    assert everything(nets) == before


def test_a_rename_that_fails_in_the_middle_is_taken_back(nets, shelf, monkeypatch):
    put(nets / "cat.safetensors").with_suffix(".json").write_text("{}")
    before, rename = everything(nets), os.rename

    def fail(old, new):
        if str(new).endswith("dog.safetensors"):
            raise OSError(13, "Permission denied")
        rename(old, new)

    monkeypatch.setattr(renaming.os, "rename", fail)
    with pytest.raises(LycoError, match="Permission denied"):
        shelf.rename("cat", "dog")
    assert everything(nets) == before


@pytest.mark.parametrize("name", ["", "..", "../dog", "a/b", "a\\b", "a:b", "a>b", "x\0y", "x\ny", ".hidden", "dog.", "dog ", "d" * 121, "CON|"])
def test_names_that_no_file_should_have_are_refused(nets, shelf, name):
    put(nets / "cat.safetensors")
    with pytest.raises(ConfigError):
        checked_name(name)
    if name.strip() == name:
        with pytest.raises(ConfigError):
            shelf.rename("cat", name)
    assert list(everything(nets)) == ["cat.safetensors"]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_preview_is_written_anew_and_holds_nothing_but_its_pixels(nets, shelf, form):
    path = put(nets / "cat.safetensors")
    data = a_picture((2000, 1000), form) + b"<script>alert(1)</script>"
    goal = shelf.set_preview("cat", data)["preview"]
    assert goal == str(path.with_suffix(".png"))
    held = path.with_suffix(".png").read_bytes()
    assert b"script" not in held
    with Image.open(io.BytesIO(held)) as picture:
        assert picture.size == (SIDE, SIDE // 2) and picture.format == "PNG" and not picture.info
    assert shelf.picture("cat").size == (SIDE, SIDE // 2)
    assert shelf.describe("cat")["preview"] == goal


def test_the_preview_before_goes_to_the_trash(nets, shelf):
    path = put(nets / "cat.safetensors")
    first = a_picture((8, 8))
    path.with_suffix(".png").write_bytes(first)
    shelf.set_preview("cat", a_picture((16, 16)))
    (entry,) = shelf.trash.entries()
    assert entry.stored(0).read_bytes() == first


@pytest.mark.parametrize("data", [b"", b"no picture", a_picture()[:60], b"GIF89a", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x00" * (LARGEST_FILE + 1)])
def test_what_is_no_picture_becomes_no_preview(nets, shelf, data):
    put(nets / "cat.safetensors")
    with pytest.raises(ConfigError, match="picture"):
        shelf.set_preview("cat", data)
    assert list(everything(nets)) == ["cat.safetensors"]


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(nets, shelf):
    put(nets / "cat.safetensors")
    with pytest.raises(ConfigError, match="at most"):
        shelf.set_preview("cat", a_picture((9000, 1)))


@pytest.mark.parametrize("work", [lambda shelf: shelf.rename("linked/cat", "dog"), lambda shelf: shelf.set_preview("linked/cat", a_picture())])
def test_behind_a_link_to_elsewhere_nothing_is_changed(tmp_path, nets, shelf, work):
    real = put(tmp_path / "elsewhere" / "cat.safetensors")
    nets.mkdir()
    (nets / "linked").symlink_to(real.parent)
    with pytest.raises(LycoError, match="outside"):
        work(shelf)
    assert [each.name for each in real.parent.iterdir()] == ["cat.safetensors"]
