"""Sample pictures for each thing that can be trained: what the embedded checkpoint can learn from them in minutes."""
from __future__ import annotations

from ...training.sample_set import SampleSet
from .dataset import draw_dataset
from .maps import draw_map_dataset
from .scenes import CONCEPT_SHAPE, CONCEPT_WORD

NEW_WORD, NEW_WORD_SHAPE = "vorrel", "ring"
"""A word that the embedded checkpoint does not know, and the shape, one of its own, that the captions call by it."""
PAIRS = 400

NETWORK = SampleSet(
    f"sample-{CONCEPT_WORD}", f"Eight pictures of an hourglass, a shape that the embedded checkpoint has never seen; their captions call it {CONCEPT_WORD}.",
    lambda folder: draw_dataset(folder, shape=CONCEPT_SHAPE),
)
EMBEDDING = SampleSet(
    f"sample-{NEW_WORD}", f"Eight pictures of rings; their captions call them {NEW_WORD}, a word that the embedded checkpoint does not know yet, and which is "
    "what is trained.", lambda folder: draw_dataset(folder, shape=NEW_WORD_SHAPE, word=NEW_WORD), {"embedding.word": NEW_WORD},
)
ADAPTER = SampleSet(
    "sample-outlines", f"{PAIRS} drawn shapes, each (NAME.png) with its outline as a control picture (NAME.cond.png), which alone says where the shape is.",
    lambda folder: draw_map_dataset(folder, PAIRS),
)


def sample_set(kind: str) -> SampleSet:
    """The sample pictures for a kind of training (network.kind)."""
    return {"embedding": EMBEDDING, "adapter": ADAPTER}.get(kind, NETWORK)
