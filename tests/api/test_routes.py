"""The routes answer plain callables' values as JSON, and refuse whom they should."""

from __future__ import annotations

import pytest

fastapi = pytest.importorskip("fastapi")
pytest.importorskip("httpx")

import warnings  # noqa: E402

with warnings.catch_warnings():
    # Newer starlette announces the successor of httpx at this import; which of the two is installed is no matter here.
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

from lib_lycoris.api.routes import LARGEST_BODY, Callables, add_routes, passwords  # noqa: E402
from lib_lycoris.errors import BusyError, ConfigError  # noqa: E402

ADDRESS = "http://127.0.0.1:7865"


class Desk:
    """Callables that remember what they were handed."""

    def __init__(self):
        self.config = None
        self.stopped = False

    def train(self, config):
        if self.config is not None:
            raise BusyError("training 'a' is running: stop it first")
        if "rank" not in config.get("network", {}):
            raise ConfigError("network.rank is missing: set it")
        self.config = config
        return self.state()

    def state(self):
        return {"phase": "idle" if self.config is None else "running", "step": 0}

    def stop(self):
        self.stopped = True
        return self.state()

    def callables(self, generate=None):
        return Callables(networks=lambda: [{"name": "dog", "bytes": 3}], train=self.train, state=self.state, stop=self.stop, generate=generate)


def client(desk, generate=None, authorise=None):
    app = fastapi.FastAPI()
    add_routes(app, desk.callables(generate), authorise)
    return TestClient(app, base_url=ADDRESS)


def test_networks_are_listed():
    assert client(Desk()).get("/lycoris/v1/networks").json() == {"networks": [{"name": "dog", "bytes": 3}]}


def test_a_posted_config_reaches_the_trainer_as_it_was_sent():
    desk = Desk()
    answer = client(desk).post("/lycoris/v1/train", json={"network": {"rank": 4}})
    assert (answer.status_code, answer.json()["phase"]) == (200, "running")
    assert desk.config == {"network": {"rank": 4}}


def test_a_bad_setting_is_a_400_with_the_errors_own_line():
    answer = client(Desk()).post("/lycoris/v1/train", json={})
    assert (answer.status_code, answer.json()) == (400, {"error": "network.rank is missing: set it"})


def test_a_second_training_is_a_409():
    desk = Desk()
    desk.config = {}
    assert client(desk).post("/lycoris/v1/train", json={"network": {"rank": 4}}).status_code == 409


def test_stop_reaches_the_trainer():
    desk = Desk()
    assert client(desk).post("/lycoris/v1/train/stop").status_code == 200
    assert desk.stopped


@pytest.mark.parametrize(("body", "word"), [(b"{", "not JSON"), (b"[1]", "list"), (b"1" * (LARGEST_BODY + 1), "larger")])
def test_a_body_that_is_no_json_object_is_a_400(body, word):
    answer = client(Desk()).post("/lycoris/v1/train", content=body)
    assert answer.status_code == 400
    assert word in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_generate_exists_only_where_it_is_handed_in():
    assert client(Desk()).post("/lycoris/v1/generate", json={}).status_code == 404
    answer = client(Desk(), generate=lambda settings: {"seen": settings}).post("/lycoris/v1/generate", json={"prompt": "a dog"})
    assert answer.json() == {"seen": {"prompt": "a dog"}}


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Origin": "http://127.0.0.1:1"}, {"Origin": "null"}, {"Origin": "file://"},
                                     {"Origin": "http://127.0.0.1:port"}, {"Origin": "http://[::1"}, {"Sec-Fetch-Site": "cross-site"}])
def test_a_page_of_another_site_is_refused(headers):
    desk = Desk()
    answer = client(desk).post("/lycoris/v1/train", json={"network": {"rank": 4}}, headers=headers)
    assert answer.status_code == 403
    assert "\n" not in answer.json()["error"]
    assert desk.config is None


@pytest.mark.parametrize("headers", [{}, {"Origin": ADDRESS}, {"Origin": ADDRESS, "Sec-Fetch-Site": "same-origin"}])
def test_the_own_page_and_programs_are_let_in(headers):
    assert client(Desk()).post("/lycoris/v1/train/stop", headers=headers).status_code == 200


def test_without_the_right_password_nothing_is_answered():
    asked = client(Desk(), authorise=passwords("ann:secret, bob:a:b"))
    for credentials in (None, ("ann", "wrong"), ("eve", "secret")):
        answer = asked.get("/lycoris/v1/networks", auth=credentials)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Basic"
        assert "error" in answer.json()
    assert asked.get("/lycoris/v1/networks", auth=("ann", "secret")).status_code == 200
    assert asked.get("/lycoris/v1/networks", auth=("bob", "a:b")).status_code == 200


def test_a_host_that_only_lists_networks_has_that_route_alone():
    app = fastapi.FastAPI()
    add_routes(app, Callables(networks=list))
    assert [path for path in app.openapi()["paths"] if path.startswith("/lycoris")] == ["/lycoris/v1/networks"]
    assert TestClient(app, base_url=ADDRESS).get("/lycoris/v1/networks").json() == {"networks": []}


def test_the_openapi_page_describes_every_route():
    paths = client(Desk(), generate=dict).get("/openapi.json").json()["paths"]
    assert {path: sorted(methods) for path, methods in paths.items()} == {
        "/lycoris/v1/networks": ["get"], "/lycoris/v1/train": ["get", "post"], "/lycoris/v1/train/stop": ["post"], "/lycoris/v1/generate": ["post"],
    }
