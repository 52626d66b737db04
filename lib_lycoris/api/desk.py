"""The routes around a training: pictures and captions, uploads, presets, settings in other forms. What the page does, they do."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ConfigError
from ..training.config import KINDS, json_schema

LARGEST_UPLOAD = 150_000_000
"""Bytes of JSON in one upload; larger sets go in parts."""


def add_desk(add: Callable[..., None], desk: Any) -> None:
    """Adds them.

    Args:
        add: as `api.routes.add_routes` has it: (method, path, summary, work, body, required, largest).
        desk: `training.desk.Desk`.
    """
    config = json_schema()
    add("POST", "/train/pictures", "The pictures of a config's dataset with captions, sizes and what is cut off; the body is a config", desk.pictures, config)
    add("POST", "/train/picture", "One of them as a small PNG in base64, what is cut off in the dark", lambda body: _picture(desk, body),
        _schema({"config": config, "path": _TEXT, "side": {"type": "integer", "minimum": 16, "maximum": 1024}}, "config", "path"))
    add("PATCH", "/train/picture", "Write one's caption beside it",
        lambda body: desk.caption(_part(body, "config"), str(body.get("path")), body.get("caption")),
        _schema({"config": config, "path": _TEXT, "caption": _TEXT}, "config", "path", "caption"))
    add("POST", "/train/upload", "Put pictures and captions into a dataset folder of ours", desk.upload_encoded, _UPLOAD, True, LARGEST_UPLOAD)
    add("POST", "/train/sample", "Draw the sample pictures for a kind of network; gives their folder, and settings that belong to them",
        (lambda body: desk.sample((body or {}).get("kind", KINDS[0]))) if desk.has_sample else None, _SAMPLE, required=False)
    add("POST", "/train/thumbnail", "A preview picture of the newest training as a small JPEG in base64",
        lambda body: {"image": base64.b64encode(desk.thumbnail(str(body.get("path")))).decode("ascii")}, _schema({"path": _TEXT}, "path"))
    add("POST", "/train/export", "A config as a config file and as a command line", desk.export, config)
    add("POST", "/train/import", "Settings of kohya_ss (JSON), sd-scripts (TOML) or of a config file of ours, read as ours",
        lambda body: desk.import_settings(body.get("text")), _schema({"text": _TEXT}, "text"))
    add("GET", "/train/config", "The config of the training that is under way, or was last", lambda: {"config": desk.config()})
    add("GET", "/presets", "The presets, the user's own last", lambda: {"presets": desk.presets()})
    add("POST", "/presets", "Save a config's way of training as an own preset", lambda body: desk.save_preset(body.get("name"), _part(body, "config")),
        _schema({"name": _TEXT, "config": config}, "name", "config"))
    add("DELETE", "/presets/{name:path}", "Delete an own preset", desk.delete_preset)


def _picture(desk: Any, body: Mapping[str, Any]) -> dict[str, str]:
    file = io.BytesIO()
    desk.picture(_part(body, "config"), str(body.get("path")), body.get("side", 512)).save(file, "PNG")
    return {"image": base64.b64encode(file.getvalue()).decode("ascii")}


def _part(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = body.get(name)
    if not isinstance(part, Mapping):
        raise ConfigError(f"{name} is missing: post a training config under it")
    return part


def _schema(properties: Mapping[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": dict(properties)}


_TEXT = {"type": "string"}
_SAMPLE = _schema({"kind": {"enum": list(KINDS), "default": KINDS[0]}})
_UPLOAD = _schema({
    "name": {"type": "string", "description": "Of the dataset folder"},
    "files": {"type": "array", "items": _schema({"name": _TEXT, "data": {"type": "string", "description": "The content in base64"}}, "name", "data")},
}, "name", "files")
