"""A new word learns on the embedded checkpoint, and nothing of it changes; a short form of the proofs in test_methods_learn.py."""
from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from lib_lycoris.library.embeddings import open_embedding
from lib_lycoris.studio.backbone import StudioBackbone
from lib_lycoris.studio.checkpoint import load_checkpoint
from lib_lycoris.studio.generate import GenerateSettings, generate
from lib_lycoris.studio.world.dataset import draw_dataset
from lib_lycoris.studio.world.scenes import CONCEPT_SHAPE, CONCEPT_WORD
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.loop import train

PLAIN, NAMED = "a large red circle in the middle on a white background", f"a large red {CONCEPT_WORD} in the middle on a white background"


def picture(model, prompt):
    return generate(model, GenerateSettings(prompt=prompt, seed=3, steps=4, width=model.side, height=model.side))[0].pixels


def test_the_loss_falls_by_the_word_alone_and_the_model_stays_bit_for_bit(tmp_path):
    model = load_checkpoint()
    before = {name: value.clone() for part in (model.unet, model.text_encoder, model.vae) for name, value in part.state_dict().items()}
    flags = [value.requires_grad for part in (model.unet, model.text_encoder) for value in part.parameters()]
    pictures = [picture(model, prompt) for prompt in (PLAIN, NAMED)]
    config = TrainConfig.from_dict({
        "data": {"folders": [str(draw_dataset(tmp_path / "concept", 4, CONCEPT_SHAPE))], "resolution": model.side, "batch_size": 2},
        "network": {"kind": "embedding"}, "embedding": {"word": CONCEPT_WORD, "vectors": 2, "init_text": "cross", "learning_rate": 0.03},
        "training": {"steps": 30, "seed": 1}, "validation": {"folder": str(draw_dataset(tmp_path / "judged", 2, CONCEPT_SHAPE, seed=5)), "every": 30},
        "output": {"name": "word", "folder": str(tmp_path / "out"), "save_every": 0, "preview_prompts": [NAMED], "preview_every": 30},
    })
    result = train(config, StudioBackbone(model))
    (_, first), (_, last) = result.validation[0], result.validation[-1]
    assert last < 0.97 * first, result.validation
    after = {name: value for part in (model.unet, model.text_encoder, model.vae) for name, value in part.state_dict().items()}
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    assert flags == [value.requires_grad for part in (model.unet, model.text_encoder) for value in part.parameters()]
    assert all(value.grad is None for part in (model.unet, model.text_encoder) for value in part.parameters())
    assert all((picture(model, prompt) == old).all() for prompt, old in zip((PLAIN, NAMED), pictures, strict=True))
    with model.words.given({CONCEPT_WORD: open_embedding(result.path).vectors}):
        assert (picture(model, PLAIN) == pictures[0]).all() and (picture(model, NAMED) != pictures[1]).any()
