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
from lib_lycoris.errors import BusyError, ConfigError, UnknownNetworkError  # noqa: E402

ADDRESS = "http://127.0.0.1:7865"


class Desk:
    """Callables that remember what they were handed."""

    def __init__(self):
        self.config = None
        self.stopped = False
        self.changes = self.deleted = None

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

    def pause(self):
        return {"phase": "pausing"}

    def resume(self, config):
        return {"phase": "preparing", "config": config}

    def callables(self, generate=None):
        return Callables(networks=lambda: [{"name": "dog", "bytes": 3}], train=self.train, state=self.state, stop=self.stop, pause=self.pause,
                         resume=self.resume, generate=generate, network=self.network, remark=self.remark, delete=self.delete)

    def network(self, name):
        if name.startswith("no "):
            raise UnknownNetworkError(f"no network is called {name!r}")
        return {"name": name}

    def remark(self, name, changes):
        self.changes = (name, changes)
        return {"name": name, "remarks": changes}

    def delete(self, name):
        self.deleted = name
        return {"name": name, "deleted": [name]}


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
        "/lycoris/v1/networks": ["get"], "/lycoris/v1/networks/{name}": ["delete", "get", "patch"],
        "/lycoris/v1/train": ["get", "post"], "/lycoris/v1/train/stop": ["post"], "/lycoris/v1/train/pause": ["post"],
        "/lycoris/v1/train/resume": ["post"], "/lycoris/v1/generate": ["post"],
    }


def test_a_training_is_paused_and_resumed_with_a_config_or_without():
    asked = client(Desk())
    assert asked.post("/lycoris/v1/train/pause").json() == {"phase": "pausing"}
    assert asked.post("/lycoris/v1/train/resume").json() == {"phase": "preparing", "config": None}
    assert asked.post("/lycoris/v1/train/resume", json={"output": {"name": "dog"}}).json()["config"] == {"output": {"name": "dog"}}
    assert asked.post("/lycoris/v1/train/resume", content=b"[]").status_code == 400


@pytest.mark.parametrize(("written", "name"), [("dog", "dog"), ("animals/dog", "animals/dog"), ("animals%2Fdog", "animals/dog"), ("a%20b%3Fc%23d", "a b?c#d"),
                                               ("%3Cimg%20src%3Dx%3E", "<img src=x>"), ("..%2F..%2Fetc", "../../etc"), ("d%C3%B6g", "dög")])
def test_a_networks_name_reaches_the_callable_as_it_was_meant(written, name):
    asked = client(Desk())
    assert asked.get(f"/lycoris/v1/networks/{written}").json() == {"name": name}


def test_remarks_and_deletion_reach_their_callables():
    desk = Desk()
    asked = client(desk)
    assert asked.patch("/lycoris/v1/networks/a/dog", json={"notes": "n"}).json() == {"name": "a/dog", "remarks": {"notes": "n"}}
    assert asked.delete("/lycoris/v1/networks/a/dog").json() == {"name": "a/dog", "deleted": ["a/dog"]}
    assert (desk.changes, desk.deleted) == (("a/dog", {"notes": "n"}), "a/dog")
    answer = asked.get("/lycoris/v1/networks/no dog")
    assert (answer.status_code, answer.json()) == (404, {"error": "no network is called 'no dog'"})
    assert asked.patch("/lycoris/v1/networks/dog", content=b"[]").status_code == 400


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}])
def test_a_page_of_another_site_changes_and_deletes_nothing(method, headers):
    desk = Desk()
    assert client(desk).request(method, "/lycoris/v1/networks/dog", json={"notes": "n"}, headers=headers).status_code == 403
    assert client(desk, authorise=passwords("a:b")).request(method, "/lycoris/v1/networks/dog", json={"notes": "n"}).status_code == 401
    assert (desk.changes, desk.deleted) == (None, None)


def test_the_remarks_that_are_described_are_those_that_are_taken():
    from lib_lycoris.files.sidecar import KEYS, VERSIONS

    document = client(Desk()).get("/openapi.json").json()["paths"]["/lycoris/v1/networks/{name}"]
    described = document["patch"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert set(described) == set(KEYS) and tuple(described["sd version"]["enum"]) == VERSIONS
    assert all(each["parameters"][0]["name"] == "name" and len(each["parameters"]) == 1 for each in document.values())
