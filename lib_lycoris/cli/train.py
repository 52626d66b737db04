"""`train`: a training from a config file."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError
from .interrupt import InterruptedWork

NAME = "train"
SUMMARY = "train a network from a config file"
DESCRIPTION = """\
Trains the network that a TOML file describes, and saves it to output.folder (outputs, where studio and generate look for it).
Ctrl-C ends the step, saves network and state; --resume goes on from there."""
EXAMPLES = """\
examples:
  python -m lib_lycoris train cat.toml
  python -m lib_lycoris train cat.toml --check
  python -m lib_lycoris train cat.toml --set training.steps=500 --set network.rank=8
  python -m lib_lycoris train cat.toml --resume --json

a small cat.toml:
  [data]
  folders = ["my-cat"]          # pictures, and a .txt with the caption beside each
  [training]
  steps = 800
  [output]
  name = "my-cat"               # used in a prompt as <lyco:my-cat:1>
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("config", metavar="CONFIG.toml", help="what to train on what, and how")
    parser.add_argument("--set", metavar="section.key=value", action="append", default=[], help="change one setting; may be given again")
    parser.add_argument("--check", action="store_true", help="say what would happen, train nothing")
    parser.add_argument("--resume", action="store_true", help="go on from the newest saved state of this name")
    parser.add_argument("--json", action="store_true", help='one JSON object a line on stdout (step, loss, lr, seconds), the last {"done": …}')


def run(arguments: argparse.Namespace) -> None:
    """Trains, or says what a training would do.

    Raises:
        ConfigError: the config or a `--set`.
        InterruptedWork: Ctrl-C; what was saved is named.
    """
    config = read_config(arguments.config, arguments.set)

    from ..studio.checkpoint import load_checkpoint
    from ..training.preflight import check_training

    model = load_checkpoint(config.model.checkpoint)
    backbone = make_backbone(model, config)
    if arguments.check:
        found = check_training(config, backbone, model.side)
        _print(json.dumps({"check": vars(found)}) if arguments.json else "\n".join(found.lines()))
        return
    _train(config, backbone, arguments.resume, arguments.json)


def read_config(path: str, changes: list[str]) -> Any:
    """The config in a TOML file with changes such as "training.steps=500".

    Raises:
        ConfigError: the file, a key or a value.
    """
    from ..training.config import TrainConfig

    config = TrainConfig.from_toml(path)
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"--set {change}: expected section.key=value, for example --set training.steps=500")
        config = config.set(key.strip(), value.strip())
    return config


def make_backbone(model: Any, config: Any) -> Any:
    """The studio's model as a training with that config sees it."""
    from ..studio.backbone import StudioBackbone
    from ..studio.checkpoint import with_vae

    if config.model.vae is not None:
        model = with_vae(model, config.model.vae)
    return StudioBackbone(model, config.model.clip_skip, {"auto": None, "true": "v", "false": "eps"}[config.model.v_prediction])


def _train(config: Any, backbone: Any, resume: bool, as_json: bool) -> None:
    from ..training.loop import train
    from ..training.stop import stop_on_interrupt
    from .progress import training_bar

    with training_bar() as bar, stop_on_interrupt() as should_stop:
        result = train(config, backbone, _json_lines() if as_json else bar, should_stop, resume)
    path = None if result.path is None else str(result.path)
    if as_json:
        state = None if result.state is None else str(result.state)
        _print(json.dumps({"done": {"path": path, "steps": result.steps, "loss": _finite(result.loss), "seconds": round(result.seconds, 3),
                                    "stopped": result.stopped, "state": state}}))
    if result.stopped:
        saved = f"saved {path} after {result.steps} steps; go on with --resume" if path else "before the first step: nothing was saved"
        raise InterruptedWork(f"interrupted: {saved}")
    if not as_json:
        _print(f"saved {path}: {result.steps} steps in {result.seconds:.0f} s; use it with <lyco:{result.path.stem}:1> in a prompt")


def _json_lines() -> Callable[[Any], None]:
    def on_step(report: Any) -> None:
        _print(json.dumps({"step": report.step, "steps": report.steps, "loss": _finite(report.loss), "lr": report.learning_rate,
                           "seconds": round(report.seconds, 3)}))

    return on_step


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _print(text: str) -> None:
    print(text, flush=True)
