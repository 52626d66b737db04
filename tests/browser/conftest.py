"""A studio and a browser for each module of tests, and a page for each test."""

from __future__ import annotations

import pytest

from tests.browser.studio import FLAGS, PATIENCE, running


@pytest.fixture(scope="module")
def furnish():
    """Takes the folder in which the module's studio will start, puts into it what is to be there, and gives the studio's arguments.

    As it stands here: a checkpoint of random weights. A module that wants something else has a fixture of this name.
    """
    from tests.studio.tiny import write_checkpoint

    return lambda folder: ["--checkpoint", str(write_checkpoint(folder))]


@pytest.fixture(scope="module")
def studio(tmp_path_factory, chromium, request):
    """The module's studio."""
    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("studio")
    with running(folder, *request.getfixturevalue("furnish")(folder)) as studio:
        yield studio


@pytest.fixture(scope="module")
def browser(chromium):
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def blank(browser):
    """A page in which nothing was opened yet."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert errors == []


@pytest.fixture
def page(studio, blank):
    """The studio's page, its checkpoint loaded."""
    blank.goto(studio.address)
    blank.get_by_text("Checkpoint: ").wait_for()
    return blank


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of five pictures with captions."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    for number in range(5):
        Image.new("RGB", (64, 64), (40 * number, 90, 200)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a zorb, {number}", encoding="utf-8")
    return folder
