"""Which preprocessor belongs to an adapter, by what its file says or by what it is called."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from ..errors import ConfigError
from ..setting import section_settings
from .table import TABLE, Preprocessor

_WORDS = (
    (r"invert", "invert"), (r"canny", "canny"), (r"line_?art", "lineart"), (r"sketch|scribble", "xdog"), (r"soft_?edge|hed|pidi(net)?|edges?", "softedge"),
    (r"colou?r", "color_grid"), (r"blur", "blur"), (r"depth|midas|zoe(depth)?", "depth"), (r"(open|key)?_?pose|skeleton", "none"), (r"seg(mentation)?", "none"),
)
_SMALL_MAPS = (("sdxl", "canny", 384), ("sdxl", "lineart", 384))


def choose_preprocessor(names: Iterable[str | None], available: Collection[str] | None = None) -> str:
    """The name of the preprocessor that the first telling text means; "none" where no text tells, or what it means is not here.

    Args:
        names: from the most to the least reliable: what the file's metadata says, its name, its folder's name, …
        available: names that there are; None: those of the table.
    """
    known = {each.name for each in TABLE} if available is None else set(available)
    for text in names:
        plain = re.sub(r"[^a-z0-9]+", "_", (text or "").lower()).strip("_")
        if plain in known:
            return plain
        means = next((name for word, name in _WORDS if re.search(rf"(?:^|_)(?:{word})(?:_|$)", plain)), None)
        if means is not None:
            return means if means in known else "none"
    return "none"


def choose_resolution(told: int | None, layout: str | None, preprocessor: str) -> int | None:
    """The shorter side, in pixels, of the maps that an adapter was trained with; None where nobody knows: the picture's own will do.

    Args:
        told: what the file's metadata says.
        layout: the adapter's layout, "sd" or "sdxl".
        preprocessor: whose map it takes.

    Source: the model cards of TencentARC/t2i-adapter-canny-sdxl-1.0 and t2i-adapter-lineart-sdxl-1.0 (detect_resolution=384);
    Mikubill/sd-webui-controlnet#2100.
    """
    return told or next((side for kind, name, side in _SMALL_MAPS if (layout, preprocessor) == (kind, name)), None)


def told_values(preprocessor: Preprocessor, told: str | None) -> dict[str, Any]:
    """The values by name of "low=50, high=150", as an adapter's metadata has them; {} where they are not this preprocessor's or do not go together."""
    known = {setting.name: setting for setting in section_settings(preprocessor.values)}
    values = {}
    try:
        for item in (told or "").split(",") if told else ():
            name, _, written = (part.strip() for part in item.partition("="))
            if name not in known:
                return {}
            values[name] = known[name].parse(written)
        preprocessor.values(**values)
    except ConfigError:
        return {}
    return values
