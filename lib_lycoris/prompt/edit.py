"""Tags in a text, changed as text: renamed, set to another strength or argument, taken out. What is not named stays letter for letter."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from lib_lycoris.prompt.request import TAGS
from lib_lycoris.prompt.tag import join_quoted, quote, unquote

_TAG = re.compile(r"<(\w+):([^>]+)>")


@dataclass(frozen=True)
class Tag:
    """A tag as it stands in a text.

    Attributes:
        kind: "lyco".
        items: what stands between the colons: the name, values, `key=value`.
    """

    kind: str
    items: tuple[str, ...]

    @property
    def name(self) -> str:
        """The network's name."""
        return unquote(self.items[0])

    def renamed(self, name: str) -> Tag:
        """The same arguments for another network."""
        return replace(self, items=(written_name(name), *self.items[1:]))

    def with_strength(self, te: str | None = None, unet: str | None = None) -> Tag:
        """The tag with other strengths, each a number as text; what is None stays."""
        placed = [item for item in self.items[1:] if "=" not in item]
        named = dict(item.partition("=")[::2] for item in self.items[1:] if "=" in item)
        old_te = named.pop("te", placed[0] if placed else "1")
        old_unet = named.pop("unet", placed[1] if len(placed) > 1 else old_te)
        if len(placed) > 2:
            named.setdefault("dyn", placed[2])
        te, unet = old_te if te is None else te, old_unet if unet is None else unet
        strengths = (te,) if te == unet else (te, unet)
        return replace(self, items=(self.items[0], *strengths, *placed[3:], *(f"{key}={value}" for key, value in named.items())))

    def with_argument(self, key: str, value: str) -> Tag:
        """The tag with `key=value`, in place of an older one."""
        kept = [item for item in self.items[1:] if "=" not in item or item.partition("=")[0].strip() != key]
        return replace(self, items=(self.items[0], *kept, f"{key}={value}"))

    def __str__(self) -> str:
        return f"<{self.kind}:{':'.join(self.items)}>"


def written_name(name: str) -> str:
    """The name as it stands in a tag: between quotation marks where it would be cut apart otherwise."""
    return quote(name) if ":" in name or name.startswith('"') or name != name.strip() else name


def find_tags(text: str, kinds: Collection[str] = TAGS) -> list[Tag]:
    """The tags of these kinds, in order."""
    return [_tag(found) for found in _TAG.finditer(text) if found[1] in kinds]


def change_tags(text: str, change: Callable[[Tag], Tag | None], kinds: Collection[str] = TAGS, first: bool = False) -> str:
    """The text with each tag of these kinds, or only the first of them, as `change` gives it; None takes it out."""
    done = False

    def put(found: re.Match[str]) -> str:
        nonlocal done
        if found[1] not in kinds or (first and done):
            return found[0]
        done = True
        old = _tag(found)
        new = change(old)
        return "" if new is None else found[0] if new == old else str(new)

    return _TAG.sub(put, text)


def _tag(found: re.Match[str]) -> Tag:
    return Tag(found[1], tuple(join_quoted(found[2].split(":"))))
