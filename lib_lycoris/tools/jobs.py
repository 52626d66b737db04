"""Long work on files in a thread of its own, one after the other, with a state that page and routes can ask for at any moment."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from lib_lycoris.errors import BusyError, ConfigError, LycoError, shown

OnStep = Callable[[int, int], None]
Work = Callable[[OnStep], Mapping[str, Any]]
"""Does it, telling (done, total) as it goes; gives plain values."""

_KEPT = 20
_MOST_WAITING = 20
ENDED = ("done", "failed", "stopped")


class StoppedWorkError(LycoError):
    """Work that somebody stopped; nothing of it was written."""


@dataclass(frozen=True)
class JobState:
    """How a piece of work stands, in plain values.

    Attributes:
        id: counts up.
        title: what is done, in words.
        phase: waiting, running, done, failed or stopped.
        done: parts of `total` that are done.
        result: what it gave, once it is done.
        error: why it failed, one line.
    """

    id: int
    title: str
    phase: str = "waiting"
    done: int = 0
    total: int = 0
    result: Mapping[str, Any] | None = None
    error: str | None = None


class Jobs:
    """Does one piece of work after the other."""

    def __init__(self) -> None:
        self._guard = threading.Condition()
        self._states: dict[int, JobState] = {}
        self._waiting: list[tuple[int, Work]] = []
        self._stop: set[int] = set()
        self._thread: threading.Thread | None = None
        self._count = self._version = 0

    def start(self, title: str, work: Work) -> JobState:
        """Has the work done after all that waits already; gives its first state.

        Raises:
            BusyError: too much waits.
        """
        with self._guard:
            if len(self._waiting) >= _MOST_WAITING:
                raise BusyError(f"{len(self._waiting)} pieces of work are waiting already: wait for their end, or stop some")
            self._count += 1
            state = self._set(JobState(self._count, title))
            self._waiting.append((state.id, work))
            for old in [each.id for each in self._states.values() if each.phase in ENDED][:-_KEPT]:
                del self._states[old]
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lycoris-jobs", daemon=True)
                self._thread.start()
            return state

    def state(self, job: int) -> dict[str, Any]:
        """How that piece of work stands.

        Raises:
            ConfigError: there is none of that number, or it is long over.
        """
        with self._guard:
            return asdict(self._find(job))

    def states(self) -> dict[str, Any]:
        """All that is known, oldest first, with a number that grows with every change: {"version", "jobs": [state]}."""
        with self._guard:
            return {"version": self._version, "jobs": [asdict(each) for each in self._states.values()]}

    def stop(self, job: int | None = None) -> dict[str, Any]:
        """Stops a piece of work, or all that run and wait; gives all states.

        Raises:
            ConfigError: there is none of that number.
        """
        with self._guard:
            for state in [self._find(job)] if job is not None else list(self._states.values()):
                if state.phase not in ENDED:
                    self._stop.add(state.id)
                if state.phase == "waiting":
                    self._waiting = [each for each in self._waiting if each[0] != state.id]
                    self._set(replace(state, phase="stopped"))
        return self.states()

    def wait(self, job: int, seconds: float) -> dict[str, Any]:
        """The state at the work's end, or after that many seconds."""
        with self._guard:
            self._guard.wait_for(lambda: self._find(job).phase in ENDED, seconds)
            return asdict(self._find(job))

    def _find(self, job: int) -> JobState:
        if job not in self._states:
            raise ConfigError(f"no work has the number {job}: known are {', '.join(map(str, self._states)) or 'none'}")
        return self._states[job]

    def _set(self, state: JobState) -> JobState:
        self._states[state.id] = state
        self._version += 1
        self._guard.notify_all()
        return state

    def _run(self) -> None:
        while True:
            with self._guard:
                if not self._waiting:
                    self._thread = None
                    return
                job, work = self._waiting.pop(0)
                self._set(replace(self._states[job], phase="running"))
            self._do(job, work)

    def _do(self, job: int, work: Work) -> None:
        def on_step(done: int, total: int) -> None:
            with self._guard:
                if job in self._stop:
                    raise StoppedWorkError(f"stopped by the user at {done} of {total}: nothing was written")
                self._set(replace(self._states[job], done=done, total=total))

        try:
            ended = {"phase": "done", "result": dict(work(on_step))}
        except StoppedWorkError as error:
            ended = {"phase": "stopped", "error": str(error)}
        except LycoError as error:
            ended = {"phase": "failed", "error": str(error)}
        except Exception as error:  # the thread's outermost edge: page and routes hear of it, the console gets the traceback
            traceback.print_exc()
            ended = {"phase": "failed", "error": f"unexpected {type(error).__name__}: {shown(error)}; the console says where"}
        with self._guard:
            self._set(replace(self._states[job], **ended))
