"""One setting of a record: its name, help text and range in one record, with which values are checked and read."""

from __future__ import annotations

import difflib
import json
import math
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from .errors import ConfigError


def setting(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
    not_yet: tuple[str, ...] = (),
    multiple: int | None = None,
    above_minimum: bool = False,
) -> Any:
    """A dataclass field that carries its own help text and the values it takes."""
    about = {
        "help": help, "minimum": minimum, "maximum": maximum, "choices": choices, "not_yet": not_yet, "multiple": multiple,
        "above_minimum": above_minimum,
    }
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Setting:
    """One setting, as forms, flags and tables need it."""

    section: str
    name: str
    kind: str
    """"whole number", "number", "yes or no", "text" or "list of texts"."""
    optional: bool
    default: Any
    help: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...] | None
    not_yet: tuple[str, ...]
    multiple: int | None
    above_minimum: bool

    @property
    def key(self) -> str:
        """The name as `--set` takes it: "training.learning_rate"."""
        return f"{self.section}.{self.name}"

    def expected(self) -> str:
        """In words, what this setting takes: "a whole number from 1 to 1024"."""
        if self.choices:
            words = ", ".join(f'"{choice}"' for choice in self.choices)
            text = f"some of {words}" if self.kind == "list of texts" else f"one of {words}"
        else:
            text = {"yes or no": "true or false"}.get(self.kind, f"a {self.kind}")
            text += self._range_words()
        return text + (", or left out" if self.optional else "")

    def _range_words(self) -> str:
        words = ""
        if self.minimum is not None and self.maximum is not None:
            words = f" from {self.minimum:g} to {self.maximum:g}"
        elif self.minimum is not None:
            words = f" of {self.minimum:g} or more"
        if self.above_minimum:
            words = f" above {self.minimum:g}" + (f", at most {self.maximum:g}" if self.maximum is not None else "")
        return words + (f", a multiple of {self.multiple}" if self.multiple else "")

    def json_schema(self) -> dict[str, Any]:
        """This setting in JSON Schema."""
        name = {"whole number": "integer", "number": "number", "yes or no": "boolean", "text": "string", "list of texts": "array"}[self.kind]
        ranges = {"exclusiveMinimum" if self.above_minimum else "minimum": self.minimum, "maximum": self.maximum, "multipleOf": self.multiple}
        schema = {"type": [name, "null"] if self.optional else name, "description": self.help, "default": self.default}
        schema |= {word: bound for word, bound in ranges.items() if bound is not None}
        choices = {"enum": [*self.choices, None] if self.optional and self.kind == "text" else list(self.choices)} if self.choices else {}
        if self.kind == "list of texts":
            schema |= {"items": {"type": "string", **choices}, "default": None if self.default is None else list(self.default)}
        else:
            schema |= choices
        return schema

    def wrong(self, value: Any) -> ConfigError:
        """The error that names this setting, the value that was given, and what would do."""
        return ConfigError(f"{self.key} = {show(value)}: expected {self.expected()}")

    def check(self, value: Any) -> Any:
        """The value in this setting's own type.

        Raises:
            ConfigError: the type is wrong, or the value is out of range.
        """
        if value is None:
            if self.optional:
                return None
            raise self.wrong(value)
        value = _TYPES[self.kind](self, value)
        if self.kind in ("whole number", "number"):
            self._check_range(value)
        return value

    def _check_range(self, value: float) -> None:
        too_small = self.minimum is not None and (value < self.minimum or (self.above_minimum and value == self.minimum))
        too_large = self.maximum is not None and value > self.maximum
        if too_small or too_large or (self.multiple and value % self.multiple):
            raise self.wrong(value)

    def parse(self, text: str) -> Any:
        """The value that a command line's text means; a list is one text, or JSON's ["a", "b"].

        Raises:
            ConfigError: the text means no value of this setting.
        """
        stripped = text.strip()
        if self.optional and stripped.lower() in ("", "none"):
            return None
        try:
            return self.check(_READERS[self.kind](self, stripped))
        except ValueError as error:
            raise error if isinstance(error, ConfigError) else self.wrong(text) from error


