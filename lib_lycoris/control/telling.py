"""What a page tells of an adapter before a picture is made with it."""

from __future__ import annotations

from typing import Any

from lib_lycoris.control.preparing import LAYOUTS
from lib_lycoris.preprocess.choose import choose_preprocessor, choose_resolution, told_values
from lib_lycoris.preprocess.table import find_preprocessor

_BASE = {"sd_v1": "SD 1", "sd_v2": "SD 2", "sdxl_base_v1-0": "SDXL"}


def own_preprocessor(name: str, facts: Any) -> str:
    """The preprocessor that belongs to an adapter, by its metadata or its name; "none" where neither tells, or nothing is known of it."""
    return "none" if facts is None or facts.kind == "style" else choose_preprocessor([facts.preprocessor, facts.task, name])


def tell_adapter(name: str, facts: Any, fits: bool, seeing: str) -> dict[str, Any]:
    """{"words": one line on an adapter, "preprocessor": the one that belongs to it, "resolution": pixels or None, "values": its
    preprocessor's own, None where the file tells none}.

    Args:
        name: what it is called.
        facts: what its file says, files.adapters.AdapterFacts.
        fits: whether it is for the loaded checkpoint.
        seeing: of a style adapter, what is to be said of CLIP's picture encoder.
    """
    preprocessor = own_preprocessor(name, facts)
    base = _BASE.get(facts.base_model or "") or LAYOUTS.get(facts.layout or "")
    words = [f"{facts.kind} adapter", *([f"for {base}"] if base else [])]
    if facts.kind == "style":
        words.append(seeing)
    else:
        words.append(f"preprocessor: {preprocessor}" if preprocessor != "none" else "give it a finished control map, or choose a preprocessor")
    if not fits:
        words.append("NOT for the loaded checkpoint")
    found = find_preprocessor(preprocessor)
    told = told_values(found, facts.preprocessor_values)
    return {"words": " · ".join(words), "preprocessor": preprocessor, "resolution": choose_resolution(facts.resolution, facts.layout, preprocessor),
            "values": [told.get(each.name) for each in found.parameters]}
