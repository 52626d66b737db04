"""JSON Schemas of the project's records, for the OpenAPI page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..training.config import Setting

_TYPES: dict[str, dict[str, Any]] = {
    "whole number": {"type": "integer"}, "number": {"type": "number"}, "yes or no": {"type": "boolean"}, "text": {"type": "string"},
    "list of texts": {"type": "array", "items": {"type": "string"}},
}


def sections_schema(record: Sequence[Setting]) -> dict[str, Any]:
    """The schema of a record that is written as {"section": {"key": value}}."""
    sections: dict[str, list[Setting]] = {}
    for setting in record:
        sections.setdefault(setting.section, []).append(setting)
    return _object({section: flat_schema(settings) for section, settings in sections.items()})


def flat_schema(record: Sequence[Setting]) -> dict[str, Any]:
    """The schema of a record that is written as {"key": value}."""
    return _object({setting.name: setting_schema(setting) for setting in record})


def setting_schema(setting: Setting) -> dict[str, Any]:
    """The schema of one setting's value."""
    schema: dict[str, Any] = {**_TYPES[setting.kind], "description": setting.help}
    if setting.choices:
        if setting.kind == "list of texts":
            schema["items"] = {"type": "string", "enum": list(setting.choices)}
        else:
            schema["enum"] = list(setting.choices)
    if setting.minimum is not None:
        schema["exclusiveMinimum" if setting.above_minimum else "minimum"] = setting.minimum
    if setting.maximum is not None:
        schema["maximum"] = setting.maximum
    if setting.multiple is not None:
        schema["multipleOf"] = setting.multiple
    if setting.optional:
        # The one spelling of "or null" that OpenAPI 3.0 (the WebUI's FastAPI) and 3.1 both take.
        schema = {"anyOf": [schema, {"type": "null"}], "description": schema.pop("description")}
    if setting.default is not None:
        schema["default"] = list(setting.default) if isinstance(setting.default, tuple) else setting.default
    return schema


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}
