"""Which settings a kind of network knows, so that a page shows no field that would do nothing."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ..errors import ConfigError
from ..setting import Setting
from .config import KINDS, TrainConfig, settings

_RANKED = ("lora", "locon", "loha", "lokr", "adalora")
_MEANT = {
    "network.rank": _RANKED, "network.alpha": _RANKED, "network.block_ranks": _RANKED, "network.conv_rank": ("locon", "loha", "lokr"),
    "network.conv_alpha": ("locon", "loha", "lokr"), "network.beta1": ("adalora",), "network.beta2": ("adalora",), "network.orthogonality": ("adalora",),
    "network.dora_on_output": ("lora", "locon", "loha", "lokr"), "network.text_encoder": (*_RANKED, "full", "norm", "ia3"),
}
"""What a config may say of any kind, though only these do something with it."""
_ALWAYS = ("network.kind", "data.templates")
"""Fields that are there for every kind; the second needs a trigger word, whatever the kind."""
_WORD = {"section": "embedding", "key": "word", "value": "zorb"}
"""A network may be trained together with a new word, whose settings then count."""


@lru_cache(maxsize=1)
def unknown_settings() -> dict[str, tuple[str, ...]]:
    """For each kind the keys of the settings that it does not know, found by asking the config itself: an error with this kind and none with another."""
    refused = {kind: {setting.key for setting in settings() if not _takes(kind, setting)} for kind in KINDS}
    everywhere = set.intersection(*refused.values())
    found = {}
    for kind in KINDS:
        without = {key for key, kinds in _MEANT.items() if kind not in kinds}
        if f"{_WORD['section']}.{_WORD['key']}" in refused[kind]:
            without |= {setting.key for setting in settings() if setting.section == _WORD["section"]}
        found[kind] = tuple(setting.key for setting in settings() if setting.key in (refused[kind] - everywhere) | without)
    return found


def _takes(kind: str, setting: Setting) -> bool:
    """Whether a config of that kind may give this setting another value than its default."""
    if setting.key in _ALWAYS:
        return True
    return any(_accepts(kind, setting, value) for value in _other_values(setting))


def _accepts(kind: str, setting: Setting, value: Any) -> bool:
    sections: dict[str, dict[str, Any]] = {"network": {"kind": kind}}
    if setting.section == _WORD["section"] and setting.name != _WORD["key"] and kind != setting.section:
        sections[_WORD["section"]] = {_WORD["key"]: _WORD["value"]}
    sections.setdefault(setting.section, {})[setting.name] = value
    try:
        TrainConfig.from_dict(sections)
    except ConfigError as error:
        return not str(error).startswith(setting.key)
    return True


def _other_values(setting: Setting) -> list[Any]:
    """Some values that the setting takes, and not its default."""
    if setting.choices:
        others = [choice for choice in setting.choices if choice != setting.default]
        return [[choice] for choice in others] if setting.kind == "list of texts" else others
    if setting.kind == "yes or no":
        return [not setting.default]
    if setting.kind in ("number", "whole number"):
        low = setting.minimum if setting.minimum is not None else 0
        high = setting.maximum if setting.maximum is not None else low + 1000
        step = setting.multiple or 1
        every = [low, low + step, low + 64 * step] if setting.kind == "whole number" else [low + (high - low) / 4, low + (high - low) / 2]
        return [value for value in every if value <= high and value != setting.default]
    return [["zorb=1"]] if setting.kind == "list of texts" else ["zorb"]
