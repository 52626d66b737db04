"""A module tree's own names in diffusers' words, found from which block follows which, not from what the blocks' classes are called."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

# inside a residual block: LDM's word, diffusers' word
_RESNET = (("in_layers.0", "norm1"), ("in_layers.2", "conv1"), ("emb_layers.1", "time_emb_proj"), ("out_layers.0", "norm2"),
           ("out_layers.3", "conv2"), ("skip_connection", "conv_shortcut"))
_OUTER = (("input_blocks.0.0", "conv_in"), ("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"),
          ("label_emb.0.0", "add_embedding.linear_1"), ("label_emb.0.2", "add_embedding.linear_2"), ("out.0", "conv_norm_out"), ("out.2", "conv_out"))
_ENCODER = (("attn", "self_attn"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"))


def unet_root(tree: nn.Module) -> nn.Module:
    """The UNet within `tree`: the nearest module that has down and up blocks in one of the two spellings, or `tree` itself where none has."""
    return next((module for _, module in _nearest(tree) if is_ldm(module) or is_diffusers(module)), tree)


def is_ldm(module: nn.Module) -> bool:
    """Whether the module is a UNet with LDM's names."""
    return hasattr(module, "input_blocks") and hasattr(module, "output_blocks")


def is_diffusers(module: nn.Module) -> bool:
    """Whether the module is a UNet with diffusers' names."""
    return hasattr(module, "down_blocks") and hasattr(module, "up_blocks")


def unet_names(unet: nn.Module) -> dict[str, tuple[str, str]]:
    """For each module path of a UNet with dots its (diffusers path, LDM path); paths that only one spelling has stand for both.

    Source: huggingface/diffusers, scripts/convert_diffusers_to_original_stable_diffusion.py (its tables; here for any number of layers).
    """
    ldm_tree = is_ldm(unet)
    pairs = list(_ldm_pairs(unet)) if ldm_tree else list(_diffusers_pairs(unet)) if is_diffusers(unet) else []
    own = 0 if ldm_tree else 1
    prefixes = {pair[own]: pair for pair in pairs}
    names = {}
    for path, _ in unet.named_modules():
        head = _longest_prefix(path, prefixes)
        rest = path[len(head):] if head else ""
        ldm, diffusers = (prefixes[head][0] + rest, prefixes[head][1] + rest) if head else (path, path)
        names[path] = (diffusers, ldm)
    return names


def _longest_prefix(path: str, prefixes) -> str:
    while path and path not in prefixes:
        path = path.rpartition(".")[0]
    return path


def _ldm_pairs(unet: nn.Module) -> Iterator[tuple[str, str]]:
    yield from _OUTER
    level = layer = 0
    for number, block in enumerate(list(unet.input_blocks)[1:], start=1):
        parts = {kind: position for position, kind in enumerate(map(_kind, block))}
        for kind, position in parts.items():
            yield from _block_pair(kind, f"input_blocks.{number}.{position}", f"down_blocks.{level}", layer)
        level, layer = (level + 1, 0) if "downsamplers" in parts else (level, layer + 1)
    counts = {"resnets": 0, "attentions": 0}
    for position, part in enumerate(getattr(unet, "middle_block", ())):
        kind = _kind(part)
        if kind in counts:
            yield from _block_pair(kind, f"middle_block.{position}", "mid_block", counts[kind])
            counts[kind] += 1
    level = layer = 0
    for number, block in enumerate(unet.output_blocks):
        parts = {kind: position for position, kind in enumerate(map(_kind, block))}
        for kind, position in parts.items():
            yield from _block_pair(kind, f"output_blocks.{number}.{position}", f"up_blocks.{level}", layer)
        level, layer = (level + 1, 0) if "upsamplers" in parts else (level, layer + 1)


