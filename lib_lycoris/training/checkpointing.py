"""Gradient checkpointing: blocks of a model keep their inputs alone, and run a second time when the backward pass comes to them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

# Of which parts a block is told: transformer blocks of diffusers and LDM, residual blocks of both, text encoders' layers of transformers and of open_clip.
_MARKS = (("attn2",), ("conv1", "conv2"), ("in_layers", "out_layers"), ("self_attn", "mlp"), ("attn", "ln_1"))


def find_blocks(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The blocks within these modules, none inside another."""
    return [block for module in modules for block in _outermost(module)]


@contextmanager
def checkpointed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it the modules' blocks are checkpointed wherever gradients are on; after it every block is as it was, also after an exception.

    Only the blocks' own `forward` is replaced, on the instance: hooks on it and within it run as always, and again in the second run. That run gives the
    same numbers where nothing in a block is random but what is drawn from fixed seeds, as here: the model is in eval mode, and dropout.py has its own seeds.
    """
    blocks = find_blocks(modules)
    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = functools.partial(_run, block.forward)
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            block.__dict__.pop("forward", None)
            if own is not None:
                block.forward = own


def _run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # not the reentrant way, which gives no gradients where a block's inputs need none
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    if any(all(hasattr(module, part) for part in mark) for mark in _MARKS):
        yield module
        return
    for child in module.children():
        yield from _outermost(child)
