"""The parts of a tag: which value stands for what. Pure text, the same for every argument."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from lib_lycoris.errors import RequestError, shown

_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def join_quoted(items: Sequence[str]) -> list[str]:
    """The parts with those put together again that ":" cut apart between two quotation marks: ['"a', 'b"', '1'] gives ['"a:b"', '1'].

    A quotation mark begins a quote at the start of a part or after its first "=" only, and only where one ends it.
    """
    joined, place = [], 0
    while place < len(items):
        end = place + 1
        if _body(items[place]).startswith('"'):
            while end < len(items) and not _closed(":".join(items[place:end])):
                end += 1
            if not _closed(":".join(items[place:end])):
                end = place + 1  # an inch mark, or half a quote: a letter like others
        joined.append(":".join(items[place:end]))
        place = end
    return joined


def _body(item: str) -> str:
    """What may be quoted of a part: all of it, or what follows its "="."""
    stripped = item.strip()
    return stripped if stripped.startswith('"') else stripped.partition("=")[2].strip()


def _closed(item: str) -> bool:
    return _QUOTED.fullmatch(_body(item)) is not None


def unquote(text: str) -> str:
    """The text without blanks around it and without the quotation marks around it; a doubled one within is one."""
    text = text.strip()
    return text[1:-1].replace('""', '"') if _QUOTED.fullmatch(text) else text


def quote(text: str) -> str:
    """The text between quotation marks."""
    return '"' + text.replace('"', '""') + '"'


def sort_arguments(name: str, items: Sequence[str], known: Collection[str], most: int) -> tuple[list[str], dict[str, str]]:
    """The values by place, and those by name.

    Args:
        name: the network's, for messages.
        items: what follows the name in the tag.
        known: the arguments that have names.
        most: how many values may go without.

    Raises:
        RequestError: an argument is not known or stands twice, or there are too many values.
    """
    placed: list[str] = []
    named: dict[str, str] = {}
    for item in items:
        key, equals, value = item.partition("=")
        key = key.strip().lower()
        if not equals:
            placed.append(item)
            continue
        if key not in known:
            raise RequestError(f"{shown(name)!r} has an argument {shown(key)!r} that is not known; known are {', '.join(f'{each}=' for each in known)}")
        if key in named:
            raise RequestError(f"{shown(name)!r} has {shown(key)!r} twice; keep one")
        named[key] = unquote(value)
    if len(placed) > most:
        raise RequestError(f"{shown(name)!r} has {len(placed)} values where at most {most} are known: te, unet and dyn; leave the others out")
    return placed, named
