"""`/lycoris/v1/networks` of the real WebUI: listed, looked into, remarked on, deleted; by whom and where."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request

import pytest

from lib_lycoris.tools.actions import ACTIONS

from .network_files import write_network

pytestmark = pytest.mark.webui
ROUTE = "/lycoris/v1/networks"


def request(webui, method, name="", body=None, authorised=True, **headers):
    """(status, JSON) of a request."""
    import base64

    if authorised:
        headers["Authorization"] = "Basic " + base64.b64encode(b"tester:a secret").decode()
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(webui._url + ROUTE + ("/" + name if name else ""), data, headers, method=method)
    try:
        with webui._opener.open(asked, timeout=600) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture
def network(real_webui):
    path = real_webui.networks / "api" / "some, one.safetensors"
    path.parent.mkdir(exist_ok=True)
    write_network(path, real_webui.shapes, seed=5)
    path.with_suffix(".png").write_bytes(b"x")
    yield path
    for each in path.parent.iterdir():
        each.unlink()


def test_a_network_is_listed_looked_into_remarked_on_and_deleted(real_webui, network):
    name = urllib.parse.quote("some, one")
    row = next(row for row in request(real_webui, "GET")[1]["networks"] if row["name"] == "some, one")
    assert (row["kind"], row["rank"], row["base_model"], row["tag"]) == ("LoRA", 4, "sd_v1", "<lyco:some, one:1>")
    status, seen = request(real_webui, "GET", f"api/{name}")
    assert status == 200 and seen["metadata"]["ss_network_dim"] == "4" and seen["inspection"]["layers"] > 10 and seen["inspection"]["norms"]
    status, remarked = request(real_webui, "PATCH", name, {"activation text": "<b>zorb</b>", "preferred weight": 0.4})
    assert status == 200 and json.loads(network.with_suffix(".json").read_text()) == remarked["remarks"]
    assert request(real_webui, "PATCH", name, {"activation": "x"})[0] == 400
    assert not real_webui.picture("a shape <lyco:some, one:1>").comments
    status, deleted = request(real_webui, "DELETE", name)
    assert status == 200 and set(deleted["deleted"]) == {"some, one.safetensors", "some, one.json", "some, one.png"}
    assert list(network.parent.iterdir()) == []
    assert request(real_webui, "DELETE", name)[0] == request(real_webui, "GET", name)[0] == 404
    assert "no network is called" in real_webui.picture("a shape <lyco:some, one:1>").comments[0]


@pytest.mark.parametrize("name", ["..%2f..%2fconfig", "..%2f..%2fconfig.json", "%2fetc%2fpasswd", "api%2f..%2f..%2f..%2fconfig.json",
                                  "api%2f..%2f..%2fStable-diffusion%2fbase",
                                  "%00", "..%5c..%5cconfig.json"])
@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_no_name_leads_out_of_the_folders(real_webui, network, name, method):
    before = sorted(real_webui.data.rglob("*.safetensors")), (real_webui.data / "config.json").read_bytes()
    assert request(real_webui, method, name, {"notes": "x"} if method == "PATCH" else None)[0] == 404
    assert before == (sorted(real_webui.data.rglob("*.safetensors")), (real_webui.data / "config.json").read_bytes())


@pytest.mark.parametrize(("authorised", "headers", "status"), [
    (False, {}, 401), (True, {"Origin": "http://evil.example"}, 403), (True, {"Origin": "null"}, 403), (True, {"Sec-Fetch-Site": "cross-site"}, 403)])
@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_strangers_are_refused(real_webui, network, method, authorised, headers, status):
    assert request(real_webui, method, "some%2C%20one", {"notes": "x"} if method == "PATCH" else None, authorised, **headers)[0] == status
    assert network.exists() and not network.with_suffix(".json").exists()


def test_routes_page_axes_and_settings_are_there_once_also_after_reload_ui(real_webui):
    for _ in range(2):
        real_webui.reload_ui()
    parts = [part["props"] for part in real_webui.ask("/config")["components"]]
    assert [props.get("elem_id") for props in parts if props.get("label") == "LyCORIS"] == ["txt2img_lycoris", "img2img_lycoris",
                                                                                                       "settings_lycoris"]
    settings = [props["elem_id"] for props in parts if str(props.get("elem_id")).startswith("setting_lycoris_")]
    assert len(settings) == len(set(settings)) == 9
    (plot,) = [info for info in real_webui.ask("/sdapi/v1/script-info") if info["name"] == "x/y/z plot" and not info["is_img2img"]]
    axes = [label for label in plot["args"][0]["choices"] if "Lyco" in label]
    assert len(axes) == len(set(axes)) == 9
    paths = real_webui.ask("/openapi.json")["paths"]
    ours = {path: sorted(methods) for path, methods in paths.items() if path.startswith("/lycoris")}
    assert (ours[ROUTE], ours[f"{ROUTE}/{{name}}"]) == (["get"], ["delete", "get", "patch"])
    assert {f"/lycoris/v1/library/{action.name}" for action in ACTIONS} <= set(ours)
    described = paths[f"{ROUTE}/{{name}}"]
    assert len({each["operationId"] for each in described.values()}) == 3
    assert "activation text" in described["patch"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
