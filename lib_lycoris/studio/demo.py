"""The main job without a page: train a LoCon on eight pictures of something new, save it, and draw with it."""
from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import ConfigError
from ..generation import Generation
from ..library.cache import NetworkCache
from ..library.catalogue import Catalogue
from ..library.embeddings import open_embedding
from ..patching.session import Session
from ..prompt.request import split_prompt
from ..training.config import TrainConfig
from ..training.dataset import Dataset, read_dataset
from ..training.grid import make_grid
from ..training.loop import train
from ..training.pictures import read_picture
from ..training.progress import render_progress
from .backbone import StudioBackbone
from .checkpoint import StudioModel, load_checkpoint
from .generate import GenerateSettings, generate
from .world.dataset import concept_scenes, draw_dataset
from .world.evaluate import Followed, draw_scenes
from .world.scenes import BACKGROUNDS, COLOURS, CONCEPT_SHAPE, CONCEPT_WORD, Scene, caption, draw_scene, held_back, held_back_scenes

NAME = "lyco-demo"
CONCEPT_PICTURES, CONCEPT_PROMPTS, KNOWN_PROMPTS = 8, 24, 24
CONCEPT_REPEATS, KNOWN_PICTURES = 6, 48
"""The eight pictures count six times beside 48 that the checkpoint draws of what it knows, so that it is not forgotten (DreamBooth's prior preservation)."""
STEPS = 600
GUIDANCE = 3.0
"""CFG scale of the pictures that are measured: the embedded checkpoint follows its captions at 3 as at 5, and a young network is not overdriven."""
_SMALL = 128
"""Up to this side in pixels a checkpoint is narrow and learns at rates that would ruin a full-size one."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo made.

    Attributes:
        network, pictures: the files.
        last_line: the figures in one line.
        concept, known: shares (before, after) by the world's measure; None with pictures of the user's own, which nobody can measure.
        loss: (before, after) on the pictures at fixed noise; None where the measure tells more.
    """

    network: Path
    pictures: Path
    last_line: str
    concept: tuple[float, float] | None = None
    known: tuple[float, float] | None = None
    loss: tuple[float, float] | None = None


