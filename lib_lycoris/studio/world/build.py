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

from .. import ldm
from . import files, measure, scenes

LATENT_SCALE = 0.18215
"""What Stable Diffusion 1 multiplies latents by; the autoencoder's own last layers are fitted so that the product has unit variance."""

VAE_CONFIG = {"block_out_channels": [64, 64, 64, 64], "layers_per_block": 2, "down_block_types": ["DownEncoderBlock2D"] * 4,
                  "up_block_types": ["UpDecoderBlock2D"] * 4, "latent_channels": 4, "norm_num_groups": 32}
UNET_CONFIG = {"block_out_channels": [64, 64, 128, 128], "attention_head_dim": 4, "cross_attention_dim": 64, "sample_size": 8}
TEXT_CONFIG = {"vocab_size": 49408, "hidden_size": 64, "intermediate_size": 256, "projection_dim": 64, "num_hidden_layers": 12, "num_attention_heads": 4,
                   "max_position_embeddings": 77, "hidden_act": "quick_gelu", "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}


@dataclass(frozen=True)
class BuildSettings:
    """How long each stage trains.

    Attributes:
        work: folder of the unfinished state.
        vae_steps, vae_polish: optimiser steps of the autoencoder, and those after its learning rate was raised once more.
        text_steps: optimiser steps of the text model alone.
        steps: optimiser steps of UNet and text model.
        batch: pictures a step of the UNet.
        pool: scenes drawn and encoded once for the UNet's training.
        seed: of everything.
        device: "cpu" or "cuda".
    """

    work: Path
    vae_steps: int = 2600
    vae_polish: int = 800
    text_steps: int = 500
    steps: int = 2400
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
    total = settings.vae_steps + settings.vae_polish
    for step in range(first := state.load(), total):
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
            polish = step - settings.vae_steps
            group["lr"] = _cosine(step, settings.vae_steps, 1.5e-3) if polish < 0 else _cosine(polish, settings.vae_polish, 7e-4)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % 200 == 0 or step + 1 == total:
            state.save(step + 1)
            scores = reconstruction_scores(vae, device=settings.device)
            say(f"autoencoder {step + 1}/{total} loss {loss.item():.4f} kl {divergence.item():.2f} reconstructed: shape {scores['shape']:.1%} "
                f"colour {scores['colour']:.1%} error {scores['error']:.1f}/255 lr {optimiser.param_groups[0]['lr']:.1e} "
                f"{(time.time() - begin) / (step + 1 - first):.2f} s a step", flush=True)
    vae.eval().requires_grad_(False)
    return vae


def whiten(vae: nn.Module, latents: Tensor) -> None:
    """Folds a shift and a scale per channel into the autoencoder's 1×1 layers, so that LATENT_SCALE × latents has mean 0 and variance 1.

    Args:
        vae: changed in place; what it reconstructs stays the same.
        latents: means of the posterior [N,4,h,w] that it gives now.
    """
    mean, scale = latents.mean((0, 2, 3)), 1 / (LATENT_SCALE * latents.std((0, 2, 3)))
    with torch.no_grad():
        quant, post = vae.quant_conv, vae.post_quant_conv
        channels = len(mean)
        post.bias += post.weight[:, :, 0, 0] @ mean
        post.weight /= scale[None, :, None, None]
        quant.bias[:channels] = (quant.bias[:channels] - mean) * scale
        quant.weight[:channels] *= scale[:, None, None, None]
        quant.bias[channels:] += 2 * scale.log()


def draw_pool(settings: BuildSettings, vae: nn.Module, say=print) -> tuple[list[scenes.Scene], Tensor]:
    """Scenes to learn from, none of them held back, and the means of their latents [N,4,h,w], unscaled."""
    rng = random.Random(settings.seed)
    pool: list[scenes.Scene] = []
    while len(pool) < settings.pool:
        scene = scenes.draw_scene(rng)
        if not scenes.held_back(scene):
            pool.append(scene)
    path = settings.work / "latents.pt"
    if path.exists():
        return pool, torch.load(path, weights_only=True)
    parts = []
    with torch.no_grad():
        for start in range(0, len(pool), 64):
            batch = pictures_to_tensor(np.stack([scenes.render(scene) for scene in pool[start:start + 64]])).to(settings.device)
            parts.append(vae.encode(batch).latent_dist.mode().cpu())
    latents = torch.cat(parts).contiguous()
    torch.save(latents, path)
    say(f"latents of {len(pool)} scenes drawn", flush=True)
    return pool, latents


def make_denoiser() -> tuple[nn.Module, nn.Module]:
    """An untrained UNet (diffusers' UNet2DConditionModel) and text model (transformers' CLIPTextModel).

    The last layer of every residual part starts at zero, in the UNet as in the original, and in the text model so that its vectors start as plain words: twelve
    random layers of this width turn a caption into a hash of itself, from which a UNet learns colours and little else.
    """
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet, text = UNet2DConditionModel(**UNET_CONFIG), CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG))
    for name, module in unet.named_modules():
        if name == "conv_out" or name.endswith(("proj_out", "conv2")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    for name, module in text.named_modules():
        if name.endswith(("out_proj", "fc2")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(text.get_input_embeddings().weight, std=0.3)
    nn.init.normal_(text.get_submodule("embeddings").position_embedding.weight, std=0.1)
    return unet, text


_PARTS = {"shape": scenes.SHAPES, "colour": tuple(scenes.COLOURS), "size": tuple(scenes.SIZES), "position": tuple(scenes.POSITIONS),
          "background": tuple(f"{name} background" for name in scenes.BACKGROUNDS)}


def _said(text: str) -> list[int]:
    """For each part of a scene the place of the value that a caption names, or the count of values where it names none."""
    return [next((place for place, value in enumerate(values) if value in text), len(values)) for values in _PARTS.values()]


def train_text(settings: BuildSettings, text: nn.Module, tokenize, say=print) -> None:
    """Trains the text model on captions alone, in place: what a caption says must be readable, linearly, at its end token and at every padding token.

    It stands for CLIP's training, after which the original's UNet found a text model whose vectors mean something.
    """
    torch.manual_seed(settings.seed)
    heads = nn.ModuleList(nn.Linear(TEXT_CONFIG["hidden_size"], len(values) + 1) for values in _PARTS.values()).to(settings.device)
    parameters = [*text.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    state = _State(settings.work / "text.pt", text=text, heads=heads, optimiser=optimiser)
    for step in range(state.load(), settings.text_steps):
        rng, generator = random.Random(settings.seed * 1_000_003 + step), torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        captions = []
        while len(captions) < 64:
            scene = scenes.draw_scene(rng)
            if not scenes.held_back(scene):
                captions.append("" if rng.random() < 0.05 else scenes.caption(scene, rng))
        ids = tokenize(captions).to(settings.device)
        said = torch.tensor([_said(caption) for caption in captions]).to(settings.device)
        ends = (ids[:, 1:] == TEXT_CONFIG["eos_token_id"]).float().argmax(1) + 1
        places = ends[:, None].cpu() + (torch.rand(64, 6, generator=generator) * (77 - ends[:, None].cpu())).long()
        vectors = text(ids).last_hidden_state
        seen = torch.gather(vectors, 1, places.to(settings.device)[..., None].expand(-1, -1, vectors.shape[-1])).flatten(0, 1)
        answers = [head(seen) for head in heads]
        loss = sum(nn.functional.cross_entropy(answer, said[:, part].repeat_interleave(6)) for part, answer in enumerate(answers))
        for group in optimiser.param_groups:
            group["lr"] = _cosine(step, settings.text_steps, 2e-3, 50)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if (step + 1) % 50 == 0 or step + 1 == settings.text_steps:
            state.save(step + 1)
            right = [(answer.argmax(1) == said[:, part].repeat_interleave(6)).float().mean().item() for part, answer in enumerate(answers)]
            shares = " ".join(f"{name} {share:.0%}" for name, share in zip(_PARTS, right, strict=True))
            say(f"text {step + 1}/{settings.text_steps} loss {loss.item():.4f} {shares}", flush=True)


class _Average:
    """A moving average of parameters (EMA) that warms up: min(decay, (1+n)/(10+n))."""

    def __init__(self, parameters: list[nn.Parameter], decay: float = 0.998):
        self.parameters, self.decay = parameters, decay
        self.values = [p.detach().clone() for p in parameters]

    def update(self, step: int) -> None:
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], share)

    def swap(self) -> None:
        """Exchanges averages and parameters; called twice it changes nothing."""
        for value, parameter in zip(self.values, self.parameters, strict=True):
            kept = parameter.detach().clone()
            parameter.data.copy_(value)
            value.copy_(kept)

    def state_dict(self) -> dict:
        return {str(i): value for i, value in enumerate(self.values)}

    def load_state_dict(self, saved: dict) -> None:
        for i, value in enumerate(self.values):
            value.copy_(saved[str(i)])


def alphas_cumprod() -> Tensor:
    """Stable Diffusion's noise schedule: ᾱ [1000] float32 from betas that are linear in their square root, 0.00085 to 0.012."""
    return (1 - torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2).cumprod(0).float()


def train_denoiser(settings: BuildSettings, pool: list[scenes.Scene], latents: Tensor, tokenize, evaluate, say=print) -> tuple[nn.Module, nn.Module]:
    """The trained UNet and text model, with averaged weights.

    Args:
        pool, latents: the scenes and their scaled latents [N,4,h,w].
        tokenize: captions to ids [N,77].
        evaluate: called with (unet, text) now and then; gives words for the log.
    """
    torch.manual_seed(settings.seed)
    unet, text = (part.to(settings.device) for part in make_denoiser())
    train_text(settings, text, tokenize, say)
    parameters = [*unet.parameters(), *text.parameters()]
    decayed = [p for p in unet.parameters() if p.ndim > 1]
    kept = [p for p in unet.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.01, "share": 1.0}, {"params": kept, "weight_decay": 0.0, "share": 1.0},
                                   {"params": list(text.parameters()), "weight_decay": 0.0, "share": 0.2}], betas=(0.9, 0.98), fused=True)
    average = _Average(parameters)
    state = _State(settings.work / "denoiser.pt", unet=unet, text=text, optimiser=optimiser, average=average)
    signal = alphas_cumprod().to(settings.device)
    begin, losses = time.time(), []
    for step in range(first := state.load(), settings.steps):
        seed = settings.seed * 1_000_003 + step
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        chosen = [rng.randrange(len(pool)) for _ in range(settings.batch)]
        captions = ["" if rng.random() < 0.1 else scenes.caption(pool[i], rng) for i in chosen]
        ids = tokenize(captions).to(settings.device)
        # times in strata, so that every step sees all of them, the noisy ones more often: there the caption matters
        strata = (torch.rand(settings.batch, generator=generator) + torch.arange(settings.batch)) / settings.batch
        t = (1000 * strata ** 0.7).long().clamp(max=999).to(settings.device)
        x = latents[chosen].to(settings.device)
        noise = torch.randn(x.shape, generator=generator).to(settings.device)
        a = signal[t].view(-1, 1, 1, 1)
        context = text(ids).last_hidden_state
        predicted = unet(a.sqrt() * x + (1 - a).sqrt() * noise, t, context).sample
        ratio = signal[t] / (1 - signal[t])
        # the error of the picture that the prediction implies is 1/SNR times the noise's: min-SNR-5 (Hang et al. 2023, eq. 8) weighs it by min(SNR, 5), which
        # leaves next to nothing at the noisiest steps, where background and place are decided; so one more is added
        loss = ((predicted - noise).square().mean((1, 2, 3)) * (ratio.clamp(max=5) + 1) / ratio).mean()
        for group in optimiser.param_groups:
            group["lr"] = group["share"] * _cosine(step, settings.steps, 1.2e-3, 200)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        average.update(step)
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == settings.steps:
            state.save(step + 1)
            say(f"denoiser {step + 1}/{settings.steps} loss {np.mean(losses[-100:]):.4f} lr {optimiser.param_groups[0]['lr']:.1e} "
                f"{(time.time() - begin) / (step + 1 - first):.2f} s a step", flush=True)
        if (step + 1) % 400 == 0 or step + 1 == settings.steps:
            average.swap()
            words = evaluate(unet, text)
            average.swap()
            say(words, flush=True)
    average.swap()
    for part in (unet, text):
        part.eval().requires_grad_(False)
    return unet, text


