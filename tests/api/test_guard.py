"""The studio's doorkeeper: the own page and programs pass, pages of other sites, frames and oversized bodies don't."""

from __future__ import annotations

import warnings

import pytest

fastapi = pytest.importorskip("fastapi")
pytest.importorskip("httpx")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

from lib_lycoris.api.guard import Guard  # noqa: E402

ADDRESS = "http://127.0.0.1:7865"


@pytest.fixture
def client():
    app = fastapi.FastAPI()

    @app.get("/")
    @app.get("/file")
    def page():
        return {"page": True}

    @app.post("/gradio_api/queue/join")
    async def join(request: fastapi.Request):
        return {"bytes": len(await request.body())}

    @app.websocket("/ws")
    async def socket(websocket: fastapi.WebSocket):
        await websocket.accept()
        await websocket.send_text("in")
        await websocket.close()

    app.add_middleware(Guard, largest=1000)
    return TestClient(app, base_url=ADDRESS)


FOREIGN = [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}, {"Sec-Fetch-Site": "cross-site"}]


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_page_of_another_site_reaches_nothing(client, headers):
    for answer in (client.get("/file", headers=headers), client.post("/gradio_api/queue/join", json={}, headers=headers)):
        assert answer.status_code == 403 and "error" in answer.json()


@pytest.mark.parametrize("headers", [{}, {"Origin": ADDRESS}, {"Origin": ADDRESS, "Sec-Fetch-Site": "same-origin"}])
def test_the_own_page_and_programs_pass(client, headers):
    assert client.post("/gradio_api/queue/join", content=b"x" * 10, headers=headers).json() == {"bytes": 10}


def test_a_link_to_the_page_may_stand_anywhere_but_no_frame(client):
    visit = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert client.get("/", headers=visit).status_code == 200
    assert client.get("/file", headers=visit).status_code == 403
    assert client.get("/", headers={**visit, "Sec-Fetch-Dest": "iframe"}).status_code == 403


def test_every_answer_forbids_frames_and_guessing(client):
    headers = client.get("/").headers
    assert (headers["x-frame-options"], headers["x-content-type-options"]) == ("DENY", "nosniff")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_a_body_that_is_too_large_is_refused(client):
    assert client.post("/gradio_api/queue/join", content=b"x" * 1001).status_code == 413
    assert client.post("/gradio_api/queue/join", content=b"x" * 1000).json() == {"bytes": 1000}


def test_a_body_that_does_not_tell_its_size_is_cut_off(client):
    def pieces():
        for _ in range(20):
            yield b"x" * 100

    from starlette.requests import ClientDisconnect

    with pytest.raises(ClientDisconnect):
        client.post("/gradio_api/queue/join", content=pieces())


def test_a_foreign_websocket_is_closed(client):
    from starlette.websockets import WebSocketDisconnect

    with client.websocket_connect("ws://127.0.0.1:7865/ws", headers={"Origin": ADDRESS}) as socket:
        assert socket.receive_text() == "in"
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("ws://127.0.0.1:7865/ws", headers={"Origin": "http://evil.example"}):
        pass
