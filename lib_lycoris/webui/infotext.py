"""A pasted infotext: its networks are found by their hashes where they have another name here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib_lycoris.errors import UnknownNetworkError
from lib_lycoris.library.shelf import Shelf
from lib_lycoris.prompt.edit import Tag, change_tags, find_tags
from lib_lycoris.prompt.tag import unquote

from . import host
from .known_hashes import DIGITS, known_hash

HASHES = ("Lyco hashes", "Lora hashes")
"""Ours, and the built-in extension's, which writes `<lyco:…>` there too where it is the one that reads it."""

TEXTS = ("Prompt", "Negative prompt", "Hires prompt", "Hires negative prompt")


class Paste:
    """Rewrites `<lyco:…>` in what the host read out of an infotext."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def __call__(self, infotext: str, params: dict[str, Any]) -> None:
        """Puts the names that the files have here into the prompts; nothing else of `params` changes."""
        told = _read_hashes(params)
        asked = {tag.name for text in TEXTS for tag in find_tags(_text(params, text))}
        hashed = {name: told[written_in_infotext(name)] for name in asked if written_in_infotext(name) in told}
        if not hashed:
            return
        self._shelf.scan()
        names = {name: self._name_here(name, digest) for name, digest in hashed.items()}

        def rename(tag: Tag) -> Tag:
            here = names.get(tag.name)
            return tag if here is None or here == tag.name else tag.renamed(here)

        for text in TEXTS:
            if _text(params, text):
                params[text] = change_tags(params[text], rename)

    def _name_here(self, name: str, digest: str) -> str | None:
        """What the file of this hash is called here; None where it isn't here, or this very name means it."""
        networks = self._shelf.networks()
        try:
            named = self._shelf.find(name)
        except UnknownNetworkError:
            named = None
        if named is not None and (known_hash(named) or host.short_hash(named.path) or "") == digest:
            return None
        unknown = []
        for network in networks:
            known = known_hash(network)
            if known == digest:
                return _plain(network.tag_name)
            if not known:
                unknown.append(network)
        # Nobody has read these files yet. The host keeps what it finds, so that happens to a file once.
        found = next((network for network in unknown if host.short_hash(network.path) == digest), None)
        return None if found is None else _plain(found.tag_name, digest)


def written_in_infotext(name: str) -> str:
    """The name as it stands in front of its hash."""
    return name.replace(":", "").replace(",", "")


def _plain(tag_name: str | None, digest: str | None = None) -> str | None:
    return digest if tag_name is None else unquote(tag_name)


def _read_hashes(params: Mapping[str, Any]) -> dict[str, str]:
    """{name: the first 12 digits}; where both kinds of hashes name one, ours counts."""
    found: dict[str, str] = {}
    for key in reversed(HASHES):
        for pair in _text(params, key).split(","):
            name, colon, digest = pair.rpartition(":")
            if colon and digest.strip():
                found[name.strip()] = digest.strip().lower()[:DIGITS]
    return found


def _text(params: Mapping[str, Any], key: str) -> str:
    found = params.get(key)
    return found if isinstance(found, str) else ""
