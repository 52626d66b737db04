"""From what a prompt asks for to what is on the model; knows no host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lib_lycoris.errors import LycoError, NetworkFileError, RequestError, shown
from lib_lycoris.library.cache import NetworkCache
from lib_lycoris.library.catalogue import Catalogue
from lib_lycoris.library.embeddings import Embedding, packed_embeddings
from lib_lycoris.library.facts import read_facts
from lib_lycoris.patching.rows import Telling
from lib_lycoris.patching.session import Session
from lib_lycoris.patching.weighting import Dial, Weighting
from lib_lycoris.prompt.blocks import PRESETS, BlockWeights
from lib_lycoris.prompt.request import Request

MODELS = {"sd_v1": "SD 1", "sd_v2": "SD 2", "sdxl_base_v1-0": "SDXL"}
"""How users call the base models."""
Row = tuple[int, bool]
"""A picture of the batch, and whether it is its negative prompt's row."""


@dataclass(eq=False)
class _Part:
    """A network as some requests want it with the same layers and ranks; they differ in strength, and in the rows on which they act."""

    network: Any
    blocks: BlockWeights | None
    ranks: int | None
    requests: dict[Row, tuple[Request, ...]] = field(default_factory=dict)
    unet: float | Dial = 0.0

    def strength(self, row: Row, side: str, step: float, steps: int, hires: bool, refiner: bool) -> float:
        """What all of its requests for this row add up to."""
        return sum(request.strength(side, step, steps, hires, refiner) for request in self.requests.get(row, ()))

    def weighting(self, te: float) -> Weighting:
        """How the session is to put it on."""
        return Weighting(te, self.unet, self.blocks.factor if self.blocks else None, self.ranks)


