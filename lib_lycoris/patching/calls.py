"""Which calls of a module are running right now, in any thread: told from the stacks, because an interrupt (BaseException) skips every hook."""

from __future__ import annotations

import sys

from torch import nn


def running_calls(module: nn.Module) -> int:
    """How many calls of `module` are under way, the one that asks among them. Slow; for the rare moment of doubt."""
    code = nn.Module._call_impl.__code__
    count = 0
    for frame in sys._current_frames().values():
        while frame is not None:
            if frame.f_code is code and frame.f_locals.get("self") is module:
                count += 1
            frame = frame.f_back
    return count
