"""From settings to pictures: prompt, networks, sampling and decoding."""
from __future__ import annotations

import random
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..control.preparing import Asked, Preparation, Prepared
from ..errors import ConfigError
from ..prompt.request import split_prompt
from ..prompt.unit import render_unit
from ..prompt.unit_values import AUTO_FUSER, INFOTEXT, INFOTEXT_FUSER
from ..setting import Section, setting
from .checkpoint import StudioModel
from .conditioning import check_clip_skip
from .kept import unit_fields
from .noise import PictureNoise
from .picture import Picture, decode_latent, make_infotext
from .sampler import SAMPLERS, Interrupted, find_sampler, sample
from .schedule import NoiseLevels, alphas_cumprod
from .steering import Networks, NoNetworks, Steering, Texts
from .words import Vectors

PROGRAM = "Lyco Studio"
LARGEST_SEED = 2 ** 63 - 1 - 64
"""The last picture of the largest batch has a seed too."""
OnStep = Callable[[int, int, Tensor], None]
"""(step from 0, count of steps, latents [B,4,h,w] without their noise)."""


@dataclass(frozen=True)
class GenerateSettings(Section):
    """How pictures are made; a value out of range is an error when the record is made."""

    section: typing.ClassVar[str] = "generate"

    prompt: str = setting("", "What to draw. <lyco:NAME:STRENGTH> applies a network, an embedding's name uses it; "
                                "(more), [less], (word:1.3), BREAK and AND as in the WebUI.")
    negative: str = setting("", "What to keep out. A <lyco:…> tag here acts on this prompt alone.")
    seed: int = setting(-1, "Picture i of a batch has seed + i; -1 draws one.", minimum=-1, maximum=LARGEST_SEED)
    steps: int = setting(20, "Sampler steps.", minimum=1, maximum=1000)
    sampler: str = setting("Euler a", f"One of {', '.join(SAMPLERS)}.")
    scheduler: str = setting("automatic", "How the noise levels are spaced: automatic, uniform, karras or exponential.")
    width: int = setting(512, "Pixels.", minimum=64, maximum=4096, multiple=8)
    height: int = setting(512, "Pixels.", minimum=64, maximum=4096, multiple=8)
    cfg: float = setting(7.0, "How closely to follow the prompt.", minimum=0, maximum=100)
    clip_skip: int = setting(1, "Which of the text encoder's last layers the prompt is taken from, 1 is the last.", minimum=1, maximum=12)
    batch: int = setting(1, "How many are made at once.", minimum=1, maximum=64)

    def _check_together(self) -> None:
        sampler, scheduler = find_sampler(self.sampler, self.scheduler)
        if self.steps < SAMPLERS[sampler].fewest:
            raise ConfigError(f"generate.steps = {self.steps}: {sampler} needs {SAMPLERS[sampler].fewest} or more")
        object.__setattr__(self, "sampler", sampler)
        object.__setattr__(self, "scheduler", scheduler)


def generate(model: StudioModel, settings: GenerateSettings, networks: Networks | None = None, on_step: OnStep | None = None,
             should_stop: Callable[[], bool] | None = None, embeddings: Mapping[str, Vectors] | None = None, units: Sequence[Asked] = (),
             preparation: Preparation | None = None, fuser: str = AUTO_FUSER) -> list[Picture]:
    """The pictures, at least one, also after an interruption: then they are as far as they had come.

    Args:
        networks: applies the `<lyco:…>` tags of prompt and negative prompt; taken off again in any case. None: tags apply nothing, and the pictures'
            problems say so.
        on_step: called after each step.
        should_stop: asked after each step.
        embeddings: {word: {text encoder: [n,D]}} that the prompts may name, looked into when they do; they go before those that are packed with networks.
        units: adapters with their pictures; taken off again in any case.
        preparation: finds the adapters, and keeps what it computed for the next pictures; needed where there are units.
        fuser: "auto", "none" or the name of a CoAdapter fuser's file.

    Raises:
        ConfigError: clip_skip is larger than the text encoder is deep, or units came without a preparation.
        AdapterError: a unit that is strict can't act.
    """
    if units and preparation is None:
        raise ConfigError("units were given without a preparation, which finds adapters: give control.preparing.Preparation(AdapterShelf(folders))")
    check_clip_skip(model, settings.clip_skip)
    prompt, wanted, problems = split_prompt(settings.prompt)
    negative, unwanted, more = split_prompt(settings.negative)
    problems = [*problems, *more]
    first = settings.seed if settings.seed >= 0 else random.randrange(2 ** 32)
    prepared = Prepared()
    try:
        if units:
            size = settings.width, settings.height
            prepared = preparation.prepare(model.unet, units, size, settings.batch, model.device, base_model=model.base_model, fuser=fuser)
            problems += prepared.problems
        if networks is not None:
            problems += networks.apply_pictures([wanted] * settings.batch, [unwanted] * settings.batch)
        else:
            problems += [f"network {request.name!r} was not applied: there is no network folder here" for request in (*wanted, *unwanted)]
        seeds = [first + place for place in range(settings.batch)]
        packed = {word: each.vectors for word, each in networks.embeddings.items()} if networks is not None else {}
        with model.words.given(packed, problems.append), model.words.given(embeddings if embeddings is not None else {}, problems.append):
            return draw_pictures(model, settings, Texts(prompt, negative), seeds, problems, on_step, should_stop, networks, prepared, units)
    finally:
        if prepared.control is not None:
            prepared.control.restore()
        if networks is not None:
            networks.restore()


