"""Starts of the real WebUI with the flags that change who reaches it and what is there: each comes up clean, with what is ours there or rightly absent."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import pytest

from .starting import start

pytestmark = pytest.mark.webui
USER = ("tester", "a secret")
FOREIGN = {"Origin": "http://evil.example"}
ROUTES = ("networks", "embeddings", "adapters", "train")
OURS = {"tab_lycoris", "lycoris_start", "lyco_adapters_txt2img", "lyco_adapters_img2img"}


@dataclass(frozen=True)
class Case:
    """A start, and what is there then.

    Attributes:
        flags: of the command line; FOLDER stands for the test's own folder.
        page: whether there is a page at all.
        log_in: who logs in on it, or nobody.
        ours: whether our tab and accordion are on it.
        routes: whether our routes are there.
        user: whom they ask for.
        fenced: whether datasets are read from allowed folders alone.
        folder: the name of the data folder.
    """

    flags: tuple[str, ...]
    page: bool = True
    log_in: tuple[str, str] | None = None
    ours: bool = True
    routes: bool = True
    user: tuple[str, str] | None = None
    fenced: bool = False
    folder: str = "data"


CASES = {
    "others-reach-it": Case(("--listen", "--share", "--api", "--api-auth", ":".join(USER), "--freeze-settings", "--lycoris-datasets", "FOLDER/allowed"),
                            user=USER, fenced=True, folder="my dätä 好"),
    "a-password": Case(("--gradio-auth", ":".join(USER), "--api", "--subpath", "/sd", "--ui-settings-file", "FOLDER/other.json", "--medvram-sdxl"),
                       log_in=USER, user=USER),
    "no-api": Case(("--gradio-auth", ":".join(USER)), log_in=USER, routes=False),
    "headless": Case(("--nowebui", "--api"), page=False),
    "no-extensions": Case(("--disable-extra-extensions", "--api"), ours=False, routes=False),
}


@pytest.fixture(scope="module", params=CASES)
def started(request, tmp_path_factory):
    """(the WebUI, the case, a folder without pictures of which the WebUI knows nothing)"""
    case, folder = CASES[request.param], tmp_path_factory.mktemp(request.param)
    for name in ("allowed", "elsewhere"):
        (folder / name).mkdir()
    flags = tuple(flag.replace("FOLDER", str(folder)) for flag in case.flags)
    port = int(os.environ.get("LYCO_TEST_PORT", "7870")) + 10
    with start(folder / case.folder, port, flags) as webui:
        yield webui, case, folder
        assert webui.tracebacks() == []


def test_the_page_has_what_is_ours_or_none_of_it(started):
    webui, case, _ = started
    if not case.page:
        assert webui.ask("/config")[0] == 404
        return
    if case.log_in:
        assert webui.ask("/config")[0] == 401
        assert webui.log_in(case.log_in) == 200
    ours = {element for element in webui.elements() if element in OURS or "lyco" in element}
    assert ours >= OURS if case.ours else not ours


def test_the_routes_are_there_for_whom_they_are_meant(started):
    webui, case, _ = started
    for route in ROUTES:
        path = f"/lycoris/v1/{route}"
        if not case.routes:
            assert webui.ask(path, user=USER)[0] == 404
            continue
        assert webui.ask(path, user=case.user)[0] == 200
        assert webui.ask(path, user=case.user, headers=FOREIGN)[0] == 403
        if case.user:
            assert webui.ask(path)[0] == webui.ask(path, user=("tester", "wrong"))[0] == 401


def test_pictures_to_train_on_are_read_from_allowed_folders_where_others_reach_it(started):
    webui, case, folder = started
    if not case.routes:
        pytest.skip("no routes")
    def check(folder):
        return webui.ask("/lycoris/v1/train/check", {"data": {"folders": [str(folder)], "resolution": 64}, "output": {"name": "x"}}, case.user)

    end = time.monotonic() + 60  # headless, the host answers before it has its checkpoint
    while "is not loaded" in check(folder / "allowed")[1]["error"] and time.monotonic() < end:
        time.sleep(0.2)
    status, answer = check(folder / "elsewhere")
    assert status == 400 and ("not allowed" in answer["error"]) == case.fenced and ("holds no picture" in answer["error"]) != case.fenced
    status, answer = check(folder / "allowed")
    assert status == 400 and "holds no picture" in answer["error"]


def test_a_picture_is_made_with_a_network(started):
    webui, case, _ = started
    if not case.routes:
        pytest.skip("the host has no API, or we are not there")
    status, answer = webui.ask("/sdapi/v1/txt2img", {"prompt": "a red circle <lyco:A:1>", "steps": 2, "width": 64, "height": 64}, case.user)
    assert status == 200 and "Lyco hashes" in answer["info"] and "Lyco problems" not in answer["info"]
