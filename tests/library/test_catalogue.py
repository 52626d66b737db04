from __future__ import annotations

import os

import pytest
import torch

from lib_lycoris.errors import UnknownNetworkError
from lib_lycoris.files.hashes import file_hash, model_hash
from lib_lycoris.files.regular import open_regular
from lib_lycoris.files.safetensors import write_tensors
from lib_lycoris.library.catalogue import Catalogue


def put(path, value=1.0, **metadata):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, {"lora_unet_x.lora_up.weight": torch.full((2, 2), value)}, metadata)
    return path


def later(*folders):
    """What a file system with coarse clocks needs to show that a folder changed."""
    for folder in folders:
        os.utime(folder, ns=(1, folder.stat().st_mtime_ns + 1_000_000))


@pytest.mark.parametrize("name", ["cat", "cat.safetensors", "animals/cat", "animals/cat.safetensors", "animals\\cat", " cat ", "Kitty"])
def test_a_file_is_found_by_stem_folder_extension_and_alias(tmp_path, name):
    path = put(tmp_path / "animals" / "cat.safetensors", ss_output_name="Kitty")
    assert Catalogue([tmp_path]).find(name) == path


def test_a_file_is_found_by_its_hash_in_metadata_or_computed(tmp_path):
    one, other = put(tmp_path / "one.safetensors"), put(tmp_path / "other.safetensors", 2.0, sshs_model_hash="ab" * 32)
    catalogue = Catalogue([tmp_path])
    assert catalogue.find(model_hash(one)[:12]) == one
    assert catalogue.find("AB" * 6) == other
    assert catalogue.find(model_hash(other)) == other


def test_a_path_outranks_a_stem_and_the_earlier_folder_wins_where_paths_are_the_same(tmp_path):
    first, second = put(tmp_path / "a" / "deep" / "cat.safetensors"), put(tmp_path / "b" / "cat.safetensors")
    third = put(tmp_path / "b" / "deep" / "cat.pt")
    assert Catalogue([tmp_path / "a", tmp_path / "b"]).find("cat") == second  # a whole path below its folder
    assert Catalogue([tmp_path / "a", tmp_path / "b"]).find("deep/cat") == first
    assert Catalogue([tmp_path / "b", tmp_path / "a"]).find("deep/cat") == third
    assert Catalogue([tmp_path / "a", tmp_path / "b"]).find("deep/cat.pt") == third


@pytest.mark.parametrize("alias", [{}, {"ss_output_name": "Kitty"}])
def test_a_name_that_several_files_have_is_an_error_that_names_them(tmp_path, alias):
    for place in ("a/cat", "b/cat"):
        put(tmp_path / f"{place}.safetensors", **alias)
    with pytest.raises(UnknownNetworkError, match="2 networks: a/cat, b/cat;"):
        Catalogue([tmp_path]).find("Kitty" if alias else "cat")
    os.remove(tmp_path / "a" / "cat.safetensors")
    assert Catalogue([tmp_path]).find("cat") == tmp_path / "b" / "cat.safetensors"


def test_of_two_that_differ_in_the_extension_alone_each_is_found_and_safetensors_is_meant_without_one(tmp_path):
    paths = [put(tmp_path / name) for name in ("cat.ckpt", "cat.pt", "cat.safetensors")]
    catalogue = Catalogue([tmp_path])
    assert catalogue.find("cat") == paths[2]
    assert [catalogue.find(path.name) for path in paths] == paths
    assert catalogue.names() == ["cat", "cat.ckpt", "cat.pt"]


def test_what_a_training_resumes_from_is_no_network(tmp_path):
    put(tmp_path / "cat-states" / "step-00000200-abc.safetensors")
    assert Catalogue([tmp_path]).names() == []


def test_a_few_digits_find_a_hash_that_a_file_says_and_ten_one_that_is_computed(tmp_path):
    said, silent = put(tmp_path / "said.safetensors", sshs_model_hash="abcdef" + "0" * 58), put(tmp_path / "silent.safetensors", 2.0)
    catalogue = Catalogue([tmp_path])
    assert catalogue.find_by_hash(" ABCDEF ") == said and catalogue.find("abcdef") == said
    for digits in (model_hash(silent), file_hash(silent)):
        assert catalogue.find_by_hash(digits[:10]) == silent
        with pytest.raises(UnknownNetworkError, match="hash begins"):
            catalogue.find_by_hash(digits[:9])


def test_equal_hashes_are_the_same_network_and_different_ones_with_the_same_digits_are_told(tmp_path):
    first = put(tmp_path / "a" / "one.safetensors", sshs_model_hash="abcdef" + "0" * 58)
    put(tmp_path / "b" / "copy.safetensors", sshs_model_hash="abcdef" + "0" * 58)
    assert Catalogue([tmp_path]).find_by_hash("abcdef") == first
    put(tmp_path / "other.safetensors", sshs_model_hash="abcdef" + "1" * 58)
    with pytest.raises(UnknownNetworkError, match="3 networks"):
        Catalogue([tmp_path]).find_by_hash("abcdef")


