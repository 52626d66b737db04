from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib_lycoris.errors import NetworkFileError
from lib_lycoris.networks.hints import Hints
from lib_lycoris.networks.kinds import build_layer

from .oracles import peft_layer, relative


def table(tokens=7, width=5, rank=2, **more):
    return {"lora_embedding_A": torch.randn(rank, tokens), "lora_embedding_B": torch.randn(width, rank), **more}


def test_what_peft_trained_has_its_delta_here():
    tensors, delta = peft_layer("LoraConfig", nn.Embedding(7, 5), r=2, lora_alpha=3)
    assert relative(build_layer("x", tensors, Hints(alpha=3)).delta(torch.zeros(7, 5)), delta) < 1e-5


def test_a_tokens_vector_changes_by_its_row_of_the_delta():
    module, layer, tokens = nn.Embedding(7, 5), build_layer("x", table(alpha=torch.tensor(1.0))), torch.tensor([[0, 6, 3]])
    weight = module.weight.detach()
    total = weight.clone()
    layer.add_to(total, weight, 0.5)
    torch.testing.assert_close(total, weight + 0.5 * layer.delta(weight))
    torch.testing.assert_close(layer.delta_output(tokens, module), F.embedding(tokens, layer.delta(weight)))
    assert layer.fits((7, 5)) and not layer.fits((5, 7))
    assert torch.equal(build_layer("x", layer.tensors()).delta(weight), layer.delta(weight))


@pytest.mark.parametrize(
    "tensors",
    [
        {"lora_embedding_A": torch.ones(2, 7)},
        table(lora_embedding_B=torch.ones(5, 3)),
        table(lora_embedding_A=torch.ones(2)),
        table(rank=0),
        table(lora_embedding_B=torch.ones(5, 2).int()),
        table(lora_embedding_A=torch.full((2, 7), float("nan"))),
    ],
)
def test_tensors_that_make_no_whole_layer_are_refused_by_the_layers_name(tensors):
    with pytest.raises(NetworkFileError, match="lora_unet_x"):
        build_layer("lora_unet_x", tensors)
