"""What a network or an embedding may be called: its file's name, and what is typed in a prompt."""

from __future__ import annotations

import re

from ..errors import ConfigError
from ..setting import show

_NAME = re.compile(r"[^\s./\\:*?\"<>|,\x00-\x1f]([^/\\:*?\"<>|,\x00-\x1f]*[^\s./\\:*?\"<>|,\x00-\x1f])?")
_LONGEST = 120


def check_name(key: str, name: str) -> None:
    """Returns where the name can be a file's on every system, and stand between ":" and ">" in a prompt.

    Raises:
        ConfigError: it can't.
    """
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise ConfigError(f'{key} = {show(name)}: expected a name of at most {_LONGEST} characters, without / \\ : * ? " < > | or comma, '
                          "and no dot or blank at its ends")
