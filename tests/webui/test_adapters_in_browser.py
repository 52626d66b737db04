"""The adapters' accordion of the real WebUI in a browser: what the list offers, what a choice sets, the map, the picture and its infotext pasted."""

from __future__ import annotations

import pytest
from PIL import Image

pytestmark = [pytest.mark.webui, pytest.mark.browser]
PATIENCE = 60_000
"""Milliseconds; the machine may be busy."""


@pytest.fixture
def page(real_webui, chromium):
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--no-first-run"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(PATIENCE)
        page.goto(real_webui._url)
        page.locator("#lyco_adapters_txt2img .label-wrap").first.click()
        page.locator("#lyco_adapter_txt2img_1_adapter input").wait_for()
        yield page
        browser.close()


def part(page, name):
    return page.locator(f"#lyco_adapter_txt2img_1_{name}").first  # gradio gives an HTML field its id twice


def choose(page, name, option):
    part(page, name).locator("input").click()
    part(page, name).locator("ul li", has_text=option).first.click()


def wait_for_value(page, name, value):
    page.wait_for_function("([id, value]) => document.querySelector(id).value === value", arg=[f"#lyco_adapter_txt2img_1_{name} input", value])


def test_from_the_list_to_a_picture_and_its_pasted_infotext(real_webui, page, tmp_path):
    real_webui.picture("anything")  # the checkpoint is loaded then
    part(page, "refresh").click()
    page.wait_for_timeout(1500)
    part(page, "adapter").locator("input").click()
    offered = [text.strip().lstrip("✓").strip() for text in part(page, "adapter").locator("ul li").all_inner_texts()]
    assert [name for name in offered if name in ("None", "canny one", "more/second", "broken")] == ["None", "canny one", "more/second"]
    part(page, "adapter").locator("ul li", has_text="canny one").click()
    wait_for_value(page, "preprocessor", "canny")
    assert part(page, "enabled").locator("input").is_checked()
    assert "full adapter" in part(page, "words").inner_text()
    part(page, "preview").click()
    page.wait_for_function("() => /needs a picture/.test(document.querySelector('#lyco_adapter_txt2img_1_told').innerText)")
    Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1), 20).save(tmp_path / "a.png")
    part(page, "picture").locator("input[type=file]").set_input_files(tmp_path / "a.png")
    part(page, "picture").locator("img").wait_for()
    part(page, "preview").click()
    part(page, "map").locator("img").wait_for()
    for side, value in (("width", "64"), ("height", "64"), ("steps", "3")):
        field = page.locator(f"#txt2img_{side} input[type=number]").first
        field.fill(value)
        field.press("Tab")
    page.locator("#txt2img_prompt textarea").fill("a red circle")
    page.locator("#txt2img_generate").click()
    info = page.locator("#html_info_txt2img").first
    page.wait_for_function("() => /Lyco adapter 1/.test(document.querySelector('#html_info_txt2img').innerText)")
    assert "adapter=canny one; preprocessor=canny" in info.inner_text()
    assert "left out" not in page.locator("#html_log_txt2img").first.inner_text()
    page.locator("#txt2img_prompt textarea").fill(
        'other\nSteps: 4, Sampler: Euler, Lyco adapter 1: "adapter=more/second; preprocessor=palette; palette=#ff0000, #00ff00; weight=0.7"')
    page.locator("#txt2img_tools #paste").click()
    wait_for_value(page, "adapter", "more/second")
    wait_for_value(page, "preprocessor", "palette")
    assert part(page, "palette").locator("textarea, input").first.input_value() == "#ff0000, #00ff00"
    assert part(page, "weight").locator("input[type=number]").input_value() == "0.7"
