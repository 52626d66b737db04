"""A network file through the whole chain: prompt, catalogue, patching, UNet and text encoder of a studio model, picture."""
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lib_lycoris.generation import Generation
from lib_lycoris.library.cache import NetworkCache
from lib_lycoris.library.catalogue import Catalogue
from lib_lycoris.patching.session import Session
from lib_lycoris.studio.checkpoint import load_checkpoint
from lib_lycoris.studio.generate import GenerateSettings, generate

PLACES = {  # kohya's name: the module in the studio's model
    "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn2_to_k": "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k",
    "lora_unet_up_blocks_2_resnets_0_conv1": "unet.up_blocks.2.resnets.0.conv1",
    "lora_unet_mid_block_attentions_0_proj_in": "unet.mid_block.attentions.0.proj_in",
    "lora_te_text_model_encoder_layers_1_self_attn_q_proj": "text_encoder.encoder.layers.1.self_attn.q_proj",
    "lora_te_text_model_encoder_layers_2_mlp_fc2": "text_encoder.encoder.layers.2.mlp.fc2",
}
RANK, ALPHA = 2, 1.0


def find(model, path):
    part, _, name = path.partition(".")
    return getattr(model, part).get_submodule(name)


@pytest.fixture
def network(model, tmp_path):
    """{module's path: ΔW at strength 1}, after writing the file that holds them."""
    draw, tensors, deltas = torch.Generator().manual_seed(1), {}, {}
    for name, path in PLACES.items():
        shape = find(model, path).weight.shape
        up = torch.randn(shape[0], RANK, *[1] * (len(shape) - 2), generator=draw)
        down = torch.randn(RANK, *shape[1:], generator=draw)
        tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(ALPHA)}
        deltas[path] = ALPHA / RANK * (up.flatten(1) @ down.flatten(1)).reshape(shape)
    save_file(tensors, tmp_path / "blob.safetensors")
    return deltas


@pytest.fixture
def networks(model, tmp_path):
    return Generation(Catalogue([tmp_path]), NetworkCache(10 ** 8), Session(model.unet, (model.text_encoder,)))


def draw(model, prompt, networks=None):
    (picture,) = generate(model, GenerateSettings(prompt=prompt, width=128, height=128, steps=3, seed=5), networks)
    return picture


def test_a_network_gives_the_picture_of_weights_merged_by_hand_and_leaves_none_of_it(model, networks, network, tiny_path):
    plain = draw(model, "a red circle")
    found = draw(model, "a red circle<lyco:blob:0.3:0.6>", networks)
    other = load_checkpoint(tiny_path, device="cpu")
    with torch.no_grad():
        for path, delta in network.items():
            find(other, path).weight += delta * (0.6 if path.startswith("unet") else 0.3)
    expected = draw(other, "a red circle")
    assert found.problems == ()
    assert np.abs(found.pixels.astype(int) - expected.pixels).max() <= 2
    assert np.abs(found.pixels.astype(int) - plain.pixels).max() > 20
    assert np.array_equal(draw(model, "a red circle").pixels, plain.pixels)


def test_an_unknown_network_is_told_and_the_picture_is_made(model, networks):
    picture = draw(model, "a red circle<lyco:nobody:1>", networks)
    assert "nobody" in picture.problems[0]
    assert np.array_equal(picture.pixels, draw(model, "a red circle").pixels)
