"""Several processes train as one would with a batch as large as all of theirs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib_lycoris.errors import TrainingError
from lib_lycoris.files.safetensors import read_tensors
from lib_lycoris.training.folder import held, make_folder
from lib_lycoris.training.loop import train
from lib_lycoris.training.processes import Alone, disagreement

from .fake import make_pictures
from .test_loop import losses_of, make_config

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the processes are forked")


def a_config(folder, batch_size, **changes):
    make_pictures(folder / "data", 7)
    values = {"training__steps": None, "training__epochs": 6, "training__warmup_steps": 2, **changes}
    return make_config(folder, data__batch_size=batch_size, **values)


@pytest.mark.parametrize("options", [
    {"network__kind": "locon", "network__dropout": 0.2, "training__gradient_accumulation": 2, "validation__share": 0.3, "training__ema": 0.9},
    {"network__kind": "adalora", "network__init_rank": 6, "network__target_rank": 3, "network__warmup": 1, "network__final": 3, "network__interval": 2},
    {"network__kind": "embedding", "training__ema": 0.9, "data__caption_dropout": 0.3},
    {"network__kind": "lora", "network__text_encoder": False, "embedding__word": "zor", "embedding__vectors": 2, "embedding__norm": "keep"},
], ids=["locon", "adalora", "embedding", "pivotal"])
def test_two_processes_are_one_with_twice_the_batch(tmp_path, options):
    pytest.importorskip("accelerate")
    from . import children

    expected, result = losses_of(a_config(tmp_path / "one", 4, **options))
    told = children.train_on(2, a_config(tmp_path / "two", 2, **options).to_dict(), tmp_path / "told")
    for one, _ in told:
        assert one["error"] is None and one["steps"] == list(range(1, len(expected) + 1))
        assert one["losses"] == pytest.approx(expected, rel=2e-4)
    (first, tensors), (second, others) = told
    assert first["losses"] == second["losses"] and second["path"] is None
    assert tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)  # parameters, averages, moments
    alone, together = read_tensors(result.path), read_tensors(first["path"])
    assert alone.keys() == together.keys() and {name: value.shape for name, value in alone.items()} == {name: value.shape for name, value in together.items()}
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-2, atol=2e-4)


def test_a_wish_of_any_process_stops_all_and_they_go_on_together(tmp_path):
    pytest.importorskip("accelerate")
    from . import children

    whole = children.train_on(2, a_config(tmp_path / "whole", 2).to_dict(), tmp_path / "told")[0][0]["losses"]
    config = a_config(tmp_path / "parts", 2).to_dict()
    stopped = children.train_on(2, config, tmp_path / "first", stop=(1, 4))
    assert [one["stopped"] for one, _ in stopped] == [True, True] and [one["steps"][-1] for one, _ in stopped] == [4, 4]
    resumed = children.train_on(2, config, tmp_path / "second", resume=True)
    assert [one["losses"] for one, _ in resumed] == [whole[4:]] * 2 and stopped[0][0]["losses"] == whole[:4]


def test_where_the_first_can_not_save_all_end(tmp_path):
    pytest.importorskip("accelerate")
    from . import children

    told = children.train_on(2, a_config(tmp_path, 2, output__save_every=3, training__epochs=12).to_dict(), tmp_path / "told", fail=True)
    assert "No space left on device" in told[0][0]["error"] and [one["steps"][-1] for one, _ in told] == [3, 3]


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_each_makes_and_encodes_its_share_of_the_pictures_and_all_have_them_as_one_process_would(tmp_path, cache):
    pytest.importorskip("accelerate")
    from . import children

    options = {"data__prior_prompt": "a thing", "data__prior_pictures": 5, "data__flip": True, "data__masks": "alpha", "training__epochs": 2}
    alone, expected, configs = children.Painter(), [], [a_config(tmp_path / "one", 4, **options), a_config(tmp_path / "two", 2, data__cache=cache, **options)]
    for config in configs:
        for number in range(7):  # every other one with a mask
            pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3 + number % 2), np.uint8)
            Image.fromarray(pixels).save(Path(config.data.folders[0]) / f"{number}.png")
    train(configs[0], alone, on_step=lambda report: expected.append(report.loss))
    told = [one for one, _ in children.train_on(2, configs[1].to_dict(), tmp_path / "told")]
    assert [one["error"] for one in told] == [None, None]
    assert sorted(told[0]["painted"] + told[1]["painted"]) == sorted(alone.painted) and [len(one["painted"]) for one in told] == [3, 2]
    probes = 2 * (cache == "disk")  # one in each process tells which autoencoder it is
    assert sum(one["encoded"] for one in told) == alone.encoded + probes and abs(told[0]["encoded"] - told[1]["encoded"]) <= 2
    assert told[0]["losses"] == told[1]["losses"] == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("unable", [0, 1])
def test_where_one_can_not_make_its_class_pictures_all_end_with_its_words(tmp_path, unable):
    pytest.importorskip("accelerate")
    from . import children

    config = a_config(tmp_path, 2, data__prior_prompt="a thing", data__prior_pictures=4)
    told = children.train_on(2, config.to_dict(), tmp_path / "told", unable=unable)
    own, other = told[unable][0]["error"], told[1 - unable][0]["error"]
    assert own == "no picture of a thing é comes out" and other == f"process {unable} of 2: {own}"


def test_where_the_first_finds_the_folder_taken_all_end(tmp_path):
    pytest.importorskip("accelerate")
    from . import children

    config = a_config(tmp_path, 2)
    with held(make_folder(config.output) / "net-states", "net"):
        told = children.train_on(2, config.to_dict(), tmp_path / "told")
    assert "is under way" in told[0][0]["error"] and told[1][0]["error"] == f"process 0 of 2: {told[0][0]['error']}"


def test_one_process_agrees_with_itself_and_others_may_not():
    Alone().agree(3, "step", "look")
    with pytest.raises(TrainingError, match="it is 2 in one and 5 in another: look"):
        raise disagreement("step", 2, 5, "look")
