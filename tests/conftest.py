"""What every test shares: one thread, no hub, and which tests need something that may not be here."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import hypothesis
import pytest

# No test fails because the machine is busy with something else.
hypothesis.settings.register_profile("lyco", deadline=None)
hypothesis.settings.load_profile("lyco")

# Before torch is imported anywhere: one thread a process (they share the cores; pictures repeat bit for bit at a fixed count), no request to a hub.
for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}.items():
    os.environ.setdefault(_name, _value)

# PEFT's BOFT imports setuptools, which refuses to be second after Python's own distutils; which test of a process comes first must not matter.
if importlib.util.find_spec("peft") and importlib.util.find_spec("setuptools"):
    import setuptools  # noqa: F401

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
BROWSER_FILES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)


def find_chromium() -> str | None:
    """The Chromium (or Chrome, or Edge) on this machine that the browser tests drive; $CHROMIUM names another one."""
    named = os.environ.get("CHROMIUM")
    if named:
        return named if Path(named).is_file() else None
    on_path = (shutil.which(name) for name in BROWSERS)
    return next((path for path in (*on_path, *BROWSER_FILES) if path and Path(path).is_file()), None)


def missing_for(markers: set[str], slow: bool) -> str:
    """Why a test with these markers can't run here, or nothing."""
    if "slow" in markers and not slow:
        return "a proof of minutes: run it with --slow"
    if "browser" in markers and find_chromium() is None:
        return "no Chromium is on this machine: install one, or name it in $CHROMIUM"
    if "webui" in markers and not (Path(os.environ.get("WEBUI_DIR") or "/nowhere") / "launch.py").is_file():
        return "$WEBUI_DIR does not name a checkout of the WebUI v1.10.1"
    return ""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the learning proofs that take minutes too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        reason = missing_for({mark.name for mark in item.iter_markers()}, config.getoption("--slow"))
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium, for playwright's `executable_path`; the test is skipped where there is none."""
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium is on this machine: install one, or name it in $CHROMIUM")
    return path
