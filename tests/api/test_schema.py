"""The OpenAPI page describes every setting of the training config, in words that both hosts' FastAPI take."""

from __future__ import annotations

import pytest

fastapi = pytest.importorskip("fastapi")

from lib_lycoris.api.routes import Callables, add_routes  # noqa: E402
from lib_lycoris.training.config import settings  # noqa: E402


def described():
    """The training config's schema as the app's OpenAPI document gives it."""
    app = fastapi.FastAPI()
    add_routes(app, Callables(list, dict, dict, dict))
    return app.openapi()["paths"]["/lycoris/v1/train"]["post"]["requestBody"]["content"]["application/json"]["schema"]


def test_every_setting_is_described_with_its_help():
    sections = described()["properties"]
    found = {f"{section}.{name}": schema["description"] for section, part in sections.items() for name, schema in part["properties"].items()}
    assert found == {setting.key: setting.help for setting in settings()}


def test_defaults_and_ranges_are_the_records():
    rank = described()["properties"]["network"]["properties"]["rank"]
    record = next(setting for setting in settings() if setting.key == "network.rank")
    assert (rank["type"], rank["minimum"], rank["maximum"], rank["default"]) == ("integer", record.minimum, record.maximum, record.default)


def test_the_settings_of_a_picture_are_described_too():
    app, some = fastapi.FastAPI(), [setting for setting in settings() if setting.section == "output"]
    add_routes(app, Callables(list, generate=dict), picture=some)
    body = app.openapi()["paths"]["/lycoris/v1/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {name: schema["description"] for name, schema in body["properties"].items()} == {setting.name: setting.help for setting in some}
