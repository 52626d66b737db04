"""Prompts as the vectors that steer the UNet, made as the WebUI makes them."""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..errors import ConfigError
from ..prompt.chunks import Chunk, empty_chunk, make_chunks
from ..prompt.composition import split_composition
from .bpe import tokenize
from .checkpoint import StudioModel
from .words import rows_in_place

_COMMA = ",</w>"


def prompt_chunks(model: StudioModel, text: str, emphasis: bool = True) -> list[Chunk]:
    """A prompt's chunks of 77 tokens, at least one."""
    words = model.tokenizer
    return make_chunks(text, partial(tokenize, words), words.convert_tokens_to_ids(_COMMA), words.bos_token_id, words.eos_token_id,
                       emphasis=emphasis, filling=model.filling, find=model.words.find)


def check_clip_skip(model: StudioModel, clip_skip: int) -> int:
    """The value, if the text encoder has that many layers.

    Raises:
        ConfigError: it has not.
    """
    layers = model.text_encoder.config.num_hidden_layers
    if not 1 <= clip_skip <= layers:
        raise ConfigError(f"clip_skip {clip_skip} is not in 1..{layers}, the layers of {model.name}'s text encoder; 1 uses them all")
    return clip_skip


def encode_chunks(model: StudioModel, chunks: Sequence[Chunk], clip_skip: int = 1) -> Tensor:
    """The text encoder's vectors [B,77,D] of B chunks, after its final norm.

    Args:
        clip_skip: 1 takes the last layer, 2 the one before it, …
    """
    encoder = model.text_encoder
    ids = torch.as_tensor([list(chunk.tokens) for chunk in chunks], device=model.device)
    with rows_in_place(encoder, next(iter(model.encoders)), chunks):
        output = encoder(input_ids=ids, output_hidden_states=clip_skip > 1)
    if clip_skip == 1:
        return output.last_hidden_state
    norm = getattr(encoder, "text_model", encoder).final_layer_norm  # transformers below 5 has one level more
    return norm(output.hidden_states[-clip_skip])


def weigh(vectors: Tensor, weights: Sequence[float]) -> Tensor:
    """Vectors [1,77,D] times their tokens' weights, scaled so that the mean over all of them stays.

    Source: AUTOMATIC1111/stable-diffusion-webui v1.10.1, modules/sd_emphasis.py, "Original" (behaviour).
    """
    factors = torch.tensor(weights, device=vectors.device)
    weighted = vectors * factors[None, :, None]
    return weighted * (vectors.mean() / weighted.mean())


def encode_prompt(model: StudioModel, text: str, clip_skip: int = 1) -> Tensor:
    """A prompt's vectors [1,T,D], T = 77 for each of its chunks."""
    return torch.cat([weigh(encode_chunks(model, [chunk], clip_skip), chunk.weights) for chunk in prompt_chunks(model, text)], dim=1)


def encode_composition(model: StudioModel, prompt: str, clip_skip: int = 1) -> list[tuple[Tensor, float]]:
    """The vectors [1,T,D] and the strength of each text that AND joins, all of one length.

    A shorter one is filled up with its last vector, as in the WebUI.
    """
    parts = [(encode_prompt(model, text, clip_skip), strength) for text, strength in split_composition(prompt)]
    longest = max(vectors.shape[1] for vectors, _ in parts)
    return [(torch.cat([vectors, vectors[:, -1:].expand(-1, longest - vectors.shape[1], -1)], dim=1), strength) for vectors, strength in parts]


def encode_captions(model: StudioModel, captions: Sequence[str], clip_skip: int = 1) -> Tensor:
    """Vectors [B,T,D] of captions, taken literally: brackets and BREAK are text. Gradients flow into the text encoder.

    T is 77 times the chunks of the longest; shorter ones are filled up with empty chunks.
    """
    rows = [prompt_chunks(model, caption, emphasis=False) for caption in captions]
    empty = empty_chunk(model.tokenizer.bos_token_id, model.tokenizer.eos_token_id, model.filling)
    parts = []
    for place in range(max(len(row) for row in rows)):
        parts.append(encode_chunks(model, [row[place] if place < len(row) else empty for row in rows], clip_skip))
    return torch.cat(parts, dim=1)
