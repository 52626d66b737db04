"""Tags in a prompt, <lyco:name:te:unet:dyn>, as values and back."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from dataclasses import replace as change

from lib_lycoris.errors import RequestError, shown

from .blocks import VECTORS, BlockWeights, parse_elements, read_blocks, read_layers, read_patterns, render_elements
from .schedule import Schedule, as_schedule, clock, parse_number, parse_schedule, render_number, render_schedule
from .tag import join_quoted, quote, sort_arguments, unquote

TAGS = ("lyco",)
"""The tag names taken where nobody says otherwise."""
ROWS = ("all", "cond")
"""What on= may be: the rows of positive and negative prompt, or those of the positive prompt alone."""
ARGUMENTS = ("te", "unet", "dyn", "hr", "hrte", "hrunet", "refiner", "start", "stop", "step", "lbw", "lbwe", "x", "only", "except", "layers", "on")
"""Every argument that has a name, in the order in which messages tell them."""

_TAG = re.compile(r"<(\w+):([^>]+)>")
_POSITIONS = ("te", "unet", "dyn")
_SCHEDULES = ("te", "unet", "hrte", "hrunet", "refiner")


@dataclass(frozen=True)
class Request:
    """A network that a prompt asks for. Strengths may be given as numbers; they are kept as schedules.

    Attributes:
        name: as typed: a file's stem, perhaps with its folder.
        te: strength on the text encoders; 1.0 = as trained.
        unet: strength on the UNet.
        dyn: how many ranks of a DyLoRA count; None for all.
        hrte, hrunet: the same in the pass that makes a picture large; None for those of the first pass.
        refiner: strength on a refiner's UNet; None for that on the first UNet.
        start, stop: where the network begins and ceases to act, fractions of the sampling or steps as in a Schedule, `stop` excluded; a `stop` of 1.0
            is the end. None for no limit. Before and after, its strength is 0 on UNet and text encoders.
        blocks: a factor for each layer; None for 1 everywhere.
        on: "all", or "cond" for the rows of the positive prompt alone.

    Raises:
        RequestError: a value that no tag can have.
    """

    name: str
    te: Schedule = 1.0  # type: ignore[assignment]
    unet: Schedule = 1.0  # type: ignore[assignment]
    dyn: int | None = None
    hrte: Schedule | None = None
    hrunet: Schedule | None = None
    refiner: Schedule | None = None
    start: float | None = None
    stop: float | None = None
    blocks: BlockWeights | None = None
    on: str = "all"

    def __post_init__(self) -> None:
        if not self.name or self.name != self.name.strip() or ">" in self.name:
            raise RequestError(f"network name {shown(self.name)!r} can't stand in a tag; give a file's name without '>'")
        for field in _SCHEDULES:
            value = getattr(self, field)
            if value is not None:
                object.__setattr__(self, field, _checked(self.name, field, value))
        if self.dyn is not None and self.dyn < 1:
            raise RequestError(f"dyn={self.dyn} of {shown(self.name)!r} is less than 1; give the number of ranks to use, or leave it out")
        self._check_window()
        if self.on not in ROWS:
            raise RequestError(f"on={shown(self.on, 40)!r} of {shown(self.name)!r} is not known; give {' or '.join(ROWS)}")
        if self.blocks == BlockWeights():
            object.__setattr__(self, "blocks", None)

    def _check_window(self) -> None:
        for field in ("start", "stop"):
            value = getattr(self, field)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise RequestError(f"{field}={value} of {shown(self.name)!r} is no place in the sampling; give a fraction like 0.5, or a step like 10")
        if self.stop is not None and self.stop <= (self.start or 0):
            raise RequestError(f"{shown(self.name)!r} would never act: stop={self.stop} is not after start={self.start or 0}")

    def schedule(self, side: str, hires: bool = False, refiner: bool = False) -> Schedule:
        """The strength without its limits, in the first pass, in the pass that makes a picture large, or on a refiner.

        Args:
            side: "te" or "unet".
            hires: in the later pass.
            refiner: on a refiner's model.
        """
        if refiner and side == "unet" and self.refiner is not None:
            return self.refiner
        if hires and getattr(self, f"hr{side}") is not None:
            return getattr(self, f"hr{side}")
        return getattr(self, side)

    def strength(self, side: str, step: float, steps: int, hires: bool = False, refiner: bool = False) -> float:
        """The strength at a step (counted from 0) of so many; the other arguments are those of `schedule`."""
        return self.schedule(side, hires, refiner).at(step, steps) if self._acts(step, steps) else 0.0

    def constant(self, side: str, hires: bool = False, refiner: bool = False) -> bool:
        """Whether the strength is the same at every step; the arguments are those of `schedule`."""
        schedule = self.schedule(side, hires, refiner)
        return schedule.constant and (not self._limited or schedule.points[0][0] == 0)

    @property
    def _limited(self) -> bool:
        return bool(self.start) or self.stop not in (None, 1.0)

    def _acts(self, step: float, steps: int) -> bool:
        if not self._limited:
            return True
        last = max(self.start or 0.0, self.stop or 0.0)
        place = clock(step, steps, last)
        return place >= (self.start or 0.0) and (self.stop is None or (last <= 1 and self.stop == 1) or place < self.stop)


def _checked(name: str, field: str, value: float | Schedule) -> Schedule:
    if isinstance(value, Schedule):
        return value
    if not math.isfinite(value):
        raise RequestError(f"strength {field}={value} of {shown(name)!r} is not finite; give a number like 0.8")
    return as_schedule(value)


def parse_request(items: Sequence[str]) -> Request:
    """The request in a tag's parts, which are ["name", "0.8", "unet=0.5"] for <lyco:name:0.8:unet=0.5>.

    In order: name, te (default 1), unet (default te), dyn; te=, unet= and dyn= outrank the places. "default" stands for 1. All other arguments
    (ARGUMENTS) go by name, but for block weights in the place of unet. What stands between quotation marks may hold ":".

    Raises:
        RequestError: no name, a value that its argument can't have, an argument that is not known or given twice.

    Source: AUTOMATIC1111/stable-diffusion-webui v1.10.1, extensions-builtin/Lora/extra_networks_lora.py and modules/extra_networks.py; for schedules and the
    later pass cheald/sd-webui-loractl; for blocks, start, stop and step hako-mikan/sd-webui-lora-block-weight (behaviour).
    """
    items = join_quoted(items)
    name = unquote(items[0]) if items else ""
    if not name.strip():
        raise RequestError("a tag without a network's name; write <lyco:name:0.8>")
    placed, named = sort_arguments(name, items[1:], ARGUMENTS, len(_POSITIONS))
    if len(placed) > 1 and "lbw" not in named and _is_blocks(placed[1]):
        named["lbw"] = placed.pop(1)
    values = {**dict(zip(_POSITIONS, placed, strict=False)), **named}
    request = Request(name.strip(), **_strengths(name, values), dyn=_ranks(name, values.get("dyn", "default")), **_window(name, values),
                      on=values.get("on", ROWS[0]).strip())
    try:
        return change(request, blocks=_blocks(values))
    except RequestError as error:
        raise RequestError(f"{shown(name)!r}: {error}") from None


def _is_blocks(text: str) -> bool:
    """Whether a value in unet's place can only be block weights, as old tags of lora-block-weight have them there."""
    text = text.strip()
    listed = text.count(",") + 1 in VECTORS and not set(text) & {"@", "~"}
    return listed or (text != "default" and re.fullmatch(r"[A-Z][\w.+-]*", text) is not None)