def show(value: Any) -> str:
    """A value on one line, as a config file would spell it."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _whole_number(setting: Setting, value: Any) -> int:
    # A page's number box and JSON may say 100.0 for 100; "true" is no number though Python thinks so.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (isinstance(value, float) and not value.is_integer()):
        raise setting.wrong(value)
    return int(value)


def _number(setting: Setting, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise setting.wrong(value)
    return float(value)


def _yes_or_no(setting: Setting, value: Any) -> bool:
    if not isinstance(value, bool):
        raise setting.wrong(value)
    return value


def _text(setting: Setting, value: Any) -> str:
    if isinstance(value, bool) and setting.choices and "true" in setting.choices:
        value = str(value).lower()
    if not isinstance(value, str):
        raise setting.wrong(value)
    _check_choice(setting, value)
    return value


def _check_choice(setting: Setting, value: str) -> None:
    if value in setting.not_yet:
        raise ConfigError(f'{setting.key} = "{value}": not yet in this version; use {setting.expected()}')
    if setting.choices and value not in setting.choices:
        near = difflib.get_close_matches(value, setting.choices, n=1)
        raise ConfigError(str(setting.wrong(value)) + (f'; did you mean "{near[0]}"?' if near else ""))


def _texts(setting: Setting, value: Any) -> tuple[str, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, (list, tuple)):
        raise setting.wrong(value)
    for item in value:
        if not isinstance(item, str) or not item:
            raise setting.wrong(value)
        _check_choice(setting, item)
    return tuple(value)


def _read_yes_or_no(setting: Setting, text: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if text.lower() not in words:
        raise setting.wrong(text)
    return words[text.lower()]


def _read_texts(setting: Setting, text: str) -> Any:
    if text.startswith("["):
        try:
            return json.loads(text)
        except ValueError as error:
            # a shell takes quotation marks away
            raise ConfigError(f"{setting.wrong(text)}, as '{setting.key}=[\"first\", \"second\"]' with quotation marks round all of it too") from error
    # A path may hold a comma; a choice never does.
    return [item.strip() for item in text.split(",")] if setting.choices else [text]


_TYPES: dict[str, Callable[[Setting, Any], Any]] = {
    "whole number": _whole_number, "number": _number, "yes or no": _yes_or_no, "text": _text, "list of texts": _texts,
}
_READERS: dict[str, Callable[[Setting, str], Any]] = {
    "whole number": lambda setting, text: int(text), "number": lambda setting, text: float(text), "yes or no": _read_yes_or_no,
    "text": lambda setting, text: text, "list of texts": _read_texts,
}
_KIND_NAMES = {int: "whole number", float: "number", bool: "yes or no", str: "text", tuple: "list of texts"}


class Section:
    """Checks every field of a section against its own record when it is made."""

    section: typing.ClassVar[str]

    def __post_init__(self) -> None:
        for item in section_settings(type(self)):
            object.__setattr__(self, item.name, item.check(getattr(self, item.name)))
        self._check_together()

    def _check_together(self) -> None:
        """Rules that need more than one field; a section with such rules overrides this."""


def section_settings(kind: type[Section]) -> list[Setting]:
    """The settings of one section; made once per section."""
    if "_settings" not in kind.__dict__:
        hints = typing.get_type_hints(kind)
        kind._settings = [_make_setting(kind.section, item, hints[item.name]) for item in fields(kind)]  # type: ignore[attr-defined]
    return kind._settings  # type: ignore[attr-defined]


def _make_setting(section: str, item: Any, hint: Any) -> Setting:
    optional = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    plain = next(option for option in typing.get_args(hint) if option is not type(None)) if optional else hint
    kind = _KIND_NAMES[typing.get_origin(plain) or plain]
    default = None if item.default is MISSING else item.default
    return Setting(section=section, name=item.name, kind=kind, optional=optional, default=default, **item.metadata)


@dataclass(frozen=True)
class Action:
    """Something that page, routes and command line can do, by one record.

    Attributes:
        name: of route and command.
        label: of its button.
        help: what it does, in a sentence.
        record: the section that its values make; bad values are an error when it is made.
        long: whether it is done in the background, and gives a job instead of its result.
    """

    name: str
    label: str
    help: str
    record: type[Section]
    long: bool = False

    @property
    def settings(self) -> list[Setting]:
        """The settings of its record."""
        return section_settings(self.record)

    def make(self, values: typing.Mapping[str, Any]) -> Any:
        """The record of these values.

        Raises:
            ConfigError: an unknown name, or a value that can't be.
        """
        known = [item.name for item in self.settings]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                raise ConfigError(f"{self.record.section}.{name}: no such setting; {advice}")
        return self.record(**values)

    def json_schema(self) -> dict[str, Any]:
        """Its values in JSON Schema."""
        return {"type": "object", "additionalProperties": False, "properties": {item.name: item.json_schema() for item in self.settings}}
