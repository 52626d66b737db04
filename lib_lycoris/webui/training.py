"""Training on the checkpoint that the WebUI has loaded: one at a time, in the queue with the pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from modules import call_queue, devices, shared

from lib_lycoris.training.conditioning import autocast
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.dataset import check_folders
from lib_lycoris.training.desk import Desk
from lib_lycoris.training.fence import Fence
from lib_lycoris.training.job import Leads, TrainJob
from lib_lycoris.training.pace import Paces
from lib_lycoris.training.progress import StepReport
from lib_lycoris.training.result import TrainResult
from lib_lycoris.training.sample_set import SampleSet

from . import host, settings
from .applier import Applier
from .backbone import WebUIBackbone
from .interrogate import Interrogation

_SECONDS_TO_END = 120.0
_ADVICE = ("upload the pictures, or start the WebUI with --lycoris-datasets FOLDER (or with --enable-insecure-extension-access, which allows every folder to "
           "everybody who reaches it)")


class Training:
    """What routes and page do about trainings; plain values in and out.

    The host's queue is held from a training's start to its end, but for its pauses: pictures wait for it, and it waits for them.

    Args:
        applier: whose networks come off the model, and whose catalogue hears of a new one.
        sample: takes a kind of network, gives its sample pictures; None: there are none.

    Attributes:
        desk: what is around a training: pictures, presets, settings in other forms.
    """

    def __init__(self, applier: Applier, sample: Callable[[str], SampleSet] | None = None) -> None:
        self._applier = applier
        home = host.own_folder()
        self.job = TrainJob(self._run, call_queue.queue_lock, home / "training.json")
        self._paces = Paces(home / "paces.json")
        self._fence = Fence(lambda: [*_written(), home], _readable if host.open_to_others() else None, _ADVICE)
        self.desk = Desk(home, self._fence, self._config, self.job, sample)
        self._interrogation = Interrogation(call_queue.queue_lock)

    def start(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Starts the training of a config; gives its state. What can be told to be wrong without a look at the pictures is told now.

        Raises:
            LycoError: a bad config, no folder with pictures, a checkpoint that can't be trained, another training is under way.
        """
        config = self._config(values)
        check_folders(config.data)
        return self.job.start(config).to_dict()

    def state(self) -> dict[str, Any]:
        """How the training stands that is under way, or was last."""
        return self.job.state().to_dict()

    def stop(self) -> dict[str, Any]:
        """Asks the training to save and end; gives its state."""
        return self.job.stop().to_dict()

    def pause(self) -> dict[str, Any]:
        """Asks the training to save and free model and queue until it is resumed; gives its state."""
        return self.job.pause().to_dict()

    def resume(self, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Lets the paused, stopped or failed training go on, or with a config the newest saved one of its name; gives its state.

        Raises:
            LycoError: there is nothing to resume; the config is bad.
        """
        if not values:
            return self.job.resume().to_dict()
        return self.job.start(self._config(values), resume=True).to_dict()

    def check(self, values: Mapping[str, Any]) -> list[str]:
        """In words, what a training would do.

        Raises:
            LycoError: a bad config, or one for another checkpoint than the one that is loaded.
        """
        config = self._config(values)
        check_folders(config.data)
        backbone = WebUIBackbone(config, host.find_loaded(config.model.checkpoint))
        pace, free = self._paces.seconds_a_step(config, backbone), call_queue.queue_lock.acquire(blocking=False)
        try:
            return _check_training(config, backbone, backbone.side, free, pace).lines()
        finally:
            if free:
                call_queue.queue_lock.release()

    def preview(self) -> dict[str, Any]:
        """Asks the training for preview pictures after the step it is in; gives its state."""
        return self.job.preview().to_dict()

    def preprocess(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Writes captions for the pictures of a folder that have none, by one of the host's interrogators; gives what was written.

        Raises:
            LycoError: an unknown key or interrogator, a folder that can't be used.
        """
        if isinstance(values.get("folder"), str):
            self._fence.check_read("folder", values["folder"])
        return self._interrogation.write_captions(values)

    def defaults(self) -> dict[str, Any]:
        """What fields of a page start with, by key, where it differs from the config's own defaults."""
        return {f"{section}.{name}": value for section, part in self._defaults().items() for name, value in part.items()}

    def end(self) -> None:
        """Has a training that is under way save and end, and waits for it: the user interface is loaded anew."""
        if self.job.state().busy:
            self.job.stop()
            self.job.wait(_SECONDS_TO_END)

    def _defaults(self) -> dict[str, dict[str, Any]]:
        """The folder in which networks are found at once, and the precision that the model is loaded in."""
        model = host.loaded_model()
        half = devices.dtype == torch.float16 if model is None else host.half_precision(model)
        precision = {"precision": "fp16"} if half else {}
        return {"output": {"folder": str(host.network_folders()[0])}, "training": precision}

    def _config(self, values: Mapping[str, Any]) -> TrainConfig:
        """The config, with the checkpoint in it that it means now."""
        config = TrainConfig.from_dict(values)
        for section, part in self._defaults().items():
            given = values.get(section) or {}
            for name, value in part.items():
                if name not in given:
                    config = config.set(f"{section}.{name}", value)
        folder = {"adapter": host.adapter_folder, "embedding": host.embedding_folder}.get(config.network.kind)
        if folder is not None and config.output.folder == str(host.network_folders()[0]):  # as the page has it, or nobody said anything
            config = config.set("output.folder", str(folder()))
        self._fence.check(config)
        checkpoint = host.find_checkpoint(config.model.checkpoint)
        if host.is_loaded(checkpoint):
            backbone = WebUIBackbone(config, checkpoint)
            autocast(backbone.device, config.training.precision)
            _check_settings(config, backbone)
        return replace(config, model=replace(config.model, checkpoint=checkpoint.filename))

    def _run(self, config: TrainConfig, leads: Leads) -> TrainResult:
        checkpoint = host.find_checkpoint(config.model.checkpoint)
        leads.say(f"On the checkpoint {checkpoint.name_for_extra}")
        host.load_checkpoint(checkpoint)
        backbone = WebUIBackbone(config, checkpoint, self._applier.leave_model)
        try:
            result = _train(config, backbone, **{**leads.for_train(), "on_step": _showing(leads.on_step), "should_stop": _Ending(backbone, leads)})
            state = self.job.state()
            self._paces.note(config, backbone, state.step, state.seconds)
            return result
        finally:
            self._applier.catalogue.scan()


def _written() -> list[Path]:
    """The folders in which the host and we look for what trainings make."""
    return [*settings.network_folders(), host.embedding_folder(), host.adapter_folder()]


def _readable() -> list[Path]:
    return [Path(folder) for folder in host.dataset_folders()]


class _Ending:
    """Asked before each step: whether the user, the host's Interrupt or the loss of the model ends the training."""

    def __init__(self, backbone: WebUIBackbone, leads: Leads):
        self._backbone, self._leads = backbone, leads

    def __call__(self) -> bool:
        reason = self._backbone.left()
        if reason is None and shared.state.interrupted:
            reason = "the WebUI was told to interrupt its work"
        if reason is not None:
            self._leads.say(f"Ending, as {reason}")
        return reason is not None or self._leads.should_stop()


# What a training alone needs is imported with the first one: the WebUI's start does not wait for it.


def _train(*arguments: Any, **named: Any) -> TrainResult:
    from lib_lycoris.training.loop import train

    return train(*arguments, **named)


def _check_training(*arguments: Any) -> Any:
    from lib_lycoris.training.preflight import check_training

    return check_training(*arguments)


def _check_settings(config: TrainConfig, backbone: WebUIBackbone) -> None:
    from lib_lycoris.training.trainer import check_settings

    check_settings(config, backbone)


def _showing(on_step: Callable[[StepReport], None]) -> Callable[[StepReport], None]:
    """Tells of a step, and the host's own progress too."""

    def tell(report: StepReport) -> None:
        state = shared.state
        state.job_count, state.job_no, state.sampling_step, state.sampling_steps = report.steps, report.step, 0, 0
        state.textinfo = f"Training: step {report.step} of {report.steps}, loss {report.smoothed_loss:.4f}"
        on_step(report)

    return tell
