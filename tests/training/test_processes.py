"""Several processes train as one would with a batch as large as all of theirs."""

from __future__ import annotations

import os

import pytest
import torch

from lib_lycoris.errors import TrainingError
from lib_lycoris.files.safetensors import read_tensors
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
], ids=["locon", "adalora"])
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


def test_one_process_agrees_with_itself_and_others_may_not():
    Alone().agree(3, "step", "look")
    with pytest.raises(TrainingError, match="it is 2 in one and 5 in another: look"):
        raise disagreement("step", 2, 5, "look")
