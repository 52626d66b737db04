"""Captions longer than 75 tokens and clip skip, through training, on a real text encoder."""

from __future__ import annotations

import pytest
import torch

from lib_lycoris.errors import ConfigError
from lib_lycoris.files.safetensors import read_tensors
from lib_lycoris.training.conditioning import make_captions
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.loop import train

from .fake import make_pictures

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
LONG = ", ".join(f"thing number {number}" for number in range(40))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from lib_lycoris.studio.checkpoint import load_checkpoint

    from ..studio.tiny import make_modules, write_checkpoint

    return load_checkpoint(write_checkpoint(tmp_path_factory.mktemp("tiny"), make_modules()), device="cpu")


def backbone_of(model, clip_skip=1):
    from lib_lycoris.cli.train import make_backbone

    return make_backbone(model, TrainConfig.from_dict({"model": {"clip_skip": clip_skip}}))


@pytest.mark.parametrize("trained", [False, True])
def test_long_and_short_captions_go_into_one_batch_each_whole(model, trained):
    backbone = backbone_of(model)
    captions = make_captions(backbone, trained)
    with torch.no_grad():
        both, long, short = captions.encode([LONG, "a dot"]), captions.encode([LONG]), captions.encode(["a dot"])
        end = captions.encode([LONG + " of another kind"])
    assert both.shape[1] == long.shape[1] > 2 * 77 and short.shape[1] == 77
    torch.testing.assert_close(both[:1], long, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[1:, :77], short, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(end[:, -77:], long[:, -77:], atol=1e-2)  # the last words count


@pytest.mark.parametrize("text_encoder", [False, True])
def test_a_training_with_long_captions_and_clip_skip_moves_what_the_captions_reach(tmp_path, model, text_encoder):
    make_pictures(tmp_path / "data", 2)
    (tmp_path / "data/0.txt").write_text(LONG, encoding="utf-8")
    losses = {}
    for skip in (1, 2):
        config = TrainConfig.from_dict({
            "model": {"clip_skip": skip}, "data": {"folders": [str(tmp_path / "data")], "resolution": 64, "batch_size": 2},
            "network": {"rank": 2, "only": ["attn2", "self_attn"], "text_encoder": text_encoder},
            "training": {"steps": 2, "learning_rate": 0.01, "gradient_checkpointing": True},
            "output": {"folder": str(tmp_path / f"{skip}"), "name": "net", "dtype": "fp32"},
        })
        losses[skip] = []
        result = train(config, backbone_of(model, skip), on_step=lambda report, skip=skip: losses[skip].append(report.loss))
        tensors = read_tensors(result.path)
        moved = {key.partition(".")[0] for key, value in tensors.items() if key.endswith("lora_up.weight") and value.abs().max() > 0}
        reached = {key for key in moved if key.startswith("lora_te_")}
        # with clip skip 2 the text encoder's last layer is not used, so that nothing reaches it
        assert any("layers_2" in key for key in reached) == (text_encoder and skip == 1) and any("layers_1" in key for key in reached) == text_encoder
    assert losses[1][0] != losses[2][0]


def test_checkpointing_a_real_unet_gives_the_same_losses(tmp_path, model):
    make_pictures(tmp_path / "data", 2)
    found = []
    for on in (False, True):
        config = TrainConfig.from_dict({
            "data": {"folders": [str(tmp_path / "data")], "resolution": 64, "batch_size": 2}, "network": {"rank": 2},
            "training": {"steps": 3, "learning_rate": 0.01, "gradient_checkpointing": on},
            "output": {"folder": str(tmp_path / f"{on}"), "name": "net", "dtype": "fp32"},
        })
        losses = []
        train(config, backbone_of(model), on_step=lambda report, losses=losses: losses.append(report.loss))
        found.append(losses)
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_clip_skip_deeper_than_the_text_encoder_is_refused(model):
    with pytest.raises(ConfigError, match="clip_skip 9"):
        backbone_of(model, 9)
