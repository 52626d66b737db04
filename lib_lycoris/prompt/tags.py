"""Tags in a text, changed as text: renamed, set to another strength or argument, taken out. What is not named stays letter for letter."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from lib_lycoris.prompt.request import TAGS

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
        return self.items[0].strip()

    def renamed(self, name: str) -> Tag:
        """The same arguments for another network."""
        return replace(self, items=(name, *self.items[1:]))

    def with_strength(self, te: str | None = None, unet: str | None = None) -> Tag:
        """The tag with other strengths, each a number as text; what is None stays."""
        placed = [item for item in self.items[1:] if "=" not in item]
        named = {key.strip(): value for key, _, value in (item.partition("=") for item in self.items[1:]) if _}
        old_te = named.pop("te", placed[0] if placed else "1")
        old_unet = named.pop("unet", placed[1] if len(placed) > 1 else old_te)
        if len(placed) > 2:
            named.setdefault("dyn", placed[2])
        te, unet = old_te if te is None else te, old_unet if unet is None else unet
        strengths = (te,) if te == unet else (te, unet)
        return replace(self, items=(self.items[0], *strengths, *placed[3:], *(f"{key}={value}" for key, value in named.items())))

    def with_argument(self, key: str, value: str) -> Tag:
        """The tag with `key=value`, in place of an older one."""
        kept = [item for item in self.items if item.partition("=")[0].strip() != key or "=" not in item]
        return replace(self, items=(*kept, f"{key}={value}"))

    def __str__(self) -> str:
        return f"<{self.kind}:{':'.join(self.items)}>"


def find_tags(text: str, kinds: Collection[str] = TAGS) -> list[Tag]:
    """The tags of these kinds, in order."""
    return [Tag(found[1], tuple(found[2].split(":"))) for found in _TAG.finditer(text) if found[1] in kinds]


def change_tags(text: str, change: Callable[[Tag], Tag | None], kinds: Collection[str] = TAGS, count: int = 0) -> str:
    """The text with each tag of these kinds as `change` gives it, None taking it out; `count` above 0: only the first so many."""
    left = count or -1

    def put(found: re.Match[str]) -> str:
        nonlocal left
        if found[1] not in kinds or left == 0:
            return found[0]
        left -= 1
        old = Tag(found[1], tuple(found[2].split(":")))
        new = change(old)
        return "" if new is None else found[0] if new == old else str(new)

    return _TAG.sub(put, text)