class Generation:
    """Finds, loads and applies the networks of prompts, and says what went wrong in words. A request that fails is left out, the others are put on.

    On the UNet a tag of a picture's prompt acts on all rows of this picture, those of its negative prompt too, as users know it from the WebUI; with
    on=cond it spares the negative ones. A tag of a negative prompt acts on this picture's negative rows alone, in addition. Text encoders get for each
    text what acts on its rows. Strengths that are the same for all rows and steps are merged; others are dials, which `begin_step` turns.

    Attributes:
        presets: names for block weights and elements and what they stand for, as in prompt.blocks.PRESETS; counts from the next `apply` on.
        embeddings: the textual inversions that are packed with what is on, by the word that names each in a prompt.
    """

    def __init__(self, catalogue: Catalogue, cache: NetworkCache, session: Session, presets: Mapping[str, str] = PRESETS):
        self.catalogue = catalogue
        self.cache = cache
        self.session = session
        self.presets = presets
        self._forget()

    def _forget(self) -> None:
        self._parts: list[_Part] = []
        self._rows: list[Row] = []
        self._one_prompt = True
        self._hires = self._refiner = False
        self._text: Hashable = ()
        self.embeddings: dict[str, Embedding] = {}

    def apply(self, requests: Iterable[Request], hires: bool = False, refiner: bool = False) -> list[str]:
        """Puts on what one prompt asks for, whatever the number of pictures, in place of what was on; the rest is as in `apply_pictures`."""
        problems = self.apply_pictures([list(requests)], [[]], hires, refiner)
        self._one_prompt = True
        return problems

    def apply_pictures(self, positive: Sequence[Sequence[Request]], negative: Sequence[Sequence[Request]], hires: bool = False,
                       refiner: bool = False) -> list[str]:
        """Puts on what a batch asks for in place of what was on; gives the problems, each once, as lines to show under the pictures.

        The text encoders have afterwards what the first picture's prompt wants at the first step. After an exception nothing is on.

        Args:
            positive: for each picture the requests of its prompt.
            negative: for each picture those of its negative prompt.
            hires: in the pass that makes pictures large.
            refiner: on a refiner's model.

        Raises:
            RequestError: there are more or fewer negative prompts than positive ones.
        """
        if len(positive) != len(negative):
            raise RequestError(f"{len(positive)} prompts and {len(negative)} negative ones; give one of each for every picture")
        self._forget()
        self._one_prompt, self._hires, self._refiner = False, hires, refiner
        self._rows = [(picture, is_negative) for picture in range(len(positive)) for is_negative in (False, True)]
        try:
            self._parts, problems = self._read(positive, negative)
            problems += self._read_embeddings()
            for part in self._parts:
                part.unet = self._unet(part)
            self._text = None
            self.use_text(0, False, 0, 1)
            return list(dict.fromkeys([*problems, *self._leftovers()]))
        except BaseException:
            self.restore()
            raise

    @property
    def dynamic(self) -> bool:
        """Whether `begin_step` has anything to do."""
        return any(isinstance(part.unet, Dial) for part in self._parts)

    def begin_step(self, step: float, steps: int, rows: Sequence[Row], telling: Telling | None = None) -> None:
        """Turns every dial to what this step wants; to be called before each call of the denoiser, which may make several calls of the UNet of it.

        Args:
            step: counted from 0.
            steps: how many there are.
            rows: for each row of the denoiser's batch its picture, and whether it is a row of the negative prompt; in the order in which the UNet gets them.
            telling: as Session.begin_step.
        """
        places = [self._place(*row) for row in rows]
        for part in self._parts:
            if isinstance(part.unet, Dial):
                known = {row: part.strength(row, "unet", step, steps, self._hires, self._refiner) for row in set(places)}
                values = [known[row] for row in places]
                part.unet.set(torch.tensor(values, dtype=torch.float64) if len(set(values)) > 1 else values[0] if values else 0.0)
        self.session.begin_step(telling)

    def text_key(self, picture: int, negative: bool, step: float, steps: int) -> Hashable:
        """Equal keys mean the same networks on the text encoders, as long as nothing else is applied."""
        row = self._place(picture, negative)
        strengths = (part.strength(row, "te", step, steps, self._hires, self._refiner) for part in self._parts)
        return tuple((number, strength) for number, strength in enumerate(strengths) if strength)

    def use_text(self, picture: int, negative: bool, step: float, steps: int) -> None:
        """Puts on the text encoders what this picture's prompt, or its negative prompt, wants at this step; to be called before it is encoded."""
        key = self.text_key(picture, negative, step, steps)
        if key == self._text:
            return
        strengths = dict(key)
        self.session.apply([(part.network, part.weighting(strengths.get(number, 0.0))) for number, part in enumerate(self._parts)])
        self._text = key

    def text_steps(self, steps: int) -> list[int]:
        """The steps, without the first one, at which some text's key is another than at the step before, so that it must be encoded anew."""
        requests = {request for part in self._parts for row in part.requests.values() for request in row}
        if all(request.constant("te", self._hires, self._refiner) for request in requests):
            return []
        keys = [[self.text_key(*row, step, steps) for row in self._rows] for step in range(steps)]
        return [step for step in range(1, steps) if keys[step] != keys[step - 1]]

    @property
    def late_problems(self) -> list[str]:
        """What went wrong since `apply` while the model ran, as lines to show under the pictures."""
        return [f"lyco: {problem}" for problem in self.session.problems]

    def restore(self) -> None:
        """Takes everything off."""
        self._forget()
        self.session.restore()

    def _place(self, picture: int, negative: bool) -> Row:
        return (0 if self._one_prompt else picture, negative)

    def _read(self, positive: Sequence[Sequence[Request]], negative: Sequence[Sequence[Request]]) -> tuple[list[_Part], list[str]]:
        """The parts, each with the requests for each row, and what stands in the way of the others."""
        reader = _Reader(self.catalogue, self.cache, self.presets)
        for picture, (wanted, unwanted) in enumerate(zip(positive, negative, strict=True)):
            for request in wanted:
                reader.add(request, [(picture, False)] if request.on == "cond" else [(picture, False), (picture, True)])
            for request in unwanted:
                reader.add(request, [] if request.on == "cond" else [(picture, True)])
        return list(reader.parts.values()), reader.problems

    def _read_embeddings(self) -> list[str]:
        """Reads what is packed with the networks; of two embeddings with one word the first counts."""
        problems = []
        for part in self._parts:
            try:
                self.embeddings = {**packed_embeddings(part.network), **self.embeddings}
            except NetworkFileError as error:
                problems.append(f"lyco: {error}; the network itself is on")
        return problems

    def _unet(self, part: _Part) -> float | Dial:
        """One number, where the strength on the UNet is the same at every step and for all rows; else a dial."""
        requests = {request for row in part.requests.values() for request in row}
        if all(request.constant("unet", self._hires, self._refiner) for request in requests):
            strengths = {part.strength(row, "unet", 0, 1, self._hires, self._refiner) for row in self._rows}
            if len(strengths) == 1:
                return strengths.pop()
        return Dial()

    def _leftovers(self) -> list[str]:
        titles = {part.network: request.name for part in self._parts for row in part.requests.values() for request in row}
        # a refiner is another model than the network was made for; who keeps it off its UNet knows that
        spared = {part.network for part in self._parts if self._refiner and part.unet == 0}
        leftovers = [leftover for leftover in self.session.plan.leftovers
                     if leftover.name not in leftover.network.replacing and leftover.network not in spared]
        counts = Counter(leftover.network for leftover in leftovers)
        firsts = {leftover.network: leftover for leftover in reversed(leftovers)}
        replacing = {leftover.network: leftover for leftover in self.session.plan.leftovers if leftover.name in leftover.network.replacing}
        where, advice = (" on the refiner", "; refiner=0 leaves it off there") if self._refiner else ("", "")
        return [
            f"lyco: {count} of {len(network.layers)} layers of {shown(titles[network])!r} had no home{where}, as {shown(firsts[network].name)!r}"
            f" ({firsts[network].reason}){advice or (f'; this file is for {_model_of(network)}' if 2 * count > len(network.layers) else '')}"
            for network, count in counts.items()
        ] + [
            f"lyco: {len(network.replacing)} tensors of {shown(titles[network])!r} are left out, as {shown(leftover.name)!r}: {leftover.reason}"
            for network, leftover in replacing.items()
        ]