@pytest.mark.parametrize("digits", ["", "abc", "xyzxyz", "a" * 65])
def test_what_is_no_hash_finds_nothing(tmp_path, digits):
    put(tmp_path / "cat.safetensors")
    with pytest.raises(UnknownNetworkError):
        Catalogue([tmp_path]).find_by_hash(digits)


def test_a_list_of_thousands_reads_no_file_and_an_alias_among_them_only_the_headers(tmp_path, monkeypatch):
    for number in range(300):
        put(tmp_path / f"{number % 7}" / f"net{number}.safetensors", ss_output_name=f"alias {number}")
    opened = []
    monkeypatch.setattr("lib_lycoris.files.safetensors.open_regular", lambda path: opened.append(path) or open_regular(path))
    catalogue = Catalogue([tmp_path])
    assert len(catalogue.names()) == 300 and catalogue.find("net7").name == "net7.safetensors" and not opened
    assert catalogue.find("alias 33").name == "net33.safetensors" and len(opened) == 300
    assert catalogue.find("alias 34").name == "net34.safetensors" and len(opened) == 300


def test_a_peft_folder_is_found_by_its_own_name(tmp_path):
    path = put(tmp_path / "cat" / "adapter_model.safetensors")
    assert Catalogue([tmp_path]).find("cat") == path


def test_names_are_short_and_each_finds_its_own_file(tmp_path):
    paths = {put(tmp_path / name) for name in ("cat.safetensors", "a/dog.pt", "b/dog.bin", "c/adapter_model.safetensors")}
    (tmp_path / "notes.txt").write_text("no network")
    catalogue = Catalogue([tmp_path])
    assert {catalogue.find(name) for name in catalogue.names()} == paths
    assert catalogue.names() == ["a/dog", "b/dog", "c", "cat"]


def test_an_unknown_name_is_told_with_near_ones_and_the_places(tmp_path):
    put(tmp_path / "mycharacter.safetensors")
    with pytest.raises(UnknownNetworkError) as caught:
        Catalogue([tmp_path]).find("mycaracter\n")
    message = str(caught.value)
    assert "'mycaracter'" in message and "near: mycharacter" in message and str(tmp_path) in message and "\n" not in message
    assert isinstance(caught.value, LookupError)
    with pytest.raises(UnknownNetworkError, match="near: mycharacter"):
        Catalogue([tmp_path]).find("MyCharacter")


@pytest.mark.parametrize("name", ["", ".", "..", "/", "../outside", "/etc/passwd", "x" * 10_000, "deadbeef", "\0"])
def test_odd_names_are_unknown_names(tmp_path, name):
    put(tmp_path / "outside.safetensors")
    put(tmp_path / "inside" / "cat.safetensors")
    with pytest.raises(UnknownNetworkError):
        Catalogue([tmp_path / "inside"]).find(name)


def test_new_and_moved_files_are_found_without_being_asked_to_scan(tmp_path):
    old = put(tmp_path / "sub" / "cat.safetensors")
    catalogue = Catalogue([tmp_path, tmp_path / "not yet"])
    assert catalogue.find("cat") == old
    new = put(tmp_path / "sub" / "dog.safetensors")
    later(tmp_path / "sub")
    assert catalogue.find("dog") == new
    moved = old.rename(tmp_path / "cat.safetensors")
    later(tmp_path)
    assert catalogue.find("cat") == moved
    born = put(tmp_path / "not yet" / "bird.safetensors")
    assert catalogue.find("bird") == born


def test_a_changed_alias_is_read_again(tmp_path):
    path = put(tmp_path / "cat.safetensors", ss_output_name="one")
    catalogue = Catalogue([tmp_path])
    assert catalogue.find("one") == path
    put(path, ss_output_name="another")
    assert catalogue.find("another") == path
    with pytest.raises(UnknownNetworkError):
        catalogue.find("one")


def test_links_that_go_in_circles_missing_folders_and_broken_files_do_no_harm(tmp_path):
    path = put(tmp_path / "a" / "cat.safetensors")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "dead.safetensors").symlink_to(tmp_path / "nothing")
    (tmp_path / "a" / "broken.safetensors").write_bytes(b"\xff" * 9)
    (tmp_path / "a" / ".hidden.safetensors").write_bytes(b"x")
    elsewhere = put(tmp_path / "b" / "dog.safetensors")
    (tmp_path / "a" / "linked").symlink_to(tmp_path / "b")
    catalogue = Catalogue([tmp_path / "missing", tmp_path / "a"])
    assert catalogue.names() == ["broken", "cat", "dog"]
    assert catalogue.find("cat") == path and catalogue.find("dog").samefile(elsewhere)
    with pytest.raises(UnknownNetworkError):
        catalogue.find("bird")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_passed_over(tmp_path):
    put(tmp_path / "cat.safetensors")
    (tmp_path / "closed").mkdir(mode=0)
    assert Catalogue([tmp_path]).names() == ["cat"]
