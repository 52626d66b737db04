"""What stands beside a network: read without belief, written whole, other programs' keys kept."""

from __future__ import annotations

import json

import pytest

from lib_lycoris.errors import ConfigError, LycoError
from lib_lycoris.files.sidecar import find_sidecars, read_remarks, write_remarks

BUILT_IN = {"description": "d", "sd version": "SD1", "activation text": "cat", "preferred weight": 0.7, "negative text": "dog", "notes": "n"}


@pytest.fixture
def network(tmp_path):
    path = tmp_path / "a.b.safetensors"
    path.write_bytes(b"x")
    return path


def test_the_built_in_editors_file_is_read_and_written_back_the_same(network):
    (network.parent / "a.b.json").write_text(json.dumps(BUILT_IN), encoding="utf-8")
    assert read_remarks(network) == BUILT_IN
    assert write_remarks(network, {}) == BUILT_IN
    assert json.loads((network.parent / "a.b.json").read_text(encoding="utf-8")) == BUILT_IN


def test_a_change_keeps_what_others_wrote(network):
    (network.parent / "a.b.json").write_text(json.dumps({"civitai": {"id": 3}, "notes": "old"}))
    assert write_remarks(network, {"notes": "neu – 猫"}) == {"notes": "neu – 猫"}
    assert json.loads((network.parent / "a.b.json").read_text(encoding="utf-8")) == {"civitai": {"id": 3}, "notes": "neu – 猫"}
    assert sorted(path.name for path in network.parent.iterdir()) == ["a.b.json", "a.b.safetensors"]


@pytest.mark.parametrize("text", ["", "[1]", "null", "{", '{"description": ["x"], "notes": {"a": 1}, "preferred weight": "9"}', '{"preferred weight": true}',
                                  '{"preferred weight": 1e999}', '{"preferred weight": NaN}', "[" * 5000, '{"sd version": 2}'])
def test_odd_json_gives_no_remarks(network, text):
    (network.parent / "a.b.json").write_text(text)
    assert read_remarks(network) == {}


@pytest.mark.parametrize("text", ["[1]", "{", "x" * 1_000_001])
def test_json_that_is_no_object_is_not_overwritten(network, text):
    beside = network.parent / "a.b.json"
    beside.write_text(text)
    with pytest.raises(LycoError, match=r"a\.b\.json"):
        write_remarks(network, {"notes": "n"})
    assert beside.read_text() == text


@pytest.mark.parametrize(("changes", "word"), [({"note": "x"}, "notes"), ({"preferred weight": "1"}, "number"), ({"preferred weight": float("nan")}, "number"),
                                               ({"preferred weight": True}, "number"), ({"description": 3}, "text"), ({"sd version": "SD9"}, "SDXL"),
                                               ({"notes": "x" * 100_001}, "characters"), ({"zzzz": 1}, "known are")])
def test_a_wrong_key_or_value_is_named_and_nothing_written(network, changes, word):
    with pytest.raises(ConfigError, match=word):
        write_remarks(network, changes)
    assert not (network.parent / "a.b.json").exists()


def test_sidecars_are_those_of_this_stem_alone(network):
    for name in ("a.b.png", "a.b.preview.webp", "a.b.json", "a.b.txt", "a.bb.png", "a.png", "other.json"):
        (network.parent / name).write_bytes(b"x")
    assert {path.name for path in find_sidecars(network, (".pt",))} == {"a.b.png", "a.b.preview.webp", "a.b.json", "a.b.txt"}
    (network.parent / "a.b.pt").write_bytes(b"x")
    assert find_sidecars(network, (".safetensors", ".pt")) == []
