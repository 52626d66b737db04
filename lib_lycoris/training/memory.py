"""How much memory a training needs, before it is started: counted where it can be, and for a step found by two small forward passes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..patching.session import attach
from ..patching.targets import Target
from .adapter import make_adapter_method
from .backbone import Backbone
from .captions import with_word
from .checkpointing import find_blocks
from .conditioning import autocast
from .config import TrainConfig
from .dropout import Dropout
from .frozen import frozen
from .methods import create_layer
from .new_word import make_word
from .selection import Key

_OPTIMIZER_BYTES = {"adamw": 8, "adamw8bit": 2, "lion": 4, "prodigy": 16, "schedule_free": 8}
"""For each number that is trained, beside it and its gradient."""
_SIDES = (8, 16)
"""Of the latents in the two forward passes, in cells."""
_CAPTION = "a caption"
_DORA_COPIES = 4
"""Of a layer's weight in float32, which DoRA needs at once while it computes lengths and gradients; measured on the largest layer of SD 1.5's UNet."""


@dataclass(frozen=True)
class Memory:
    """An estimate, in bytes.

    Attributes:
        model: the weights of UNet and text encoders as they are in a training.
        trained: the network with its gradients, the optimiser's numbers and the average.
        step: the most that a step has at once, of the largest size and the whole batch: what its forward pass keeps for its backward pass, and
            with gradient checkpointing what the largest block needs in between.
    """

    model: int
    trained: int
    step: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.model + self.trained + self.step


def estimate_memory(config: TrainConfig, backbone: Backbone, targets: Mapping[Key, Target], parameters: int, size: tuple[int, int]) -> Memory:
    """What a training needs, about; the model is used for it and left as it was.

    What a forward pass keeps grows by the same for each cell of the latents, so that two small passes tell that of a large one. It comes out rather too
    large than too small: measured on SD 1.5's UNet (a quarter of its width) by 12 to 18 %, and with checkpointing by 11 to 30 %; LoKr without it 2 % too small.

    Args:
        targets: what is trained.
        parameters: how many numbers that is.
        size: (width, height) of the largest pictures, in pixels.
    """
    modules = [backbone.unet, *backbone.text_encoders]
    with backbone.training(), frozen(modules), torch.inference_mode(False), torch.enable_grad():
        weights = {value.data_ptr(): value.numel() * value.element_size() for module in modules for value in (*module.parameters(), *module.buffers())}
        layers = {key: create_layer(target, config.network, config.training.seed).to(backbone.device) for key, target in targets.items()}
        blocks = find_blocks(modules) if config.training.gradient_checkpointing else []
        word = make_word(config, backbone)
        with nullcontext() if word is None else word.put_on(backbone), attach(targets, layers), _adapter(config, backbone) as following:
            text = word is not None or any(component != "unet" for component, _ in targets)
            known = {*weights, *(value.data_ptr() for layer in layers.values() for value in layer.parameters())}
            small, large = (_kept(config, backbone, side, text, blocks, known, following) for side in _SIDES)
    a_cell = (large - small) / (_SIDES[1] ** 2 - _SIDES[0] ** 2)
    rest = small - a_cell * _SIDES[0] ** 2
    step = (rest + a_cell * math.prod(size) / 64) * config.data.batch_size
    if blocks and targets and config.network.dora:  # without checkpointing it is gone again before the most is needed
        step += _DORA_COPIES * 4 * max(math.prod(target.shape) for target in targets.values())
    trained = parameters * (8 + _OPTIMIZER_BYTES[config.training.optimizer] + (4 if config.training.ema else 0))
    return Memory(sum(weights.values()), trained, max(0, round(step)))


@contextmanager
def _adapter(config: TrainConfig, backbone: Backbone) -> Iterator[Callable[[int], AbstractContextManager[Any]]]:
    """Gives what goes around a forward pass of latents with so many cells a side: an adapter's, where one is trained."""
    if config.network.kind != "adapter":
        yield lambda side: nullcontext()
        return
    method = make_adapter_method(config, backbone)
    with method.attached({}, Dropout(config.network, 0)):
        yield lambda side: method.following(torch.zeros(1, 3, 8 * side, 8 * side, device=backbone.device))


def _kept(
    config: TrainConfig, backbone: Backbone, side: int, text: bool, blocks: list[nn.Module], weights: Iterable[int],
    following: Callable[[int], AbstractContextManager[Any]],
) -> int:
    """Bytes that a forward pass of one picture with `side`² cells keeps for its backward pass."""
    latents = torch.zeros(1, 4, side, side, device=backbone.device)
    t = torch.zeros(1, dtype=torch.long, device=backbone.device)
    framings: dict[str, Any] = {"framings": [None]} if getattr(backbone, "framed", False) else {}
    with autocast(backbone.device, config.training.precision):
        if not text:
            with torch.no_grad():
                conditioning = backbone.encode_captions([with_word(_CAPTION, config.word)])
        with kept_bytes(blocks, weights) as count, following(side):
            if text:
                conditioning = backbone.encode_captions([with_word(_CAPTION, config.word)])
            backbone.predict(latents, t, conditioning, **framings)
        return count()


@contextmanager
def kept_bytes(blocks: list[nn.Module] | tuple[nn.Module, ...] = (), weights: Iterable[int] = ()) -> Iterator[Any]:
    """Gives a function that says how many bytes the forward pass within keeps for its backward pass.

    Args:
        blocks: that are checkpointed: of them their inputs are kept, and once, in the backward pass, the rest of the largest, with as much of gradients.
        weights: addresses of memory that is there anyway.
    """
    places: Counter[int] = Counter()
    seen, inside, known = set(), [0], set(weights)

    def pack(value: Tensor) -> Tensor:
        address = value.untyped_storage().data_ptr()
        if address not in seen and address not in known and value.data_ptr() not in known:
            seen.add(address)
            places[inside[-1]] += value.untyped_storage().nbytes()
        return value

    def enter(block: nn.Module, args: Any, kwargs: Any) -> None:
        places[0] += sum(value.numel() * value.element_size() for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        inside.append(1 + blocks.index(block))

    def leave(*args: Any) -> None:
        inside.pop()

    handles = [handle for block in blocks for handle in (block.register_forward_pre_hook(enter, with_kwargs=True), block.register_forward_hook(leave))]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            yield lambda: places[0] + 2 * max((count for place, count in places.items() if place), default=0)
    finally:
        for handle in handles:
            handle.remove()