def _strengths(name: str, values: dict[str, str]) -> dict[str, Schedule | None]:
    typed = {side: _schedule(name, side, values[side]) for side in (*_SCHEDULES, "hr") if side in values}
    te = typed.get("te", as_schedule(1.0))
    hr = typed.get("hr")
    return {"te": te, "unet": typed.get("unet", te), "hrte": typed.get("hrte", hr), "hrunet": typed.get("hrunet", hr), "refiner": typed.get("refiner")}


def _schedule(name: str, side: str, text: str) -> Schedule:
    try:
        return parse_schedule(text)
    except RequestError as error:
        raise RequestError(f"strength {side}={shown(text, 40)!r} of {shown(name)!r} can't be read: {error}") from None


def _window(name: str, values: dict[str, str]) -> dict[str, float | None]:
    values = dict(values)
    if "step" in values:
        if "start" in values or "stop" in values:
            raise RequestError(f"{shown(name)!r} has step= together with start= or stop=; keep one of the two ways")
        values["start"], dash, values["stop"] = values["step"].partition("-")
        if not dash:
            raise RequestError(f"step={shown(values['step'], 40)!r} of {shown(name)!r} is no range; write step=5-10")
    try:
        return {key: parse_number(values[key]) if values.get(key, "").strip() else None for key in ("start", "stop")}
    except RequestError as error:
        raise RequestError(f"start or stop of {shown(name)!r} can't be read: {error}") from None


