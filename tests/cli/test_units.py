"""Adapters on the command line, in requests and in the studio's routes."""

from __future__ import annotations

import argparse
import base64
import io

import numpy as np
import pytest

from lib_lycoris.cli import main
from lib_lycoris.cli.adapters import Adapters
from lib_lycoris.cli.units import add_units, asked_units, make_preparation, requested_units
from lib_lycoris.errors import ConfigError, UnknownNetworkError
from lib_lycoris.library.adapters import write_adapter
from lib_lycoris.networks.adapters.full import FullAdapter
from tests.networks import adapter_oracles as slow

Image = pytest.importorskip("PIL.Image")


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_units(parser)
    return parser.parse_args([str(argument) for argument in arguments])


@pytest.fixture
def pictures(tmp_path):
    paths = []
    for number in range(2):
        paths.append(tmp_path / f"picture{number}.png")
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)).save(paths[-1])
    return paths


@pytest.fixture
def adapter(tmp_path):
    made = FullAdapter(channels=(32, 32, 64, 64))
    path = tmp_path / "adapters" / "edges.safetensors"
    path.parent.mkdir()
    write_adapter(path, made.fill(slow.random_tensors(made)), base_model="sd_v1", preprocessor="canny")
    return path


def encoded(path):
    return base64.b64encode(path.read_bytes()).decode()


def test_what_is_said_belongs_to_the_adapter_named_last(pictures):
    given = parse("--adapter", "a", "--control", pictures[0], "--adapter-weight", "0.5", "--adapter", "b", "--control", pictures[0], "--control", pictures[1],
                  "--preprocessor", "invert", "--adapter-start", "0.2", "--adapter-end", "0.8", "--region", pictures[1], "--save-map", "--strict-adapter")
    one, two = asked_units(given.units)
    assert (one.unit.adapter, one.unit.weight, len(one.pictures), one.region) == ("a", 0.5, 1, None)
    unit = two.unit
    assert (unit.adapter, unit.preprocessor, unit.start, unit.end, unit.save_map, unit.strict, unit.weight) == ("b", "invert", 0.2, 0.8, True, True, 1.0)
    assert len(two.pictures) == 2 and two.pictures[0].shape == (48, 64, 3) and two.region.shape == (48, 64, 3)


def test_every_other_value_of_a_unit_can_be_set(tmp_path, capsys):
    (tmp_path / "pose.json").write_text('{"people": []}', encoding="utf-8")
    given = parse("--adapter", "a", "--adapter-set", "threshold_a=50", "--adapter-set", "level_weights=1, 0.5, 0, 1", "--adapter", "b", "--adapter-set",
                  f"keypoints=@{tmp_path / 'pose.json'}", "--adapter-set", "palette=#ff0000:2 #00ff00")
    one, two = (asked.unit for asked in asked_units(given.units))
    assert (one.threshold_a, one.level_weights, two.keypoints, two.palette) == (50.0, "1, 0.5, 0, 1", '{"people": []}', "#ff0000:2 #00ff00")
    for wrong in ("threshold_a=many", "treshold_a=5", "palette", f"keypoints=@{tmp_path / 'none.json'}"):
        with pytest.raises(SystemExit):
            parse("--adapter", "a", "--adapter-set", wrong)
    assert "treshold_a=5" in capsys.readouterr().err


def test_what_belongs_to_no_adapter_and_bad_values_are_refused(pictures, tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse("--control", pictures[0])
    assert "--adapter FILE" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="can't be read"):
        asked_units(parse("--adapter", "a", "--control", tmp_path / "none.png").units)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ConfigError, match="no picture that can be read"):
        asked_units(parse("--adapter", "a", "--control", tmp_path / "text.png").units)
    with pytest.raises(ConfigError, match="weight"):
        asked_units(parse("--adapter", "a", "--adapter-weight", "9").units)


def test_the_sample_adapter_comes_with_the_embedded_checkpoint_alone(tmp_path):
    assert make_preparation([tmp_path]).shelf.names() == ["lyco-world-edges"]
    assert make_preparation([tmp_path], checkpoint="other.safetensors").shelf.names() == []


def test_requests_are_read_with_their_pictures(pictures):
    (asked,) = requested_units([{"model": "a", "image": encoded(pictures[0]), "weight": 0.3}])
    assert (asked.unit.adapter, asked.unit.weight, asked.pictures[0].shape) == ("a", 0.3, (48, 64, 3))
    (asked,) = requested_units([{"adapter": "a", "pictures": [f"data:image/png;base64,{encoded(path)}" for path in pictures]}])
    assert len(asked.pictures) == 2
    for wrong in ({}, ["a"], [{"adaptr": "a"}], *([{"adapter": "a", **bad}] for bad in ({"picture": "/etc/passwd"}, {"picture": 3}, {"pictures": "x"}))):
        with pytest.raises(ConfigError):
            requested_units(wrong)


def test_generate_follows_an_adapter_of_the_command_line(tiny_checkpoint, adapter, pictures, tmp_path, capsys):
    def draw(out, *more):
        arguments = ["generate", "--prompt", "a zorb", "--checkpoint", tiny_checkpoint, "--seed", "3", "--steps", "2", "--out", tmp_path / out, *more]
        assert main.main([str(argument) for argument in arguments]) == 0
        with Image.open(tmp_path / out) as picture:
            return np.array(picture), picture.info["parameters"]

    plain, _ = draw("plain.png")
    steered, text = draw("steered.png", "--adapter", adapter, "--control", pictures[0], "--save-map")
    named, _ = draw("named.png", "--adapters", adapter.parent, "--adapter", "edges", "--control", pictures[0])
    missing, _ = draw("missing.png", "--adapter", "nothere", "--control", pictures[0])
    assert not np.array_equal(plain, steered) and np.array_equal(steered, named) and np.array_equal(plain, missing)
    assert "adapter 1 (nothere) was left out" in capsys.readouterr().err
    assert "Lyco adapter 1" in text and "preprocessor=canny" in text
    with Image.open(tmp_path / "steered-map.png") as shown:
        assert shown.size == (64, 64)


def test_the_studios_routes_list_adapters_and_make_maps(adapter, pictures):
    desk = Adapters([adapter.parent], lambda: ("sd_v1", (32, 32, 64, 64)))
    (row,) = desk.rows()
    assert (row["name"], row["recommended"], row["fits"]) == ("edges", "canny", True)
    assert not Adapters([adapter.parent], lambda: ("sdxl_base_v1-0", (320, 640, 1280, 1280))).rows()[0]["fits"]
    made = desk.control_map({"adapter": "edges", "picture": encoded(pictures[0]), "width": 96, "height": 64})
    with Image.open(io.BytesIO(base64.b64decode(made["map"]))) as shown:
        assert shown.size == (made["width"], made["height"]) == (96, 64)
        assert set(np.unique(np.array(shown))) <= {0, 255}
    with pytest.raises(ConfigError, match="width"):
        desk.control_map({"preprocessor": "invert", "picture": encoded(pictures[0]), "width": 3})
    with pytest.raises(UnknownNetworkError):  # a path elsewhere is no name for those who ask over a network
        desk.preparation.shelf.load(str(pictures[0].with_name("elsewhere.safetensors")))
    assert {"canny", "none"} <= {each["name"] for each in desk.preprocessors()}
