"""Each kind of training has sample pictures that its preset can begin with."""
from __future__ import annotations

import pytest
from PIL import Image

from lib_lycoris.studio.world.samples import NEW_WORD, PAIRS, sample_set
from lib_lycoris.studio.world.scenes import CONCEPT_WORD
from lib_lycoris.training.config import KINDS
from lib_lycoris.training.dataset import read_dataset
from lib_lycoris.training.presets import PRESETS, WORLD, nested


@pytest.mark.parametrize(("kind", "count", "word"), [("locon", 8, CONCEPT_WORD), ("embedding", 8, NEW_WORD), ("adapter", PAIRS, "background")])
def test_the_preset_for_the_embedded_checkpoint_begins_with_them_alone(kind, count, word, tmp_path):
    found = sample_set(kind)
    folder = found.folder(tmp_path)
    preset = next(preset for preset in PRESETS if preset.base == WORLD and preset.values["network.kind"] == kind)
    values = {**preset.values, **{key: value for key, value in found.settings.items() if value is not None}, "data.folders": [str(folder)]}
    config = preset.config().change(values)
    pictures = read_dataset(config.data).pictures
    assert len(pictures) == count and all(word in picture.caption.split() for picture in pictures)
    assert nested(values)["data"]["resolution"] <= 72
    if kind == "embedding":
        assert config.word == NEW_WORD
    controls = sorted(folder.glob("*.cond.png"))
    assert len(controls) == (count if kind == "adapter" else 0)
    for control in controls[:3]:
        with Image.open(control) as outline, Image.open(control.with_name(control.name.replace(".cond", ""))) as picture:
            assert outline.size == picture.size


def test_all_kinds_of_networks_share_theirs():
    assert len({sample_set(kind).name for kind in KINDS}) == 3