def _blocks(values: dict[str, str]) -> BlockWeights:
    """The factors that lbw=, x=, lbwe=, only=, except= and layers= ask for together."""
    blocks = read_blocks(values["lbw"], parse_number(values.get("x", "1"))) if "lbw" in values else BlockWeights()
    if "lbwe" in values:
        text = values["lbwe"].strip()
        blocks = change(blocks, elements=parse_elements(text)) if ":" in text else change(blocks, element_preset=text)
    layers = read_layers(values["layers"]) if "layers" in values else ()
    excluded = tuple((pattern, 0.0) for pattern in read_patterns(values["except"])) if "except" in values else ()
    return change(blocks, layers=layers + excluded, only=read_patterns(values["only"]) if "only" in values else ())


def split_prompt(text: str, tags: Collection[str] = TAGS) -> tuple[str, list[Request], list[str]]:
    """The text without its tags, the requests of those tags whose name is in `tags`, and the problems in words; for positive and negative prompts.

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
    """A short tag that parses to this request."""
    name = quote(request.name) if ":" in request.name or request.name.startswith('"') else request.name
    parts = [tag, name, render_schedule(request.te)]
    if request.unet != request.te:
        parts.append(render_schedule(request.unet))
    parts += [f"{key}={value}" for key, value in _named(request) if value]
    return f"<{':'.join(parts)}>"


def _named(request: Request) -> list[tuple[str, str]]:
    """The arguments by name, "" for those that are left out."""
    hrte, hrunet, refiner = (render_schedule(schedule) if schedule else "" for schedule in (request.hrte, request.hrunet, request.refiner))
    pass_weights = [("hr", hrte)] if hrte == hrunet else [("hrte", hrte), ("hrunet", hrunet)]
    start, stop = (render_number(limit) if limit is not None else "" for limit in (request.start, request.stop))
    blocks = request.blocks or BlockWeights()
    return [
        ("dyn", str(request.dyn or "")), *pass_weights, ("refiner", refiner), ("start", start), ("stop", stop),
        ("lbw", blocks.preset or ",".join(map(render_number, blocks.vector))), ("x", render_number(blocks.x) if blocks.x != 1 else ""),
        ("lbwe", blocks.element_preset or (quote(render_elements(blocks.elements)) if blocks.elements else "")),
        ("only", ",".join(blocks.only)), ("layers", ",".join(f"{pattern}={render_number(weight)}" for pattern, weight in blocks.layers)),
        ("on", request.on if request.on != ROWS[0] else ""),
    ]


def _ranks(name: str, text: str) -> int | None:
    if text.strip() == "default":
        return None
    try:
        return int(text) or None  # 0 has always meant all
    except ValueError:
        raise RequestError(f"dyn={shown(text, 40)!r} of {shown(name)!r} is not a whole number; give the number of ranks to use") from None
