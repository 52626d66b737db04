from __future__ import annotations

import pytest
import torch

from lib_lycoris.errors import NetworkFileError
from lib_lycoris.networks.kinds import build_layer

from .oracles import relative


def extract(indices=((0, 3, 3), (1, 0, 8)), values=(1.0, 2.0, -3.0), size=(4, 9), dtype=torch.int16, **more):
    low_rank = {"lora_up.weight": torch.randn(4, 2, 1, 1), "lora_down.weight": torch.randn(2, 1, 3, 3), "alpha": torch.tensor(1.0)}
    sparse = {"bias_indices": torch.tensor(indices, dtype=dtype), "bias_values": torch.tensor(values).half(), "bias_size": torch.tensor(size, dtype=dtype)}
    return {**low_rank, **sparse, **more}


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64])
def test_the_sparse_values_are_added_before_the_scale(dtype):
    tensors = extract(dtype=dtype)
    layer = build_layer("x", tensors)
    sparse = torch.zeros(4, 9)
    for row, column, value in zip(*tensors["bias_indices"].tolist(), tensors["bias_values"].tolist(), strict=True):
        sparse[row, column] = value
    expected = (tensors["lora_up.weight"].flatten(1) @ tensors["lora_down.weight"].flatten(1) + sparse) / 2
    assert relative(layer.delta(torch.zeros(4, 1, 3, 3)).flatten(1), expected) < 1e-6
    assert layer.algorithm == "lora" and layer.factors() is None


def test_indices_above_32767_are_read_although_the_files_int16_turns_them_negative():
    tensors = extract(size=(1, 40000), indices=((0,), (39999,)), values=(2.0,), dtype=torch.int64)
    tensors = {name: tensor.to(torch.int16) if not tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    tensors.update({"lora_up.weight": torch.zeros(1, 1), "lora_down.weight": torch.zeros(1, 40000)})
    delta = build_layer("x", tensors).delta(torch.zeros(1, 40000))
    assert delta.nonzero().tolist() == [[0, 39999]] and delta[0, 39999] == 2


def test_a_place_named_twice_counts_twice():
    layer = build_layer("x", extract(indices=((1, 1), (2, 2)), values=(1.0, 2.0), **{"lora_up.weight": torch.zeros(4, 2)}))
    assert layer.delta(torch.zeros(4, 9))[1, 2] == 1.5


@pytest.mark.parametrize(
    "tensors",
    [
        {name: tensor for name, tensor in extract().items() if name != "bias_size"},
        {name: tensor for name, tensor in extract().items() if name != "lora_up.weight"},
        extract(size=(4, 8)),
        extract(size=(30000, 30000)),
        extract(size=(4, 9, 1)),
        extract(indices=((0, 3, 4), (1, 0, 8))),
        extract(indices=((0, 3, 3), (1, 0, 9))),
        extract(indices=((0, 3, 3), (1, 0, -1))),
        extract(indices=((0, 3), (1, 0))),
        extract(bias_indices=torch.ones(2, 3)),
        extract(values=(1.0, float("nan"), 2.0)),
        extract(bias_values=torch.ones(3).int()),
    ],
)
def test_tensors_that_make_no_whole_layer_are_refused_by_the_layers_name(tensors):
    with pytest.raises(NetworkFileError, match="lora_unet_x"):
        build_layer("lora_unet_x", tensors)
