"""A picture's settings come back from its PNG, and nothing but a picture of the folder is read."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

pytest.importorskip("diffusers")

from lib_lycoris.errors import ConfigError
from lib_lycoris.studio.generate import GenerateSettings, infotext
from lib_lycoris.studio.picture import Picture, write_png
from lib_lycoris.studio.recall import PictureFolder, read_infotext, recall

MODEL = SimpleNamespace(hash="0123456789", name="world", device=SimpleNamespace(type="cpu"))


def a_png(text=None):
    file, info = io.BytesIO(), PngImagePlugin.PngInfo()
    if text is not None:
        info.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


@pytest.mark.parametrize("changes", [
    {}, {"prompt": "a cat, <lyco:x:0.5>\nline two", "negative": "dog: big"}, {"sampler": "DPM++ 2M", "scheduler": "karras"}, {"sampler": "DDIM"},
    {"scheduler": "exponential"}, {"clip_skip": 2, "cfg": 0.0, "steps": 3, "width": 640}, {"prompt": "", "negative": "only this"}, {"seed": 2**62},
])
def test_settings_come_back_from_their_own_infotext(changes):
    wanted = replace(GenerateSettings(prompt="a red circle", seed=7), **changes)
    found = recall(infotext(MODEL, wanted, wanted.seed), "world")
    assert found.problems == ()
    again = GenerateSettings(**found.settings)
    assert infotext(MODEL, again, again.seed) == infotext(MODEL, wanted, wanted.seed)


def test_a_text_of_the_webui_with_what_the_studio_lacks_gives_what_it_has():
    text = "a cat\nSteps: 25, Sampler: Restart, Schedule type: SGM Uniform, CFG scale: x, Seed: 1, Size: 100x100, Model: other, Hires upscale: 2"
    found = recall(text, "world")
    assert (found.settings["steps"], found.settings["seed"], found.settings["prompt"]) == (25, 1, "a cat")
    assert {"sampler", "cfg", "width"}.isdisjoint(found.settings)
    words = " ".join(found.problems)
    assert "Restart" in words and "other" in words and "CFG scale" in words and "generate.width" in words
    assert "no such settings: Hires upscale" in words


def test_a_written_picture_tells_its_settings(tmp_path):
    text = infotext(MODEL, GenerateSettings(prompt="zorb"), 5)
    write_png(tmp_path / "a.png", Picture(np.zeros((8, 8, 3), np.uint8), text, 5))
    assert read_infotext(tmp_path / "a.png") == text
    assert recall(read_infotext((tmp_path / "a.png").read_bytes())).settings["seed"] == 5


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", a_png(), a_png(" "), a_png("x")[:40]])
def test_a_file_without_settings_says_so(data):
    with pytest.raises(ConfigError, match="PNG"):
        read_infotext(data)


def test_text_behind_the_pixels_is_found_too():
    data = a_png("a cat")
    start = data.index(b"tEXt") - 4
    end = start + 12 + int.from_bytes(data[start:start + 4], "big")
    chunk, rest = data[start:end], data[:start] + data[end:]
    moved = rest[:-12] + chunk + rest[-12:]
    assert read_infotext(moved) == "a cat"


def test_the_history_is_the_folders_newest_pictures_first(tmp_path):
    import os

    for number, name in enumerate(("b.png", "a.png", "c.png")):
        (tmp_path / name).write_bytes(a_png(str(number)))
        os.utime(tmp_path / name, (number, number))
    (tmp_path / ".hidden.png").write_bytes(a_png())
    (tmp_path / "x.txt").write_text("x")
    folder = PictureFolder(tmp_path)
    assert [row["name"] for row in folder.rows()] == ["c.png", "a.png", "b.png"]
    assert [row["name"] for row in folder.rows(1)] == ["c.png"]
    assert folder.find("a.png") == tmp_path / "a.png"
    assert PictureFolder(tmp_path / "none").rows() == []


@pytest.mark.parametrize("name", ["", ".", "..", "../a.png", "sub/../../a.png", "/etc/passwd", "x.txt", "none.png", "link.png"])
def test_no_name_leads_out_of_the_history(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "a.png").write_bytes(a_png("secret"))
    (tmp_path / "in" / "x.txt").write_text("x")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(ConfigError):
        PictureFolder(tmp_path / "in").find(name)
