"""How the learning rate goes over the steps. A pure function of the step, so that a resumed run needs no state of it."""

from __future__ import annotations

import math


def rate_factor(schedule: str, step: int, steps: int, warmup_steps: int = 0, restarts: int = 1) -> float:
    """What the learning rate is multiplied with in `step`, which counts from 0, of `steps`.

    It rises to 1 over the warm-up, then stays ("constant"), or falls to 0 at the end along a line ("linear"), a parabola ("polynomial"), half a cosine
    ("cosine"), or several halves one after the other ("cosine_restarts", as many as `restarts` says).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(steps - warmup_steps, 1)
    if schedule == "cosine_restarts":
        schedule, done = "cosine", done * restarts % 1.0
    return {"constant": 1.0, "linear": 1 - done, "polynomial": (1 - done) ** 2, "cosine": (1 + math.cos(math.pi * done)) / 2}[schedule]
