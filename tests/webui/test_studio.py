"""The studio draws what the WebUI draws: same checkpoint, same settings, same networks."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from lib_lycoris.files.embeddings import write_embedding

pytest.importorskip("diffusers")

PROMPT = "a large red circle on the left on a white background"
LONG = ", ".join([PROMPT] * 9)
CASES = {
    "Euler": ({}, {}),
    "Euler a, batch": ({"sampler_name": "Euler a", "batch_size": 2}, {"sampler": "Euler a", "batch": 2}),
    "DPM++ 2M Karras": ({"sampler_name": "DPM++ 2M", "scheduler": "Karras"}, {"sampler": "DPM++ 2M", "scheduler": "karras"}),
    "Heun, another size": ({"sampler_name": "Heun", "width": 128}, {"sampler": "Heun", "width": 128}),
    "emphasis": ({"prompt": "a (large:1.4) [red] circle BREAK on a (white) background"},) * 2,
    "more than 75 tokens": ({"prompt": LONG, "negative_prompt": "a star"}, {"prompt": LONG, "negative": "a star"}),
    "clip skip": ({"override_settings": {"CLIP_stop_at_last_layers": 2}}, {"clip_skip": 2}),
    "a network": ({"prompt": "a large red circle <lyco:A:0.6:1.2>"},) * 2,
    "an embedding": ({"prompt": "a large (Zorbix style:1.3) circle, zorbix"},) * 2,
    "embeddings where chunks end": ({"prompt": " ".join(["red"] * 71) + " zorbix style " + " ".join(["blue"] * 70) + " zorbix, zorbix style"},) * 2,
}


@pytest.mark.webui
@pytest.mark.skipif("LYCO_TEST_CHECKPOINT" in os.environ, reason="LYCO_TEST_CHECKPOINT names another checkpoint than the embedded one")
@pytest.mark.parametrize("case", CASES)
def test_the_studio_draws_the_webuis_picture(real_webui, case):
    from lib_lycoris.generation import Generation
    from lib_lycoris.library.cache import NetworkCache
    from lib_lycoris.library.catalogue import Catalogue
    from lib_lycoris.patching.session import Session
    from lib_lycoris.studio.checkpoint import load_checkpoint
    from lib_lycoris.studio.generate import GenerateSettings, generate

    asked, wanted = CASES[case]
    embeddings = {"zorbix": {"clip_l": torch.randn(2, 64, generator=torch.Generator().manual_seed(3))},
                  "zorbix style": {"clip_l": torch.randn(5, 64, generator=torch.Generator().manual_seed(4))}}
    for name, vectors in embeddings.items():
        write_embedding(real_webui.host_embeddings / f"{name}.safetensors", vectors)
    real_webui.picture(PROMPT, checkpoint="base.safetensors", steps=1)
    theirs = real_webui.picture(**{"prompt": PROMPT, "steps": 12, **asked})
    for name in embeddings:
        (real_webui.host_embeddings / f"{name}.safetensors").unlink()
    model = load_checkpoint()
    networks = Generation(Catalogue([real_webui.networks]), NetworkCache(1 << 28), Session(model.unet, [model.text_encoder]))
    settings = {"prompt": PROMPT, "seed": 1, "steps": 12, "sampler": "Euler", "cfg": 5.0, "width": 64, "height": 64, **wanted}
    ours = generate(model, GenerateSettings(**settings), networks, embeddings=embeddings)
    assert len(ours) == len(theirs.pictures)
    for mine, other in zip(ours, theirs.pictures, strict=True):
        difference = np.abs(mine.pixels.astype(int).ravel() - np.frombuffer(other, dtype=np.uint8).astype(int))
        assert difference.max() <= 2, f"{case}: {difference.max()} of 255"
