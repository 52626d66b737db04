"""What each kind of network learns of the demo's new shape, and what prior preservation keeps. Proofs of minutes: run them with --slow."""
from __future__ import annotations

import random

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import torch
from PIL import Image

from lib_lycoris.generation import Generation
from lib_lycoris.library.cache import NetworkCache
from lib_lycoris.library.catalogue import Catalogue
from lib_lycoris.library.embeddings import open_embedding
from lib_lycoris.patching.session import Session
from lib_lycoris.studio.backbone import StudioBackbone
from lib_lycoris.studio.checkpoint import load_checkpoint
from lib_lycoris.studio.demo import run_demo
from lib_lycoris.studio.world.dataset import draw_dataset
from lib_lycoris.studio.world.evaluate import draw_scenes
from lib_lycoris.studio.world.scenes import BACKGROUNDS, COLOURS, CONCEPT_SHAPE, CONCEPT_WORD, Scene, caption, draw_scene, held_back, held_back_scenes
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.loop import train

pytestmark = pytest.mark.slow

EVERYWHERE = ["q", "k", "v", "out", "ff", "proj", "resnet", "sampler"]
METHODS = {  # name: (kind, steps, settings other than the demo's)
    "lora": ("lora", 600, {}),
    "locon": ("locon", 600, {}),
    "dora": ("locon", 600, {"network.dora": True}),
    "loha": ("loha", 600, {"network.rank": 8, "network.alpha": 8}),
    "lokr": ("lokr", 600, {"network.factor": 8}),
    "adalora": ("adalora", 600, {"network.alpha": None, "network.targets": EVERYWHERE}),
    "full": ("full", 600, {"training.learning_rate": 1e-4, "training.text_encoder_learning_rate": 1e-4}),
    "norm": ("norm", 3000, {"training.learning_rate": 4e-2, "training.text_encoder_learning_rate": 2e-2}),
    "ia3": ("ia3", 3000, {"network.targets": EVERYWHERE, "training.learning_rate": 5e-2, "training.text_encoder_learning_rate": 2e-2}),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_kind_learns_the_new_shape_and_keeps_what_is_known(name, tmp_path):
    kind, steps, settings = METHODS[name]
    result = run_demo(steps=steps, out=tmp_path, settings={"network.kind": kind, **settings})
    assert result.concept[1] >= 0.8 and result.known[1] >= 0.75, result.last_line


def word_config(shape, vectors, steps, rate, folder, model):
    """A training of the word on eight pictures of a shape, judged by the loss on eight others."""
    pictures, judged = (draw_dataset(folder / name, 8, shape, CONCEPT_WORD, seed) for name, seed in (("pictures", 0), ("judged", 9)))
    return TrainConfig.from_dict({
        "data": {"folders": [str(pictures)], "resolution": model.side, "batch_size": 8}, "network": {"kind": "embedding"},
        "embedding": {"word": CONCEPT_WORD, "vectors": vectors, "learning_rate": rate},
        "training": {"steps": steps, "schedule": "cosine", "warmup_steps": 20, "debiased": True, "seed": 1},
        "validation": {"folder": str(judged), "every": 100_000}, "output": {"name": "word", "folder": str(folder / "out"), "save_every": 0},
    })


@pytest.mark.parametrize("vectors", [1, 4, 8])
def test_a_new_word_calls_what_the_frozen_model_can_draw_and_changes_nothing(vectors, tmp_path):
    """Eight pictures of rings, which captions call by a word that the checkpoint draws as a star or a cross."""
    model = load_checkpoint()
    before = {name: value.clone() for part in (model.unet, model.text_encoder, model.vae) for name, value in part.state_dict().items()}
    every = [Scene("ring", colour, size, "middle", ground) for colour in COLOURS for size in ("medium", "large") for ground in BACKGROUNDS]
    asked, known = random.Random(77).sample(every, 24), held_back_scenes(4, seed=5)
    plain, drawn = draw_scenes(model, asked, CONCEPT_WORD, cfg=3.0), draw_scenes(model, known, cfg=3.0).pictures
    result = train(word_config("ring", vectors, 150, 0.02, tmp_path, model), StudioBackbone(model))
    with model.words.given({CONCEPT_WORD: open_embedding(result.path).vectors}):
        learned, kept = draw_scenes(model, asked, CONCEPT_WORD, cfg=3.0), draw_scenes(model, known, cfg=3.0).pictures
    print(f"{vectors} vectors: ring {plain.share('shape'):.0%} -> {learned.share('shape'):.0%}; {learned.render()}; loss {result.validation}")
    assert plain.share("shape") <= 0.1 and learned.share("shape") >= 0.9 and learned.share("colour", "background") >= 0.9
    assert all((one == two).all() for one, two in zip(drawn, kept, strict=True))
    after = {name: value for part in (model.unet, model.text_encoder, model.vae) for name, value in part.state_dict().items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("vectors", [1, 4, 8])
def test_of_what_the_frozen_model_cannot_draw_a_new_word_learns_what_it_can(vectors, tmp_path):
    """The hourglass is none of its shapes: the loss on others of its pictures falls, the shape does not come out (docs/world.md)."""
    model = load_checkpoint()
    result = train(word_config(CONCEPT_SHAPE, vectors, 300, 0.05, tmp_path, model), StudioBackbone(model))
    assert result.validation[-1][1] <= 0.85 * result.validation[0][1], result.validation


def test_class_pictures_keep_what_is_known(tmp_path):
    """Of the new shape's eight pictures alone the checkpoint forgets; with the prior loss on pictures of its own it forgets measurably less."""
    model, rng = load_checkpoint(), random.Random(3)
    concept, classes = draw_dataset(tmp_path / "concept", 8, CONCEPT_SHAPE), tmp_path / "classes"
    classes.mkdir()
    known = [scene for scene in (draw_scene(rng) for _ in range(48)) if not held_back(scene)][:24]
    for number, (scene, pixels) in enumerate(zip(known, draw_scenes(model, known, first_seed=5000).pictures, strict=True)):
        Image.fromarray(pixels).save(classes / f"{number}.png")
        (classes / f"{number}.txt").write_text(caption(scene), encoding="utf-8")
    asked, fresh = held_back_scenes(24, seed=5), [Scene(CONCEPT_SHAPE, colour, "large", "middle", "white") for colour in ("red", "green", "blue", "yellow")]
    kept, learned = {}, {}
    for weight in (0.0, 1.0):
        config = TrainConfig.from_dict({
            "data": {"folders": [str(concept)], "resolution": model.side, "batch_size": 4, "prior_folder": str(classes)},
            "network": {"kind": "locon", "rank": 16},
            "training": {"steps": 150, "learning_rate": 2e-3, "text_encoder_learning_rate": 1e-3, "schedule": "cosine", "debiased": True, "seed": 1,
                         "prior_weight": weight},
            "output": {"name": f"prior{weight:.0f}", "folder": str(tmp_path), "save_every": 0},
        })
        train(config, StudioBackbone(model))
        networks = Generation(Catalogue([tmp_path]), NetworkCache(1 << 28), Session(model.unet, [model.text_encoder]))
        tag = f"<lyco:{config.output.name}:1>"
        kept[weight] = draw_scenes(model, asked, None, networks, tag, cfg=3.0).share("shape", "colour")
        learned[weight] = draw_scenes(model, fresh, CONCEPT_WORD, networks, tag, cfg=3.0).share("shape")
    print("prior weight: known captions kept", kept, "new shape", learned)
    assert kept[1.0] >= kept[0.0] + 0.1, (kept, learned)
