"""The page "LyCORIS" of the real WebUI in a browser: cards, tree, search, editor; and nothing that a file says runs there."""

from __future__ import annotations

import base64
import io
import json
import time

import pytest
from PIL import Image

from .hostile import FILE, FLAG, IMAGE, INNER, write_hostile
from .network_files import write_network

pytestmark = [pytest.mark.webui, pytest.mark.browser]
PATIENCE = 60_000
"""Milliseconds; the machine may be busy."""

OF_THE_HOST = ("reading 'props'", "iframeResizer")
"""What a stock start reports in the browser by itself."""


def a_picture(color):
    file = io.BytesIO()
    Image.new("RGB", (32, 48), color).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def own(real_webui, tmp_path_factory):
    """A folder of ours alone, so that no other page shows what is in it: hostile files, and a harmless one with all that a card can have."""
    folder = tmp_path_factory.mktemp("own")
    write_hostile(folder)
    path = folder / "cats" / "tabby, soft.safetensors"
    path.parent.mkdir()
    write_network(path, real_webui.shapes, seed=3)
    path.with_suffix(".png").write_bytes(a_picture("red"))
    path.with_suffix(".json").write_text(json.dumps({"activation text": "zorb", "preferred weight": 0.8, "negative text": "dog", "elsewhere": 1}))
    from safetensors.torch import load_file, save_file

    cover = json.dumps([base64.b64encode(a_picture("blue")).decode()])
    save_file(load_file(str(path)), str(folder / "cats" / "covered.safetensors"), {"ssmd_cover_images": cover})
    real_webui.set_options(lycoris_folders=str(folder), extra_networks_tree_view_style="Tree")
    yield folder
    real_webui.set_options(lycoris_folders="", extra_networks_tree_view_style="Dirs")


@pytest.fixture(scope="module")
def browser(chromium):
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--no-first-run"])
        yield browser
        browser.close()


