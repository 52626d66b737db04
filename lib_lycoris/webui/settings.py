"""The settings page "LyCORIS": one record for each setting, what it is now, and who is told when it changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modules import shared

from lib_lycoris.errors import RequestError
from lib_lycoris.prompt.blocks import PRESETS, parse_presets

from . import host

SECTION = ("lycoris", "LyCORIS")
BASE_MODEL, KIND, TRIGGER, ABOUT = "base model", "kind and rank", "trigger words", "description in the file"


@dataclass(frozen=True)
class Option:
    """One setting.

    Attributes:
        key: its name in the host's config.
        default: its value where the user chose none; its type is the setting's.
        label: what stands beside it.
        info: what stands behind the label.
        kind: the component that a user sees: "lines", "number", "slider", "check" or "choices".
        arguments: the component's, beside label and value.
        reload: whether it counts from the next "Reload UI" on.
    """

    key: str
    default: Any
    label: str
    info: str
    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    reload: bool = False


FOLDERS = Option("lycoris_folders", "", "Folders with networks, beside models/LyCORIS and models/Lora", "one path a line; subfolders too", "lines")
CACHE = Option("lycoris_cache_mb", 1024, "Networks kept in memory, MB", "those used last; 0: only those in use", "number",
               {"minimum": 0, "precision": 0})
STRENGTH = Option("lycoris_default_strength", 1.0, "Strength that a click on a card writes", "where the network has no preferred weight of its own",
                  "slider", {"minimum": -2.0, "maximum": 2.0, "step": 0.05})
HASHES = Option("lycoris_add_hashes", True, "Write the networks' hashes into infotexts", "by them a renamed file is found when an infotext is pasted", "check")
ON_CARDS = Option("lycoris_on_cards", [BASE_MODEL, KIND, TRIGGER, ABOUT], "On cards show", "beside your own description", "choices",
                  {"choices": [BASE_MODEL, KIND, TRIGGER, ABOUT]})
HIDE = Option("lycoris_hide_others", False, "Show only cards of networks for the loaded checkpoint's base model", "and those that don't tell theirs", "check")
BLOCKS = Option("lycoris_block_presets", "", "Your block presets, for lbw= and lbwe=",
                "a line each: NAME:1,0,0,1,… (12, 17, 20 or 26 values) or NAME:blocks:elements:weight", "lines")
ADAPTERS = Option("lycoris_adapter_folders", "", "Folders with T2I-Adapters, beside models/T2I-Adapter", "one path a line; subfolders too", "lines")
CONTROLNET = Option("lycoris_adapters_of_controlnet", True, "List the T2I-Adapters among ControlNet's models too",
                    "models/ControlNet, and the folder of the extension", "check")
OPTIONS = (FOLDERS, CACHE, STRENGTH, HASHES, ON_CARDS, HIDE, BLOCKS, ADAPTERS, CONTROLNET)


def register(component: Callable[..., Any]) -> None:
    """Adds the settings to the host's page.

    Args:
        component: makes the component of a kind: component(kind, label=…, value=…, elem_id=…, …).
    """
    shared.options_templates.update(shared.options_section(SECTION, {option.key: _info(option, component) for option in OPTIONS}))


def on_change(option: Option, work: Callable[[], None]) -> None:
    """Has `work` called whenever the user changes this setting."""
    shared.opts.onchange(option.key, work, call=False)


def value(option: Option) -> Any:
    """What the setting is now; its default where the host's config holds none, or something of another type."""
    found = shared.opts.data.get(option.key, option.default)
    if isinstance(option.default, (int, float)) and not isinstance(option.default, bool):
        return found if isinstance(found, (int, float)) else option.default
    return found if isinstance(found, type(option.default)) else option.default


def network_folders() -> list[Path]:
    """The folders that hold networks: the host's, then the user's own."""
    return list(dict.fromkeys((*host.network_folders(), *_paths(FOLDERS))))


def adapter_folders() -> list[Path]:
    """The folders that hold T2I-Adapters: ours, the user's own, and ControlNet's where it is wanted."""
    return list(dict.fromkeys((host.adapter_folder(), *_paths(ADAPTERS), *(host.controlnet_folders() if value(CONTROLNET) else ()))))


def _paths(option: Option) -> list[Path]:
    """The paths of a setting with one a line; what is no whole path lies below the host's models."""
    lines = [Path(line.strip()) for line in value(option).splitlines() if line.strip() and "\0" not in line]  # which no system takes, and raises at
    return [path if path.is_absolute() else Path(shared.models_path, path) for path in lines]


def cache_bytes() -> int:
    """How many bytes of networks are kept in memory."""
    return max(0, int(value(CACHE))) << 20


def block_presets() -> Mapping[str, str]:
    """The presets for block weights, the user's before those that everybody has; the latter alone where the user's can't be read."""
    try:
        return {**PRESETS, **parse_presets(value(BLOCKS))}
    except RequestError:
        return PRESETS


def preset_problem() -> str | None:
    """What is wrong with the user's block presets, or None."""
    try:
        parse_presets(value(BLOCKS))
    except RequestError as error:
        return str(error)
    return None


def _info(option: Option, component: Callable[..., Any]) -> Any:
    arguments = {**option.arguments, **(_hidden() if option in (FOLDERS, ADAPTERS) else {})}

    def make(**host_arguments: Any) -> Any:
        return component(option.kind, **host_arguments)

    info = shared.OptionInfo(option.default, option.label, make, arguments).info(option.info)
    return info.needs_reload_ui() if option.reload else info


def _hidden() -> Mapping[str, Any]:
    """Hides folders, and keeps them from being changed, where the host was started with --hide-ui-dir-config."""
    return getattr(shared, "hide_dirs", {})
