"""When the host's callbacks are registered.

For each, the host looks through the stack, and for a frame whose file belongs to no module through all modules of the process. While it runs scripts/lycoris.py
there are several such frames, and nine callbacks cost most of a second of its start. So one is registered there, and the others from here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Registering = Callable[[Callable[..., Any]], Any]


class Registration:
    """Registers callbacks before the user interface is made: none of them is called earlier.

    Args:
        before: what else is done then, in this order.
        callbacks: what the host calls, each with the host's function that registers it.
    """

    def __init__(self, before: Sequence[Callable[[], None]], callbacks: Sequence[tuple[Registering, Callable[..., Any]]]) -> None:
        self._before, self._callbacks = tuple(before), tuple(callbacks)

    def before_ui(self) -> None:
        """Does it; the host calls this once for each start of its user interface, also without one (--nowebui)."""
        for work in self._before:
            work()
        for register, callback in self._callbacks:
            register(callback)
