"""Network files whose names, metadata and remarks would run as HTML or JavaScript where anybody forgot to escape them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

FLAG = "lycoBroken"
IMAGE = f'<img src=x onerror="window.{FLAG}=1">'
SCRIPT = f"\"');window.{FLAG}=1;//</script><script>window.{FLAG}=1</script>"
FILE = f'evil "q" <img src=x onerror=window.{FLAG}=2>'
FOLDER = f"<b onmouseenter=window.{FLAG}=3>"
INNER = "inner & outer"
TENSORS = {"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.ones(4, 2),
           "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(2, 4)}


def write_hostile(folder: Path) -> None:
    """Two networks in `folder`: one with everything wrong, one in a folder with a bad name."""
    (folder / FOLDER).mkdir(parents=True)
    keys = ("ss_output_name", "modelspec.title", "modelspec.trigger_phrase", "modelspec.description", "modelspec.tags", "modelspec.author",
            "ss_sd_model_name", "ss_network_module", "ss_training_comment", IMAGE)
    metadata = dict.fromkeys(keys, IMAGE)
    metadata |= {"ss_tag_frequency": json.dumps({IMAGE: {IMAGE: 3}}), "nested": json.dumps({IMAGE: [IMAGE]}), "sshs_model_hash": "ab" * 32}
    save_file(TENSORS, str(folder / f"{FILE}.safetensors"), metadata)
    remarks = {"description": IMAGE, "activation text": SCRIPT + "\nnext\u2028line", "negative text": IMAGE, "notes": SCRIPT, "preferred weight": -0.5,
               "sd version": IMAGE}
    (folder / f"{FILE}.json").write_text(json.dumps(remarks), encoding="utf-8")
    save_file(TENSORS, str(folder / FOLDER / f"{INNER}.safetensors"), {"modelspec.description": "no remarks"})
