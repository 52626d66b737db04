"""Training on the loaded checkpoint over the API: a network comes out that works, and the model is as it was, whatever happened."""

from __future__ import annotations

import json
import time
import urllib.error

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.webui
PROMPT = "a large red circle"
STEPS = 3


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of three captioned pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a (zorb:1.3), number {number}")
    return folder


def config(pictures, name, **sections):
    """A config of a short training that leaves a mark."""
    values = {
        "data": {"folders": [str(pictures)], "resolution": 64}, "network": {"kind": "lora", "rank": 4},
        "training": {"steps": STEPS, "learning_rate": 0.02, "precision": "fp32"}, "output": {"name": name, "dtype": "fp32"},
    }
    for section, more in sections.items():
        values[section] = {**values.get(section, {}), **more}
    return values


def wait(webui, *phases, seconds=240):
    """The training's state once it is in one of these phases."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = webui.ask("/lycoris/v1/train")
        if state["phase"] in phases:
            return state
        assert state["phase"] != "failed", state["error"]
        time.sleep(0.05)
    raise AssertionError(f"still {state}")


def finished(webui, values):
    """The state after the training of a config."""
    webui.ask("/lycoris/v1/train", values)
    return wait(webui, "done", "stopped")


def test_a_training_leaves_a_network_and_nothing_else(real_webui, pictures):
    before, model = real_webui.picture(PROMPT, checkpoint="base.safetensors"), real_webui.model()
    state = finished(real_webui, config(pictures, "fresh"))
    assert state["phase"] == "done" and state["step"] == STEPS and state["tag"] == "<lyco:fresh:1>"
    assert (real_webui.networks / "fresh.safetensors").is_file()
    assert real_webui.picture(PROMPT).pictures == before.pictures
    assert real_webui.model() == model
    assert real_webui.picture(f"{PROMPT} <lyco:fresh:1>").pictures != before.pictures
    assert real_webui.picture(PROMPT).pictures == before.pictures