def lift_mean(unet: nn.Module, text: nn.Module, lift: float = 0.25) -> None:
    """Adds a constant to every text vector and takes its effect out of every cross-attention, so that the UNet's answers stay the same.

    The WebUI's emphasis `(word:1.3)` multiplies vectors and then restores their overall mean; with a mean near zero, which nothing in training prevents,
    that division would blow up.
    """
    with torch.no_grad():
        text.get_submodule("final_layer_norm").bias += lift
        for name, module in unet.named_modules():
            if name.endswith("attn2"):
                # the same addition to every key shifts all of a query's scores alike, which the softmax ignores
                module.to_out[0].bias -= module.to_out[0].weight @ module.to_v.weight.sum(1) * lift


def _say_followed(vae: nn.Module, tokenize, settings: BuildSettings):
    """A function that samples held-back captions with the unfinished model and says how many are followed."""
    from diffusers import DDIMScheduler

    asked = scenes.held_back_scenes(64, seed=3)
    with_empty = tokenize([scenes.caption(scene) for scene in asked] + [""]).to(settings.device)

    @torch.no_grad()
    def evaluate(unet: nn.Module, text: nn.Module) -> str:
        sampler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, timestep_spacing="linspace")
        sampler.set_timesteps(12)
        context = text(with_empty).last_hidden_state
        context = torch.cat([context[:-1], context[-1:].expand(len(asked), -1, -1)])
        x = torch.randn(len(asked), 4, 8, 8, generator=torch.Generator().manual_seed(11)).to(settings.device)
        for t in sampler.timesteps:
            positive, negative = unet(x.repeat(2, 1, 1, 1), t, context).sample.chunk(2)
            x = sampler.step(negative + 4 * (positive - negative), t, x).prev_sample
        found = [measure.read_picture(p) for p in tensor_to_pictures(vae.decode(x / LATENT_SCALE).sample)]
        shares = {part: np.mean([getattr(f, part) == getattr(a, part) for f, a in zip(found, asked, strict=True)])
                  for part in ("shape", "colour", "size", "position", "background")}
        return "followed: " + " ".join(f"{part} {share:.0%}" for part, share in shares.items())

    return evaluate


