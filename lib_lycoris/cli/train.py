"""`train`: a training from a config file."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .arguments import NETWORK_FOLDERS
from .interrupt import InterruptedWork
from .progress import finite

NAME = "train"
SUMMARY = "train a network from a config file"
DESCRIPTION = """\
Trains the network that a TOML file describes, and saves it to output.folder (outputs, where studio and generate look for it).
Ctrl-C ends the step, saves network and state; --resume goes on from there, also after a crash, from the newest saved state.
`accelerate launch -m lib_lycoris train CONFIG.toml` trains on several GPUs or machines: docs/cluster.md."""
EXAMPLES = """\
examples:
  python -m lib_lycoris train cat.toml
  python -m lib_lycoris train cat.toml --check
  python -m lib_lycoris train cat.toml --set training.steps=500 --set network.rank=8
  python -m lib_lycoris train cat.toml --resume --json
  accelerate launch --num_processes 4 -m lib_lycoris train cat.toml

a small cat.toml:
  [data]
  folders = ["my-cat"]          # pictures, and a .txt with the caption beside each
  [training]
  steps = 800
  [output]
  name = "my-cat"               # used in a prompt as <lyco:my-cat:1>
"""

_GRACE = 3.0
"""Seconds within which Ctrl-C reaches each of several processes twice, from the terminal and from their launcher."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("config", metavar="CONFIG.toml", nargs="?", help="what to train on what, and how; left out: the defaults, with what --set says")
    parser.add_argument("--set", metavar="section.key=value", action="append", default=[], help="change one setting; may be given again")
    parser.add_argument("--check", action="store_true", help="say what would happen, train nothing")
    parser.add_argument("--resume", action="store_true", help="go on from the newest saved state of this name")
    parser.add_argument("--json", action="store_true", help='one JSON object a line on stdout: for each step (step, loss, lr, seconds, validation '
                        'where one was made), for preparations that take long (phase, done, total), the last {"done": …}')


def run(arguments: argparse.Namespace) -> None:
    """Trains, or says what a training would do.

    Raises:
        ConfigError: the config or a `--set`.
        InterruptedWork: Ctrl-C; what was saved is named.
    """
    config = read_config(arguments.config, arguments.set)

    if arguments.check:
        _check(config, arguments.json)
        return
    from ..studio.processes import launched_processes

    with launched_processes() as (processes, device):
        result = _train(config, arguments, processes, device)
    _tell_end(result, config, arguments.json, processes.rank)


def _check(config: Any, as_json: bool) -> None:
    from ..studio.checkpoint import load_checkpoint
    from ..training.preflight import check_training

    model = load_checkpoint(config.model.checkpoint)
    found = check_training(config, make_backbone(model, config), model.side, measure=True)
    _print(json.dumps({"check": found.to_dict()}) if as_json else "\n".join(found.lines()))


def read_config(path: str | None, changes: list[str]) -> Any:
    """The config in a TOML file (None: the defaults) with changes such as "training.steps=500".

    Raises:
        ConfigError: the file, a key or a value.
    """
    from ..training.config import TrainConfig

    if path is None and not changes:
        raise ConfigError("nothing is said of what to train: name a CONFIG.toml, or give settings with --set, data.folders at least")
    values = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"--set {change}: expected section.key=value, for example --set training.steps=500")
        values[key.strip()] = value.strip()
    return (TrainConfig() if path is None else TrainConfig.from_toml(path)).change(values)


def make_backbone(model: Any, config: Any) -> Any:
    """The studio's model as a training with that config sees it."""
    from ..studio.backbone import StudioBackbone
    from ..studio.checkpoint import with_vae

    if config.model.vae is not None:
        model = with_vae(model, config.model.vae)
    return StudioBackbone(model, config.model.clip_skip, {"auto": None, "true": "v", "false": "eps"}[config.model.v_prediction])


def _train(config: Any, arguments: argparse.Namespace, processes: Any, device: Any) -> Any:
    """The result of the training, in which the first of several processes alone shows anything."""
    from ..studio.checkpoint import load_checkpoint
    from ..training.loop import train
    from ..training.stop import stop_on_interrupt
    from .progress import json_lines, no_lines, training_bar

    if processes.rank:
        logging.disable(logging.WARNING)
    backbone = make_backbone(load_checkpoint(config.model.checkpoint, device=device), config)
    quiet = no_lines() if processes.rank else json_lines(_print) if arguments.json else None
    with training_bar() if quiet is None else nullcontext(quiet) as shown, stop_on_interrupt(_GRACE if processes.count > 1 else 0) as should_stop:
        return train(config, backbone, shown.on_step, should_stop, arguments.resume, processes, shown.on_phase)


def _tell_end(result: Any, config: Any, as_json: bool, rank: int) -> None:
    """What came of it, by the first process.

    Raises:
        InterruptedWork: it was stopped.
    """
    from ..training.config import KINDS_WITHOUT_LAYERS
    from ..training.result import typed_for

    if rank:
        if result.stopped:
            raise InterruptedWork(f"interrupted: process {rank} ended with the others")
        return
    path = None if result.path is None else str(result.path)
    state = None if result.state is None else str(result.state)
    if as_json:
        _print(json.dumps({"done": {"path": path, "steps": result.steps, "loss": finite(result.loss), "seconds": round(result.seconds, 3),
                                    "stopped": result.stopped, "state": state, "validation": result.validation}}))
    if result.stopped:
        saved = f"saved {path} after {result.steps} steps; go on with --resume" if path else "before its first step: nothing was saved"
        raise InterruptedWork(f"interrupted: {saved}" if path or not result.steps else f"interrupted: {state} is still there; go on with --resume")
    if not as_json:
        typed = typed_for(config, result.path)
        use = "use it as an adapter, with a control picture" if typed is None else f"use it with {typed} in a prompt"
        folder = Path(config.output.folder).expanduser()
        if config.network.kind not in KINDS_WITHOUT_LAYERS and not any(folder.resolve().is_relative_to(Path(own).resolve()) for own in NETWORK_FOLDERS):
            use += f" (generate and studio find it with --networks {shlex.quote(str(folder))})"
        _print(f"saved {path}: {result.steps} steps in {result.seconds:.0f} s; {use}")


def _print(text: str) -> None:
    print(text, flush=True)
