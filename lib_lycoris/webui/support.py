"""Which host this is, asked before anything of it is imported."""

from __future__ import annotations

from importlib.util import find_spec

_OTHERS = (("modules_forge", "Forge"), ("modules.modeldata", "SD.Next"), ("modules.sd_samplers_diffusers", "SD.Next"))
_NEEDED = tuple(f"modules.{name}" for name in (
    "extra_networks", "hashes", "patches", "script_callbacks", "sd_models", "sd_unet", "shared", "cache", "scripts", "infotext_utils", "ui_extra_networks",
    "ui_extra_networks_user_metadata"))


def unsupported_host() -> str | None:
    """One line that says what is supported here, where the host is not AUTOMATIC1111's WebUI; None where it is."""
    name = next((name for module, name in _OTHERS if _exists(module)), None)
    missing = [module for module in _NEEDED if not _exists(module)]
    if name is None and not missing:
        return None
    reason = f"this host is {name}" if name else f"this host has no {missing[0]}"
    return (f"Lyco Studio: {reason}; inside a WebUI only AUTOMATIC1111's (v1.10.1) is supported, so <lyco:…> stays off here. "
            "Training and generating work without a WebUI: python3 install.py studio")


def _exists(module: str) -> bool:
    """Whether a module can be found; its parent package is imported by asking, the module itself is not."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
