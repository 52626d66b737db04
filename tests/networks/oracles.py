"""Second implementations: LyCORIS' and PEFT's own modules, with random parameters, and what they add to a layer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]


def relative(one: Tensor, other: Tensor) -> float:
    """The Frobenius norm of the difference over that of the second."""
    return ((one.double() - other.double()).norm() / other.double().norm()).item()


def lycoris_layer(kind: str, module: nn.Module, **settings) -> tuple[Tensors, nn.Module]:
    """The tensors that LyCORIS would save for a trained module of this kind, and the module: calling it gives the layer's output with the network on."""
    file, name = {"loha": ("loha", "LohaModule"), "lokr": ("lokr", "LokrModule"), "norm": ("norms", "NormModule"), "full": ("full", "FullModule")}[kind]
    theirs = getattr(pytest.importorskip(f"lycoris.modules.{file}"), name)("x", module, **settings)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    saved = theirs.custom_state_dict() or dict(theirs.named_parameters())  # kinds without a form of their own save their parameters
    return {key: tensor.detach().clone() for key, tensor in saved.items()}, theirs


def lycoris_addition(theirs: nn.Module, module: nn.Module, x: Tensor) -> Tensor:
    """What LyCORIS' module adds to the layer's output, in float64: trained networks went through this, while its merging scales some kinds twice."""
    module.double(), theirs.double()
    theirs.org_forward = module.forward
    with torch.no_grad():
        added = theirs(x.double()) - module(x.double())
    module.float(), theirs.float()
    return added


def peft_layer(config: str, module: nn.Module, **settings) -> tuple[Tensors, Tensor]:
    """The tensors that PEFT would save for one module under this config, by parameter name, and its own ΔW."""
    peft = pytest.importorskip("peft")
    model = nn.ModuleDict({"layer": module})
    model.config = SimpleNamespace(model_type="none")
    model = peft.get_peft_model(model, getattr(peft, config)(target_modules=["layer"], **settings))
    theirs = model.base_model.model["layer"]
    with torch.no_grad():
        for parameter in (parameter for parameter in theirs.parameters() if parameter.requires_grad):
            parameter.normal_()
        delta = theirs.get_delta_weight("default").detach()
    saved = peft.get_peft_model_state_dict(model)
    return {key.removeprefix("base_model.model.layer."): tensor.detach() for key, tensor in saved.items()}, delta
