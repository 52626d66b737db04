"""A WebUI that is killed in the middle of a training, twice: page and API find the training again, and it ends as one that was left alone."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from PIL import Image

from .browsing import field, open_page, open_tab, says
from .starting import start

pytestmark = [pytest.mark.webui, pytest.mark.browser]
ROUTE = "/lycoris/v1/train"
STEPS = 60


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of captioned pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a zorb, number {number}")
    return folder


def config(folder, name):
    return {"data": {"folders": [str(folder)], "resolution": 64}, "network": {"kind": "lora", "rank": 4}, "training": {"steps": STEPS},
            "output": {"name": name, "dtype": "fp32", "save_every": 5}}


def reach(webui, reached, seconds=240):
    """The state once `reached(state)`."""
    end = time.monotonic() + seconds
    while not reached(state := webui.ask(ROUTE)[1]):
        assert state["phase"] not in ("failed",) and time.monotonic() < end, state
        time.sleep(0.02)
    return state


def test_killed_twice_and_gone_on_from_page_and_api(pictures, chromium, tmp_path):
    folder, port = tmp_path / "data", int(os.environ.get("LYCO_TEST_PORT", "7870")) + 11
    networks = folder / "models" / "LyCORIS"
    with start(folder, port, ("--api",)) as webui:
        assert webui.ask(ROUTE, config(pictures, "whole"))[0] == 200
        whole = reach(webui, lambda state: state["phase"] == "done")
        webui.ask(ROUTE, config(pictures, "killed"))
        reach(webui, lambda state: state["step"] >= 12)
        webui.kill()

    with start(folder, port, ("--api",)) as webui:
        with open_page(webui.address, chromium) as page:
            open_tab(page, "Lyco")
            says(page, "Interrupted: the program ended during it")
            says(page, "(killed)")
            page.locator("#lycoris_last").get_by_text("The last training, killed, was interrupted.").wait_for()
            page.locator("#lycoris_last_take").click()
            page.wait_for_function("document.querySelector('#lycoris_output_name textarea, #lycoris_output_name input').value === 'killed'")
            assert field(page, "lycoris_data_folders").input_value() == str(pictures)
            page.locator("#lycoris_pause").get_by_text("Resume").click()
            says(page, "Training (killed)")
            assert 10 < reach(webui, lambda state: state["step"] >= 25)["step"] < STEPS
            page.locator("#lycoris_curve svg polyline").first.wait_for()
        assert webui.tracebacks() == []
        webui.kill()

    with start(folder, port, ("--api",)) as webui:
        found = webui.ask(ROUTE)[1]
        assert (found["phase"], found["name"], found["steps"]) == ("interrupted", "killed", STEPS) and found["step"] > 10
        assert webui.ask(f"{ROUTE}/resume", {})[0] == 200
        state = reach(webui, lambda state: state["phase"] == "done")
        assert webui.tracebacks() == []
    assert state["step"] == STEPS and state["tag"] == "<lyco:killed:1>"
    steps = [step for step, _ in state["losses"]]
    assert steps == sorted(set(steps)) and dict(map(tuple, state["losses"])).items() <= dict(map(tuple, whole["losses"])).items()
    assert steps[0] == 1 and steps[-1] == STEPS
    assert (networks / "killed.safetensors").read_bytes()[-4000:] == (networks / "whole.safetensors").read_bytes()[-4000:]
