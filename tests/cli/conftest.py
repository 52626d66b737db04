"""A checkpoint with random weights, and six captioned pictures."""

from __future__ import annotations

import importlib.util

import pytest


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    if importlib.util.find_spec("diffusers") is None:
        pytest.skip("the studio's packages are not here (diffusers)")
    from tests.studio.tiny import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def captioned_pictures(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    for number in range(6):
        Image.new("RGB", (64, 64), (40 * number, 90, 200)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a zorb, {number}", encoding="utf-8")
    return folder


@pytest.fixture
def config_file(tmp_path, tiny_checkpoint, captioned_pictures):
    """A training of 3 steps into tmp_path/outputs."""
    path = tmp_path / "zorb.toml"
    lines = ["[model]", f"checkpoint = '{tiny_checkpoint}'", "[data]", f"folders = ['{captioned_pictures}']", "resolution = 64", "[network]", "rank = 2",
             "[training]", "steps = 3", "[output]", "name = 'zorb'", f"folder = '{tmp_path / 'outputs'}'"]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
