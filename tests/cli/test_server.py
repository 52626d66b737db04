"""The studio's app: page and routes of this machine alone."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import pytest

from lib_lycoris.cli import server
from lib_lycoris.cli.workbench import Workbench
from lib_lycoris.errors import LycoError
from tests.ui.conftest import no_event_loop_stays_open  # noqa: F401 (a fixture that every test of this file uses)


def test_a_taken_port_is_told_and_without_a_wish_the_next_one_is_used(monkeypatch):
    with server.listen(None) as first:
        taken = first.getsockname()[1]
        assert first.getsockname()[0] == "127.0.0.1"
        with pytest.raises(LycoError, match=f"port {taken} is taken .* --port"):
            server.listen(taken)
        with server.listen(None) as second:
            assert second.getsockname()[1] > taken
        monkeypatch.setattr(server, "PORT", taken)
        monkeypatch.setattr(server, "_TRIES", 1)
        with pytest.raises(LycoError, match=f"every port from {taken} to {taken}"):
            server.listen(None)


def test_a_free_port_that_is_wished_for_is_used():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    with server.listen(free) as listener:
        assert listener.getsockname() == ("127.0.0.1", free)


@pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="the studio's packages are not here (diffusers)")
@pytest.mark.filterwarnings("ignore")  # gradio's and starlette's own
def test_the_app_serves_page_routes_and_their_description_to_its_own_name_only(tmp_path):
    from fastapi.testclient import TestClient

    app = server.make_app(Workbench(str(tmp_path / "none"), [str(tmp_path)], tmp_path))
    client = TestClient(app, base_url="http://127.0.0.1:7865")
    assert "Lyco Studio" in client.get("/").text
    assert client.get("/lycoris/v1/networks").json() == {"networks": []}
    assert client.get("/lycoris/v1/train").json()["phase"] == "idle"
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/lycoris/v1/networks", "/lycoris/v1/train", "/lycoris/v1/train/stop", "/lycoris/v1/generate"} <= set(paths)
    for path in ("/", "/lycoris/v1/networks"):
        assert client.get(path, headers={"Host": "evil.example"}).status_code == 400


@pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="the studio's packages are not here (diffusers)")
@pytest.mark.filterwarnings("ignore")  # gradio's and starlette's own
def test_over_http_a_picture_gives_what_generate_takes(tiny_checkpoint, tmp_path, edges):
    from fastapi.testclient import TestClient

    folder, picture = edges
    bench = Workbench(str(tiny_checkpoint), [str(tmp_path / "nets")], tmp_path / "outputs", adapters=[str(folder)])
    bench.load()
    made = bench.generate({"prompt": "a zorb", "steps": 2, "seed": 5, "units": [{"adapter": "edges", "pictures": [picture]}]})
    client = TestClient(server.make_app(bench), base_url="http://127.0.0.1:7865")
    told = client.get(f"/lycoris/v1/pictures/{Path(made['pictures'][0]['path']).name}").json()
    again = client.post("/lycoris/v1/generate", json={**told["settings"], "units": told["units"], "fuser": told["fuser"]}).json()
    assert again["problems"] == [] and again["pictures"][0]["infotext"] == made["pictures"][0]["infotext"]