def demo_config(folders: Sequence[Path], out: Path, side: int, steps: int) -> TrainConfig:
    """The demo's training settings for a checkpoint whose pictures have `side` pixels."""
    rates = {"learning_rate": 1.5e-3, "text_encoder_learning_rate": 1e-3} if side <= _SMALL else {"learning_rate": 1e-4, "text_encoder_learning_rate": 5e-5}
    return TrainConfig.from_dict({
        "data": {"folders": [str(folder) for folder in folders], "resolution": side, "batch_size": 8 if side <= _SMALL else 1},
        "network": {"kind": "locon", "rank": 16, "alpha": 16.0},
        "training": {"steps": steps, "schedule": "cosine", "warmup_steps": min(20, steps // 4), "debiased": True, "seed": 1, **rates},
        "output": {"name": NAME, "folder": str(out), "save_every": 0},
    })


def run_demo(checkpoint: Path | str | None = None, images: Path | str | None = None, steps: int | None = None, out: Path | str | None = None,
             say: Callable[[str], None] = print, on_step: Callable[[object], None] | None = None, settings: Mapping[str, Any] | None = None) -> DemoResult:
    """Trains, saves and draws; the last line that it says holds the figures.

    Args:
        checkpoint: a Stable Diffusion 1 file; None: the embedded one.
        images: a folder of captioned pictures; None: eight pictures of a shape that the embedded checkpoint never saw.
        steps: of training; None: as many as the figures of the last line want.
        out: folder for the network and the pictures; None: outputs.
        say: takes one line of text at a time.
        on_step: takes the trainer's StepReport after every step; None: `say` gets a line now and then.
        settings: training settings other than the demo's own, by key: {"network.kind": "loha"}.

    Raises:
        LycoError: the checkpoint, the pictures or the training.
    """
    if steps is not None and steps < 1:
        raise ConfigError(f"steps = {steps}: a training needs at least one; leave it out for {STEPS}")
    out = Path(out) if out is not None else Path("outputs")
    model = load_checkpoint(checkpoint)
    say(f"checkpoint {model.name}, {model.side} px, on {model.device}")
    measured = images is None and model.side <= _SMALL
    concept = out / "demo-pictures" / f"{CONCEPT_REPEATS}_{CONCEPT_WORD}"
    folders = [Path(images) if images is not None else draw_dataset(concept, CONCEPT_PICTURES, CONCEPT_SHAPE)]
    read_dataset(demo_config(folders, out, model.side, 1).data)
    config = demo_config(folders, out, model.side, steps or STEPS).change(settings or {})
    if measured and config.network.kind == "embedding" and config.embedding.word is None:
        config = config.set("embedding.word", CONCEPT_WORD)
    if measured and config.network.kind != "embedding":  # beside which nothing is forgotten
        say(f"{KNOWN_PICTURES} pictures of what the checkpoint knows, drawn by itself, keep it from forgetting")
        folders.append(_draw_known(model, out / "demo-pictures" / "known"))
        config = config.set("data.folders", [*config.data.folders, str(folders[-1])])
    dataset = read_dataset(config.data)
    say(f"{len(dataset.pictures)} pictures, the first: {dataset.pictures[0].caption!r}")
    study = _World(model, out) if measured else _OwnPictures(model, dataset, config, out)

    say("before: " + study.look(""))
    result = train(config, StudioBackbone(model), on_step=on_step or _tell_now_and_then(say))
    say(f"network {result.path}: {result.steps} steps in {result.seconds:.0f} s")
    with model.words.given(_new_words(config, Path(result.path))):
        say("after:  " + study.look("" if config.network.kind == "embedding" else f"<lyco:{NAME}:1>"))
    pictures = out / "lyco-demo.png"
    study.grid().save(pictures)
    last = f"demo: {study.figures()}, network {result.path}, pictures {pictures}"
    say(last)
    return DemoResult(Path(result.path), pictures, last, **study.shares())


def _tell_now_and_then(say: Callable[[str], None], lines: int = 10) -> Callable[[object], None]:
    def on_step(report) -> None:
        if report.step % max(1, report.steps // lines) == 0 or report.step == report.steps:
            say(render_progress(report))

    return on_step


def _new_words(config: TrainConfig, saved: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The word that was trained and its vectors, as the files hold them; nothing where none was."""
    if config.word is None:
        return {}
    packed = config.network.kind != "embedding" and config.embedding.file == "one"
    path = saved if packed or config.network.kind == "embedding" else saved.with_name(f"{config.word}.safetensors")
    return {config.word: open_embedding(path, config.word if packed else None).vectors}


def _draw_known(model: StudioModel, folder: Path) -> Path:
    """The folder with pictures that the model draws of scenes it knows, right or wrong, and their captions."""
    rng = random.Random(3)
    known = [scene for scene in (draw_scene(rng) for _ in range(2 * KNOWN_PICTURES)) if not held_back(scene)][:KNOWN_PICTURES]
    folder.mkdir(parents=True, exist_ok=True)
    for i, (scene, pixels) in enumerate(zip(known, draw_scenes(model, known, first_seed=5000).pictures, strict=True)):
        Image.fromarray(pixels).save(folder / f"known-{i + 1:02}.png")
        (folder / f"known-{i + 1:02}.txt").write_text(caption(scene) + "\n", encoding="utf-8")
    return folder


def _networks(model: StudioModel, folder: Path) -> Generation:
    return Generation(Catalogue([folder]), NetworkCache(1 << 28), Session(model.unet, [model.text_encoder]))


class _World:
    """Before and after on the world's captions, by the world's measure."""

    def __init__(self, model: StudioModel, out: Path):
        self.model, self.networks = model, _networks(model, out)
        trained = {(scene.colour, scene.size, scene.background) for scene in concept_scenes(CONCEPT_PICTURES)}
        fresh = [Scene(CONCEPT_SHAPE, colour, size, "middle", ground) for colour in COLOURS for size in ("medium", "large") for ground in BACKGROUNDS
                 if (colour, size, ground) not in trained]
        self.concept_scenes = random.Random(77).sample(fresh, CONCEPT_PROMPTS)
        self.known_scenes = held_back_scenes(KNOWN_PROMPTS, seed=5)
        self.concept: list[Followed] = []
        self.known: list[Followed] = []

    def look(self, tag: str) -> str:
        self.concept.append(draw_scenes(self.model, self.concept_scenes, CONCEPT_WORD, self.networks, tag, cfg=GUIDANCE))
        self.known.append(draw_scenes(self.model, self.known_scenes, None, self.networks, tag, cfg=GUIDANCE))
        return f"{self._concept(-1):.0%} of {CONCEPT_PROMPTS} pictures show the new shape, {self._known(-1):.0%} of {KNOWN_PROMPTS} known captions are followed"

    def _concept(self, which: int) -> float:
        return self.concept[which].share("shape")

    def _known(self, which: int) -> float:
        return self.known[which].share("shape", "colour")

    def figures(self) -> str:
        return f"concept {self._concept(0):.0%} -> {self._concept(1):.0%}, known captions {self._known(0):.0%} -> {self._known(1):.0%}"

    def shares(self) -> dict:
        return {"concept": (self._concept(0), self._concept(1)), "known": (self._known(0), self._known(1))}

    def grid(self):
        shown = 5
        titles = [f"{s.size} {s.colour} {CONCEPT_WORD}" for s in self.concept_scenes[:shown]]
        titles += [f"{s.size} {s.colour} {s.shape}" for s in self.known_scenes[:4]]
        return make_grid([(name, [*self.concept[i].pictures[:shown], *self.known[i].pictures[:4]]) for i, name in enumerate(("before", "after"))], titles)


class _OwnPictures:
    """Before and after on pictures that nobody can measure: their loss at fixed noise, and samples of their captions."""

    def __init__(self, model: StudioModel, dataset: Dataset, config: TrainConfig, out: Path):
        self.model, self.networks = model, _networks(model, out)
        self.captions = list(dict.fromkeys(picture.caption for picture in dataset.pictures if picture.caption))[:4]
        pictures = [read_picture(picture.path, config.data.resolution) for picture in dataset.pictures[:16]]
        self.backbone, self.texts = StudioBackbone(model), [picture.caption for picture in dataset.pictures[:16]]
        self.latents = torch.cat([self.backbone.encode_pictures(picture[None], torch.Generator(model.device).manual_seed(0)) for picture in pictures])
        self.losses: list[float] = []
        self.pictures: list[list[np.ndarray]] = []

    def look(self, tag: str) -> str:
        problems = self.networks.apply(split_prompt(tag)[1])
        try:
            self.losses.append(self._loss())
        finally:
            self.networks.restore()
        drawn = [generate(self.model, GenerateSettings(prompt=f"{caption} {tag}".strip(), seed=1000 + i, width=self.model.side, height=self.model.side),
                          self.networks)[0] for i, caption in enumerate(self.captions)]
        self.pictures.append([picture.pixels for picture in drawn])
        return "; ".join([f"loss {self.losses[-1]:.4f} on the pictures at fixed noise", *problems])

    @torch.no_grad()
    def _loss(self) -> float:
        """Mean squared error of the prediction over the pictures at four time steps, with the same noise at every call."""
        generator, total = torch.Generator().manual_seed(0), 0.0
        for latent, text in zip(self.latents, self.texts, strict=True):
            for step in (200, 400, 600, 800):
                noise = torch.randn(latent.shape, generator=generator).to(latent)[None]
                signal = self.backbone.alphas_cumprod[step].to(latent)
                noisy = signal.sqrt() * latent[None] + (1 - signal).sqrt() * noise
                target = noise if self.backbone.prediction == "eps" else signal.sqrt() * noise - (1 - signal).sqrt() * latent[None]
                t = torch.tensor([step], device=latent.device)
                total += (self.backbone.predict(noisy, t, self.backbone.encode_captions([text])) - target).square().mean().item()
        return total / (4 * len(self.latents))

    def figures(self) -> str:
        return f"loss on the pictures {self.losses[0]:.4f} -> {self.losses[1]:.4f}"

    def shares(self) -> dict:
        return {"loss": (self.losses[0], self.losses[1])}

    def grid(self):
        return make_grid(list(zip(("before", "after"), self.pictures, strict=True)), self.captions, tile=256)
