"""A training in a thread: its states, its refusals, its end."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from lib_lycoris.errors import BusyError, TrainingError
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.job import TrainJob


@dataclass
class Report:
    step: int
    steps: int
    loss: float
    smoothed_loss: float
    learning_rate: float = 1e-3
    seconds: float = 1.0
    seconds_left: float = 2.0


@dataclass
class Result:
    path: Path | None
    steps: int
    stopped: bool = False
    problems: tuple[str, ...] = ()


def wait_for(what):
    """Returns once `what` is true, and fails where that takes ten seconds."""
    for _ in range(1000):
        if what():
            return
        threading.Event().wait(0.01)
    raise AssertionError("waited ten seconds")


CONFIG = TrainConfig.from_dict({"output": {"name": "dog"}})


def steps_of(count, gate=None):
    """A training of that many steps, which waits for the gate before its second."""

    def run(config, on_step, should_stop, say):
        done = 0
        while done < count and not should_stop():
            done += 1
            on_step(Report(done, count, 1 / done, 1 / done))
            if gate is not None and done == 1:
                assert gate.wait(20)
        path = Path("nets") / f"{config.output.name}.safetensors" if done else None
        return Result(path, done, done < count)

    return run


def test_a_job_that_runs_through_names_file_and_tag():
    job = TrainJob(steps_of(3))
    assert job.state().phase == "idle"
    assert job.start(CONFIG).phase == "preparing"
    state = job.wait(20)
    assert (state.phase, state.step, state.steps, state.tag) == ("done", 3, 3, "<lyco:dog:1>")
    assert state.path == str(Path("nets/dog.safetensors"))
    assert [step for step, _ in state.losses] == [1, 2, 3]


def test_the_state_is_json_also_before_the_first_loss_and_with_a_loss_that_is_no_number():
    job = TrainJob(lambda config, on_step, should_stop, say: on_step(Report(1, 1, math.nan, math.nan, seconds_left=math.inf)) or Result(Path("a"), 1))
    for _ in range(2):
        json.dumps(job.state().to_dict(), allow_nan=False)
        if not job.state().step:
            job.start(CONFIG)
            job.wait(20)
    assert job.state().loss is None


def test_a_second_training_is_refused_while_the_first_runs_and_welcome_after():
    gate = threading.Event()
    job = TrainJob(steps_of(2, gate))
    job.start(CONFIG)
    with pytest.raises(BusyError, match="'dog' is under way"):
        job.start(CONFIG)
    gate.set()
    assert job.wait(20).phase == "done"
    assert job.start(CONFIG).phase == "preparing"
    assert job.wait(20).phase == "done"


def test_stop_ends_it_early_and_it_is_said_to_be_stopped():
    gate = threading.Event()
    job = TrainJob(steps_of(50, gate))
    job.start(CONFIG)
    wait_for(lambda: job.state().step)
    assert job.stop().phase == "stopping"
    gate.set()
    state = job.wait(20)
    assert (state.phase, state.step) == ("stopped", 1)
    assert state.path is not None


def test_stopped_before_its_first_step_it_names_no_file():
    model = threading.Lock()
    model.acquire()
    job = TrainJob(steps_of(50), model)
    job.start(CONFIG)
    job.stop()
    model.release()
    state = job.wait(20)
    assert (state.phase, state.step, state.path, state.tag) == ("stopped", 0, None, None)
    assert "nothing was saved" in state.log[-1]


def test_stop_without_a_training_changes_nothing():
    job = TrainJob(steps_of(1))
    assert job.stop() == job.state()
    assert job.state().phase == "idle"


def test_an_error_of_ours_is_told_in_its_own_words():
    def run(config, on_step, should_stop, say):
        raise TrainingError("the loss is NaN at step 7: lower the learning rate")

    job = TrainJob(run)
    job.start(CONFIG)
    state = job.wait(20)
    assert (state.phase, state.error) == ("failed", "the loss is NaN at step 7: lower the learning rate")


def test_an_unforeseen_error_is_one_line_on_the_page_and_a_traceback_on_the_console(capsys):
    def run(config, on_step, should_stop, say):
        raise RuntimeError("first\nsecond")

    job = TrainJob(run)
    job.start(CONFIG)
    state = job.wait(20)
    assert state.phase == "failed"
    assert "RuntimeError: first second" in state.error
    assert "Traceback" in capsys.readouterr().err


def test_the_model_is_held_for_exactly_the_training():
    model, gate = threading.Lock(), threading.Event()
    model.acquire()
    job = TrainJob(steps_of(2, gate), model)
    job.start(CONFIG)
    wait_for(lambda: any("Waiting" in line for line in job.state().log))
    assert job.state().phase == "preparing"
    model.release()
    wait_for(lambda: job.state().step)
    assert not model.acquire(blocking=False)
    gate.set()
    job.wait(20)
    assert model.acquire(blocking=False)


def test_a_long_training_keeps_a_curve_of_some_hundred_points_with_both_ends():
    job = TrainJob(steps_of(5000))
    job.start(CONFIG)
    losses = job.wait(60).losses
    steps = [step for step, _ in losses]
    assert 100 < len(losses) <= 401
    assert steps[0] == 1
    assert steps[-1] == 5000
    assert steps == sorted(set(steps))
