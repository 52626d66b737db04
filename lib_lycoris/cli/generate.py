"""`generate`: pictures from a prompt."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .arguments import add_checkpoint, add_embeddings, add_networks, embedding_folders, network_folders
from .units import adapter_folders, add_units, asked_units, make_preparation

NAME = "generate"
SUMMARY = "generate pictures"
DESCRIPTION = """\
Generates pictures from a prompt, and writes each as a PNG that holds its settings as the WebUI reads them.
What a network's tag could not do is told on stderr; the picture is made all the same."""
EXAMPLES = """\
examples:
  python -m lib_lycoris generate --prompt "a large red circle" --out circle.png
  python -m lib_lycoris generate --prompt "a photo of sks dog <lyco:my-dog:0.8>" --checkpoint v1-5.safetensors --seed 7 --size 512x768 --out dog.png
  python -m lib_lycoris generate --prompt "a blue square" --batch 4 --out square.png      writes square-1.png … square-4.png
  python -m lib_lycoris generate --prompt "a house" --adapter adapters/canny.safetensors --control photo.jpg --adapter-weight 0.8 --out house.png
"""
_SIZE = re.compile(r"(\d+)x(\d+)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments. Values that are left out are those of studio.generate.GenerateSettings, which checks all."""
    parser.add_argument("--prompt", metavar="TEXT", required=True, help="what to draw; <lyco:NAME:STRENGTH> applies a network")
    parser.add_argument("--negative", metavar="TEXT", help="what to keep out")
    add_checkpoint(parser)
    add_networks(parser)
    add_embeddings(parser)
    parser.add_argument("--seed", metavar="N", type=int, help="the same seed gives the same picture; left out: another each time")
    parser.add_argument("--steps", metavar="N", type=int, help="sampler steps (20)")
    parser.add_argument("--cfg", metavar="X", type=float, help="how closely to follow the prompt (7)")
    parser.add_argument("--sampler", metavar="NAME", help='as in the WebUI, for example "Euler a" (the default) or "DPM++ 2M Karras"')
    parser.add_argument("--size", metavar="WxH", help="pixels, multiples of 8, as 512x768; left out: what the checkpoint was made for")
    parser.add_argument("--clip-skip", metavar="N", type=int, help="which of the text encoder's last layers is used (1)")
    parser.add_argument("--batch", metavar="N", type=int, help="pictures, with seeds counting up; more than one writes FILE-1.png, FILE-2.png …")
    add_units(parser)
    parser.add_argument("--out", metavar="FILE.png", required=True, help="the file to write; one that is there is replaced")


def run(arguments: argparse.Namespace) -> None:
    """Generates and writes.

    Raises:
        ConfigError: a bad value.
    """
    out = Path(arguments.out)
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out {arguments.out}: expected a name that ends in .png")
    asked = {name: getattr(arguments, name) for name in ("prompt", "negative", "seed", "steps", "cfg", "sampler", "clip_skip", "batch")}
    asked = {name: value for name, value in asked.items() if value is not None}
    if arguments.size is not None:
        asked["width"], asked["height"] = read_size(arguments.size)

    from ..library.embedding_shelf import EmbeddingShelf
    from ..studio.checkpoint import load_checkpoint
    from ..studio.generate import GenerateSettings, generate
    from ..studio.picture import Picture, write_png

    GenerateSettings(**asked)  # a bad value is told before seconds go into loading
    units = asked_units(getattr(arguments, "units", None) or [])
    model = load_checkpoint(arguments.checkpoint)
    settings = GenerateSettings(**{"width": model.side, "height": model.side, **asked})
    shelf = EmbeddingShelf(lambda: [Path(folder) for folder in embedding_folders(arguments.embeddings)])
    preparation = make_preparation(adapter_folders(arguments.adapters), arguments.clip_vision, arguments.checkpoint)
    pictures = generate(model, settings, make_networks(model, network_folders(arguments.networks)), _progress(settings.steps), units=units,
                        preparation=preparation, fuser=arguments.fuser, embeddings=shelf.vectors())
    for path, picture in zip(output_paths(out, len(pictures)), pictures, strict=True):
        write_png(path, picture)
        print(f"{path} (seed {picture.seed})", flush=True)
        for number, made in enumerate(picture.maps, start=1):
            beside = path.with_name(f"{path.stem}-map{number if len(picture.maps) > 1 else ''}{path.suffix}")
            write_png(beside, Picture(made, "", picture.seed))
            print(f"{beside} (control map)", flush=True)
    for problem in pictures[0].problems:
        print(f"note: {problem}", file=sys.stderr)


def read_size(text: str) -> tuple[int, int]:
    """Width and height of "512x768".

    Raises:
        ConfigError: it is something else.
    """
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None:
        raise ConfigError(f"--size {text}: expected WIDTHxHEIGHT in pixels, for example 512x768")
    return int(found[1]), int(found[2])


def output_paths(out: Path, count: int) -> list[Path]:
    """`out` itself for one picture; for more, "name-1.png", "name-2.png" …"""
    return [out] if count == 1 else [out.with_name(f"{out.stem}-{place}{out.suffix}") for place in range(1, count + 1)]


def make_networks(model: Any, folders: list[str]) -> Any:
    """What puts the networks in these folders onto that model."""
    from ..generation import Generation
    from ..library.cache import NetworkCache
    from ..library.catalogue import Catalogue
    from ..patching.session import Session

    return Generation(Catalogue(folders), NetworkCache(1 << 30), Session(model.unet, [model.text_encoder]))


def _progress(steps: int) -> Any:
    """A progress bar where stderr is a terminal."""
    if not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    bar = tqdm(total=steps, file=sys.stderr, unit="step", dynamic_ncols=True, desc="generating", leave=False)

    def on_step(step: int, count: int, latents: Any) -> None:
        bar.update(1)
        if step + 1 == count:
            bar.close()

    return on_step
