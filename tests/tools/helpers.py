"""Small networks and models for the tools' tests, spelled as kohya, LyCORIS and PEFT spell them."""

from __future__ import annotations

import torch

from lib_lycoris import open_network
from lib_lycoris.files.safetensors import write_tensors

Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
K2 = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
PROJ = "lora_unet_mid_block_attentions_0_proj_in"
TE = "lora_te_text_model_encoder_layers_0_mlp_fc1"
SHAPES = {Q: (32, 32), K2: (32, 768), CONV: (32, 32, 3, 3), PROJ: (64, 64, 1, 1), TE: (96, 24)}


def rand(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lora(name, shape, rank=4, alpha=2.0, dtype=torch.float32, tucker=False, seed=0):
    """One LoRA or LoCon layer as kohya writes it."""
    ones = (1,) * (len(shape) - 2)
    parts = {"lora_up.weight": rand(seed + 1, shape[0], rank, *ones), "lora_down.weight": rand(seed + 2, rank, shape[1], *(ones if tucker else shape[2:]))}
    if tucker:
        parts["lora_mid.weight"] = rand(seed + 3, rank, rank, *shape[2:])
    return {f"{name}.{part}": (tensor / 8).to(dtype) for part, tensor in parts.items()} | {f"{name}.alpha": torch.tensor(alpha)}


def loha(name, shape, rank=3, alpha=1.5, tucker=False, seed=0):
    columns = torch.Size(shape[1:]).numel()
    if tucker:
        sizes = {"w1_a": (rank, shape[0]), "w1_b": (rank, shape[1]), "t1": (rank, rank, *shape[2:])}
    else:
        sizes = {"w1_a": (shape[0], rank), "w1_b": (rank, columns)}
    sizes |= {part.replace("1", "2"): size for part, size in sizes.items()}
    return {f"{name}.hada_{part}": rand(seed + place, *size) / 4 for place, (part, size) in enumerate(sizes.items())} | {f"{name}.alpha": torch.tensor(alpha)}


def lokr(name, shape, factor=4, rank=None, alpha=3.0, seed=0):
    """LyCORIS' LoKr: a small whole factor and a large one, whole or decomposed."""
    w2 = (shape[0] // factor, shape[1] // factor, *shape[2:])
    parts = {"w1": rand(seed, factor, factor)}
    if rank is None:
        parts["w2"] = rand(seed + 1, *w2)
    else:
        parts |= {"w2_a": rand(seed + 1, w2[0], rank), "w2_b": rand(seed + 2, rank, w2[1] * torch.Size(w2[2:]).numel())}
    return {f"{name}.lokr_{part}": tensor / 4 for part, tensor in parts.items()} | {f"{name}.alpha": torch.tensor(alpha)}


def write(path, tensors, metadata=None):
    write_tensors(path, {name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    return path


def write_locon(path, seed=0, dtype=torch.float32, metadata=None, scale=0.5):
    """A LoCon with a linear layer, a cross-attention key of SD 1's width, two convolutions (one in Tucker form), a projection and a text-encoder layer."""
    tensors = {}
    for place, (name, shape) in enumerate(SHAPES.items()):
        rank = 2 + place
        tensors |= lora(name, shape, rank, rank * scale, dtype, seed=seed + 10 * place)
    tensors |= lora("lora_unet_mid_block_resnets_0_conv2", (64, 64, 3, 3), 4, 4 * scale, dtype, tucker=True, seed=seed + 90)
    return write(path, tensors, metadata)


def deltas(path, shapes=None):
    """{(component, name): ΔW} of a network file, in the shapes of its targets."""
    network = path if hasattr(path, "layers") else open_network(path)
    return {network.targets[name]: layer.delta(torch.zeros(shape_of(layer))) for name, layer in network.layers.items()}


def shape_of(layer):
    """(O, N) of a layer, found by asking it."""
    for rows in (16, 24, 32, 64, 96, 128):
        for columns in (24, 32, 64, 72, 96, 144, 288, 576, 768):
            if layer.fits((rows, columns)):
                return rows, columns
    raise AssertionError("a test's layer of an unforeseen size")


def assert_same(one, other, relative=1e-6):
    assert set(one) == set(other)
    for key, delta in one.items():
        error = (other[key].flatten(1) - delta.flatten(1)).norm() / delta.norm()
        assert error <= relative, f"{key}: {error}"
