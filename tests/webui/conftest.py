"""The WebUIs under test: the real one of $WEBUI_DIR, and what stands in for it where there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .adapter_files import write_adapters
from .network_files import CONVOLUTION, LINEAR, write_foreign_network, write_ia3, write_network
from .real import RealWebUI, find_webui
from .stand_in import StandIn

UNSET = "WEBUI_DIR is not set: the tests of the real WebUI v1.10.1 were skipped (set it to the WebUI's folder, and WEBUI_PYTHON to its python)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests in a browser come last: what a browser leaves open keeps the real WebUI from ending its server at "Reload UI"."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)


def write_networks(webui) -> None:
    """The files that the tests speak of: A (LoRA), B (LoCon), I ((IA)³: its ΔW depends on the weight), elsewhere (mostly another model's), broken (cut off)."""
    write_network(webui.networks / "A.safetensors", webui.shapes, seed=11, pattern=LINEAR)
    write_network(webui.networks / "B.safetensors", webui.shapes, seed=12, pattern=CONVOLUTION)
    write_ia3(webui.networks / "I.safetensors", webui.shapes, seed=13)
    write_foreign_network(webui.networks / "elsewhere.safetensors", 9, webui.shapes)
    whole = (webui.networks / "A.safetensors").read_bytes()
    (webui.networks / "broken.safetensors").write_bytes(whole[: len(whole) // 2])
    write_adapters(webui.networks.parent / "T2I-Adapter", webui.shapes)


def start_real(folder: Path, port_offset: int = 0, flags: tuple[str, ...] = (), **more):
    """A real WebUI with the networks, ended after the test; $LYCO_TEST_PORT is its port (7870), $LYCO_TEST_LOG a file for its output; more: of RealWebUI."""
    found = find_webui()
    if found is None:
        pytest.skip(UNSET)
    webui = RealWebUI(*found, folder, int(os.environ.get("LYCO_TEST_PORT", "7870")) + port_offset, flags, **more)
    try:
        write_networks(webui)
        yield webui
    finally:
        webui.close()
        kept = os.environ.get("LYCO_TEST_LOG")
        if kept:
            Path(kept + (f".{port_offset}" if port_offset else "")).write_text(webui.output())


@pytest.fixture(scope="session")
def real_webui(tmp_path_factory):
    """One real WebUI with its full user interface, for all tests."""
    yield from start_real(tmp_path_factory.mktemp("webui"))


@pytest.fixture
def lowvram_webui(tmp_path):
    """A headless one that moves each layer to the device only while it runs."""
    yield from start_real(tmp_path, 1, ("--nowebui", "--lowvram"))


@pytest.fixture(scope="module")
def medvram_webui(tmp_path_factory):
    """A headless one that has one part of the model on the device at a time."""
    yield from start_real(tmp_path_factory.mktemp("medvram"), 2, ("--nowebui", "--medvram"))


@pytest.fixture(scope="module")
def stand_in_webui(tmp_path_factory):
    """The stand-in, in this process: it patches torch's classes as the host does, so it must not live on into other rooms' tests."""
    webui = StandIn(tmp_path_factory.mktemp("stand-in"))
    try:
        write_networks(webui)
        yield webui
    finally:
        webui.close()


@pytest.fixture(params=[pytest.param("stand_in", id="stand-in"), pytest.param("real", marks=pytest.mark.webui)])
def webui(request):
    """A WebUI with networks A, B, elsewhere and broken."""
    return request.getfixturevalue(f"{request.param}_webui")
