"""What the library's list shows of thousands of files: searched, sorted, told in two lines each. Pure functions of plain values."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

SHOWN = 200
"""How many entries a page of the list has."""

SHORT = {"sd_v1": "SD 1", "sd_v2": "SD 2", "sdxl_base_v1-0": "SDXL"}
LAYOUTS = {"sd": "SD 1 or 2", "sdxl": "SDXL"}
"""What an adapter is for that tells no base model, by the sizes of its maps."""

SORTS: dict[str, tuple[Callable[[Mapping[str, Any]], Any], bool]] = {
    "Name": (lambda row: row["name"].lower(), False),
    "Newest first": (lambda row: row.get("modified") or 0, True),
    "Largest first": (lambda row: row.get("bytes") or 0, True),
    "Base model": (lambda row: (row.get("base_model") or "~", row["name"].lower()), False),
    "Kind": (lambda row: (row.get("kind") or "~", row["name"].lower()), False),
}
"""What a list is sorted by: by which value, and whether downwards."""

_SEARCHED = ("name", "kind", "base_model", "alias", "title", "trigger_phrase", "tags", "file")


def find_rows(rows: Sequence[Mapping[str, Any]], search: str, sort: str) -> list[Mapping[str, Any]]:
    """The rows in which every word of the search stands, in the order that was asked for."""
    words = search.lower().split()
    found = [row for row in rows if all(word in _text(row) for word in words)] if words else list(rows)
    value, down = SORTS.get(sort, SORTS["Name"])
    return sorted(found, key=value, reverse=down)


def choices(rows: Sequence[Mapping[str, Any]], page: int = 0) -> list[tuple[str, str]]:
    """(what is shown, name) of each row of a page, counted from 0; the first line is the name, the second what it is."""
    return [(f"{one_line(row['name'])}\n{summary(row)}", row["name"]) for row in rows[page * SHOWN:(page + 1) * SHOWN]]


def pages(found: int) -> int:
    """How many pages so many rows fill, at least one."""
    return max(1, -(-found // SHOWN))


def page_of(rows: Sequence[Mapping[str, Any]], name: str | None) -> int:
    """The page on which that name stands; the first where it does not."""
    return next((place // SHOWN for place, row in enumerate(rows) if row["name"] == name), 0)


def one_line(name: str) -> str:
    """A name without what would break a line or turn its direction for what follows: a file may be called anything."""
    plain = "".join(letter if letter.isprintable() or letter in "\u200c\u200d" else " " if letter.isspace() else "\ufffd" for letter in name)
    return f"\u2068{plain}\u2069" if any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in plain) else plain


def summary(row: Mapping[str, Any]) -> str:
    """A line on what a file is: "LoRA 16 · SD 1 · 36.1 MB · 2026-11-20"."""
    kind = f"{row.get('kind') or ''} {row.get('rank') or ''}".strip()
    parts = ["can't be used" if row.get("problem") else "", kind, vectors(row), base(row), megabytes(row.get("bytes") or 0),
             day(row.get("modified"))]
    return " · ".join(part for part in parts if part)


def base(row: Mapping[str, Any]) -> str:
    """The base model in words: "SD 1"; of an adapter that does not say more "SD 1 or 2"; "" where nothing tells."""
    return SHORT.get(row.get("base_model") or "", "") or LAYOUTS.get(row.get("layout") or "", "")


def vectors(row: Mapping[str, Any]) -> str:
    """How many vectors an embedding has: "4 vectors"; "" for other files."""
    count = row.get("vectors")
    return f"{count} vector{'s' if count != 1 else ''}" if count else ""


def count_words(found: int, all_rows: int, page: int = 0) -> str:
    """How many are shown, in words."""
    if not all_rows:
        return "Nothing is here yet. Train something, or put files into a folder for them, and read the folders again."
    if found > SHOWN:
        return f"{page * SHOWN + 1} to {min(found, (page + 1) * SHOWN)} of {found}" + (f", {all_rows} in all" if found != all_rows else "")
    return f"{found} of {all_rows}" if found != all_rows else f"{found} file{'s' if found != 1 else ''}"


def megabytes(count: float) -> str:
    """A size: "36.1 MB", "0.3 MB", "12 kB", "18 bytes"."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.0f} kB" if count >= 1e3 else f"{count:.0f} bytes"


def day(seconds: float | None) -> str:
    """A date: "2026-11-20"."""
    return time.strftime("%Y-%m-%d", time.localtime(seconds)) if seconds else ""


def _text(row: Mapping[str, Any]) -> str:
    held = " ".join(str(row[key]) for key in _SEARCHED if row.get(key))
    short = base(row)
    return f"{held} {short} {short.replace(' ', '')}".lower()
