"""One model for training and pictures: who waits, who is refused, what is listed."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib_lycoris.cli.workbench import Workbench
from lib_lycoris.errors import BusyError, CheckpointError, ConfigError, LycoError
from lib_lycoris.files.embeddings import write_embedding, write_legacy_embedding
from lib_lycoris.library.adapters import write_adapter
from lib_lycoris.networks.adapters.light import LightAdapter


@pytest.fixture
def bench(tiny_checkpoint, tmp_path):
    made = Workbench(str(tiny_checkpoint), [str(tmp_path / "nets")], tmp_path / "outputs")
    assert "Loading" in made.title()
    made.load()
    return made


def test_pictures_are_written_where_the_title_says_and_told_step_by_step(bench, tmp_path):
    told = []
    made = bench.generate({"prompt": "a zorb <lyco:nope:1>", "steps": 2, "batch": 2, "seed": 5}, lambda share, words: told.append((share, words)))
    assert [picture["seed"] for picture in made["pictures"]] == [5, 6]
    assert all((tmp_path / "outputs" / "pictures").resolve() in Path(picture["path"]).parents for picture in made["pictures"])
    assert "nope" in made["problems"][0]
    assert told[-2:] == [(0.5, "Step 1 of 2"), (1.0, "Step 2 of 2")]
    assert "tiny" in bench.title()
    assert bench.side() == 64


def test_a_picture_never_takes_the_place_of_another(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("time.time_ns", lambda: 1_700_000_000_123_456_789)
    made = [bench.generate({"prompt": prompt, "steps": 1, "seed": 5})["pictures"][0]["path"] for prompt in ("a zorb", "a vorrel")]
    assert len(list((tmp_path / "outputs" / "pictures").glob("*.png"))) == 2
    assert made == sorted(made)


def test_unknown_and_bad_settings_are_named(bench):
    with pytest.raises(ConfigError, match="promt"):
        bench.generate({"promt": "a"})
    with pytest.raises(ConfigError, match="steps"):
        bench.generate({"steps": 0})
    with pytest.raises(ConfigError, match=r"other\.safetensors"):
        bench.train({"model": {"checkpoint": "other.safetensors"}})


def test_while_a_training_runs_pictures_wait_or_are_refused(bench, captioned_pictures, tmp_path):
    config = {"data": {"folders": [str(captioned_pictures)], "resolution": 64}, "network": {"rank": 1}, "training": {"steps": 100_000},
              "output": {"name": "long", "folder": str(tmp_path / "outputs" / "elsewhere"), "save_every": 0}}
    bench.train(config)
    try:
        for _ in range(3000):
            if bench.state()["step"]:
                break
            threading.Event().wait(0.02)
        with pytest.raises(BusyError, match="training 'long' is under way"):
            bench.generate({"steps": 1}, wait=False)
        with pytest.raises(BusyError, match="'long' is under way"):
            bench.train(config)
        told = []

        def give_up(share, words):
            told.append(words)
            if words.startswith("Waiting: "):
                bench.stop_generating()

        with pytest.raises(BusyError, match="no picture was made"):
            bench.generate({"steps": 1}, give_up)
        assert any("training 'long' is under way" in words for words in told)
    finally:
        bench.stop()
        state = bench.job.wait(120)
    assert state.phase == "stopped"
    # It was saved to a folder of its own, is found there, and its resumable state is not taken for a network.
    assert bench.network_names() == [Path(state.path).stem]
    made = bench.generate({"prompt": f"a zorb {state.tag}", "steps": 1, "seed": 1})
    assert made["problems"] == []


def test_a_checkpoint_that_can_not_be_loaded_is_told_to_everybody_who_waits(tmp_path):
    bench = Workbench(str(tmp_path / "none.safetensors"), [], tmp_path)
    bench.load()
    assert isinstance(bench.error, CheckpointError)
    assert "none.safetensors" in bench.title()
    with pytest.raises(CheckpointError):
        bench.generate({"steps": 1})


def test_words_and_library_know_embeddings_and_adapters(tiny_checkpoint, tmp_path):
    nets = tmp_path / "nets"
    nets.mkdir()
    write_embedding(nets / "zorb.safetensors", {"clip_l": torch.ones(2, 768)})
    write_legacy_embedding(nets / "old.pt", "old", {"clip_h": torch.ones(1, 1024)})
    write_adapter(nets / "edges.safetensors", LightAdapter.create(channels=(8, 8, 8, 8)))
    bench = Workbench(str(tiny_checkpoint), [str(nets)], tmp_path / "outputs", adapters=[str(nets)])
    assert [word["name"] for word in bench.words()] == ["old", "zorb"] and bench.network_names() == []
    bench.load()
    assert bench.words() == [{"kind": "embedding", "name": "zorb", "insert": "zorb", "about": "embedding, 2 vectors"}]
    assert {shelf: [row["name"] for row in bench.library.rows(shelf)] for shelf in bench.library.shelves} == {
        "networks": [], "embeddings": ["old", "zorb"], "adapters": ["edges"]}


def test_the_sample_adapter_is_listed_with_the_embedded_checkpoint_alone(tiny_checkpoint, tmp_path):
    nets = tmp_path / "nets"
    nets.mkdir()
    bench = Workbench(None, [str(nets)], tmp_path / "outputs", adapters=[str(nets)])
    assert bench.adapters.names() == ["lyco-world-edges"] == [row["name"] for row in bench.library.rows("adapters")]
    told = bench.adapters.describe("lyco-world-edges")
    assert "light adapter" in told["words"] and told["preprocessor"] != "none"
    with pytest.raises(LycoError, match="change it there yourself"):
        bench.library.run("delete", {"name": "lyco-world-edges", "shelf": "adapters"})
    assert Workbench(str(tiny_checkpoint), [str(nets)], tmp_path / "outputs", adapters=[str(nets)]).adapters.names() == []


def test_a_page_shows_the_map_of_arrays_and_files(tmp_path):
    adapters = Workbench(None, [str(tmp_path)], tmp_path / "outputs", adapters=[str(tmp_path)]).adapters
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[8:24, 8:24] = 255
    made = adapters.preview({"adapter": "", "preprocessor": "invert", "picture": picture}, (32, 32))
    assert np.array_equal(made, 255 - picture)
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert np.array_equal(adapters.preview({"adapter": "", "preprocessor": "invert", "pictures": [tmp_path / "a.png"]}, (32, 32)), made)
    with pytest.raises(ConfigError):
        adapters.preview({"adapter": "", "preprocessor": "invert", "picture": str(tmp_path / "a.png")}, (32, 32))


def test_a_pictures_settings_and_adapters_make_the_same_picture_again(tiny_checkpoint, tmp_path, edges):
    folder, picture = edges
    bench = Workbench(str(tiny_checkpoint), [str(tmp_path / "nets")], tmp_path / "outputs", adapters=[str(folder)])
    bench.load()
    unit = {"adapter": "edges", "weight": 0.7, "picture": np.dstack([picture, np.full((48, 64), 255, np.uint8)]), "mask": picture[:, :, 0]}
    made = bench.generate({"prompt": "a zorb", "steps": 2, "seed": 5, "units": [{"enabled": False}, unit], "fuser": "auto"})
    assert made["problems"] == []
    path = Path(made["pictures"][0]["path"])
    told = bench.recall(path.name)
    assert told["problems"] == [] and told == bench.read_settings(path.read_bytes())
    assert [each["enabled"] for each in told["units"]] == [False, True] and told["units"][1]["preprocessor"] == "canny"
    again = bench.generate({**told["settings"], "units": told["units"], "fuser": told["fuser"]})
    assert np.array_equal(np.array(Image.open(again["pictures"][0]["path"])), np.array(Image.open(path)))
    assert len(list((tmp_path / "outputs" / "control-pictures").glob("*.png"))) == 2
    (folder / "edges.safetensors").unlink()
    assert "no adapter is called 'edges'" in bench.recall(path.name)["problems"][0]
