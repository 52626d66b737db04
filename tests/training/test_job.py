"""A training in a thread: its states, its refusals, its end."""

from __future__ import annotations

import json
import math
import threading
import weakref
from pathlib import Path

import pytest

from lib_lycoris.errors import BusyError, TrainingError
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.job import JobState, TrainJob
from lib_lycoris.training.loop import train
from lib_lycoris.training.progress import StepReport
from lib_lycoris.training.result import TrainResult
from lib_lycoris.training.trainer import Trainer

from .fake import FakeBackbone
from .test_loop import assert_as_before, assert_equal_files, losses_of, make_config, photograph


def report_of(step, steps, loss, seconds_left=2.0):
    return StepReport(step, steps, loss, loss, 1e-3, 1.0, seconds_left)


def result_of(path, steps, stopped=False):
    return TrainResult(path, steps, 0.5, 1.0, stopped)


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

    def run(config, leads):
        done = 0
        while done < count and not leads.should_stop():
            done += 1
            leads.on_step(report_of(done, count, 1 / done))
            if gate is not None and done == 1:
                assert gate.wait(20)
        path = Path("nets") / f"{config.output.name}.safetensors" if done else None
        return result_of(path, done, done < count)

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
    job = TrainJob(lambda config, leads: leads.on_step(report_of(1, 1, math.nan, math.inf)) or result_of(Path("a"), 1))
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
    def run(config, leads):
        raise TrainingError("the loss is NaN at step 7: lower the learning rate")

    job = TrainJob(run)
    job.start(CONFIG)
    state = job.wait(20)
    assert (state.phase, state.error) == ("failed", "the loss is NaN at step 7: lower the learning rate")


def test_an_unforeseen_error_is_one_line_on_the_page_and_a_traceback_on_the_console(capsys):
    def run(config, leads):
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


def test_what_is_done_before_the_first_step_is_told():
    gate = threading.Event()

    def run(config, leads):
        leads.on_phase("encoding pictures", 3, 20)
        assert gate.wait(20)
        return steps_of(1)(config, leads)

    job = TrainJob(run)
    job.start(CONFIG)
    wait_for(lambda: job.state().doing == "encoding pictures, 3 of 20")
    gate.set()
    assert job.wait(20).doing == ""


def start_a_real_one(folder, kind, steps=40, **changes):
    """A job over a small model that trains for real, the losses of its steps, the model, its lock, and the config."""
    model, losses, backbone = threading.Lock(), {}, FakeBackbone()

    def run(config, leads):
        given = leads.for_train()

        def on_step(report):
            losses[report.step] = report.loss
            leads.on_step(report)
            threading.Event().wait(0.01)

        return train(config, backbone, **{**given, "on_step": on_step})

    config = make_config(folder, network__kind=kind, training__steps=steps, output__save_every=0, **changes)
    return TrainJob(run, model), losses, backbone, model, config


def pause_after(job, step):
    wait_for(lambda: job.state().step >= step)
    assert job.pause().phase == "pausing"
    wait_for(lambda: job.state().phase in ("paused", "failed"))
    return job.state()


@pytest.mark.parametrize("kind", ["locon", "adalora"])
def test_paused_it_frees_the_model_and_then_goes_on_bit_for_bit(tmp_path, kind):
    whole, expected = losses_of(make_config(tmp_path / "whole", network__kind=kind, training__steps=40))
    job, losses, backbone, model, config = start_a_real_one(tmp_path / "paused", kind)
    before = photograph(backbone)
    job.start(config)
    first = pause_after(job, 5)
    for step in (first.step, first.step + 5):
        state = job.state() if step == first.step else pause_after(job, step)
        assert state.phase == "paused" and state.busy and state.step < 40
        assert model.acquire(blocking=False)
        assert_as_before(backbone, before)
        assert not backbone.in_training
        assert (tmp_path / f"paused/out/net-step{state.step:08}.safetensors").is_file()  # to be tried while it is paused
        model.release()
        assert job.resume().phase == "preparing"
    state = job.wait(60)
    assert (state.phase, state.step) == ("done", 40)
    assert [losses[step] for step in range(1, 41)] == whole
    assert_equal_files(tmp_path / "paused/out/net.safetensors", expected.path)


