"""Killed at any moment, with a full disk, without its folder, twice at once: what was saved stays good, and the training goes on bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from lib_lycoris.errors import BusyError, ConfigError, TrainingError
from lib_lycoris.training.loop import train

from .fake import FakeBackbone
from .test_loop import assert_equal_files, change, losses_of, make_config

needs_kill = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL and no fork")
STEPS = 26


@needs_kill
@pytest.mark.parametrize(("kind", "seed", "word"), [("locon", 1, {}), ("adalora", 2, {}), ("embedding", 3, {"embedding__norm": "median"})])
def test_killed_at_random_moments_and_in_the_middle_of_saves_it_goes_on_bit_for_bit(tmp_path, kind, seed, word):
    from . import children

    options = {"network__kind": kind, "training__steps": STEPS, "output__save_every": 2, "training__ema": 0.9, "training__schedule": "cosine", **word}
    whole, result = losses_of(make_config(tmp_path / "whole", **options))
    config, told, luck = make_config(tmp_path / "killed", **options), tmp_path / "losses", random.Random(seed)
    moments = ["any", "half written", "written, not yet in its place", "in its place, older ones not yet removed"]
    luck.shuffle(moments)
    kills = [(moment, luck.randint(1, 3), luck.uniform(0, 0.02)) for moment in moments]
    for place, (moment, number, delay) in enumerate([*kills, (None, 0, 0)]):
        number += 5 * place if moment == "any" else 0  # of a step, not of a save in that process
        child = children.start(children.train_and_tell, config.to_dict(), str(told), place > 0, moment, number, delay)
        child.join(120)
        assert child.exitcode == (0 if moment is None else -signal.SIGKILL), moment
    seen = [json.loads(line) for line in told.read_text().splitlines()]
    assert all(loss == whole[step - 1] for step, loss in seen) and {step for step, _ in seen} == set(range(1, STEPS + 1))
    assert len(seen) <= STEPS + 2 * len(kills)  # no more than what was not yet saved was done twice
    assert_equal_files(tmp_path / "killed/out/net.safetensors", result.path)
    assert sorted(path.name[:5] for path in (tmp_path / "killed/out/net-states").iterdir()) == [".lock", "step-", "step-"]


@needs_kill
def test_the_lock_of_a_killed_training_is_taken_over_and_that_is_told(tmp_path):
    from . import children

    config = make_config(tmp_path, training__steps=STEPS)
    child = children.start(children.train_and_tell, config.to_dict(), str(tmp_path / "told"), False, "written, not yet in its place", 2, 0)
    child.join(120)
    result = train(config, FakeBackbone(), resume=True)
    assert any("was killed" in problem and str(child.pid) in problem for problem in result.problems)
    [problem] = train(config, FakeBackbone(), resume=True).problems
    assert "nothing is left to train" in problem


def test_two_trainings_of_one_name_in_one_folder_are_refused_and_of_two_names_are_not(tmp_path):
    config = make_config(tmp_path)
    seen = []

    def on_step(report):
        if report.step == 2:
            with pytest.raises(BusyError, match=r"belongs to a training 'net' that is under way \(process \d+ on .*wait for its end") as caught:
                train(config, FakeBackbone())
            seen.append(str(caught.value))
            seen.append(train(change(config, output__name="other"), FakeBackbone()).path)

    assert train(config, FakeBackbone(), on_step=on_step).steps == 12
    assert "\n" not in seen[0] and seen[1].name == "other.safetensors"


def test_a_folder_that_is_gone_is_told_in_a_line_and_not_made_anew(tmp_path):
    config = make_config(tmp_path)

    def on_step(report):
        if report.step == 6:
            shutil.rmtree(tmp_path / "out")

    with pytest.raises(TrainingError, match=r"the state after step 8 could not be saved|training's state after step 8 could not be saved") as caught:
        train(config, FakeBackbone(), on_step=on_step)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_became_read_only_is_told_and_the_state_before_stays_good(tmp_path):
    whole, _ = losses_of(make_config(tmp_path / "whole"))
    config = make_config(tmp_path / "parts")
    states = tmp_path / "parts/out/net-states"
    with pytest.raises(TrainingError, match=r"step 8 could not be saved.*step-00000004"):
        train(config, FakeBackbone(), on_step=lambda report: states.chmod(0o500) if report.step == 6 else None)
    states.chmod(0o700)
    assert losses_of(config, resume=True)[0] == whole[4:]


def test_a_folder_that_can_not_be_written_to_is_told_before_anything_is_trained(tmp_path):
    config = make_config(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/net-states").write_text("a file")
    with pytest.raises(ConfigError, match=r"output\.folder: .*net-states can't be written to"):
        train(config, FakeBackbone())


def test_states_are_saved_by_minutes_too(tmp_path, monkeypatch):
    clock = iter(range(0, 100_000, 10))
    monkeypatch.setattr("lib_lycoris.training.run.time.monotonic", lambda: next(clock))
    written = []
    config = make_config(tmp_path, output__save_every=0, output__save_minutes=1.5, training__steps=30)
    train(config, FakeBackbone(), on_phase=lambda phase, done, total: written.append(phase))
    assert 3 < written.count("saving") < 15


def test_an_earlier_trainings_newest_state_stays_until_the_new_one_is_complete(tmp_path):
    config = make_config(tmp_path)
    first = train(config, FakeBackbone()).state
    stopped = train(config, FakeBackbone(), should_stop=iter([False] * 6 + [True]).__next__)
    assert first.exists() and stopped.state != first
    result = train(config, FakeBackbone(), resume=True)
    assert result.steps == 12 and not first.exists()


def test_the_time_of_all_parts_adds_up(tmp_path):
    config, seconds = make_config(tmp_path), []
    train(config, FakeBackbone(), on_step=lambda report: seconds.append(report.seconds), should_stop=iter([False] * 6 + [True]).__next__)
    train(config, FakeBackbone(), on_step=lambda report: seconds.append(report.seconds), resume=True)
    assert len(seconds) == 12 and seconds == sorted(seconds)


def test_phases_are_told_in_the_order_in_which_they_come(tmp_path):
    told = []
    train(make_config(tmp_path, validation__share=0.4, output__save_every=0), FakeBackbone(), on_phase=lambda phase, done, total: told.append(phase))
    order = list(dict.fromkeys(told))
    assert [phase for phase in order if phase in ("reading pictures", "encoding pictures", "validating", "saving")] == [
        "reading pictures", "encoding pictures", "validating", "saving"]


def test_the_state_on_disk_is_named_by_a_result(tmp_path):
    result = train(make_config(tmp_path), FakeBackbone())
    assert result.state.parent == Path(tmp_path / "out/net-states") and result.state.name.startswith("step-00000012")
