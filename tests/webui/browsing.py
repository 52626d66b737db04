"""The real WebUI's page in a headless Chromium, and what tests do there again and again."""

from __future__ import annotations

import base64
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PATIENCE = int(os.environ.get("LYCO_TEST_PATIENCE", "120000"))
"""Milliseconds; the machine may be busy."""

OF_THE_HOST = ("reading 'props'", "iframeResizer")
"""What a stock start reports in the browser by itself."""

_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run"]
_seeds = itertools.count(1001)
_DROP = """([element, files]) => {
    const held = new DataTransfer();
    for (const [name, type, data] of files)
        held.items.add(new File([Uint8Array.from(atob(data), letter => letter.charCodeAt(0))], name, {type}));
    for (const event of ["dragenter", "dragover", "drop"])
        element.dispatchEvent(new DragEvent(event, {dataTransfer: held, bubbles: true, cancelable: true}));
}"""


@contextmanager
def open_page(address: str, chromium: str, width: int = 1280, height: int = 900, **context: Any) -> Iterator[Any]:
    """The page of a WebUI; at the end an error where one came up in the browser."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_ARGUMENTS)
        try:
            page = browser.new_context(viewport={"width": width, "height": height}, **context).new_page()
            page.set_default_timeout(PATIENCE)
            errors: list[str] = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(address)
            yield page
            if os.environ.get("LYCO_SHOTS"):
                page.screenshot(path=os.path.join(os.environ["LYCO_SHOTS"], "last.png"), full_page=True)
        finally:
            browser.close()
        assert [error for error in errors if not any(known in error for known in OF_THE_HOST)] == []


def open_tab(page: Any, name: str) -> None:
    """Opens one of the page's tabs."""
    page.locator("#tabs > .tab-nav > button", has_text=name).first.click()


def field(page: Any, element: str) -> Any:
    """The input of a component."""
    return page.locator(f"#{element} textarea, #{element} input").first


def choose(page: Any, element: str, option: str) -> None:
    """Chooses from a dropdown the first option that has these words."""
    page.locator(f"#{element} input").first.click()
    page.locator(f"#{element} ul li", has_text=option).first.click()
    page.wait_for_function("([id, words]) => document.querySelector(id).value.includes(words)", arg=[f"#{element} input", option])


def fill(page: Any, element: str, value: object) -> None:
    """Types into a field and leaves it."""
    field(page, element).fill(str(value))
    field(page, element).press("Tab")


def says(page: Any, words: str, element: str = "lycoris_progress") -> None:
    """Waits until the line over the progress bar says so, or another element."""
    page.wait_for_function("([id, words]) => document.getElementById(id)?.innerText.includes(words)", arg=[element, words])


def drop(page: Any, element: str, files: list[Path]) -> None:
    """Drags files from the desktop onto an element."""
    kinds = {".png": "image/png", ".txt": "text/plain"}
    held = [(path.name, kinds[path.suffix], base64.b64encode(path.read_bytes()).decode()) for path in files]
    page.evaluate(_DROP, [page.locator(element).first.element_handle(), held])


def generate(page: Any, prompt: str, tab: str = "txt2img", **settings: int) -> str:
    """Makes a picture on the page; gives its infotext, and what is said under it."""
    seed = next(_seeds)
    page.locator(f"#{tab}_prompt textarea").fill(prompt)
    for name, value in {"steps": 2, "width": 64, "height": 64, "seed": seed, **settings}.items():
        number = page.locator(f"#{tab}_{name} input[type=number], #{tab}_{name}_row input[type=number]").first
        number.fill(str(value))
        number.press("Tab")
    page.locator(f"#{tab}_generate").click()
    page.wait_for_function("([tab, seed]) => document.querySelector(`#html_info_${tab}`).innerText.includes(`Seed: ${seed}`)", arg=[tab, seed])
    return page.locator(f"#html_info_{tab}").first.inner_text() + page.locator(f"#html_log_{tab}").first.inner_text()
