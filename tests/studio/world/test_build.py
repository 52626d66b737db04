"""What the embedded checkpoint's training does to finished modules must not change what they compute."""
from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from lib_lycoris.studio.world import build


def test_whitening_gives_unit_latents_and_the_same_pictures():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(**{**build.VAE_CONFIG, "layers_per_block": 1, "block_out_channels": [32] * 4}).eval().requires_grad_(False)
    pictures = torch.rand(6, 3, 32, 32) * 2 - 1
    before = vae.decode(vae.encode(pictures).latent_dist.mode()).sample
    spread_before = vae.encode(pictures).latent_dist.std
    plain = vae.encode(pictures).latent_dist.mode()
    build.whiten(vae, plain)
    posterior = vae.encode(pictures).latent_dist
    scaled = posterior.mode() * build.LATENT_SCALE
    assert torch.allclose(scaled.mean((0, 2, 3)), torch.zeros(4), atol=1e-4) and torch.allclose(scaled.std((0, 2, 3)), torch.ones(4), atol=1e-3)
    assert torch.allclose(vae.decode(posterior.mode()).sample, before, atol=1e-4)
    # the posterior keeps its width relative to the latents
    assert torch.allclose(posterior.std * build.LATENT_SCALE * plain.std((0, 2, 3), keepdim=True), spread_before, rtol=1e-3)


def test_lifting_the_text_vectors_mean_leaves_the_unets_answer():
    torch.manual_seed(1)
    unet, text = (part.eval().requires_grad_(False) for part in build.make_denoiser())
    for parameter in unet.parameters():  # what starts at zero must count here
        parameter.add_(torch.randn_like(parameter) * 0.02)
    ids, x, t = torch.randint(0, 49408, (1, 77)), torch.randn(1, 4, 8, 8), torch.tensor([300])
    before = unet(x, t, text(ids).last_hidden_state).sample
    mean = text(ids).last_hidden_state.mean()
    build.lift_mean(unet, text)
    assert torch.allclose(text(ids).last_hidden_state.mean(), mean + 0.25, atol=1e-5)
    assert torch.allclose(unet(x, t, text(ids).last_hidden_state).sample, before, atol=1e-5)


def test_the_average_of_parameters_swaps_in_and_out_without_a_trace():
    parameter = torch.nn.Parameter(torch.zeros(3))
    average = build._Average([parameter], decay=0.5)
    with torch.no_grad():
        parameter.add_(1.0)
    average.update(100)
    average.swap()
    assert torch.equal(parameter.detach(), torch.full((3,), 0.5))
    average.swap()
    assert torch.equal(parameter.detach(), torch.ones(3))