def _model_of(network: Any) -> str:
    """What most of a network's layers were made for, which is not what is loaded."""
    known = read_facts(network.path).base_model if network.path is not None else None
    return MODELS.get(known or "", "another model")


class _Reader:
    """Makes requests into parts: each file is looked up and loaded once."""

    def __init__(self, catalogue: Catalogue, cache: NetworkCache, presets: Mapping[str, str]):
        self.parts: dict[Hashable, _Part] = {}
        self.problems: list[str] = []
        self._catalogue, self._cache, self._presets = catalogue, cache, presets
        self._found: dict[tuple, _Part | None] = {}
        self._loaded: dict[Path, Any] = {}

    def add(self, request: Request, rows: Iterable[Row]) -> None:
        """Adds the request to its part for these rows, or what is wrong with it to the problems."""
        rows = list(rows)
        if not rows:
            self.problems.append(f"lyco: {shown(request.name)!r} is in a negative prompt with on=cond, so that it acts nowhere; take on=cond out")
            return
        key = (request.name, request.blocks, request.dyn)
        if key not in self._found:
            try:
                self._found[key] = self._part(request)
            except (LycoError, OSError) as error:
                self.problems.append(f"lyco: {error}")
                self._found[key] = None
        part = self._found[key]
        for row in rows if part else ():
            part.requests[row] = (*part.requests.get(row, ()), request)

    def _part(self, request: Request) -> _Part:
        path = self._catalogue.find(request.name)
        if path not in self._loaded:
            self._loaded[path] = self._cache.load(path)
        network, blocks = self._loaded[path], self._blocks(request)
        _check_ranks(network, request)
        if blocks:
            self.problems += [f"lyco: {shown(pattern, 40)!r} is in no name of {shown(request.name)!r}'s {len(network.layers)} layers; it does nothing"
                              for pattern in blocks.idle_patterns(network.targets.values())]
        return self.parts.setdefault((path, blocks, request.dyn), _Part(network, blocks, request.dyn))

    def _blocks(self, request: Request) -> BlockWeights | None:
        try:
            return request.blocks.resolve(self._presets) if request.blocks else None
        except RequestError as error:
            raise RequestError(f"{shown(request.name)!r}: {error}") from None


def _check_ranks(network: Any, request: Request) -> None:
    """Nothing, if some layer of the network can do with its first ranks alone; those that can't are leftovers.

    Raises:
        RequestError: none can.
    """
    for layer in network.layers.values() if request.dyn is not None else ():
        try:
            layer.truncated(request.dyn)
        except LycoError as error:
            reason = error
        else:
            return
    if request.dyn is not None and network.layers:
        raise RequestError(f"dyn={request.dyn} of {shown(request.name)!r}: {reason}")
