"""What each picture of a batch asks for, read out of the host's `p`: the host itself hands over the tags of the first prompt alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from modules import extra_networks

from lib_lycoris.errors import LycoError
from lib_lycoris.prompt.request import Request, parse_request

TAG = "lyco"
_OURS = re.compile(rf"<{TAG}:([^>]+)>")
Requests = tuple[Request, ...]


@dataclass(frozen=True)
class Batch:
    """What the pictures of one batch ask for in one pass.

    Attributes:
        positive: for each picture the requests of its prompt.
        negative: for each picture the requests of its negative prompt.
        hires: whether it is the hires pass.
        refiner: whether the model is the refiner's.
        problems: what can't be understood, in words.
    """

    positive: tuple[Requests, ...] = ()
    negative: tuple[Requests, ...] = ()
    hires: bool = False
    refiner: bool = False
    problems: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(self.positive) or any(self.negative)

    @property
    def requests(self) -> Requests:
        """All of them, each once."""
        return tuple(dict.fromkeys(request for picture in (*self.positive, *self.negative) for request in picture))


@dataclass(frozen=True)
class Passes:
    """The first pass and the hires pass of one batch; the second is empty where there is none."""

    first: Batch = Batch()
    hires: Batch = Batch(hires=True)

    def __bool__(self) -> bool:
        return bool(self.first) or bool(self.hires)

    def of(self, hires: bool) -> Batch:
        """One of the two."""
        return self.hires if hires else self.first


def note_prompts(p: Any) -> None:
    """Keeps the prompts of the coming batch, tags and all; other scripts may have written them, and the host cuts their tags out next."""
    p.lyco_prompts = p.prompts


def read_passes(p: Any, params_list: Sequence[Any]) -> Passes:
    """What the batch that `p` begins asks for.

    Args:
        p: the host's picture in work, whose `prompts` the host has cut.
        params_list: the tags of the first prompt; they count for all pictures where the prompts with their tags can't be found.
    """
    first = _read(p, False, _tagged(p, False) or [[params.items for params in params_list]] * len(p.prompts))
    if not getattr(p, "enable_hr", False) or getattr(p, "hr_prompts", None) is None:
        return Passes(first)
    fallback = [[params.items for params in (p.hr_extra_network_data or {}).get(TAG, [])]] * len(p.hr_prompts)
    return Passes(first, _read(p, True, _tagged(p, True) or fallback))


def cut_negatives(p: Any) -> None:
    """Cuts our tags out of the negative prompts that the host is about to encode; those that it writes into the picture keep them."""
    for name in ("negative_prompts", "hr_negative_prompts"):
        texts = getattr(p, name, None)
        if texts and any(_OURS.search(text) for text in texts):
            setattr(p, name, [_OURS.sub("", text) for text in texts])


def _tagged(p: Any, hires: bool) -> list[list[list[str]]] | None:
    """For each picture the parts of its prompt's tags, or None where no prompts are known that the host could have cut these texts from."""
    cut = list(p.hr_prompts if hires else p.prompts)
    known = [getattr(p, "all_hr_prompts", None)] if hires else [getattr(p, "all_prompts", None)]
    found = [every[p.iteration * p.batch_size : (p.iteration + 1) * p.batch_size] for every in known if every]
    for texts in found if hires else [getattr(p, "lyco_prompts", None), *found]:
        parsed = [extra_networks.parse_prompt(text) for text in texts or []]
        if parsed and [text for text, _ in parsed] == cut:
            return [[list(params.items) for params in data.get(TAG, [])] for _, data in parsed]
    return None


def _read(p: Any, hires: bool, tags: Iterable[Iterable[Sequence[str]]]) -> Batch:
    problems: list[str] = []
    positive = tuple(_requests(items, problems) for items in tags)
    texts = (getattr(p, "hr_negative_prompts" if hires else "negative_prompts", None) or [""] * len(positive))[: len(positive)]
    negative = tuple(_requests([found.split(":") for found in _OURS.findall(text)], problems) for text in texts)
    return Batch(positive, negative, hires, problems=tuple(dict.fromkeys(problems)))


def _requests(tags: Iterable[Sequence[str]], problems: list[str]) -> Requests:
    requests = []
    for items in tags:
        try:
            requests.append(parse_request(list(items)))
        except LycoError as error:
            problems.append(f"lyco: {error}")
    return tuple(requests)
