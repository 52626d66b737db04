"""A bound method as a hook of a module, by which what is on the module is found again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class Hook:
    """A hook that a copied or pickled module does not take along: in the copy it does nothing."""

    def __init__(self, method: Callable):
        self.method = method

    def __call__(self, *args: Any) -> Any:
        return self.method(*args)

    def __reduce__(self) -> tuple:
        return _nothing_hook, ()


def find_owner(hooks: Mapping[int, Any], kind: type) -> Any | None:
    """The object of this class whose method is one of the hooks, or None."""
    for hook in hooks.values():
        if isinstance(hook, Hook) and isinstance(hook.method.__self__, kind):
            return hook.method.__self__
    return None


def _nothing_hook() -> Callable:
    return _nothing


def _nothing(*args: Any) -> None:
    """A hook without effect."""
