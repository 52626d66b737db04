"""What the tests run in processes of their own: trainings that are killed, and several that train together.

They are forked from a server that has imported everything already (`start`), so that each costs no more than its steps.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import torch

from lib_lycoris.errors import LycoError, TrainingError
from lib_lycoris.files import safetensors
from lib_lycoris.training import checkpoint, loop
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.trainer import Trainer

from .fake import FakeBackbone


def start(work, *arguments):
    """A process that does that work."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])
    process = context.Process(target=work, args=arguments)
    process.start()
    return process


def die(*rest):
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()


def die_at(moment, number):
    """Lets this process be killed at that moment of its number-th save."""
    count = iter(range(1, 1000))

    def die_then(real):
        return lambda *rest: die() if next(count) == number else real(*rest)

    if moment == "half written":
        real = os.fsync

        def cut_and_die(file):
            if next(count) == number:
                os.ftruncate(file, os.fstat(file).st_size // 2)
                die()
            real(file)

        safetensors.os.fsync = cut_and_die
    elif moment == "written, not yet in its place":
        safetensors.os.replace = die_then(os.replace)
    elif moment == "in its place, older ones not yet removed":
        checkpoint.States._prune = die_then(checkpoint.States._prune)


def train_and_tell(values, told, resume, moment, number, delay, backbone=None):
    """Trains on a backbone of that class, writing each step's loss as a line; is killed at that moment, or so many seconds after that step."""
    torch.set_num_threads(1)
    die_at(moment, number)
    with open(told, "a", encoding="utf-8") as file:

        def on_step(report):
            file.write(json.dumps([report.step, report.loss]) + "\n")
            file.flush()
            if moment == "any" and report.step >= number:
                threading.Timer(delay, die).start()

        loop.train(TrainConfig.from_dict(values), (backbone or FakeBackbone)(), on_step, resume=resume)


class Painter(FakeBackbone):
    """Makes class pictures of one colour, by the seed, or fails at the first; counts what it is asked."""

    def __init__(self, fails=False):
        super().__init__()
        self.painted, self.encoded, self.fails = [], 0, fails

    def preview(self, prompt, seed, **settings):
        if self.fails:
            raise TrainingError(f"no picture of {prompt} é comes out")
        self.painted.append(seed)
        return np.full((64, 64, 3), seed % 251, np.uint8)

    def encode_pictures(self, pictures, generator=None):
        self.encoded += 1
        return super().encode_pictures(pictures, generator)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def train_together(rank, count, port, values, folder, stop=None, resume=False, fail=False, unable=None, make=None):
    """Trains as one of several processes; writes (losses, ended early, error) and everything trained to folder/RANK.json and .safetensors.

    Args:
        stop: (rank, step): who asks for an end, and when.
        fail: lets the first process' saving fail.
        unable: the rank of the process that can't make class pictures.
        make: gives another backbone.
    """
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
                      ACCELERATE_USE_CPU="true")
    from lib_lycoris.studio.processes import launched_processes

    trainers, losses, steps = [], [], []

    class Kept(Trainer):
        def __init__(self, *rest, **named):
            super().__init__(*rest, **named)
            trainers.append(self)

        def step(self, step):
            steps.append(step + 1)
            losses.append(super().step(step))
            return losses[-1]

    def write(*rest):
        raise LycoError("No space left on device")

    loop.Trainer = Kept
    if fail:
        checkpoint.write_tensors = write
    result = error = None
    backbone = Painter(unable == rank) if make is None else make()
    with launched_processes() as (processes, _):
        try:
            result = loop.train(TrainConfig.from_dict(values), backbone, None, lambda: stop is not None and stop == (rank, len(steps)), resume, processes)
        except LycoError as caught:
            error = str(caught)
    tensors = trainers[0].state()[0] if trainers else {}
    safetensors.write_tensors(Path(folder) / f"{rank}.safetensors", tensors)
    path = str(result.path) if result and result.path else None
    told = {"losses": losses, "steps": steps, "error": error, "stopped": result and result.stopped, "path": path,
            "painted": getattr(backbone, "painted", []), "encoded": getattr(backbone, "encoded", 0)}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(told), encoding="utf-8")


def train_on(count, values, folder, **more):
    """[(what it told, what it trained)] of so many processes."""
    folder.mkdir(parents=True)
    port = free_port()
    children = [start(train_on_rank, rank, count, port, values, str(folder), more) for rank in range(count)]
    deadline = time.monotonic() + 120
    for child in children:
        child.join(max(deadline - time.monotonic(), 0))
    codes = [child.exitcode for child in children]
    for child in children:
        if child.is_alive():
            child.kill()
    assert codes == [0] * count
    return [(json.loads((folder / f"{rank}.json").read_text()), safetensors.read_tensors(folder / f"{rank}.safetensors")) for rank in range(count)]


def train_on_rank(rank, count, port, values, folder, more):
    train_together(rank, count, port, values, folder, **more)
