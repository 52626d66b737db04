from __future__ import annotations

import pytest
import torch

from lib_lycoris.files.safetensors import read_tensors
from lib_lycoris.library.load import open_network
from lib_lycoris.patching.session import patch
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.loop import train

from .fake import make_pictures

pytest.importorskip("diffusers")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    from lib_lycoris.studio.backbone import StudioBackbone
    from lib_lycoris.studio.checkpoint import load_checkpoint

    from ..studio.tiny import make_modules, write_checkpoint

    return StudioBackbone(load_checkpoint(write_checkpoint(tmp_path_factory.mktemp("tiny"), make_modules()), device="cpu"))


def test_a_real_architecture_trains_everywhere_and_the_file_gives_what_training_gave(tmp_path, backbone):
    make_pictures(tmp_path / "data", 2)
    config = TrainConfig.from_dict({
        "data": {"folders": [str(tmp_path / "data")], "resolution": 64, "batch_size": 2}, "network": {"rank": 2},
        "training": {"steps": 3, "learning_rate": 0.01}, "output": {"folder": str(tmp_path), "name": "net", "dtype": "fp32", "save_every": 0},
    })
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([500])

    def answer():
        with torch.no_grad():
            return backbone.predict(x, t, backbone.encode_captions(["colour 1"]))

    before, in_training = answer(), []
    result = train(config, backbone, on_step=lambda report: in_training.append(answer()))
    tensors = read_tensors(result.path)
    ups = [tensor for key, tensor in tensors.items() if key.endswith("lora_up.weight")]
    # SD 1: 32 attention pairs of q, k, v, out, 16 blocks with two ff and two proj layers, 22 resnets; the text encoder's three layers have six each.
    assert sum(key.startswith("lora_unet_") for key in tensors) == 3 * (32 * 4 + 16 * 4 + 22 * 3 + len(shortcuts(backbone.unet)) + 6)
    assert sum(key.startswith("lora_te_") for key in tensors) == 3 * 3 * 6
    assert all(tensor.abs().max() > 0 for tensor in ups)
    assert torch.equal(answer(), before)
    with patch(backbone.unet, backbone.text_encoders) as session:
        assert session.apply([(open_network(result.path), 1.0)]) == []
        torch.testing.assert_close(answer(), in_training[-1], atol=1e-4, rtol=1e-3)
        assert not torch.allclose(in_training[-1], before, atol=1e-2)
    assert torch.equal(answer(), before)


def shortcuts(unet):
    return [name for name, module in unet.named_modules() if name.endswith("conv_shortcut") and isinstance(module, torch.nn.Conv2d)]
