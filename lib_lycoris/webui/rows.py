"""Which picture each row of a UNet call belongs to."""

from __future__ import annotations

from typing import Any


def rows_of(params: Any) -> list[tuple[int, bool]]:
    """For each row of a denoiser's batch its picture and whether it is a negative one, in the order in which the UNet takes them.

    First come the positive ones, for each picture as many as its prompt has parts (AND); then the negative ones, one a picture, or two for models that
    edit a picture. Where the host cuts the batch into several calls it keeps this order, and where it leaves the negative rows out they are the last.

    Args:
        params: the host's CFGDenoiserParams.
    """
    count = len(params.text_uncond["crossattn"] if isinstance(params.text_uncond, dict) else params.text_uncond)
    parts = _parts(params.denoiser, params.text_cond.shape[0], count)
    positive = [(picture, False) for picture, number in enumerate(parts) for _ in range(number)]
    return positive + [(row % count, True) for row in range(len(params.x) - len(positive))]


def _parts(denoiser: Any, rows: int, pictures: int) -> list[int]:
    """How many parts each picture's prompt has."""
    cond = denoiser.sampler.sampler_extra_args["cond"]
    known = [len(parts) for parts in getattr(cond, "batch", ())]
    return known if sum(known) == rows else [rows // pictures] * pictures


def step_of(denoiser: Any) -> tuple[int, int]:
    """The sampler's step, from 0, and the number of its steps. Samplers of second order call the denoiser twice in a step."""
    steps = max(1, denoiser.steps or 1)
    calls = max(1, (denoiser.total_steps or steps) // steps)
    return min(denoiser.step // calls, steps - 1), steps