def test_nothing_of_a_paused_training_is_left_on_the_device(tmp_path, monkeypatch):
    made = []

    class Watched(Trainer):
        def __init__(self, *rest, **named):
            super().__init__(*rest, **named)
            made.append([weakref.ref(self), *map(weakref.ref, self.parameters.values())])

    monkeypatch.setattr("lib_lycoris.training.loop.Trainer", Watched)
    job, _, _, _, config = start_a_real_one(tmp_path, "adalora", training__ema=0.9)
    job.start(config)
    pause_after(job, 3)
    assert len(made[0]) > 10 and all(each() is None for each in made[0])
    job.stop()
    job.wait(20)


def test_a_pause_needs_no_disk_to_go_on_from(tmp_path, monkeypatch):
    whole, _ = losses_of(make_config(tmp_path / "whole", training__steps=40))
    job, losses, _, _, config = start_a_real_one(tmp_path / "paused", "locon")
    job.start(config)
    with monkeypatch.context() as patch:
        patch.setattr("lib_lycoris.training.checkpoint.write_tensors", lambda *rest: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        pause_after(job, 5)
    job.resume()
    state = job.wait(60)
    assert state.phase == "done" and [losses[step] for step in range(1, 41)] == whole
    assert any("No space left" in line and "from memory" in line for line in state.log)


def test_stopped_while_paused_it_ends_where_it_is_and_can_be_resumed_from_disk(tmp_path):
    whole, _ = losses_of(make_config(tmp_path / "whole", training__steps=40))
    job, losses, _, _, config = start_a_real_one(tmp_path / "paused", "locon")
    job.start(config)
    paused = pause_after(job, 5)
    with pytest.raises(BusyError, match="'net' is paused"):
        job.start(config)
    job.stop()
    state = job.wait(20)
    assert (state.phase, state.step, state.path is not None) == ("stopped", paused.step, True)
    assert job.resume().phase == "preparing"
    assert job.wait(60).phase == "done" and [losses[step] for step in range(1, 41)] == whole


def test_there_is_nothing_to_resume_where_nothing_was_stopped():
    job = TrainJob(steps_of(1))
    with pytest.raises(BusyError, match="nothing to resume"):
        job.resume()
    assert job.pause().phase == "idle"
    job.start(CONFIG)
    job.wait(20)
    with pytest.raises(BusyError, match="nothing to resume"):
        job.resume()


def kept(path, gate=None):
    return TrainJob(steps_of(3, gate), record=path)


def test_a_new_program_finds_the_last_training_with_its_curve(tmp_path):
    job = kept(tmp_path / "deep" / "job.json")
    job.start(CONFIG)
    ended = job.wait(20)
    found = kept(tmp_path / "deep" / "job.json").state()
    assert found == ended and found.losses and found.phase == "done"


def test_a_training_that_was_killed_is_found_as_interrupted_and_can_be_resumed(tmp_path):
    gate, path = threading.Event(), tmp_path / "job.json"
    killed = kept(path, gate)
    killed.start(CONFIG)
    wait_for(lambda: killed.state().step == 1)
    wait_for(lambda: json.loads(path.read_text())["state"]["phase"] == "running")
    resumed = []
    job = TrainJob(lambda config, leads: resumed.append((config, leads.resume)) or result_of(Path("nets/dog.safetensors"), 3), record=path)
    state = job.state()
    assert (state.phase, state.name, state.busy) == ("interrupted", "dog", False) and state.version > killed.state().version
    assert "resume" in state.log[-1] and job.config() == CONFIG
    job.resume()
    assert job.wait(20).phase == "done" and resumed == [(CONFIG, True)]
    gate.set()
    killed.wait(20)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', '{"version": 1, "state": {"losses": 3}, "config": {}}', '{"version": 99, "state": {}}'])
def test_a_record_that_cannot_be_used_is_no_training(tmp_path, text):
    (tmp_path / "job.json").write_text(text)
    job = kept(tmp_path / "job.json")
    assert job.state() == JobState() and job.config() is None
    with pytest.raises(BusyError, match="nothing to resume"):
        job.resume()


def test_a_record_of_another_versions_config_still_shows_what_happened(tmp_path):
    job = kept(tmp_path / "job.json")
    job.start(CONFIG)
    job.wait(20)
    plain = json.loads((tmp_path / "job.json").read_text())
    plain["config"]["network"]["brand_new"] = 1
    (tmp_path / "job.json").write_text(json.dumps(plain))
    found = kept(tmp_path / "job.json")
    assert found.state().phase == "done" and found.config() is None


def test_a_folder_that_cannot_be_written_to_stops_no_training(tmp_path):
    (tmp_path / "file").write_text("")
    job = kept(tmp_path / "file" / "job.json")
    job.start(CONFIG)
    assert job.wait(20).phase == "done"


def test_previews_are_asked_for_once_and_told_with_those_from_before(tmp_path):
    asked, gate = [], threading.Event()

    def run(config, leads):
        leads.viewer.show(0, "a dog", Path("before.png"))
        for step in (1, 2, 3):
            leads.on_step(report_of(step, 3, 0.5))
            assert step > 1 or gate.wait(20)
            asked.append(leads.viewer.wanted())
            if asked[-1]:
                leads.viewer.show(step, "a dog", Path(f"{step}.png"))
        return result_of(Path("nets/dog.safetensors"), 3)

    job = TrainJob(run)
    with pytest.raises(BusyError, match="no training is under way"):
        job.preview()
    job.start(CONFIG)
    wait_for(lambda: job.state().step == 1)
    job.preview()
    gate.set()
    state = job.wait(20)
    assert asked == [True, False, False] and state.previews == ((0, "a dog", "before.png"), (1, "a dog", "1.png"))
    assert json.loads(json.dumps(state.to_dict()))["previews"] == [[0, "a dog", "before.png"], [1, "a dog", "1.png"]]


def test_what_the_page_draws_goes_on_where_a_resumed_training_stood():
    job = TrainJob(lambda config, leads: leads.on_step(report_of(5 if leads.resume else 4, 9, 0.5)) or result_of(Path("nets/dog.safetensors"), 5, True))
    job.start(CONFIG)
    job.wait(20)
    job.resume()
    assert [step for step, _ in job.wait(20).rates] == [4, 5]


def test_steps_that_are_made_once_more_from_an_older_state_stand_once_in_the_curve():
    stretches = iter([range(1, 9), range(5, 12)])

    def run(config, leads):
        for step in next(stretches):
            leads.on_step(StepReport(step, 20, 1 / step, 1 / step, 1e-3, 1.0, 1.0, validation_loss=0.5))
        return result_of(Path("nets/dog.safetensors"), step, True)

    job = TrainJob(run)
    job.start(CONFIG)
    job.wait(20)
    job.resume()
    state = job.wait(20)
    assert [[step for step, _ in points] for points in (state.losses, state.rates, state.validations)] == [list(range(1, 12))] * 3


def test_the_state_says_each_layers_rank_while_a_method_takes_some_away():
    def run(config, leads):
        report = StepReport(1, 1, 0.5, 0.5, 1e-3, 1.0, 0.0, ranks=9, layer_ranks={"unet.a": 4, "unet.b": 5})
        leads.on_step(report)
        return result_of(Path("nets/dog.safetensors"), 1)

    job = TrainJob(run)
    job.start(TrainConfig.from_dict({"network": {"kind": "adalora", "init_rank": 24}}))
    state = job.wait(20).to_dict()
    assert state["ranks"] == {"unet.a": 4, "unet.b": 5} and state["initial_rank"] == 24