@torch.no_grad()
def draw_pictures(model: StudioModel, settings: GenerateSettings, texts: Texts, seeds: list[int], problems: list[str], on_step: OnStep | None = None,
                  should_stop: Callable[[], bool] | None = None, networks: Networks | None = None, prepared: Prepared | None = None,
                  units: Sequence[Asked] = ()) -> list[Picture]:
    """The pictures of prompts without tags, with whatever is attached to the model now.

    Args:
        texts: what is left of settings.prompt and settings.negative without their tags.
        seeds: one a picture.
        problems: told with every picture.
        networks: what is on the model and wants to follow the steps.
        prepared: adapters that act, if any.
        units: what was asked of them.
    """
    prepared = prepared or Prepared()
    levels = NoiseLevels(alphas_cumprod(model.betas))
    noise = PictureNoise(seeds, (4, settings.height // 8, settings.width // 8), model.device)
    seen: list[Tensor] = []

    def after_step(step: int, denoised: Tensor) -> None:
        seen[:] = [denoised]
        if on_step is not None:
            on_step(step, settings.steps, denoised)
        if should_stop is not None and should_stop():
            raise Interrupted

    interrupted = False
    try:
        calls = SAMPLERS[settings.sampler].calls
        denoise = Steering(model, levels, texts, settings.cfg, settings.clip_skip, networks or NoNetworks(), settings.steps, calls, prepared.control)
        latents = sample(levels, denoise, noise.draw, settings.sampler, settings.scheduler, settings.steps, after_step)
    except Interrupted:
        latents, interrupted = seen[0], True
    problems = [*problems, *(networks.late_problems if networks else ()), *(prepared.control.problems if prepared.control else ())]
    if not torch.isfinite(latents).all():
        problems = [*problems, f"the picture has no finite values: {model.name} or a network does not work in {model.dtype}; try float32"]
    adapters = adapter_fields(prepared, units)
    return [Picture(decode_latent(model, latent[None]), infotext(model, settings, seed, adapters), seed, tuple(problems), interrupted,
                    prepared.saved_maps(place)) for place, (latent, seed) in enumerate(zip(latents, seeds, strict=True))]


def adapter_fields(prepared: Prepared, asked: Sequence[Asked] = ()) -> dict[str, str]:
    """What an infotext says of the adapters that act, as the WebUI's side writes it, and by what `kept.Kept` finds the pictures that they looked at."""
    fields = {INFOTEXT.format(number): render_unit(unit) for number, unit in prepared.units}
    fields |= unit_fields(asked, [number for number, _ in prepared.units]) if asked else {}
    return {**fields, INFOTEXT_FUSER: prepared.fuser} if prepared.fuser else fields


def infotext(model: StudioModel, settings: GenerateSettings, seed: int, more: Mapping[str, str] | None = None) -> str:
    """How a picture was made, in the form of the WebUI's infotexts, with these fields more."""
    chosen = SAMPLERS[settings.sampler].scheduler if settings.scheduler == "automatic" else settings.scheduler
    schedule = "Automatic" if settings.scheduler == "automatic" and chosen == "uniform" else chosen.capitalize()
    return make_infotext(settings.prompt, settings.negative, {
        "Steps": settings.steps, "Sampler": settings.sampler, "Schedule type": schedule, "CFG scale": settings.cfg, "Seed": seed,
        "Size": f"{settings.width}x{settings.height}", "Model hash": model.hash, "Model": model.name,
        "Clip skip": settings.clip_skip if settings.clip_skip > 1 else None,
        "RNG": "CPU" if model.device.type == "cuda" else None,  # what the WebUI must be told to draw the same noise there
        **(more or {}), "Version": PROGRAM})
