"""Targets on the very classes that the WebUI builds its models of, in full size but without memory (on "meta"), beside diffusers' own trees."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from lib_lycoris.patching.targets import find_targets
from tests.webui.real import find_webui

KINDS = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm)

# Runs in the WebUI's Python: prints for each model the shapes of its targets, and whether each module is found by its own name as files spell it.
PROGRAM = """
import json, sys
root, webui = sys.argv[1:]
sys.path[:0] = [root, webui + "/repositories/stable-diffusion-stability-ai", webui + "/repositories/generative-models"]
import torch
from torch import nn
from lib_lycoris.files.spelling import normal_name
from lib_lycoris.patching.places import find_places
from lib_lycoris.patching.targets import find_targets

def tell(unet=None, encoders=()):
    targets = find_targets(unet, encoders)
    found = all(
        targets[normal_name("lora_unet_" + path.replace(".", "_"))].module is module
        for path, module in (unet.named_modules() if unet is not None else ())
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm))
    )
    places = [] if unet is None else [[place.name, place.channels] for place in find_places(unet).places]
    return {"shapes": {" ".join(key): list(target.shape) for key, target in targets.items()}, "found": found, "places": places}

import contextlib, io
shared = dict(image_size=32, out_channels=4, model_channels=320, num_res_blocks=2, use_spatial_transformer=True, use_checkpoint=False, legacy=False)
told = {}
with torch.device("meta"), contextlib.redirect_stdout(io.StringIO()):
    from ldm.modules.diffusionmodules.openaimodel import UNetModel
    sd = dict(shared, attention_resolutions=[4, 2, 1], channel_mult=[1, 2, 4, 4], transformer_depth=1)
    told["sd1"] = tell(UNetModel(**sd, in_channels=4, num_heads=8, context_dim=768))
    told["inpainting"] = tell(UNetModel(**sd, in_channels=9, num_heads=8, context_dim=768))
    told["sd2"] = tell(UNetModel(**sd, in_channels=4, num_head_channels=64, use_linear_in_transformer=True, context_dim=1024))
    from sgm.modules.diffusionmodules.openaimodel import UNetModel
    del shared["image_size"]
    told["sdxl"] = tell(UNetModel(
        **shared, adm_in_channels=2816, num_classes="sequential", in_channels=4, attention_resolutions=[4, 2], channel_mult=[1, 2, 4], num_head_channels=64,
        use_linear_in_transformer=True, transformer_depth=[0, 2, 10], context_dim=2048, spatial_transformer_attn_type="softmax"))
import open_clip
for name in ("ViT-H-14", "ViT-bigG-14"):
    model = open_clip.create_model(name, pretrained=None, device="meta")
    model.visual = None
    told[name] = tell(encoders=[model])
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told():
    webui, python = find_webui()
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([python, "-W", "ignore", "-c", PROGRAM, root, webui], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def diffusers_shapes(kind):
    models = pytest.importorskip("diffusers", reason="diffusers is not installed here: its own trees can't be compared")
    sdxl = {
        "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    }
    with torch.device("meta"):
        unet = models.UNet2DConditionModel(
            in_channels=9 if kind == "inpainting" else 4, use_linear_projection=kind in ("sd2", "sdxl"),
            cross_attention_dim={"sd2": 1024, "sdxl": 2048}.get(kind, 768), **(sdxl if kind == "sdxl" else {"attention_head_dim": 8}))
    return {f"unet {path.replace('.', '_')}": list(module.weight.shape) for path, module in unet.named_modules() if isinstance(module, KINDS)}


@pytest.mark.webui
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "inpainting"])
def test_the_hosts_own_unets_have_diffusers_targets_in_full_size(told, kind):
    assert told[kind]["found"]
    assert told[kind]["shapes"] == diffusers_shapes(kind)


@pytest.mark.webui
@pytest.mark.parametrize(("name", "width", "layers"), [("ViT-H-14", 1024, 24), ("ViT-bigG-14", 1280, 32)])
def test_the_hosts_own_open_clip_has_the_targets_of_clip(told, name, width, layers):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed here: its own tree can't be compared")
    with torch.device("meta"):
        config = transformers.CLIPTextConfig(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers)
        shapes = {" ".join(key): list(target.shape) for key, target in find_targets(None, [transformers.CLIPTextModel(config)]).items()}
    del shapes["te1 text_model_embeddings_position_embedding"]  # a bare parameter in open_clip, which no layer reads
    assert told[name]["shapes"] == shapes


@pytest.mark.webui
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_maps_go_to_the_places_of_the_hosts_own_unets_that_tencents_go_to(told, kind):
    names = ("input_blocks.3", "input_blocks.5", "input_blocks.8", "middle_block") if kind == "sdxl" else [f"input_blocks.{number}" for number in (2, 5, 8, 11)]
    assert told[kind]["places"] == [[name, channels] for name, channels in zip(names, (320, 640, 1280, 1280), strict=True)]
