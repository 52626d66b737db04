"""A new word on models of SD 2's and SDXL's structure: every text encoder's vectors learn, and diffusers reads what came out as we do."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from lib_lycoris.library.embeddings import open_embedding
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.loop import train
from lib_lycoris.training.new_word import make_word

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from .test_sd2_and_sdxl import ARCHITECTURES, diffusers_pipeline, make_backbone

ENCODERS = {"sd2": ["clip_h"], "sdxl": ["clip_g", "clip_l"]}
CAPTION = "a zorbix dot, small"


def trained(architecture, folder, **embedding):
    (folder / "data").mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (60 * number, 200 - 50 * number, 90)).save(folder / "data" / f"{number}.png")
        (folder / "data" / f"{number}.txt").write_text(f"a zorbix dot, number {number}", encoding="utf-8")
    backbone = make_backbone(architecture)
    config = TrainConfig.from_dict({
        "data": {"folders": [str(folder / "data")], "resolution": 64, "batch_size": 2}, "network": {"kind": "embedding"},
        "embedding": {"word": "zorbix", "vectors": 3, "learning_rate": 0.05, **embedding}, "training": {"steps": 4},
        "output": {"name": "net", "folder": str(folder / "out")},
    })
    before = {f"{number}.{name}": value.clone() for number, part in enumerate((backbone.unet, *backbone.text_encoders))
              for name, value in part.state_dict().items()}
    first = make_word(config, backbone).exported()
    result = train(config, backbone)
    after = {f"{number}.{name}": value for number, part in enumerate((backbone.unet, *backbone.text_encoders)) for name, value in part.state_dict().items()}
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    return backbone, first, open_embedding(result.path)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_vectors_of_every_text_encoder_learn(architecture, tmp_path):
    backbone, first, found = trained(architecture, tmp_path, init_text="a dot")
    assert sorted(found.vectors) == ENCODERS[architecture] and found.fits(backbone.base_model) and found.step == 4
    for encoder, vectors in found.vectors.items():
        assert all(not torch.equal(one, two) for one, two in zip(first[encoder], vectors, strict=True)), encoder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_diffusers_reads_the_word_as_it_was_trained(architecture, tmp_path):
    with torch.enable_grad():
        backbone, _, found = trained(architecture, tmp_path)
    with backbone.words({"zorbix": found.vectors}):
        ours = backbone.encode_captions([CAPTION])
    plain = backbone.encode_captions([CAPTION])
    pipeline = diffusers_pipeline(backbone)
    if architecture == "sd2":
        pipeline.load_textual_inversion(str(found.path), token="zorbix")
        wanted, _ = pipeline.encode_prompt(CAPTION, "cpu", 1, False)
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
        assert (ours - plain).abs().max() > 1e-3
        return
    first, second = pipeline.text_encoder, pipeline.text_encoder_2
    pipeline.load_textual_inversion({"zorbix": found.vectors["clip_l"]}, token="zorbix", text_encoder=first, tokenizer=pipeline.tokenizer)
    pipeline.load_textual_inversion({"zorbix": found.vectors["clip_g"]}, token="zorbix", text_encoder=second, tokenizer=pipeline.tokenizer_2)
    wanted, _, pooled, _ = pipeline.encode_prompt(CAPTION, device="cpu", num_images_per_prompt=1)
    torch.testing.assert_close(ours["crossattn"], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours["pooled"], pooled, rtol=1e-4, atol=1e-5)
    assert (ours["pooled"] - plain["pooled"]).abs().max() > 1e-3
