"""Trains the embedded checkpoint on the world's scenes: autoencoder first, then UNet and text encoder together.

Every stage is seeded and writes its state as it goes; started again in the same work folder it goes on where it was.  On a GPU all of it is minutes, on
two CPU cores about an hour and a half.
"""
from __future__ import annotations

import json
import math
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from . import measure, scenes

LATENT_SCALE = 0.18215
"""What Stable Diffusion 1 multiplies latents by; the autoencoder's own last layers are fitted so that the product has unit variance."""

VAE_CONFIG = dict(block_out_channels=[64, 64, 64, 64], layers_per_block=2, down_block_types=["DownEncoderBlock2D"] * 4,
                  up_block_types=["UpDecoderBlock2D"] * 4, latent_channels=4, norm_num_groups=32)
UNET_CONFIG = dict(block_out_channels=[64, 64, 128, 128], attention_head_dim=4, cross_attention_dim=64, sample_size=8)
TEXT_CONFIG = dict(vocab_size=49408, hidden_size=64, intermediate_size=256, projection_dim=64, num_hidden_layers=12, num_attention_heads=4,
                   max_position_embeddings=77, hidden_act="quick_gelu", bos_token_id=49406, eos_token_id=49407, pad_token_id=49407)


@dataclass(frozen=True)
class BuildSettings:
    """How long each stage trains.

    Attributes:
        work: folder of the unfinished state.
        vae_steps, steps: optimiser steps of the autoencoder and of UNet + text encoder.
        batch: pictures a step of the UNet.
        pool: scenes drawn and encoded once for the UNet's training.
        seed: of everything.
        device: "cpu" or "cuda".
    """

    work: Path
    vae_steps: int = 2600
    steps: int = 5000
    batch: int = 64
    pool: int = 12288
    seed: int = 7
    device: str = "cpu"


def pictures_to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 [N,H,W,3] to float [N,3,H,W] in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def tensor_to_pictures(tensor: Tensor) -> np.ndarray:
    """float [N,3,H,W] in -1..1 to uint8 [N,H,W,3]."""
    return ((tensor.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _loose_polygon(rng: random.Random) -> np.ndarray:
    """A picture [H,W,3] of a random polygon in random colours, so that the autoencoder learns edges and not six shapes."""
    corners = sorted(rng.uniform(0, 2 * math.pi) for _ in range(rng.randint(3, 7)))
    points = [(rng.uniform(0.4, 1) * math.cos(a), rng.uniform(0.4, 1) * math.sin(a)) for a in corners]
    axis = (np.arange(scenes.SIDE) + 0.5) / scenes.SIDE
    radius = rng.uniform(0.15, 0.5)
    x, y = np.meshgrid((axis - rng.uniform(0.3, 0.7)) / radius, (axis - rng.uniform(0.3, 0.7)) / radius)
    mask = np.clip(0.5 - scenes.polygon_distance(x, y, points) * radius * scenes.SIDE, 0, 1)[..., None]
    front, back = (rng.choice(list(scenes.COLOURS.values())) if rng.random() < 0.5 else [rng.randint(0, 255) for _ in range(3)] for _ in range(2))
    return np.round(mask * np.array(front) + (1 - mask) * np.array(back)).astype(np.uint8)


def _draw_pictures(rng: random.Random, count: int) -> np.ndarray:
    return np.stack([_loose_polygon(rng) if rng.random() < 0.3 else scenes.render(scenes.draw_scene(rng)) for _ in range(count)])


def _cosine(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Learning rate at a step: linear warm-up, then a half cosine to a fiftieth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


class _State:
    """One stage's resumable state in one file, replaced atomically."""

    def __init__(self, path: Path, **parts):
        self.path, self.parts = path, parts

    def load(self) -> int:
        if not self.path.exists():
            return 0
        saved = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        return saved["step"]

    def save(self, step: int) -> None:
        temporary = self.path.with_suffix(".new")
        torch.save({"step": step, **{name: part.state_dict() for name, part in self.parts.items()}}, temporary)
        os.replace(temporary, self.path)


def reconstruction_scores(vae: nn.Module, count: int = 200, seed: int = 1, device: str = "cpu") -> dict[str, float]:
    """How often the measure reads a reconstructed scene as it reads the original, for shape and colour, and the mean absolute error in levels of 255."""
    rng = random.Random(seed)
    pictures = np.stack([scenes.render(scenes.draw_scene(rng)) for _ in range(count)])
    with torch.no_grad():
        out = torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in pictures_to_tensor(pictures).to(device).split(50)])
    again = tensor_to_pictures(out)
    readings = [(measure.read_picture(a), measure.read_picture(b)) for a, b in zip(pictures, again, strict=True)]
    return {"shape": sum(a.shape == b.shape for a, b in readings) / count, "colour": sum(a.colour == b.colour for a, b in readings) / count,
            "error": float(np.abs(pictures.astype(float) - again).mean())}


def train_autoencoder(settings: BuildSettings, say=print) -> nn.Module:
    """The trained autoencoder (diffusers' AutoencoderKL), its latents whitened."""
    from diffusers import AutoencoderKL

    torch.manual_seed(settings.seed)
    vae = AutoencoderKL(**VAE_CONFIG).to(settings.device)
    if settings.device == "cpu":
        vae = vae.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    state = _State(settings.work / "autoencoder.pt", vae=vae, optimiser=optimiser)
    begin = time.time()
    for step in range(first := state.load(), settings.vae_steps):
        rng = random.Random(settings.seed * 1_000_003 + step)
        torch.manual_seed(settings.seed * 1_000_003 + step)
        if step % 2:
            batch = pictures_to_tensor(_draw_pictures(rng, 8))
        else:
            batch = pictures_to_tensor(_draw_pictures(rng, 32))
            offsets = [(rng.randrange(33), rng.randrange(33)) for _ in range(32)]
            batch = torch.stack([p[:, y:y + 32, x:x + 32] for p, (y, x) in zip(batch, offsets, strict=True)])
        batch = batch.to(settings.device, memory_format=torch.channels_last)
        posterior = vae.encode(batch).latent_dist
        out = vae.decode(posterior.sample()).sample
        difference = out - batch
        divergence = 0.5 * (posterior.mean ** 2 + posterior.var - 1 - posterior.logvar).mean()
        loss = difference.abs().mean() + difference.square().mean() + 1e-4 * divergence
        for group in optimiser.param_groups:
            group["lr"] = _cosine(step, settings.vae_steps, 1.5e-3)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % 200 == 0 or step + 1 == settings.vae_steps:
            state.save(step + 1)
            scores = reconstruction_scores(vae, device=settings.device)
            say(f"autoencoder {step + 1}/{settings.vae_steps} loss {loss.item():.4f} kl {divergence.item():.2f} reconstructed: shape {scores['shape']:.1%} "
                f"colour {scores['colour']:.1%} error {scores['error']:.1f}/255 lr {optimiser.param_groups[0]['lr']:.1e} "
                f"{(time.time() - begin) / (step + 1 - first):.2f} s a step", flush=True)
    vae.eval().requires_grad_(False)
    return vae


if __name__ == "__main__":
    import sys
    work = Path(sys.argv[1]); work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    train_autoencoder(BuildSettings(work))
