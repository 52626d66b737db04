"""Ctrl-C after which something was saved."""

from __future__ import annotations


class InterruptedWork(Exception):
    """Work that Ctrl-C ended; the message names what was saved."""
