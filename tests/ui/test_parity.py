"""What the Train tab can do, the HTTP API can do: every function of the page has a route, and every field of the form stands in the route's schema."""

from __future__ import annotations

import dataclasses
import warnings

import pytest

fastapi = pytest.importorskip("fastapi")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # gradio 3.41 warns of its own dependencies at import
    pytest.importorskip("gradio")

from lib_lycoris.api.routes import PREFIX, Callables, add_routes  # noqa: E402
from lib_lycoris.training.config import TrainConfig  # noqa: E402
from lib_lycoris.training.desk import Desk  # noqa: E402
from lib_lycoris.training.fence import Fence  # noqa: E402
from lib_lycoris.training.job import TrainJob  # noqa: E402
from lib_lycoris.training.sample_set import SampleSet  # noqa: E402
from lib_lycoris.ui.train_page import TrainPage  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

ROUTES = {
    "start": ("post", "/train"), "stop": ("post", "/train/stop"), "state": ("get", "/train"), "check": ("post", "/train/check"),
    "pause": ("post", "/train/pause"),
    "resume": ("post", "/train/resume"), "preview": ("post", "/train/preview"), "thumbnail": ("post", "/train/thumbnail"),
    "pictures": ("post", "/train/pictures"),
    "picture": ("post", "/train/picture"), "caption": ("patch", "/train/picture"), "upload": ("post", "/train/upload"), "sample": ("post", "/train/sample"),
    "presets": ("get", "/presets"), "save_preset": ("post", "/presets"), "delete_preset": ("delete", "/presets/{name}"),
    "import_settings": ("post", "/train/import"), "export": ("post", "/train/export"), "config": ("get", "/train/config"),
}
DATA = ("defaults", "fixed", "polls", "unknown")


@pytest.fixture
def app(tmp_path):
    app = fastapi.FastAPI()
    job = TrainJob(lambda config, leads: None)
    desk = Desk(tmp_path, Fence(lambda: [tmp_path]), TrainConfig.from_dict, job, sample=lambda kind: SampleSet(kind, "", lambda folder: folder.mkdir()))
    add_routes(app, Callables(networks=list, train=dict, state=dict, stop=dict, pause=dict, resume=dict, preview=dict, check=lambda config: ["8 pictures"],
                              desk=desk))
    return app


def test_every_function_of_the_page_has_a_route(app):
    functions = [field.name for field in dataclasses.fields(TrainPage) if field.name not in DATA]
    assert sorted(functions) == sorted(ROUTES)
    paths = app.openapi()["paths"]
    for method, path in ROUTES.values():
        assert any(known.replace(":path", "") == PREFIX + path and method in what for known, what in paths.items()), path


def test_every_field_of_the_form_stands_in_the_routes_schema(app):
    schema = app.openapi()["paths"][f"{PREFIX}/train"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    described = {f"{section}.{key}" for section, part in schema["properties"].items() for key in part["properties"]}
    plain = TrainConfig().to_dict()
    assert described == {f"{section}.{key}" for section, part in plain.items() for key in part}


def test_what_the_generate_tab_asks_for_route_and_command_line_take_too():
    import argparse

    from lib_lycoris.cli import generate as command
    from lib_lycoris.prompt.unit import Unit
    from lib_lycoris.prompt.unit_values import FIELDS, FUSER
    from lib_lycoris.setting import section_settings
    from lib_lycoris.ui.generate import GeneratePage

    pytest.importorskip("diffusers")
    from lib_lycoris.studio.generate import GenerateSettings

    record = section_settings(GenerateSettings)
    app = fastapi.FastAPI()
    add_routes(app, Callables(networks=list, train=dict, state=dict, stop=dict, check=list, generate=dict, adapters=list, control_map=dict, preprocessors=list,
                              pictures=list, recall=lambda name: {}, read_picture=lambda values: {}), picture=record)
    paths = app.openapi()["paths"]
    properties = paths[f"{PREFIX}/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert set(properties) == {setting.name for setting in record} | {"units", FUSER}
    assert set(properties["units"]["items"]["properties"]) == set(FIELDS)
    assert {"/pictures", "/pictures/{name}", "/pictures/read", "/adapters", "/preprocess"} <= {path.removeprefix(PREFIX).replace(":path", "") for path in paths}
    assert {"generate", "history", "recall", "read_picture", "adapters"} <= {field.name for field in dataclasses.fields(GeneratePage)}
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    flags = {action.dest for action in parser._actions}
    sides, of_a_page = {"width", "height"}, {"enabled", "picture", "pictures", "scheduler"}  # --size; --adapter names one; --control; "DPM++ 2M Karras"
    assert {setting.name for setting in record} - flags <= sides | of_a_page
    others = set(FIELDS) - flags - of_a_page
    assert "adapter_set" in flags and others == {setting.name for setting in section_settings(Unit)} & others and FUSER in flags


def test_the_routes_do_it(app, tmp_path):
    pytest.importorskip("httpx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fastapi.testclient import TestClient

    client = TestClient(app, base_url="http://127.0.0.1:7865")

    def ask(method, route, **body):
        answer = client.request(method, PREFIX + route, json=body or None)
        return answer.status_code, answer.json()

    import base64
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (96, 64), "red").save(file, "PNG")
    status, made = ask("POST", "/train/upload", name="cats", files=[{"name": "a.png", "data": base64.b64encode(file.getvalue()).decode()}])
    assert status == 200 and made["written"] == ["a.png"]
    config = {"data": {"folders": [made["folder"]], "resolution": 64}}
    path = ask("POST", "/train/pictures", **config)[1]["pictures"][0]["path"]
    assert ask("PATCH", "/train/picture", config=config, path=path, caption="a cat")[1]["caption"] == "a cat"
    assert Image.open(io.BytesIO(base64.b64decode(ask("POST", "/train/picture", config=config, path=path, side=48)[1]["image"]))).size == (48, 32)
    assert ask("POST", "/train/check", **config) == (200, {"lines": ["8 pictures"]})
    assert "network.rank=3" in ask("POST", "/train/export", network={"rank": 3})[1]["command"]
    assert ask("POST", "/train/import", text='{"network_dim": 9}')[1]["values"]["network.rank"] == 9
    assert ask("POST", "/presets", name="mine", config={"network": {"rank": 3}})[1]["own"]
    assert ask("GET", "/presets")[1]["presets"][-1]["name"] == "mine"
    assert ask("DELETE", "/presets/mine")[0] == 200 and ask("DELETE", "/presets/mine")[0] == 404
    assert ask("POST", "/train/thumbnail", path="/etc/passwd")[0] == 400 and ask("POST", "/presets", name="mine")[0] == 400
    assert ask("POST", "/train/sample", kind="embedding")[1]["folder"].endswith("embedding") and ask("POST", "/train/sample", kind="x")[0] == 400
    assert ask("POST", "/train/sample")[1]["folder"].startswith(str(tmp_path)) and ask("GET", "/train/config")[1] == {"config": None}
