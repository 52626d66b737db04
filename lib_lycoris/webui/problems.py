"""What went wrong, told where users look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PROBLEMS = "Lyco problems"


class _InfoOnly(str):
    """Text that the host puts into a reply's info, not into the picture's own parameters: there it calls what can be called, and None is left out."""

    def __call__(self, **_: Any) -> None:
        return None


def tell(p: Any, problems: Sequence[str]) -> None:
    """Writes problems under the picture and, for those who call the API, into the reply's info (the host leaves comments out of it)."""
    comment, info = getattr(p, "comment", None), getattr(p, "extra_generation_params", None)
    for problem in problems:
        if comment is not None:
            comment(problem)
    if info is not None and problems:
        told = dict.fromkeys([*filter(None, str(info.get(PROBLEMS, "")).split("\n")), *problems])
        info[PROBLEMS] = _InfoOnly("\n".join(told))
