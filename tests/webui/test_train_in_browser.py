"""The tab "Lyco" of the real WebUI as a new user meets it: choose the sample pictures, start, watch, pause, reload, resume, stop, and generate with the tag."""

from __future__ import annotations

import os

import pytest

pytestmark = [pytest.mark.webui, pytest.mark.browser]
PATIENCE = int(os.environ.get("LYCO_TEST_PATIENCE", "180000"))
"""Milliseconds; the machine may be busy."""

OF_THE_HOST = ("reading 'props'", "iframeResizer")
"""What a stock start reports in the browser by itself."""


@pytest.fixture
def page(real_webui, chromium):
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--no-first-run"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE)
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(real_webui._url)
        yield page
        browser.close()
    assert [error for error in errors if not any(known in error for known in OF_THE_HOST)] == []


def open_tab(page, name):
    page.locator("#tabs > .tab-nav > button", has_text=name).first.click()


def box(page, name):
    """The field of a setting."""
    return page.locator(f"#lycoris_{name} textarea, #lycoris_{name} input").first


def says(page, words):
    """Waits until the line over the progress bar says so."""
    page.wait_for_function("words => document.querySelector('#lycoris_progress')?.innerText.includes(words)", arg=words)


def test_the_whole_story(page, real_webui):
    open_tab(page, "Lyco")
    page.locator("#lycoris_preset input").click()
    page.locator("#lycoris_preset [role=option], #lycoris_preset .options li").filter(has_text="first try").first.click()
    page.wait_for_function("document.querySelector('#lycoris_training_steps input, #lycoris_training_steps textarea').value === '300'")
    page.locator("#lycoris_sample").click()
    page.wait_for_function("document.querySelector('#lycoris_data_folders textarea').value.includes('sample-zorbix')")
    box(page, "output_name").fill("browser-story")
    box(page, "training_steps").fill("20000")
    page.locator("#lycoris_start").click()
    says(page, "Training (browser-story)")
    page.locator("#lycoris_curve svg polyline").first.wait_for()
    drawn = page.locator("#lycoris_curve svg polyline").first.get_attribute("points")
    page.wait_for_function("before => ![before, undefined].includes(document.querySelector('#lycoris_curve svg polyline')?.getAttribute('points'))", arg=drawn)
    page.wait_for_function("document.querySelectorAll('#lycoris_previews img').length >= 2")

    open_tab(page, "txt2img")
    page.locator("#txt2img_lycoris_waits").get_by_text("Pictures wait: Training (browser-story)").wait_for()
    open_tab(page, "Lyco")
    page.locator("#lycoris_pause").click()
    says(page, "the model is free for pictures (browser-story)")
    assert real_webui.picture("a large red circle", steps=2).pictures  # goes through while it is paused

    page.reload()
    open_tab(page, "Lyco")
    says(page, "the model is free for pictures (browser-story)")
    page.wait_for_function("document.querySelector('#lycoris_output_name textarea, #lycoris_output_name input').value === 'browser-story'")
    assert page.locator("#lycoris_pause").inner_text() == "Resume"
    page.locator("#lycoris_pause").click()
    says(page, "Training (browser-story)")
    page.locator("#lycoris_stop").click()
    says(page, "Stopped, and saved (browser-story)")
    tag = box(page, "tag").input_value()
    assert tag.startswith("<lyco:browser-story-step")

    open_tab(page, "txt2img")
    page.locator("#txt2img_prompt textarea").fill(f"a large zorbix {tag}")
    page.locator("#txt2img_steps input[type=number]").fill("2")
    for size in ("width", "height"):
        page.locator(f"#txt2img_{size} input[type=number]").fill("64")
    page.locator("#txt2img_generate").click()
    page.locator("#html_info_txt2img").get_by_text("Lyco hashes").first.wait_for()


def test_every_field_of_the_tab_has_a_label(page):
    open_tab(page, "Lyco")
    page.locator("#lycoris_start").wait_for()
    unlabelled = page.evaluate("""[...document.querySelectorAll('#tab_lycoris input, #tab_lycoris textarea')]
        .filter(field => !['hidden', 'file'].includes(field.type) && field.offsetParent !== null)
        .filter(field => !(field.labels?.length || field.getAttribute('aria-label') || field.getAttribute('aria-labelledby')))
        .map(field => field.outerHTML.slice(0, 120))""")
    assert unlabelled == []


def test_folded_parts_and_uploads_are_reached_and_opened_by_keyboard(page):
    focused = "document.activeElement.closest('#lycoris_upload, #lycoris_look, #lyco_adapters_txt2img')?.id"
    page.on("filechooser", lambda chooser: page.evaluate("window.lycoChoosers = 1"))
    open_tab(page, "Lyco")
    page.locator("#lycoris_upload .label-wrap[role=button]").wait_for()
    page.locator("#lycoris_sample").focus()
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "lycoris_upload"
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "false"
    page.keyboard.press("Enter")
    page.locator("#lycoris_upload .label-wrap[aria-expanded=true]").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_function("window.lycoChoosers > 0")
    open_tab(page, "txt2img")
    page.locator("#lyco_adapters_txt2img > .label-wrap").focus()
    page.keyboard.press(" ")
    page.locator("#lyco_adapter_txt2img_1_enabled").wait_for()
