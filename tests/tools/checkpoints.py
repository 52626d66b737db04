"""Checkpoints in the original layout made of small module trees, so that what is in the file can be compared with what runs."""

from __future__ import annotations

import pytest
import torch

from lib_lycoris.files.safetensors import write_tensors
from lib_lycoris.files.spelling import kohya_name
from lib_lycoris.patching.targets import find_targets
from tests.patching.trees import SD1, SDXL, LdmUNet, OpenClipText
from tests.tools.helpers import lora

PREFIXES = {
    "sd2": ("model.diffusion_model.", ("cond_stage_model.model.",)),
    "sdxl": ("model.diffusion_model.", ("conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model.")),
}


def make_trees(kind, seed=0):
    """(UNet, text encoders) of Stable Diffusion 2 or XL in small."""
    torch.manual_seed(seed)
    if kind == "sd2":
        return LdmUNet(**SD1, linear=True).eval(), [OpenClipText().eval()]
    pytest.importorskip("transformers")
    from tests.patching.trees import clip_text

    return LdmUNet(**SDXL).eval(), [clip_text().eval(), OpenClipText().eval()]


def state_of(kind, unet, text_encoders):
    """The trees' tensors under a checkpoint's names, and a VAE's."""
    prefix, prefixes = PREFIXES[kind]
    tensors = {prefix + name: tensor for name, tensor in unet.state_dict().items()}
    for start, tree in zip(prefixes, text_encoders, strict=True):
        tensors |= {start + name: tensor for name, tensor in tree.state_dict().items()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()} | {"first_stage_model.decoder.conv_in.weight": torch.ones(2, 2, 3, 3)}


def write_checkpoint(path, tensors, dtype=None, metadata=None):
    write_tensors(path, {name: tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor for name, tensor in tensors.items()}, metadata)
    return path


def load_trees(kind, path):
    """The trees again, with a checkpoint file's values."""
    from lib_lycoris.files.safetensors import read_tensors

    unet, text_encoders = make_trees(kind)
    tensors = read_tensors(path)
    prefix, prefixes = PREFIXES[kind]
    for start, tree in ((prefix, unet), *zip(prefixes, text_encoders, strict=True)):
        tree.load_state_dict({name.removeprefix(start): tensor.float() for name, tensor in tensors.items() if name.startswith(start)})
    return unet, text_encoders


def lora_for_all(kind, unet, text_encoders, rank=2, seed=0, every=1):
    """A LoRA's tensors for every (or every n-th) layer that has rows and columns."""
    tensors = {}
    for place, ((component, name), target) in enumerate(find_targets(unet, text_encoders).items()):
        if len(target.shape) > 1 and place % every == 0 and "embedding" not in name:
            tensors |= lora(kohya_name(component, name, single_text_encoder=kind != "sdxl"), tuple(target.shape), rank, seed=seed + place)
    return tensors
