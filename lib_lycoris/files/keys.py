"""A file's key ↔ the module path and the parameter's name. Pure text."""

from __future__ import annotations

import re
from collections.abc import Iterable

_KOHYA = re.compile(r"(?:lora_(?:unet|te\d?|transformer|prior_te)|oft_unet|lycoris)_[^.]+")
# An adapter's name ("default") stands between the factor and "weight" in raw PEFT dumps.
_PEFT = re.compile(r"(.+)\.lora_([AB])(?:\.[^.]+)?\.(weight|bias)")
_ADALORA = re.compile(r"(.+)\.(lora_[ABE]|ranknum)(?:\.(?!weight$|bias$)[^.]+)?")
# HCP-Diffusion's; its alpha is already divided by the rank. Its safetensors have "lora:" before the path, its pickles a dict "lora".
_HCP = re.compile(r"(?:lora[.:])?(?!lora_ema)([^:]+)\.___\.(?:layer\.)?(W_down|W_up|lora_down\.weight|lora_up\.weight|bias|alpha|scale)")
_DIFFUSERS = re.compile(r"(.+?)(?:_lora|\.lora|\.lora_linear_layer|\.lora_conv2d_layer)\.(down|up|alpha)(?:\.(weight|bias))?")
# PEFT's other names. Saved with save_pretrained they stand alone, raw dumps have an adapter's name behind them (".default"), some of both ".weight".
_TUNED = re.compile(
    r"(.+)\.(lora_magnitude_vector|lora_embedding_[AB]|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t[12])|boft_[Rs]|ia3_l)(?:\.[^.]+)?(?:\.weight)?"
)
_ROTATION = re.compile(r"(.+)\.oft_R(?:\.[^.]+)?\.(weight|scaled_oft)")
_NAMED = re.compile(
    r"(.+)\.(lora_(?:up|down|mid)\.weight|lora_up\.bias|alpha|scale|dora_scale|bias_(?:indices|values|size)|(?:[ab][12]|bm)\.weight|oft_(?:blocks|diag)|rescale"
    r"|on_input|[wb]_norm|diff(?:_b)?|set_weight)"
)
# What diffusers' conversion to kohya's form makes of a DoRA's lengths, and of a UNet's factors where text encoders were trained too.
_HALF_KOHYA = re.compile(r"(lora_(?:unet|te\d?)[._].+)\.(lora_magnitude_vector)|(lora_(?:unet|te\d?)_[^.]+)_lora\.(down|up)\.weight")
_WHOLE = re.compile(r"(base_model\.model\..+|.+\.base_layer)\.(weight|bias)|.+\.trainable_tokens_delta")
_HCP_NAMES = {"W_down": "lora_down.weight", "W_up": "lora_up.weight", "bias": "lora_up.bias", "alpha": "scale"}
_FACTORS = {("A", "weight"): "lora_down.weight", ("B", "weight"): "lora_up.weight", ("B", "bias"): "lora_up.bias", ("A", "bias"): "lora_down.bias"}


def split_key(key: str) -> tuple[str, str] | None:
    """The module path as the file spells it and the parameter's name as kohya and LyCORIS spell it, or None for a key that is no network's.

    "unet.….to_q.lora.down.weight" → ("unet.….to_q", "lora_down.weight"); "lora_unet_….alpha" → ("lora_unet_…", "alpha").
    """
    if key.startswith(("ip_adapter", "bundle_emb.")):  # they have low-rank factors or scales of their own inside
        return None
    if ".___." in key:
        match = _HCP.fullmatch(key)
        return (match[1], _HCP_NAMES.get(match[2], match[2])) if match else None
    if match := _HALF_KOHYA.fullmatch(key):
        return (match[1].replace(".", "_"), match[2]) if match[1] else (match[3], f"lora_{match[4]}.weight")
    head, dot, rest = key.partition(".")
    if dot and _KOHYA.fullmatch(head) and not rest.startswith(("lora.", "lora_A", "lora_B")):
        return head, rest
    if match := _PEFT.fullmatch(key):
        return match[1], _FACTORS[match[2], match[3]]
    if match := _DIFFUSERS.fullmatch(key):
        return match[1], "alpha" if match[2] == "alpha" else f"lora_{match[2]}.{match[3] or 'weight'}"
    if match := _ROTATION.fullmatch(key):
        return match[1], f"oft_R.{match[2]}"
    if match := _ADALORA.fullmatch(key) or _TUNED.fullmatch(key) or _NAMED.fullmatch(key):
        return match[1], match[2]
    return None


def is_whole_parameter(key: str) -> bool:
    """Whether a key that is no layer's is a parameter of the model itself, which PEFT saves whole: its `bias`, `modules_to_save`, trained tokens."""
    return _WHOLE.fullmatch(key) is not None


EMBEDDING = "a textual-inversion embedding; put it into the embeddings folder and use it by its name in the prompt (open_embedding reads it)"
# What else people put into a network folder: marks in its keys, and what it is.
_FOREIGN = (
    (r"bundle_emb\.|string_to_param|string_to_token|emb_params$|^clip_[lgh]$", EMBEDDING),
    (r"lllite_", "a ControlNet-LLLite, which the ControlNet extension loads"),
    (r"^ip_adapter|^image_proj", "an IP-Adapter, which the ControlNet extension loads"),
    (r"control_model\.|input_hint_block|zero_convs|controlnet_|^controlnet", "a ControlNet; put it into models/ControlNet"),
    (r"\.(vera_lambda_[bd]|fourierft_spectrum|hra_u|ln_tuning_layers|oft_r)\b|prompt_embeddings|^base_model\.",
     "an adapter of PEFT's of a kind not known here (its config's peft_type)"),
    (r"^(adapter\.)?body\.\d+\.", "a T2I-Adapter; it is chosen in the adapter list, not by a tag in the prompt"),
    (r"^(model\.)?diffusion_model\.|first_stage_model\.|cond_stage_model\.|conditioner\.", "a whole checkpoint; put it into models/Stable-diffusion"),
    (r"^(down|up)_blocks\.|^mid_block\.", "a whole UNet in diffusers' form; load it as a model"),
    (r"^(encoder|decoder)\.(conv_in|down|up|mid)|quant_conv", "a VAE; put it into models/VAE"),
    (r"^text_model\.|^transformer\.(resblocks|text_model)", "a text encoder; load it as a part of a model"),
)


def describe_foreign(keys: Iterable[str]) -> str | None:
    """What a file with these keys is when it is none of our networks, and what to do with it; None when nothing known."""
    keys = list(keys)
    for pattern, description in _FOREIGN:
        mark = re.compile(pattern)
        if any(mark.search(key) for key in keys):
            return description
    return None
