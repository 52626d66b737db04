"""A trainer over the fake model without files: layers attached, material of fixed latents."""

from __future__ import annotations

import contextlib

import torch

from lib_lycoris.patching.session import attach
from lib_lycoris.patching.targets import find_targets
from lib_lycoris.training.checkpointing import checkpointed
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.dropout import Dropout
from lib_lycoris.training.frozen import frozen
from lib_lycoris.training.material import PlainMaterial
from lib_lycoris.training.methods import make_method
from lib_lycoris.training.new_word import make_word
from lib_lycoris.training.rates import learning_targets
from lib_lycoris.training.selection import select_targets
from lib_lycoris.training.trainer import Trainer

from .fake import FakeBackbone

DEFAULTS = {"network.rank": 4, "network.alpha": 2.0, "training.learning_rate": 0.01, "data.batch_size": 2, "training.steps": 12}


def config_of(**changes):
    """A config with these changes, as `training__ema=0.9`, made in one go."""
    values = {**DEFAULTS, **{key.replace("__", "."): value for key, value in changes.items()}}
    sections = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return TrainConfig.from_dict(sections)


def material_of(count=4, seed=0, size=8):
    generator = torch.Generator().manual_seed(seed)
    return PlainMaterial([torch.randn(4, size, size, generator=generator) for _ in range(count)], [f"thing {number}" for number in range(count)])


@contextlib.contextmanager
def rig(config, backbone=None, material=None, prior=None, processes=None, started=True):
    """A trainer that is ready to step; with `started` its layers already add something."""
    backbone = backbone or FakeBackbone()
    targets = learning_targets(select_targets(find_targets(backbone.unet, backbone.text_encoders), config.network), config)
    method = make_method(config.network, targets, config.training.steps, config.training.seed, torch.device("cpu"))
    if started:
        start(method.layers)
    share = (processes.rank, processes.count) if processes is not None else (0, 1)
    dropout = Dropout(config.network, config.training.seed, *share)
    blocks = checkpointed([backbone.unet, *backbone.text_encoders]) if config.training.gradient_checkpointing else contextlib.nullcontext()
    word = make_word(config, backbone)
    on = contextlib.nullcontext() if word is None else word.put_on(backbone)
    with backbone.training(), frozen([backbone.unet, *backbone.text_encoders]), on, attach(targets, dropout.wrap(method.layers)), blocks:
        yield Trainer(config, backbone, method, material or material_of(), config.training.steps, prior, processes, dropout, targets, word=word)


def start(layers):
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for layer in layers.values():
            for parameter in layer.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def numbers(trainer):
    return {name: value.detach().clone() for name, value in trainer.parameters.items()}


def gradients(trainer):
    return {name: value.grad.clone() for name, value in trainer.parameters.items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
