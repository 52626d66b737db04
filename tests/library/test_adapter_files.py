"""T2I-Adapters in a list: told, remarked on, renamed, deleted and restored, folders of diffusers' as a whole."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from lib_lycoris.errors import ConfigError, LycoError, UnknownNetworkError
from lib_lycoris.library.adapter_files import AdapterFiles
from lib_lycoris.library.adapters import AdapterShelf, write_adapter
from lib_lycoris.networks.adapters.full import FullAdapter
from lib_lycoris.networks.adapters.light import LightAdapter

NARROW = (8, 8, 16, 16)


@pytest.fixture
def folder(tmp_path):
    own = tmp_path / "own"
    (own / "whole").mkdir(parents=True)
    write_adapter(own / "edges.safetensors", LightAdapter.create(channels=NARROW), base_model="sd_v1", preprocessor="canny", resolution=64)
    write_adapter(own / "whole" / "diffusion_pytorch_model.safetensors", FullAdapter.create(channels=NARROW), spelling="diffusers")
    return own


@pytest.fixture
def files(folder):
    shelf = AdapterShelf([folder])
    return AdapterFiles(lambda: shelf)


def test_rows_tell_kind_base_and_size(files, folder):
    rows = {row["name"]: row for row in files.rows()}
    assert (rows["edges"]["kind"], rows["edges"]["base_model"], rows["edges"]["preprocessor"]) == ("light adapter", "sd_v1", "canny")
    assert rows["edges"]["bytes"] == (folder / "edges.safetensors").stat().st_size and rows["whole"]["kind"] == "full adapter"
    seen = files.describe("edges")
    assert seen["resolution"] == 64 and seen["metadata"]["lyco_adapter_preprocessor"] == "canny" and seen["remarks"] == {} and seen["preview"] is None


def test_remarks_preview_and_name_go_together(files, folder):
    file = io.BytesIO()
    Image.new("RGB", (8, 6)).save(file, "PNG")
    assert files.picture("edges") is None
    files.set_preview("edges", file.getvalue())
    files.remark("edges", {"notes": "mine"})
    assert files.rename("edges", "lines")["name"] == "lines"
    assert files.picture("lines").size == (8, 6) and files.describe("lines")["remarks"] == {"notes": "mine"}
    assert sorted(files.delete("lines")["deleted"]) == ["lines.json", "lines.png", "lines.safetensors"]
    with pytest.raises(UnknownNetworkError):
        files.describe("lines")
    files.restore(files.trash.entries()[0].id)
    assert files.describe("lines")["kind"] == "light adapter"


def test_a_folder_of_diffusers_is_renamed_and_deleted_with_its_config(files, folder):
    assert files.rename("whole", "sketches")["name"] == "sketches" and (folder / "sketches" / "config.json").is_file()
    assert sorted(files.delete("sketches")["deleted"]) == ["config.json", "diffusion_pytorch_model.safetensors"]
    files.restore(files.trash.entries()[0].id)
    assert files.describe("sketches")["kind"] == "full adapter"


def test_nothing_outside_is_touched(files, folder):
    outside = folder.parent / "outside.safetensors"
    write_adapter(outside, LightAdapter.create(channels=NARROW))
    for wrong in (str(outside), "../outside"):
        for change in (lambda wrong=wrong: files.delete(wrong), lambda wrong=wrong: files.remark(wrong, {"notes": "x"})):
            with pytest.raises(LycoError):
                change()
    with pytest.raises(ConfigError):
        files.rename("edges", "../edges")
    assert outside.is_file() and not outside.with_suffix(".json").exists()
