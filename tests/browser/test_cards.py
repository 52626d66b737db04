"""A click on a card, in a browser without a host: what the page's script writes into the prompt and takes out again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

SCRIPT = Path(__file__).resolve().parents[2] / "javascript" / "lycoris.js"
PAGE = """<div id="txt2img_prompt"><label><textarea></textarea></label></div><div id="txt2img_neg_prompt"><label><textarea></textarea></label></div>
<script>const gradioApp = () => document, told = [], updateInput = area => told.push(area.value);
const opts = {extra_networks_add_text_separator: " ", lycoris_default_strength: 0.9};</script>"""
CARD = {"tag": "cat", "names": ["cat", "animals/cat", "abababababab"], "strength": None, "text": "", "negative": ""}


@pytest.fixture(scope="module")
def browser_page(chromium):
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_content(PAGE)
        page.add_script_tag(path=str(SCRIPT))
        yield page
        browser.close()
    assert errors == []


def click(page, prompt, before="", **card):
    """Prompt and negative prompt after a click on a card; `before` is the negative prompt before it."""
    return page.evaluate("""([prompt, negative, card]) => {
        const areas = document.querySelectorAll("textarea");
        [areas[0].value, areas[1].value] = [prompt, negative];
        lyco.toggle("txt2img", card);
        return [areas[0].value, areas[1].value];
    }""", [prompt, before, {**CARD, **card}])


@pytest.mark.parametrize(("prompt", "card", "expected"), [
    ("", {}, "<lyco:cat:0.9>"), ("a", {}, "a <lyco:cat:0.9>"), ("a", {"strength": -0.5}, "a <lyco:cat:-0.5>"),
    ("a", {"text": "zorb, x"}, "a <lyco:cat:0.9> zorb, x"),
    ("<lyco:cat2:1> <lora:cat:1>", {}, "<lyco:cat2:1> <lora:cat:1> <lyco:cat:0.9>"), ("a", {"tag": '"c:t"', "names": ["c:t"]}, 'a <lyco:"c:t":0.9>'),
])
def test_a_click_writes_the_tag(browser_page, prompt, card, expected):
    assert click(browser_page, prompt, **card)[0] == expected
    assert click(browser_page, expected, **card)[0] == prompt


@pytest.mark.parametrize("arguments", ["", ":1", ":-0.5", ":0.5:-1", ":0.5:1:4", ":te=0.2:unet=-0.3", ":1@0,0@1",
                                       ":0.5:lbw=1,0,0.5:hr=-2", ":start=0.2", ": 1 "])
@pytest.mark.parametrize("name", ["cat", " cat ", '"cat"', "animals/cat", "abababababab"])
def test_a_second_click_takes_it_out_whatever_its_arguments(browser_page, name, arguments):
    assert click(browser_page, f"a <lyco:{name}{arguments}> zorb, b <lyco:dog:1>", text="zorb")[0] == "a, b <lyco:dog:1>"
    assert click(browser_page, f"a, <lyco:{name}{arguments}>, b")[0] == "a,, b"


def test_all_its_tags_go_at_once_and_others_stay(browser_page):
    assert click(browser_page, "<lyco:cat:1><lyco:catty:1> x <lyco:cat:2:3> (y:1.2)")[0] == "<lyco:catty:1> x (y:1.2)"


def test_the_negative_text_comes_and_goes_with_it(browser_page):
    here = click(browser_page, "a", "bad", negative="(dog:1.2) $& \\1")
    assert here == ["a <lyco:cat:0.9>", "bad (dog:1.2) $& \\1"]
    assert click(browser_page, *here, negative="(dog:1.2) $& \\1") == ["a", "bad"]
    assert click(browser_page, "a", "", negative="dog") == ["a <lyco:cat:0.9>", "dog"]


def test_the_host_hears_of_what_was_written(browser_page):
    click(browser_page, "heard")
    assert json.loads(browser_page.evaluate("JSON.stringify(told)"))[-1] == "heard <lyco:cat:0.9>"


def test_the_scripts_add_one_global_alone(browser_page):
    assert browser_page.evaluate("Object.keys(window).filter(name => name.toLowerCase().startsWith('lyco')).sort()") == ["lyco"]
