"""Adapters trained on SD 1, SD 2 (which predicts velocity) and SDXL in diffusers' modules, small random ones of their structure."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from lib_lycoris.library.adapters import open_adapter
from lib_lycoris.patching.features import FeatureSession
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.loop import train

from .guided import make_guided_pictures
from .test_sd2_and_sdxl import make_backbone


def make_studio_backbone(architecture, folder):
    if architecture != "sd1":
        return make_backbone(architecture)
    from lib_lycoris.studio.backbone import StudioBackbone
    from lib_lycoris.studio.checkpoint import load_checkpoint

    from ..studio.tiny import make_modules, write_checkpoint

    return StudioBackbone(load_checkpoint(write_checkpoint(folder, make_modules()), device="cpu"))


@pytest.mark.parametrize(("architecture", "kind", "base_model", "layout"), [
    ("sd1", "light", "sd_v1", "sd"), ("sd2", "full", "sd_v2", "sd"), ("sdxl", "light", "sdxl_base_v1-0", "sdxl")])
def test_it_learns_and_its_file_gives_what_it_gave_in_training(tmp_path, architecture, kind, base_model, layout):
    backbone = make_studio_backbone(architecture, tmp_path)
    make_guided_pictures(tmp_path / "data", 3, (96, 64))
    config = TrainConfig.from_dict({
        "data": {"folders": [str(tmp_path / "data")], "resolution": 80, "bucket_step": 16, "bucket_min": 64, "batch_size": 2, "flip": True},
        "network": {"kind": "adapter"}, "adapter": {"kind": kind, "in_channels": 1},
        "training": {"steps": 4, "learning_rate": 0.02, "gradient_checkpointing": True},
        "output": {"folder": str(tmp_path), "name": "net", "dtype": "fp32", "save_every": 0, "preview_every": 4},
    })
    x, t = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(1)), torch.full((2,), 500)
    more = {"framings": [None, None]} if architecture == "sdxl" else {}

    def answer():
        with torch.no_grad():
            return backbone.predict(x, t, backbone.encode_captions(["a wall", "a wall"]), **more)

    before = answer()
    result = train(config, backbone)
    assert result.problems == () and torch.equal(answer(), before)
    adapter = open_adapter(result.path)
    assert (adapter.kind, adapter.facts.base_model, adapter.layout, adapter.downscale) == (kind, base_model, layout, 16 if layout == "sdxl" else 8)
    left = torch.zeros(3, 64, 96)
    left[..., :48] = 1
    with FeatureSession(backbone.unet) as session:
        session.set(adapter(torch.stack([left, left.flip(-1)])))
        guided = answer()
    assert not torch.allclose(guided, before, atol=1e-4) and torch.equal(answer(), before)
    assert {path.name for path in (tmp_path / "net-previews").glob("step00000004*")} == {f"step00000004-{number}.png" for number in range(3)}
