"""From folders to what the trainer takes: crops, mirrors, captions and class pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lib_lycoris.errors import DatasetError
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.dataset import read_dataset
from lib_lycoris.training.loop import train
from lib_lycoris.training.materials import StoppedEarly, make_materials, read_pictures
from lib_lycoris.training.watch import Watch

from .fake import FakeBackbone, make_pictures


class Painter(FakeBackbone):
    """Makes class pictures of one colour, by the seed."""

    def __init__(self):
        super().__init__()
        self.previews = []

    def preview(self, prompt, seed, **settings):
        self.previews.append((prompt, seed))
        return np.full((64, 64, 3), seed % 251, np.uint8)


def make_config(folder, **values):
    config = TrainConfig.from_dict({"data": {"folders": [str(folder / "data")], "resolution": 64}, "training": {"steps": 3}, "network": {"rank": 2},
                                    "output": {"name": "net", "folder": str(folder / "out")}})
    for key, value in values.items():
        config = config.set(key.replace("__", "."), value)
    return config


def materials(config, backbone=None, **options):
    return make_materials(read_pictures(config), backbone or Painter(), **options)


def test_samples_of_one_batch_can_be_stacked_and_pictures_keep_their_shape(tmp_path):
    make_pictures(tmp_path / "data", 2, size=(128, 128))
    make_pictures(tmp_path / "data" / "3_wide", 1, size=(300, 110))
    learned = materials(make_config(tmp_path, data__resolution=128)).learned
    shapes = {learned.bucket(sample): learned.latents(sample, 0).shape for sample in range(learned.samples)}
    assert learned.samples == 5 and sorted(map(tuple, shapes.values())) == [(4, 8, 24), (4, 16, 16)]
    assert all(learned.latents(sample, 0).shape == shapes[learned.bucket(sample)] for sample in range(5))


def test_mirrors_and_crops_change_from_epoch_to_epoch_by_seed_epoch_and_sample_alone(tmp_path):
    make_pictures(tmp_path / "data", 1, size=(160, 64))
    pixels = np.random.default_rng(0).integers(0, 255, (64, 160, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "data" / "0.png")
    config = make_config(tmp_path, data__flip=True, data__random_crop=True)
    one, other = materials(config).learned, materials(config).learned
    seen = [one.latents(0, epoch) for epoch in range(40)]
    assert all(torch.equal(seen[epoch], other.latents(0, epoch)) for epoch in (39, 7, 0))
    assert len({tuple(value.flatten().tolist()) for value in seen}) == 8
    crops = {one.framing(0, epoch).crop for epoch in range(40)}
    assert crops == {(0, 0), (0, 32), (0, 64), (0, 96)} and one.framing(0, 0).original == (64, 160)


def test_a_mirrored_pictures_latents_are_those_of_its_mirrored_pixels(tmp_path):
    make_pictures(tmp_path / "data", 1)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "data" / "0.png")
    learned = materials(make_config(tmp_path, data__flip=True)).learned
    one = learned.latents(0, 0)
    other = next(learned.latents(0, epoch) for epoch in range(20) if not torch.equal(one, learned.latents(0, epoch)))
    torch.testing.assert_close(one, other.flip(-1), atol=0.1, rtol=0)  # but for the sample of the posterior


def test_a_folders_word_is_the_caption_where_there_is_none(tmp_path):
    make_pictures(tmp_path / "data" / "4_sks dog", 2, captions=False)
    dataset = read_dataset(make_config(tmp_path).data)
    assert [picture.caption for picture in dataset.pictures] == ["sks dog"] * 2 and dataset.problems == ()
    template = make_config(tmp_path, data__caption_template="a photo of {caption}")
    assert read_dataset(template.data).pictures[0].caption == "a photo of sks dog"


def test_names_are_captions_where_asked(tmp_path):
    make_pictures(tmp_path / "data", 1, captions=False)
    (tmp_path / "data" / "0.png").rename(tmp_path / "data" / "001_red_cat.png")
    with pytest.raises(DatasetError, match="caption_from_name"):
        read_dataset(make_config(tmp_path).data)
    assert read_dataset(make_config(tmp_path, data__caption_from_name=True).data).pictures[0].caption == "red cat"


def test_folders_img_and_reg_are_what_kohyas_trainers_make_of_them(tmp_path):
    make_pictures(tmp_path / "data" / "img" / "10_zorb", 1)
    make_pictures(tmp_path / "data" / "reg" / "2_toy", 3, captions=False)
    dataset = read_dataset(make_config(tmp_path).data)
    assert [(picture.repeats, picture.concept) for picture in dataset.pictures] == [(10, "zorb")]
    assert [(picture.repeats, picture.caption) for picture in dataset.prior] == [(2, "toy")] * 3
    found = materials(make_config(tmp_path))
    assert found.prior.samples == 6 and found.prior.caption(5, 0) == "toy" and found.learned.samples == 10


def test_missing_class_pictures_are_made_once_each_with_a_seed_of_its_own(tmp_path):
    make_pictures(tmp_path / "data", 1)
    config = make_config(tmp_path, data__prior_prompt="a dog", data__prior_pictures=4, training__seed=7)
    painter, phases = Painter(), []
    found = materials(config, painter, watch=Watch(on_phase=lambda *phase: phases.append(phase)))
    assert painter.previews == [("a dog", seed) for seed in (7, 8, 9, 10)] and ("making class pictures", 3, 4) in phases
    assert found.prior.samples == 4 and {found.prior.caption(sample, 0) for sample in range(4)} == {"a dog"}
    folder = tmp_path / "out" / "net-class"
    assert sorted(path.name for path in folder.iterdir())[:2] == ["class-0000000007.png", "class-0000000007.txt"]
    assert "Seed: 9" in Image.open(folder / "class-0000000009.png").text["parameters"]

    (folder / "class-0000000008.png").unlink()
    again = Painter()
    materials(config.set("data.prior_pictures", "5"), again)
    assert again.previews == [("a dog", 8), ("a dog", 11)]
    other = Painter()
    assert "5 class pictures" in materials(config.set("data.prior_prompt", "a cat"), other).problems[0] and other.previews == []


def test_class_pictures_of_ones_own_are_used_as_they_are(tmp_path):
    make_pictures(tmp_path / "data", 1)
    make_pictures(tmp_path / "dogs", 3, captions=False)
    (tmp_path / "dogs" / "1.txt").write_text("a large dog")
    painter = Painter()
    config = make_config(tmp_path, data__prior_prompt="a dog", data__prior_pictures=3, data__prior_folder=str(tmp_path / "dogs"))
    prior = materials(config, painter).prior
    assert painter.previews == [] and [prior.caption(sample, 0) for sample in range(3)] == ["a dog", "a large dog", "a dog"]
    with pytest.raises(DatasetError, match="does not exist"):
        materials(make_config(tmp_path, data__prior_folder=str(tmp_path / "none")), painter)


def test_whoever_stops_while_class_pictures_are_made_keeps_those_that_are_there(tmp_path):
    make_pictures(tmp_path / "data", 1)
    config, painter = make_config(tmp_path, data__prior_prompt="a dog", data__prior_pictures=9), Painter()

    def stop():
        return len(painter.previews) >= 2

    with pytest.raises(StoppedEarly):
        materials(config, painter, watch=Watch(should_stop=stop))
    result = train(config, painter, should_stop=stop)
    assert result.stopped and result.path is None and result.steps == 0 and len(list((tmp_path / "out" / "net-class").glob("*.png"))) == 2


def test_class_pictures_enter_the_loss(tmp_path):
    make_pictures(tmp_path / "data", 2)
    losses = {}
    for weight in (0.0, 1.0):
        config = make_config(tmp_path, data__prior_prompt="a dog", data__prior_pictures=2, training__prior_weight=weight, network__text_encoder=False)
        losses[weight] = []
        train(config, Painter(), on_step=lambda report: losses[weight].append(report.loss))  # noqa: B023
    assert losses[1.0][0] > losses[0.0][0] + 0.1


def test_a_training_from_the_disk_cache_is_bit_for_bit_the_one_that_filled_it(tmp_path):
    make_pictures(tmp_path / "data", 3)
    losses = []
    config = make_config(tmp_path, data__cache="disk", data__cache_folder=str(tmp_path / "cache"), network__text_encoder=False, data__caption_dropout=0.3)
    for _ in range(2):
        found, backbone = [], Painter()
        result = train(config, backbone, on_step=lambda report: found.append(report.loss))  # noqa: B023
        losses.append((found, backbone.captions))
    assert losses[0][0] == losses[1][0] and len(losses[1][1]) == 1 and len(losses[0][1]) > 3
    assert not any("cache" in problem for problem in result.problems)


def test_a_dataset_file_sets_the_batch_size_of_the_training(tmp_path):
    make_pictures(tmp_path / "data", 3)
    path = tmp_path / "data.toml"
    path.write_text(f"[[datasets]]\nbatch_size = 3\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '{tmp_path / 'data'}'\n")
    config = TrainConfig.from_dict({"data": {"dataset": str(path)}, "training": {"epochs": 2}, "output": {"name": "net", "folder": str(tmp_path / "out")}})
    backbone = Painter()
    assert train(config, backbone).steps == 2 and [len(x) for x, _ in backbone.inputs] == [3, 3]
