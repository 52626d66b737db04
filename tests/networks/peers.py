"""LyCORIS' and PEFT's own modules as second implementations of the kinds whose change depends on the weight: their tensors, and what they make of a weight."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]

LYCORIS = {
    "ia3": ("ia3", "IA3Module"),
    "glora": ("glora", "GLoRAModule"),
    "oft": ("diag_oft", "DiagOFTModule"),
    "boft": ("boft", "ButterflyOFTModule"),
    "lora": ("locon", "LoConModule"),
    "loha": ("loha", "LohaModule"),
    "lokr": ("lokr", "LokrModule"),
}


def train(module: nn.Module, std: float = 0.3) -> None:
    """Moves every parameter away from where it starts, as training would."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(std * torch.randn_like(parameter))


def lycoris_layer(kind: str, module: nn.Module, std: float = 0.3, **settings) -> tuple[Tensors, nn.Module]:
    """The tensors that LyCORIS would save for a trained module of this kind, and its module."""
    file, name = LYCORIS[kind]
    module.requires_grad_(False)
    theirs = getattr(pytest.importorskip(f"lycoris.modules.{file}"), name)("x", module, **settings)
    train(theirs, std)
    saved = theirs.custom_state_dict() or {**dict(theirs.named_parameters()), **dict(theirs.named_buffers())}
    return {key: tensor.detach().clone() for key, tensor in saved.items() if key != "scalar"}, theirs


def peft_layer(config: str, module: nn.Module, std: float = 0.3, **settings) -> tuple[Tensors, Tensor, Tensor | None]:
    """The tensors that PEFT would save for one trained module under this config, by parameter name, and what its merging adds to weight and bias."""
    peft = pytest.importorskip("peft")
    before = {name: tensor.detach().clone() for name, tensor in module.named_parameters()}
    model = nn.ModuleDict({"layer": module})
    model.config = SimpleNamespace(model_type="none")
    model = peft.get_peft_model(model, getattr(peft, config)(target_modules=["layer"], **settings))
    theirs = model.base_model.model["layer"]
    train(theirs, std)
    saved = {key.removeprefix("base_model.model.layer."): tensor.detach().clone() for key, tensor in peft.get_peft_model_state_dict(model).items()}
    with torch.no_grad():
        theirs.merge()
    after = theirs.get_base_layer()
    bias = None if after.bias is None else after.bias.detach() - before["bias"]
    return saved, after.weight.detach() - before["weight"], bias
