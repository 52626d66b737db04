"""A checkpoint with random weights, six captioned pictures, an adapter."""

from __future__ import annotations

import importlib.util

import numpy as np
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


@pytest.fixture
def edges(tmp_path):
    """(a folder with an adapter for the tiny checkpoint, a picture)."""
    pytest.importorskip("cv2", reason="OpenCV is not here; the WebUI has it")
    from lib_lycoris.library.adapters import write_adapter
    from lib_lycoris.networks.adapters.full import FullAdapter
    from tests.networks import adapter_oracles as slow

    made = FullAdapter(channels=(32, 32, 64, 64))
    (tmp_path / "adapters").mkdir()
    write_adapter(tmp_path / "adapters" / "edges.safetensors", made.fill(slow.random_tensors(made)), base_model="sd_v1", preprocessor="canny")
    return tmp_path / "adapters", np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
