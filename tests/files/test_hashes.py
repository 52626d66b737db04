from __future__ import annotations

import hashlib
import struct

import pytest
import safetensors.torch
import torch

from lib_lycoris.errors import NetworkFileError
from lib_lycoris.files import hashes
from lib_lycoris.files.safetensors import write_tensors

TENSORS = {"a": torch.arange(600_000.0), "b": torch.ones(3, dtype=torch.float16)}


def test_the_model_hash_is_sha256_behind_the_header_and_keeps_when_metadata_changes(tmp_path):
    write_tensors(tmp_path / "a.safetensors", TENSORS, {"x": "1"})
    write_tensors(tmp_path / "b.safetensors", TENSORS, {"x": "1", "more": "metadata"})
    content = (tmp_path / "a.safetensors").read_bytes()
    expected = hashlib.sha256(content[8 + struct.unpack("<Q", content[:8])[0] :]).hexdigest()
    assert hashes.model_hash(tmp_path / "a.safetensors") == hashes.model_hash(tmp_path / "b.safetensors") == hashes.tensor_hash(TENSORS) == expected
    assert hashes.file_hash(tmp_path / "a.safetensors") == hashlib.sha256(content).hexdigest()
    assert hashes.short_hash(expected) == expected[:12]


def test_the_tensors_hash_is_that_of_the_librarys_file():
    theirs = safetensors.torch.save(TENSORS)
    assert hashes.tensor_hash(TENSORS) == hashlib.sha256(theirs[8 + struct.unpack("<Q", theirs[:8])[0] :]).hexdigest()


def test_the_legacy_hash_is_64_kib_from_one_mib_on_of_the_file_with_ss_metadata_alone(tmp_path):
    write_tensors(tmp_path / "a.safetensors", TENSORS, {"ss_x": "1"})
    expected = hashlib.sha256((tmp_path / "a.safetensors").read_bytes()[0x100000:0x110000]).hexdigest()[:8]
    assert hashes.legacy_hash(TENSORS, {"ss_x": "1", "modelspec.title": "t"}) == expected


def test_a_pickled_files_model_hash_is_that_of_the_whole_file(tmp_path):
    torch.save(TENSORS, tmp_path / "a.pt")
    assert hashes.model_hash(tmp_path / "a.pt") == hashes.file_hash(tmp_path / "a.pt")


def test_a_header_length_that_lies_still_gives_a_hash_and_a_missing_file_an_error(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 20)
    assert hashes.model_hash(tmp_path / "a.safetensors") == hashlib.sha256(b"").hexdigest()
    with pytest.raises(NetworkFileError):
        hashes.model_hash(tmp_path / "none.safetensors")
