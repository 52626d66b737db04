"""An adapter trained on the loaded checkpoint over the API, and used there; the model is as it was."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cv2", reason="OpenCV is not here; the WebUI has it")
pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from lib_lycoris.files.adapters import read_adapter_facts

from .test_adapters import a_unit, clean, controlled
from .test_training import LONG, PROMPT, ROUTE, architectures, finished, refused, unchanged

__all__ = ["LONG", "architectures", "unchanged"]  # fixtures of the trainings' tests


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of a square, with its outline as the control picture; where it is no caption says."""
    folder = tmp_path_factory.mktemp("guided")
    for number in range(3):
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[8 + 16 * number : 24 + 16 * number, 16:48] = 255
        Image.fromarray(pixels).save(folder / f"{number}.cond.png")
        Image.fromarray(pixels // 2 + 40).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a square", encoding="utf-8")
    return folder


def config(folder, name, **sections):
    values = {
        "data": {"folders": [str(folder)], "resolution": 64, "batch_size": 2, "flip": True}, "network": {"kind": "adapter"}, "adapter": {"kind": "light"},
        "training": {"steps": 3, "learning_rate": 0.02}, "output": {"name": name},
    }
    for section, more in sections.items():
        values[section] = {**values.get(section, {}), **more}
    return values


@pytest.mark.parametrize("kind", ["full", "light"])
def test_an_adapter_is_trained_into_its_folder_and_acts_in_pictures_and_nothing_else_is_left(webui, folder, unchanged, kind):
    name = f"squares {kind}"
    output = {"preview_every": 3}
    state = finished(webui, config(folder, name, adapter={"kind": kind}, output={"name": name, **output}))
    place = webui.networks.parent / "T2I-Adapter" / f"{name}.safetensors"
    assert state["phase"] == "done" and state["path"] == str(place) and state["tag"] is None
    assert not [line for line in state["log"] if "preview" in line], state["log"]
    assert read_adapter_facts(place).kind == kind
    assert clean(controlled(webui, PROMPT, a_unit(name))).pictures != unchanged.pictures
    assert name in [row["name"] for row in webui.ask("/lycoris/v1/adapters")["adapters"]]


def test_a_preprocessor_makes_the_control_pictures_and_the_file_says_so(webui, folder, unchanged):
    finished(webui, config(folder, "inverted", data={"preprocessor": "invert"}))
    assert read_adapter_facts(webui.networks.parent / "T2I-Adapter/inverted.safetensors").preprocessor == "invert"


def test_what_is_wrong_with_an_adapters_config_is_told_at_once(webui, folder):
    for sections, word in (
        ({"data": {"preprocessor": "cany"}}, "canny"), ({"network": {"dora": True}}, "dora"), ({"adapter": {"in_channels": 2}}, "in_channels"),
    ):
        status, error = refused(webui, ROUTE, config(folder, "bad", **sections))
        assert status == 400 and word in error and "\n" not in error


@pytest.mark.webui
@pytest.mark.parametrize(("checkpoint", "base_model", "layout"), [
    ("sd2.safetensors", "sd_v2", "sd"), ("sdxl.safetensors", "sdxl_base_v1-0", "sdxl")])
def test_sd2_and_sdxl_are_trained_for_too_and_left_as_they_were(architectures, folder, checkpoint, base_model, layout):
    webui = architectures
    before, model = webui.picture(PROMPT, checkpoint=checkpoint), webui.model()
    name = f"squares of {base_model}"
    assert finished(webui, config(folder, name))["phase"] == "done"
    facts = read_adapter_facts(webui.networks.parent / "T2I-Adapter" / f"{name}.safetensors")
    assert (facts.base_model, facts.layout, facts.downscale) == (base_model, layout, 16 if layout == "sdxl" else 8)
    assert clean(controlled(webui, PROMPT, a_unit(name))).pictures != before.pictures
    assert webui.picture(PROMPT).pictures == before.pictures and webui.model() == model
