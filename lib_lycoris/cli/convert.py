"""`convert`: a network in another spelling."""

from __future__ import annotations

import argparse
import sys

NAME = "convert"
SUMMARY = "write a network in another program's form"
DESCRIPTION = """\
Writes a network under other names, with the same effect:
  kohya      what the WebUI, ComfyUI and kohya's tools read; any kind that has names there
  diffusers  what diffusers' load_lora_weights reads (LoRA, LoCon, AdaLoRA)
  peft       a folder with adapter_config.json and adapter_model.safetensors; with one folder for each
             model (unet, text_encoder, text_encoder_2) where the network has several
  locon      every layer low-rank, under kohya's names: AdaLoRA, LoHa, LoKr and full differences become
             LoCon exactly (LoHa of rank R gets rank R²)
  tencent    a T2I-Adapter as TencentARC's files spell it, which every program reads; "diffusers" makes
             diffusers' form of one, with the config.json that it needs beside it
FILE may be a PEFT folder too. Numbers that would be rounded are stored as float32 instead."""
EXAMPLES = """\
examples:
  python -m lib_lycoris convert my-cat.safetensors my-cat-diffusers.safetensors --to diffusers
  python -m lib_lycoris convert my-cat.safetensors my-cat-peft --to peft
  python -m lib_lycoris convert trained/adapter_model.safetensors my-cat.safetensors --to kohya
  python -m lib_lycoris convert loha.safetensors locon.safetensors --to locon
  python -m lib_lycoris convert diffusion_pytorch_model.safetensors canny.safetensors --to tencent
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("file", metavar="FILE", help="a network: .safetensors, .pt, .ckpt, .bin, or a PEFT folder")
    parser.add_argument("out", metavar="OUT", help="the .safetensors file to write (peft: the folder); one that is there is replaced")
    parser.add_argument("--to", choices=("kohya", "diffusers", "peft", "locon", "tencent"), required=True, help="the form to write")


def run(arguments: argparse.Namespace) -> None:
    """Converts and writes."""
    from ..tools.adapters import convert_adapter
    from ..tools.convert import convert
    from .bar import layer_bar

    adapter = convert_adapter(arguments.file, arguments.out, arguments.to)
    if adapter is not None:
        print(f"{adapter}: a T2I-Adapter in {'diffusers' if arguments.to == 'diffusers' else 'TencentARC'}'s spelling", flush=True)
        return
    with layer_bar("converting") as on_step:
        done = convert(arguments.file, arguments.out, arguments.to, on_step)
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{done.path}: {done.layers} layers, {done.nbytes / 1e6:.1f} MB", flush=True)
