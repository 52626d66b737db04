from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lib_lycoris.errors import NetworkFileError
from lib_lycoris.networks.kinds import build_layer

UP, DOWN, MID = "lora_up.weight", "lora_down.weight", "lora_mid.weight"


def ones(*shape):
    return torch.ones(shape)


@pytest.mark.parametrize(
    "tensors",
    [
        {UP: ones(4, 2), DOWN: ones(3, 5)},
        {UP: ones(4, 1), DOWN: ones(3, 5)},
        {UP: ones(4, 3), DOWN: ones(1, 5)},
        {UP: ones(4, 2, 1, 1), DOWN: ones(3, 5, 3, 3)},
        {UP: ones(4, 0), DOWN: ones(0, 5)},
        {UP: ones(4), DOWN: ones(4, 5)},
        {UP: torch.tensor(1.0), DOWN: ones(1, 5)},
        {UP: ones(4, 2).to(torch.int8), DOWN: ones(2, 5).to(torch.int8)},
        {UP: ones(4, 2), DOWN: ones(2, 5), MID: ones(3, 2, 3, 3)},
        {UP: ones(4, 2), DOWN: ones(2, 5), MID: ones(2, 2)},
        {UP: ones(4, 2), DOWN: ones(2, 5, 3, 3), MID: ones(2, 2, 3, 3)},
        {UP: ones(4, 2), DOWN: ones(2, 5), "lora_up.bias": ones(3)},
        {UP: ones(4, 2), DOWN: ones(2, 5), "alpha": ones(2)},
        {UP: ones(4, 2), DOWN: ones(2, 5), "alpha": ones(0)},
        {UP: ones(4, 2)},
        {DOWN: ones(4, 2), "alpha": torch.tensor(1.0)},
        {MID: ones(2, 2, 3, 3)},
        {"alpha": torch.tensor(1.0)},
        {"weight": ones(2, 2)},
        {},
    ],
)
def test_tensors_that_make_no_whole_layer_are_refused_by_the_layers_name(tensors):
    with pytest.raises(NetworkFileError, match="lora_unet_x") as caught:
        build_layer("lora_unet_x", tensors)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [UP, DOWN, "alpha", "scale"])
def test_values_that_are_not_finite_are_refused(where, value):
    tensors = {UP: ones(4, 2), DOWN: ones(2, 5), "alpha": torch.tensor(1.0), "scale": torch.tensor(1.0)}
    tensors[where].view(-1)[-1] = value
    with pytest.raises(NetworkFileError, match=f"{where}.*not finite"):
        build_layer("x", tensors)


def test_a_name_with_line_breaks_still_gives_one_line():
    with pytest.raises(NetworkFileError) as caught:
        build_layer("x\nTraceback", {UP: ones(1, 1)})
    assert "\n" not in str(caught.value)


class Largest(TorchDispatchMode):
    """Notes the number of values of the largest tensor that any operation makes."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.values = max(self.values, tensor.numel())
        return made


SIDE = 100_000
SMALL_FILES = {
    "LoRA": {UP: ones(SIDE, 1), DOWN: ones(1, SIDE)},
    "Tucker": {UP: ones(SIDE, 1), DOWN: ones(1, SIDE), MID: ones(1, 1, 3, 3)},
    "LoHa": {f"hada_w{half}_{side}": ones(SIDE, 1) if side == "a" else ones(1, SIDE) for half in (1, 2) for side in "ab"},
    "LoKr": {"lokr_w1": ones(SIDE, 1), "lokr_w2_a": ones(SIDE, 1), "lokr_w2_b": ones(1, SIDE)},
    "embedding": {"lora_embedding_A": ones(1, SIDE), "lora_embedding_B": ones(SIDE, 1)},
    "sparse": {
        UP: ones(SIDE, 1),
        DOWN: ones(1, SIDE),
        "bias_indices": torch.zeros(2, 1).int(),
        "bias_values": ones(1),
        "bias_size": torch.tensor([SIDE, SIDE]),
    },
    "bias alone": {"diff_b": ones(SIDE)},
}


@pytest.mark.parametrize("tensors", SMALL_FILES.values(), ids=SMALL_FILES)
def test_a_small_file_of_a_huge_delta_is_built_and_fitted_without_making_it(tensors):
    with Largest() as largest:
        layer = build_layer("x", tensors)
        assert not layer.fits((3, 4))
        assert layer.fits((SIDE, SIDE)) or layer.fits((SIDE, SIDE, 3, 3)) or layer.fits((SIDE**2, SIDE))
    assert largest.values <= SIDE