@pytest.fixture
def page(real_webui, own, browser):
    """The tab txt2img with our cards open."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(real_webui._url)
    page.locator("#txt2img_extra_tabs > .tab-nav > button", has_text="LyCORIS").click()
    page.locator("#txt2img_lycoris_cards .card").first.wait_for()
    page.locator("#txt2img_lycoris_extra_refresh").first.click()
    card(page, INNER).wait_for()
    yield page
    assert page.evaluate(f"window.{FLAG}") is None
    assert [error for error in errors if not any(known in error for known in OF_THE_HOST)] == []
    page.close()


def card(page, name):
    return page.locator(f"#txt2img_lycoris_cards .card[data-name={json.dumps(name)}]")


def prompts(page):
    return tuple(page.locator(f"#txt2img_{which} textarea").input_value() for which in ("prompt", "neg_prompt"))


def open_editor(page, name):
    card(page, name).locator(".edit-button").evaluate("button => button.click()")  # it is to be seen only under the mouse
    page.wait_for_function("name => document.querySelector('#txt2img_lycoris_edit_user_metadata .extra-network-name')?.innerText.trim() === name", arg=name)


def field(page, label):
    return page.locator("#txt2img_lycoris_edit_user_metadata").get_by_label(label, exact=False).first


def test_a_click_writes_tag_and_words_and_a_second_takes_them_out(page):
    card(page, "tabby, soft").click()
    assert prompts(page) == ("<lyco:tabby, soft:0.8> zorb", "dog")
    prompt = page.locator("#txt2img_prompt textarea")
    prompt.fill(prompt.input_value().replace(":0.8>", ":-0.3:1:lbw=INS>"))
    card(page, "tabby, soft").click()
    assert prompts(page) == ("", "")
    card(page, "A").click()
    assert prompts(page)[0] == "<lyco:A:1>"


def test_pictures_beside_and_within_files_are_shown(page):
    for name in ("tabby, soft", "covered"):
        page.wait_for_function("name => [...document.querySelectorAll('#txt2img_lycoris_cards .card')].find(card => card.dataset.name === name)"
                               ".querySelector('img.preview')?.naturalWidth === 32", arg=name)


def test_search_and_sort_know_our_cards(page):
    search = page.locator("#txt2img_lycoris_extra_search").first
    search.fill("cats/")
    page.wait_for_function("[...document.querySelectorAll('#txt2img_lycoris_cards .card:not(.hidden)')].length === 2")
    search.fill("abababab")
    page.wait_for_function("[...document.querySelectorAll('#txt2img_lycoris_cards .card:not(.hidden)')].length === 1")
    search.fill("")
    page.locator("#txt2img_lycoris_extra_sort_name").first.click()
    page.locator("#txt2img_lycoris_extra_sort_dir").first.click()
    page.wait_for_function("""(() => { const names = [...document.querySelectorAll('#txt2img_lycoris_cards .card')].map(card => card.dataset.sortName);
                               return names.length > 5 && names.every((name, place) => !place || names[place - 1] >= name); })()""")


def test_the_trees_buttons_are_those_of_their_network(page):
    page.locator("#txt2img_lycoris_tree .tree-list-content-dir").filter(has_text="own").first.click()
    entry = page.locator("#txt2img_lycoris_tree [data-path$='own0/cats'], #txt2img_lycoris_tree .tree-list-content-dir:has-text('cats')").first
    entry.click()
    leaf = page.locator("#txt2img_lycoris_tree .tree-list-content-file").filter(has_text="tabby, soft").first
    leaf.locator(".metadata-button").evaluate("button => button.click()")
    page.locator(".popup-table").get_by_text("ss_network_dim").wait_for()


def test_the_editor_reads_and_writes_the_built_ins_file(page, own):
    open_editor(page, "tabby, soft")
    page.wait_for_function("document.querySelector('#txt2img_lycoris_edit_user_metadata .file-metadata')?.innerText.includes('rank 4')")
    field(page, "Activation text").fill("zorb, sofa")
    field(page, "Description").fill("Mine & <b>yours</b>")
    page.locator("#txt2img_lycoris_edit_user_metadata").get_by_role("button", name="Save", exact=True).click()
    page.wait_for_function("[...document.querySelectorAll('#txt2img_lycoris_cards .card')].some(card => card.innerText.includes('Mine & <b>yours</b>'))")
    held = json.loads((own / "cats" / "tabby, soft.json").read_text())
    assert held == {"elsewhere": 1, "activation text": "zorb, sofa", "preferred weight": 0.8, "negative text": "dog", "description": "Mine & <b>yours</b>",
                    "notes": ""}
    card(page, "tabby, soft").click()
    assert prompts(page) == ("<lyco:tabby, soft:0.8> zorb, sofa", "dog")


def test_remarks_that_cannot_be_written_say_why_and_the_editor_stays_open(page, own):
    beside = own / "cats" / "covered.json"
    beside.write_text("[1]")
    try:
        open_editor(page, "covered")
        page.locator("#txt2img_lycoris_edit_user_metadata").get_by_role("button", name="Save", exact=True).click()
        page.locator("#txt2img_lycoris_edit_user_metadata [role=alert]").get_by_text("repair it").wait_for()
        assert beside.read_text() == "[1]"
    finally:
        beside.unlink()


def test_nothing_that_a_file_says_runs_on_card_editor_popup_or_under_a_picture(page, own):
    evil = card(page, FILE)
    assert IMAGE in evil.inner_text() and evil.locator("img").count() == 0
    evil.locator(".metadata-button").evaluate("button => button.click()")
    page.locator(".popup-table").get_by_text(IMAGE).first.wait_for()
    assert page.locator(".popup-table img").count() == 0
    page.keyboard.press("Escape")
    open_editor(page, FILE)
    page.wait_for_function("document.querySelector('#txt2img_lycoris_edit_user_metadata .file-metadata')?.innerText.includes('img src')")
    assert page.locator("#txt2img_lycoris_edit_user_metadata .file-metadata img, #txt2img_lycoris_edit_user_metadata .highlighted img").count() == 0
    page.locator("#txt2img_lycoris_edit_user_metadata").get_by_role("button", name="Save", exact=True).click()
    page.locator("#txt2img_lycoris_edit_user_metadata").wait_for(state="hidden")
    time.sleep(0.5)
    evil.click()
    assert prompts(page)[0].startswith("<lyco:abababababab:-0.5> ") and IMAGE in prompts(page)[1]
    page.locator("#txt2img_prompt textarea").fill("<lyco:<img src=x onerror=window.lycoBroken=4:1> <lyco:A:x<b onclick=alert(1)>")
    page.locator("#txt2img_neg_prompt textarea").fill("")
    page.locator("#txt2img_extra_tabs > .tab-nav > button", has_text="Generation").click()
    page.locator("#txt2img_steps input[type=number]").fill("1")
    for size in ("width", "height"):
        page.locator(f"#txt2img_{size} input[type=number]").fill("64")
    page.locator("#txt2img_generate").click()
    page.locator("#html_log_txt2img .comments").get_by_text("no network is called").wait_for()
    assert page.locator("#html_log_txt2img img, #html_log_txt2img b, #html_info_txt2img img").count() == 0


def test_the_settings_page_has_our_section(page):
    page.get_by_role("button", name="Settings", exact=True).first.click()
    page.locator("#settings button", has_text="LyCORIS").first.click()
    for key in ("lycoris_folders", "lycoris_cache_mb", "lycoris_default_strength", "lycoris_add_hashes", "lycoris_on_cards", "lycoris_block_presets"):
        assert page.locator(f"#setting_{key}").is_visible()
    assert page.locator("#setting_lycoris_folders textarea").count() == 1


def test_after_reload_ui_the_page_is_there_once(page, real_webui):
    page.goto("about:blank")  # the host's server ends when its connections have
    for _ in range(2):
        real_webui.reload_ui()
    page.goto(real_webui._url)
    tabs = page.locator("#txt2img_extra_tabs > .tab-nav > button")
    tabs.filter(has_text="LyCORIS").wait_for()
    assert [text.strip() for text in tabs.all_inner_texts()].count("LyCORIS") == 1
    assert page.locator("[id=txt2img_lycoris_edit_user_metadata]").count() <= 1
