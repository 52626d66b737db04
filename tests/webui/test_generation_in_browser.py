"""A unit and a network together on the real WebUI's page: batches, Interrupt, Skip, another checkpoint, Generate forever, img2img, PNG Info, Reload UI."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from .browsing import choose, fill, generate, open_page, open_tab, says
from .test_stories_in_browser import pictures, unchanged  # noqa: F401 (fixtures)

pytestmark = [pytest.mark.webui, pytest.mark.browser]
PROMPT = "a red circle <lyco:A:1>"
UNIT = "adapter=canny one; preprocessor=canny"


@pytest.fixture
def page(real_webui, chromium, tmp_path):
    """txt2img with a unit that is on, the checkpoint loaded."""
    real_webui.picture("anything", checkpoint=real_webui.base)
    Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1), 20).save(tmp_path / "map.png")
    with open_page(real_webui._url, chromium) as page:
        page.locator("#lyco_adapters_txt2img .label-wrap").first.click()
        page.locator("#lyco_adapter_txt2img_1_refresh").first.click()
        page.wait_for_timeout(1000)
        choose(page, "lyco_adapter_txt2img_1_adapter", "canny one")
        page.locator("#lyco_adapter_txt2img_1_picture input[type=file]").set_input_files(tmp_path / "map.png")
        page.locator("#lyco_adapter_txt2img_1_picture img").wait_for()
        yield page


def acts(said):
    """Whether unit and network are told of, and nothing was left out."""
    return UNIT in said and "Lyco hashes" in said and "left out" not in said


def begin(page, steps, tab="txt2img"):
    """Presses Generate, and returns once steps are taken."""
    fill(page, f"{tab}_steps", steps)
    page.locator(f"#{tab}_generate").click()
    page.locator(f"#{tab}_interrupt").wait_for(state="visible")
    page.wait_for_function("tab => /%/.test(document.querySelector(`#${tab}_results .progress`)?.innerText || '')", arg=tab)


def ended(page, tab="txt2img"):
    page.locator(f"#{tab}_interrupt").wait_for(state="hidden")
    page.locator(f"#{tab}_generate").wait_for(state="visible")


def test_batches_of_several(page, real_webui, unchanged):  # noqa: F811
    assert acts(generate(page, PROMPT, batch_count=3, batch_size=2))
    assert page.locator("#txt2img_gallery .thumbnails button").count() == 7  # and the grid


@pytest.mark.parametrize("button", ["interrupt", "skip"])
def test_what_ends_a_picture_leaves_nothing_behind(page, real_webui, unchanged, button):  # noqa: F811
    generate(page, PROMPT)
    begin(page, 150)
    page.locator(f"#txt2img_{button}").click()
    ended(page)
    assert acts(generate(page, PROMPT))


def test_another_checkpoint_and_back(page, real_webui):
    before, model = real_webui.picture("a large red circle"), real_webui.model()
    assert acts(generate(page, PROMPT))
    choose(page, "setting_sd_model_checkpoint", "apart")
    other = generate(page, PROMPT)
    assert acts(other) and "Model: apart" in other
    choose(page, "setting_sd_model_checkpoint", "base.safetensors")
    assert "Model: base" in generate(page, PROMPT)
    after = real_webui.model()  # the tensors are others now
    assert (after["bits"], after["hooks"]) == (model["bits"], model["hooks"]) and real_webui.picture("a large red circle").pictures == before.pictures


def test_generate_forever_until_it_is_cancelled(page, real_webui, unchanged):  # noqa: F811
    generate(page, PROMPT)
    fill(page, "txt2img_seed", -1)
    made = "document.querySelector('#html_info_txt2img').innerText"
    last = page.evaluate(made)
    page.locator("#txt2img_generate").click(button="right")
    page.locator("#context-menu").get_by_text("Generate forever", exact=True).click()
    for _ in range(2):
        page.wait_for_function(f"last => {made}.includes('Seed') && {made} !== last", arg=last)
        last = page.evaluate(made)
        assert acts(last)
    page.locator("#txt2img_generate, #txt2img_interrupt").locator("visible=true").first.click(button="right")
    page.locator("#context-menu").get_by_text("Cancel generate forever").click()
    ended(page)


def test_to_img2img_and_back_from_a_files_settings(page, real_webui, unchanged, tmp_path):  # noqa: F811
    assert acts(generate(page, PROMPT))
    page.locator("#txt2img_send_to_img2img").click()
    page.locator("#img2img_image img").first.wait_for()
    page.wait_for_function("document.querySelector('#img2img_prompt textarea').value.includes('<lyco:A:1>')")
    assert acts(generate(page, PROMPT, tab="img2img", steps=4))
    body = {"prompt": PROMPT, "seed": 1, "steps": 2, "width": 64, "height": 64, "alwayson_scripts": {"Lyco adapters": {"args": [
        {"adapter": "more/second", "preprocessor": "palette", "palette": "#ff0000", "weight": 0.7, "picture": a_picture()}]}}}
    (tmp_path / "made.png").write_bytes(base64.b64decode(real_webui.ask("/sdapi/v1/txt2img", body)["images"][0]))
    open_tab(page, "PNG Info")
    page.locator("#pnginfo_image input[type=file]").set_input_files(tmp_path / "made.png")
    page.get_by_text("adapter=more/second").first.wait_for()
    page.locator("#tab_pnginfo button", has_text="Send to txt2img").click()
    page.wait_for_function("document.querySelector('#lyco_adapter_txt2img_1_adapter input').value === 'more/second'")
    page.wait_for_function("document.querySelector('#lyco_adapter_txt2img_1_weight input[type=number]').value === '0.7'")
    assert page.locator("#lyco_adapter_txt2img_1_enabled input").is_checked()


def a_picture():
    held = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(held, "PNG")
    return base64.b64encode(held.getvalue()).decode()


def test_reload_ui_during_a_training(page, real_webui, pictures, unchanged):  # noqa: F811
    config = {"data": {"folders": [str(pictures)], "resolution": 64}, "network": {"kind": "lora", "rank": 4}, "training": {"steps": 100_000},
              "output": {"name": "reloaded"}}
    real_webui.ask("/lycoris/v1/train", config)
    open_tab(page, "Lyco")
    says(page, "Training (reloaded)")
    starts = real_webui._starts()
    page.locator("#footer a", has_text="Reload UI").click()
    real_webui._wait_for_start(starts + 1)
    page.locator("#tabs > .tab-nav > button.selected", has_text="txt2img").wait_for()  # the page loads itself anew
    open_tab(page, "Lyco")
    says(page, "Stopped, and saved (reloaded)")
    page.locator("#lycoris_pause").get_by_text("Resume").click()
    says(page, "Training (reloaded)")
    page.locator("#lycoris_stop").click()
    says(page, "Stopped, and saved (reloaded)")
