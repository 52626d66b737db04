"""Words of style adapters behind the encoded prompts of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def extend_texts(params: Any, control: Any, rows: Sequence[tuple[int, bool]]) -> None:
    """Appends the words that count at this step; nothing where no style adapter acts.

    Both sides get as many vectors, whatever their prompts' lengths, so that the host cuts a step into the same calls as without them.

    Args:
        params: the host's CFGDenoiserParams; its conds are replaced, not changed, as the host keeps them.
        control: whose words they are.
        rows: for each row of the step its picture, and whether it is a negative one: the positive ones come first.
    """
    positive = [row for row in rows if not row[1]]
    params.text_cond = _extended(params.text_cond, control, positive)
    negative = params.text_uncond["crossattn"] if isinstance(params.text_uncond, dict) else params.text_uncond
    params.text_uncond = _extended(params.text_uncond, control, [(number, True) for number in range(len(negative))])


def _extended(cond: Any, control: Any, rows: Sequence[tuple[int, bool]]) -> Any:
    text = cond["crossattn"] if isinstance(cond, dict) else cond
    longer = control.extend(text, rows)
    if longer is text:
        return cond
    if not isinstance(cond, dict):
        return longer
    copied = type(cond)(cond)
    copied["crossattn"] = longer
    return copied
