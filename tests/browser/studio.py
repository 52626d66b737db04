"""A studio of its own process for the tests of its page, and what a user's hands do there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
PATIENCE = int(os.environ.get("LYCO_TEST_PATIENCE", "400000"))
"""Milliseconds; the machine may be busy."""


@dataclass(frozen=True)
class Studio:
    """A studio that runs: its page's address, and the folder in which it was started."""

    address: str
    folder: Path


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Studio]:
    """A studio that was started in that folder; Ctrl-C ends it."""
    process = subprocess.Popen([sys.executable, "-m", "lib_lycoris", "studio", *arguments], cwd=folder,
                               env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               encoding="utf-8")
    guard = threading.Timer(PATIENCE / 1000, process.kill)
    guard.start()
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"ready: (http://127\.0\.0\.1:\d+)", line):
                guard.cancel()
                break
        else:
            raise AssertionError(f"the studio did not start: {''.join(lines)}")
        yield Studio(found[1], folder)
        if os.name != "nt":  # where Ctrl-C goes to a whole console
            process.send_signal(signal.SIGINT)
            assert "Lyco Studio has ended" in process.communicate(timeout=PATIENCE / 1000)[0]
            assert process.returncode == 130
    finally:
        guard.cancel()
        process.kill()
        process.communicate()


def box(page, name):
    """The field of a setting."""
    return page.locator(f"#lycoris_{name} textarea, #lycoris_{name} input").first


def write(field, value):
    """Types into a field until it holds that.

    gradio 6 gives the fields of a part that was unfolded a moment ago their values once more; hands are slower than that.
    """
    for _ in range(50):
        field.fill(value)
        field.page.wait_for_timeout(100)
        if field.input_value() == value:
            return
    raise AssertionError(f"the field does not keep {value!r}: it holds {field.input_value()!r}")


def holds(page, name, value):
    """Waits until a setting's field holds that text."""
    page.wait_for_function("([name, value]) => document.querySelector(`#lycoris_${name} textarea, #lycoris_${name} input`)?.value === value",
                           arg=[name, value])


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()


def choose(page, name, option):
    """Chooses from a dropdown."""
    page.locator(f"#lycoris_{name} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def unfold(page, name):
    page.locator(f"#lycoris_{name} > button, #lycoris_{name} .label-wrap").first.click()


def says(page, words):
    """Waits until the line over the progress bar says so."""
    page.wait_for_function("words => document.querySelector('#lycoris_progress')?.innerText.includes(words)", arg=words)


def curve(page):
    """The points of the loss's curve."""
    line = page.locator("#lycoris_curve svg polyline").first
    line.wait_for()
    return line.get_attribute("points")


def wait_for_curve_to_move(page):
    page.wait_for_function("before => ![before, undefined].includes(document.querySelector('#lycoris_curve svg polyline')?.getAttribute('points'))",
                           arg=curve(page))
