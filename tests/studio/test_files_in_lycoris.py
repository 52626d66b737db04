"""Networks trained here, in LyCORIS' own loader for a whole model: every layer finds its place there, and the model predicts what it does with our session."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lib_lycoris.library.load import open_network
from lib_lycoris.patching.session import patch
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.loop import train

from ..training.fake import make_pictures
from ..training.test_export import KINDS

pytest.importorskip("diffusers")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def backbone(tiny_path):
    from lib_lycoris.studio.backbone import StudioBackbone
    from lib_lycoris.studio.checkpoint import load_checkpoint

    return StudioBackbone(load_checkpoint(tiny_path, device="cpu"))


def answer(backbone):
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([500])
    with torch.no_grad():
        return backbone.predict(x, t, backbone.encode_captions(["colour 1"]))


# LyCORIS 4.1.3 can't make an (IA)³ module of any file (its own function takes one argument less than it is given); other ways of these kinds, layer by layer,
# are in tests/training/test_export.py
@pytest.mark.filterwarnings("ignore")  # LyCORIS' own
@pytest.mark.parametrize("name", ["lora", "locon", "locon, Tucker", "locon, DoRA", "loha", "lokr", "adalora", "full", "norm"])
def test_the_model_predicts_in_lycoris_what_it_does_here(tmp_path, backbone, monkeypatch, name):
    kohya = pytest.importorskip("lycoris.kohya")
    monkeypatch.setattr(kohya.LycorisNetworkKohya, "UNET_TARGET_REPLACE_NAME", [])  # its own names some layers twice, at which it stops
    make_pictures(tmp_path / "data", 1)
    rate = 0.05 if name == "norm" else 0.01
    config = TrainConfig.from_dict({
        "data": {"folders": [str(tmp_path / "data")], "resolution": 64, "batch_size": 1}, "network": {"rank": 4, **KINDS[name]},
        "training": {"steps": 8 if name == "adalora" else 2, "learning_rate": rate},
        "output": {"folder": str(tmp_path), "name": "net", "dtype": "fp32", "save_every": 0},
    })
    before, path = answer(backbone), train(config, backbone).path
    with patch(backbone.unet, backbone.text_encoders) as session:
        network = open_network(path)
        assert session.apply([(network, 1.0)]) == []
        ours = answer(backbone)
    text = nn.Module()
    text.text_model = backbone.text_encoders[0]  # as transformers called it when these programs were written
    theirs, weights = kohya.create_network_from_weights(1.0, str(path), None, text, backbone.unet)
    assert len(theirs.unet_loras) + len(theirs.text_encoder_loras) == len(network.layers) > 20 and theirs.text_encoder_loras
    theirs.load_state_dict(weights, strict=False)
    theirs.apply_to(text, backbone.unet, True, True)
    try:
        got = answer(backbone)
    finally:
        for module in theirs.loras:
            module.restore()
    assert torch.equal(answer(backbone), before) and (ours - before).norm() > 1e-3 * before.norm()
    torch.testing.assert_close(got, ours, atol=1e-4, rtol=1e-3)
