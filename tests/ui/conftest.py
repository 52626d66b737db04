"""Closes the event loops that gradio makes for its locks and leaves open, a pair for every page that is built."""

from __future__ import annotations

import asyncio

import pytest


@pytest.fixture(autouse=True)
def no_event_loop_stays_open(monkeypatch):
    made = []
    make = asyncio.new_event_loop

    def remember():
        made.append(make())
        return made[-1]

    monkeypatch.setattr(asyncio, "new_event_loop", remember)
    yield
    asyncio.set_event_loop(None)
    for loop in made:
        loop.close()
