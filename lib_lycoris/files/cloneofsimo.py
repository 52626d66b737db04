"""Which layer each tensor of cloneofsimo's files belongs to: they have numbers instead of names, in the order in which a model's modules are walked.

Two forms: safetensors with keys "unet:0:up", "unet:0:down", … and the walked classes' names as JSON in the metadata; and a pickled list [up, down, up, down,
…] of one component. The order is that of diffusers 0.4 to 0.16 and transformers, of which two things changed in time: whether the feed-forward part stands
between the two attentions or after them, and whether the middle block comes last. Shapes tell which it was, or that it is another model.

Source: cloneofsimo/lora d84074b, lora_diffusion/lora.py (`_find_modules_v2`, `save_safeloras_with_embeds`, `save_lora_weight`); huggingface/diffusers,
models/unet_2d_condition.py and unet_2d_blocks.py; huggingface/transformers, models/clip/modeling_clip.py.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from lib_lycoris.errors import NetworkFileError, shown

Shapes = Mapping[str, "tuple[int, ...]"]

_KEY = re.compile(r"(unet|text_encoder):(\d{1,5}):(up|down)")
_ATTENTIONS, _FEED_FORWARD, _RESIDUAL = {"CrossAttention", "Attention"}, "GEGLU", "ResnetBlock2D"
_LEVELS = ("w0", "w1", "w2", "w3")


class Place(NamedTuple):
    """Where a tensor belongs: its module's path as the file spells it ("unet:0"), its parameter, and the module's (component, name) in diffusers' words."""

    module: str
    parameter: str
    home: tuple[str, str]


class _Slot(NamedTuple):
    """A walked layer: its name, and what its rows and columns have to equal wherever the same word stands; None for anything."""

    name: str
    rows: str | None
    columns: str | None
    factor: int = 1


def is_numbered(names: Sequence[str]) -> bool:
    """Whether a file with these keys has numbers for names."""
    return any(_KEY.fullmatch(name) for name in names) or (bool(names) and all(name.isdigit() for name in names))


def place_tensors(shapes: Shapes, metadata: Mapping[str, str]) -> dict[str, Place]:
    """The place of every tensor of a numbered file; keys that are none's (packed embeddings) have none.

    Raises:
        NetworkFileError: pairs are incomplete, the walked classes are unknown ones, or the shapes fit no order that is known.
    """
    places = {}
    for component, pairs in _pairs(shapes).items():
        side, slots = _order(component, [(shapes[up], shapes[down]) for _, up, down in pairs], metadata.get(component))
        for (module, up, down), slot in zip(pairs, slots, strict=True):
            places[up] = Place(module, "lora_up.weight", (side, slot.name))
            places[down] = Place(module, "lora_down.weight", (side, slot.name))
    return places


