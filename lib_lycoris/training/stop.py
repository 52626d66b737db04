"""Ctrl-C, or a cluster's wish for an end, as a wish to stop, not as an exception in the middle of a step."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_interrupt(grace: float = 0.0) -> Iterator[Callable[[], bool]]:
    """Gives the `should_stop` for `train`: True after the first Ctrl-C or SIGTERM, so that the step ends and is saved; a second one interrupts at once.

    In another thread than the main one, where Python allows no signal handler, it stays False and Ctrl-C does what it did.

    Args:
        grace: seconds in which a second signal counts as the first: a launcher passes on what its terminal has sent to all processes already.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop.is_set
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    since = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal since
        if stop.is_set() and time.monotonic() - since >= grace:
            raise KeyboardInterrupt
        since = since if stop.is_set() else time.monotonic()
        stop.set()

    for number in _SIGNALS:
        signal.signal(number, handle)
    try:
        yield stop.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