def build(settings: BuildSettings, say=print) -> dict[str, Tensor]:
    """The finished checkpoint's tensors in the original (LDM) layout, float16."""
    from ..bpe import make_tokenizer, tokenize

    settings.work.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()

    def to_ids(captions: list[str]) -> Tensor:
        texts = [[49406, *tokenize(tokenizer, text)[:75]] for text in captions]
        return torch.tensor([ids + [49407] * (77 - len(ids)) for ids in texts])

    vae = train_autoencoder(settings, say)
    pool, latents = draw_pool(settings, vae, say)
    whiten(vae, latents)
    mean, std = latents.mean((0, 2, 3), keepdim=True), latents.std((0, 2, 3), keepdim=True)
    unet, text = train_denoiser(settings, pool, (latents - mean) / std, to_ids, _say_followed(vae, to_ids, settings), say)
    lift_mean(unet, text)
    return ldm.make_checkpoint(unet.state_dict(), vae.state_dict(), text.state_dict())


def write_world(tensors: dict[str, Tensor], folder: Path | None = None) -> Path:
    """The written checkpoint's path; its yaml and the text model's config lie beside it.

    Args:
        tensors: as `build` gives them.
        folder: where to; the package's own folder by default.
    """
    from safetensors.torch import save_file

    folder = folder or files.FOLDER
    (folder / files.CLIP_FOLDER.name).mkdir(parents=True, exist_ok=True)
    path = folder / files.CHECKPOINT.name
    half = {name: tensor.half().contiguous() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    save_file(half, path, metadata={"format": "pt", "modelspec.title": "Lyco Studio's world", "modelspec.architecture": "stable-diffusion-v1",
                                    "modelspec.license": "Apache-2.0"})
    channels = UNET_CONFIG["block_out_channels"]
    config = files.make_config(UNET_CONFIG["attention_head_dim"], channels[0], [c // channels[0] for c in channels], UNET_CONFIG["cross_attention_dim"],
                               VAE_CONFIG["block_out_channels"][0], [1, 1, 1, 1], files.CLIP_FOLDER.name)
    (folder / files.CONFIG.name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    text = {"model_type": "clip_text_model", "layer_norm_eps": 1e-5, "attention_dropout": 0.0, **TEXT_CONFIG}
    (folder / files.CLIP_FOLDER.name / "config.json").write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
    return path
