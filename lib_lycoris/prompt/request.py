"""Tags in a prompt, <lyco:name:te:unet:dyn>, as values and back."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from lib_lycoris.errors import RequestError, shown

TAGS = ("lyco",)
"""The tag names taken where nobody says otherwise."""

_TAG = re.compile(r"<(\w+):([^>]+)>")
_POSITIONS = ("te", "unet", "dyn")


@dataclass(frozen=True)
class Request:
    """A network that a prompt asks for.

    Attributes:
        name: as typed: a file's stem, perhaps with its folder.
        te: strength on the text encoders; 1.0 = as trained.
        unet: strength on the UNet.
        dyn: how many ranks of a DyLoRA count; None for all.

    Raises:
        RequestError: a value that no tag can have.
    """

    name: str
    te: float = 1.0
    unet: float = 1.0
    dyn: int | None = None

    def __post_init__(self) -> None:
        if not self.name or self.name != self.name.strip() or set(self.name) & {":", ">"}:
            raise RequestError(f"network name {shown(self.name)!r} can't stand in a tag; give a file's name without ':' and '>'")
        for side in ("te", "unet"):
            if not math.isfinite(getattr(self, side)):
                raise RequestError(f"strength {side}={getattr(self, side)} of {shown(self.name)!r} is not finite; give a number like 0.8")
        if self.dyn is not None and self.dyn < 1:
            raise RequestError(f"dyn={self.dyn} of {shown(self.name)!r} is less than 1; give the number of ranks to use, or leave it out")


def parse_request(items: Sequence[str]) -> Request:
    """The request in a tag's parts, which are ["name", "0.8", "unet=0.5"] for <lyco:name:0.8:unet=0.5>.

    In order: name, te (default 1), unet (default te), dyn; te=, unet= and dyn= outrank the places. "default" stands for 1.

    Raises:
        RequestError: no name, a strength that is no finite number, an argument that is not known or given twice.

    Source: AUTOMATIC1111/stable-diffusion-webui v1.10.1, extensions-builtin/Lora/extra_networks_lora.py and modules/extra_networks.py (behaviour).
    """
    if not items or not items[0].strip():
        raise RequestError("a tag without a network's name; write <lyco:name:0.8>")
    name = items[0].strip()
    placed: list[str] = []
    named: dict[str, str] = {}
    for item in items[1:]:
        key, equals, value = item.partition("=")
        if not equals:
            placed.append(item)
            continue
        if key.strip() not in _POSITIONS:
            raise RequestError(f"{shown(name)!r} has an argument {shown(key)!r} that is not known; known are te=, unet= and dyn=")
        if key.strip() in named:
            raise RequestError(f"{shown(name)!r} has {shown(key)!r} twice; keep one")
        named[key.strip()] = value
    if len(placed) > len(_POSITIONS):
        raise RequestError(f"{shown(name)!r} has {len(placed)} values where at most 3 are known: te, unet and dyn; leave the others out")
    values = {**dict(zip(_POSITIONS, placed, strict=False)), **named}
    te = _number(name, "te", values.get("te", "default"))
    unet = _number(name, "unet", values["unet"]) if "unet" in values else te
    return Request(name, te, unet, _ranks(name, values.get("dyn", "default")))


def split_prompt(text: str, tags: Collection[str] = TAGS) -> tuple[str, list[Request], list[str]]:
    """The text without its tags, the requests of those tags whose name is in `tags`, and the problems in words.

    As in the WebUI every tag is cut out of the text, also one that nobody takes; that is a problem then.
    """
    requests: list[Request] = []
    problems: list[str] = []

    def take(found: re.Match[str]) -> str:
        try:
            if found[1] not in tags:
                known = ", ".join(f"<{tag}:…>" for tag in tags)
                raise RequestError(f"the tag {shown(found[0], 60)!r} is not known here and was left out; known are {known}")
            requests.append(parse_request(found[2].split(":")))
        except RequestError as error:
            problems.append(str(error))
        return ""

    return _TAG.sub(take, text), requests, problems


def render_request(request: Request, tag: str = TAGS[0]) -> str:
    """The shortest tag that parses to this request."""
    parts = [tag, request.name, _plain(request.te)]
    if request.unet != request.te:
        parts.append(_plain(request.unet))
    if request.dyn is not None:
        parts.append(f"dyn={request.dyn}")
    return f"<{':'.join(parts)}>"


def _plain(number: float) -> str:
    return repr(float(number)).removesuffix(".0")


def _number(name: str, side: str, text: str) -> float:
    if text.strip() == "default":
        return 1.0
    try:
        return float(text)
    except ValueError:
        raise RequestError(f"strength {side}={shown(text, 40)!r} of {shown(name)!r} is not a number; write <lyco:name:0.8>") from None


def _ranks(name: str, text: str) -> int | None:
    if text.strip() == "default":
        return None
    try:
        return int(text) or None  # 0 has always meant all
    except ValueError:
        raise RequestError(f"dyn={shown(text, 40)!r} of {shown(name)!r} is not a whole number; give the number of ranks to use") from None