def _pairs(shapes: Shapes) -> dict[str, list[tuple[str, str, str]]]:
    """By component the pairs in their order, each as (module, key of up, key of down)."""
    found: dict[str, dict[int, dict[str, str]]] = {}
    for name in shapes:
        if match := _KEY.fullmatch(name):
            found.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = name
    if not found:  # a list
        found["list"] = {number: {"up": str(2 * number), "down": str(2 * number + 1)} for number in range((len(shapes) + 1) // 2)}
    ordered = {}
    for component, pairs in found.items():
        missing = next((number for number in range(len(pairs)) if any(pairs.get(number, {}).get(half) not in shapes for half in ("up", "down"))), None)
        if missing is not None:
            raise NetworkFileError(f"pair {missing} of {component} is incomplete: the file is damaged; get it again")
        ordered[component] = [(f"{component}:{number}", pairs[number]["up"], pairs[number]["down"]) for number in range(len(pairs))]
    return ordered


def _order(component: str, sizes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], walked: str | None) -> tuple[str, list[_Slot]]:
    """The component's name here and its walked layers."""
    classes = _classes(component, walked)
    if component in ("text_encoder", "list") and len(sizes) % 4 == 0 and classes in (None, {"CLIPAttention"}):
        slots = list(_text_encoder(len(sizes) // 4))
        if _fits(slots, sizes):
            return "te1", slots
    if component in ("unet", "list"):
        choices = _choices(classes)
        fitting = [slots for slots in choices if _fits(slots, sizes)]
        if fitting and all(slots == fitting[0] for slots in fitting):
            return "unet", fitting[0]
    what = f"a network in cloneofsimo's form whose {len(sizes)} pairs of {component} fit no known order of an SD 1 or SD 2 model's layers"
    raise NetworkFileError(f"{what}; open it with the program it was made for and save it in kohya's or diffusers' form")


def _classes(component: str, walked: str | None) -> set[str] | None:
    if walked is None:
        return None
    try:
        classes = json.loads(walked)
        return {str(name) for name in classes}
    except (ValueError, TypeError, RecursionError) as error:
        raise NetworkFileError(f"the metadata's {shown(component)} is no list of classes ({shown(error)}); get the file again") from error


def _choices(classes: set[str] | None) -> Iterator[list[_Slot]]:
    """The UNet's possible orders: all of them, or those for the classes that the file names."""
    for forward, residual, late_forward, late_middle in itertools.product((True, False), (False, True), (False, True), (True, False)):
        if classes is not None and (_FEED_FORWARD in classes, _RESIDUAL in classes) != (forward, residual):
            continue
        if classes is not None and (not classes & _ATTENTIONS or classes - _ATTENTIONS - {_FEED_FORWARD, _RESIDUAL}):
            continue
        yield list(_unet(forward, residual, late_forward, late_middle))


def _unet(forward: bool, residual: bool, late_forward: bool, late_middle: bool) -> Iterator[_Slot]:
    down = [f"down_blocks_{level}" for level in range(4)]
    up = [f"up_blocks_{level}" for level in range(4)]
    blocks = [*down, *up, "mid_block"] if late_middle else [*down, "mid_block", *up]
    for block in blocks:
        level = int(block[-1]) if block in down else 3 - int(block[-1]) if block in up else 3
        attentions = 1 if block == "mid_block" else 0 if level == 3 else 2 if block in down else 3
        for number in range(attentions):
            yield from _transformer(f"{block}_attentions_{number}_transformer_blocks_0", _LEVELS[level], forward, late_forward)
        if residual:
            for number in range(3 if block in up else 2):
                shortcut = block in up or (block in ("down_blocks_1", "down_blocks_2") and number == 0)
                yield from _residual(f"{block}_resnets_{number}", _LEVELS[level], shortcut)


def _transformer(name: str, width: str, forward: bool, late_forward: bool) -> Iterator[_Slot]:
    first, second = (list(_attention(f"{name}_attn{number}", width, source)) for number, source in ((1, width), (2, "context")))
    between = [_Slot(f"{name}_ff_net_0_proj", width, width, 8)] if forward else []
    yield from (*first, *second, *between) if late_forward else (*first, *between, *second)


def _attention(name: str, width: str, source: str) -> Iterator[_Slot]:
    for part, columns in (("to_q", width), ("to_k", source), ("to_v", source), ("to_out_0", width)):
        yield _Slot(f"{name}_{part}", width, columns)


def _residual(name: str, width: str, shortcut: bool) -> Iterator[_Slot]:
    yield from (_Slot(f"{name}_conv1", width, None), _Slot(f"{name}_time_emb_proj", width, "time"), _Slot(f"{name}_conv2", width, None))
    if shortcut:
        yield _Slot(f"{name}_conv_shortcut", width, None)


def _text_encoder(layers: int) -> Iterator[_Slot]:
    for layer in range(layers):
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield _Slot(f"text_model_encoder_layers_{layer}_self_attn_{part}", "width", "width")


def _fits(slots: Sequence[_Slot], sizes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """Whether equal words stand for equal numbers all along."""
    if len(slots) != len(sizes):
        return False
    bound: dict[str, int] = {}
    for slot, (up, down) in zip(slots, sizes, strict=True):
        if len(up) < 2 or len(down) < 2 or not all((*up, *down)) or up[0] % slot.factor:
            return False
        for word, number in ((slot.rows, up[0] // slot.factor), (slot.columns, math.prod(down[1:]))):
            if word is not None and bound.setdefault(word, number) != number:
                return False
    return True
