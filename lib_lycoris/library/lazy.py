"""A mapping whose values are made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

Value = TypeVar("Value")


class LazyMapping(Mapping[str, Value]):
    """Known keys, and values that `make` makes at the first question and that stay the same ever after, also between threads."""

    def __init__(self, keys: Iterable[str], make: Callable[[str], Value], made: Mapping[str, Value] | None = None):
        """A mapping of these keys in their order; `made` holds values that are there already."""
        self._keys = dict.fromkeys(keys)
        self._make = make
        self._made: dict[str, Value] = dict(made or {})

    def __getitem__(self, key: str) -> Value:
        value = self._made.get(key)
        if value is None:
            if key not in self._keys:
                raise KeyError(key)
            value = self._made.setdefault(key, self._make(key))  # of two threads' values the first stays
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __reduce__(self) -> tuple:
        """Copied and pickled with all values: what makes them may hold a file."""
        return _of_values, (dict(self),)


def _of_values(values: dict[str, Value]) -> LazyMapping[Value]:
    return LazyMapping(values, values.__getitem__, values)
