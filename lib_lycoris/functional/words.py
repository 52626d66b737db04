"""Vectors appended to a text's own."""

from __future__ import annotations

import torch
from torch import Tensor


def append_words(text: Tensor, words: Tensor) -> Tensor:
    """[B,T+K,D] of a text [B,T,D] and words [B or 1,K,D], in the text's dtype and on its device."""
    return torch.cat([text, words.to(text.device, text.dtype).expand(len(text), -1, -1)], dim=1)


def repeat_end(text: Tensor, count: int) -> Tensor:
    """[B,T+count,D]: a text [B,T,D] and its own last `count` vectors once more (all of them over again, where it has fewer).

    What a negative prompt gets beside a positive one with words appended: vectors of zeros would take a share of the attention.

    Source: TencentARC/T2I-Adapter, branch SD, ldm/models/diffusion/ddim.py, p_sample_ddim.
    """
    while count > text.shape[1]:
        text, count = torch.cat([text, text], dim=1), count - text.shape[1]
    return torch.cat([text, text[:, text.shape[1] - count:]], dim=1)