def _diffusers_pairs(unet: nn.Module) -> Iterator[tuple[str, str]]:
    yield from _OUTER
    number = 1
    for level, block in enumerate(unet.down_blocks):
        for layer in range(len(block.resnets)):
            yield from _block_pair("resnets", f"input_blocks.{number}.0", f"down_blocks.{level}", layer)
            if _length(block, "attentions"):
                yield from _block_pair("attentions", f"input_blocks.{number}.1", f"down_blocks.{level}", layer)
            number += 1
        if _length(block, "downsamplers"):
            yield from _block_pair("downsamplers", f"input_blocks.{number}.0", f"down_blocks.{level}", 0)
            number += 1
    middle = getattr(unet, "mid_block", None)
    for layer in range(_length(middle, "resnets")):
        yield from _block_pair("resnets", f"middle_block.{2 * layer}", "mid_block", layer)
    for layer in range(_length(middle, "attentions")):
        yield from _block_pair("attentions", f"middle_block.{2 * layer + 1}", "mid_block", layer)
    number = 0
    for level, block in enumerate(unet.up_blocks):
        attentions = bool(_length(block, "attentions"))
        for layer in range(len(block.resnets)):
            yield from _block_pair("resnets", f"output_blocks.{number}.0", f"up_blocks.{level}", layer)
            if attentions:
                yield from _block_pair("attentions", f"output_blocks.{number}.1", f"up_blocks.{level}", layer)
            number += 1
        if _length(block, "upsamplers"):
            yield from _block_pair("upsamplers", f"output_blocks.{number - 1}.{2 if attentions else 1}", f"up_blocks.{level}", 0)


def _length(block: nn.Module | None, field: str) -> int:
    return len(getattr(block, field, None) or ())


def _kind(part: nn.Module) -> str:
    """Which of diffusers' lists a part of an LDM block belongs to."""
    if hasattr(part, "in_layers"):
        return "resnets"
    if hasattr(part, "transformer_blocks"):
        return "attentions"
    if hasattr(part, "op"):
        return "downsamplers"
    return "upsamplers" if hasattr(part, "conv") else "other"


def _block_pair(kind: str, ldm: str, diffusers: str, layer: int) -> Iterator[tuple[str, str]]:
    if kind == "resnets":
        for inner_ldm, inner_diffusers in _RESNET:
            yield f"{ldm}.{inner_ldm}", f"{diffusers}.resnets.{layer}.{inner_diffusers}"
    elif kind == "attentions":
        yield ldm, f"{diffusers}.attentions.{layer}"
    elif kind == "downsamplers":
        yield f"{ldm}.op", f"{diffusers}.downsamplers.0.conv"
    elif kind == "upsamplers":
        yield f"{ldm}.conv", f"{diffusers}.upsamplers.0.conv"


def text_encoder_names(tree: nn.Module) -> dict[str, tuple[str, ...]]:
    """For each module path of a text encoder its spellings with dots: first CLIPTextModel's in transformers 4 ("text_model.encoder.layers.0…").

    The encoder may stand anywhere in `tree`; what wraps a layer under the name "wrapped" is passed over. open_clip's picture encoder has no names.
    """
    root_path, root = next(((path, module) for path, module in _nearest(tree) if _is_clip(module) or _is_open_clip(module)), ("", tree))
    prefixes = {}
    if _is_clip(root):
        prefixes = {"": "text_model"}
    elif _is_open_clip(root):
        prefixes = {"ln_final": "text_model.final_layer_norm", "token_embedding": "text_model.embeddings.token_embedding"}
        for number in range(len(root.transformer.resblocks)):
            prefixes |= {f"transformer.resblocks.{number}.{ours}": f"text_model.encoder.layers.{number}.{theirs}" for ours, theirs in _ENCODER}
    names = {}
    for path, _ in tree.named_modules():
        within = path == root_path or path.startswith(f"{root_path}.") or not root_path
        plain = ".".join(part for part in path.split(".") if part != "wrapped")
        if not within:
            names[path] = (plain.rpartition(".")[2], plain) if path.endswith("text_projection") else (plain,)
            continue
        inner = ".".join(part for part in path[len(root_path):].strip(".").split(".") if part != "wrapped")
        if _is_open_clip(root) and inner.partition(".")[0] == "visual":
            continue
        head = _longest_prefix(inner, prefixes)
        theirs = f"{prefixes[head]}{'.' if inner and not head else ''}{inner[len(head):]}" if head in prefixes else inner
        names[path] = tuple(dict.fromkeys((theirs, inner, plain)))
    return names


def _is_clip(module: nn.Module) -> bool:
    return hasattr(module, "final_layer_norm") and hasattr(getattr(module, "encoder", None), "layers")


def _is_open_clip(module: nn.Module) -> bool:
    return hasattr(module, "token_embedding") and hasattr(getattr(module, "transformer", None), "resblocks")


def _nearest(tree: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules with their paths, those near the root first."""
    return iter(sorted(tree.named_modules(), key=lambda item: item[0].count(".") + bool(item[0])))
