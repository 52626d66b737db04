from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lib_lycoris.errors import NetworkFileError
from lib_lycoris.networks.hints import Hints
from lib_lycoris.networks.kinds import build_layer
from lib_lycoris.networks.oft_v2 import block_size

from .oracles import relative
from .peers import peft_layer

PEFT_NAME = "base_model.model.unet.mid_block.x"


def slow_rotation(values: Tensor, size: int, count: int) -> Tensor:
    """diag(R) whole in float64: each Q filled place by place, its powers multiplied out."""
    blocks = []
    for row in values.double().expand(count, -1) if len(values) == 1 else values.double():
        skew, index = torch.zeros(size, size, dtype=torch.float64), 0
        for i in range(size):
            for j in range(i + 1, size):
                skew[i, j], skew[j, i] = row[index], -row[index]
                index += 1
        blocks.append(torch.eye(size) + 2 * skew + 2 * skew @ skew + 2 * skew @ skew @ skew + skew @ skew @ skew @ skew)
    return torch.block_diag(*blocks)


@pytest.mark.parametrize("new", [lambda: nn.Linear(12, 5), lambda: nn.Conv2d(4, 5, 3), lambda: nn.Conv2d(12, 5, 1)], ids=["linear", "conv 3×3", "conv 1×1"])
@pytest.mark.parametrize(
    ("settings", "hints"),
    [
        ({}, Hints()),
        ({"block_share": True}, Hints()),
        ({"use_cayley_neumann": False}, Hints(cayley_neumann=False)),
        ({"use_cayley_neumann": True}, Hints(cayley_neumann=True)),
        *(({"num_cayley_neumann_terms": terms}, Hints(cayley_terms=terms)) for terms in (2, 3, 4, 6, 7)),
        ({"coft": True, "eps": 0.3}, Hints(coft_limit=0.3)),
        ({"coft": True, "eps": 0.3, "block_share": True, "use_cayley_neumann": False}, Hints(coft_limit=0.3, cayley_neumann=False)),
    ],
    ids=str,
)
def test_peft_makes_the_same_of_its_own_tensors(new, settings, hints):
    module = new()
    weight = module.weight.detach().clone()
    tensors, delta, _ = peft_layer("OFTConfig", module, r=0, oft_block_size=4, **settings)
    assert relative(build_layer(PEFT_NAME, tensors, hints).delta(weight), delta) < 1e-5


@pytest.mark.parametrize("shape", [(5, 12), (5, 12, 1, 1), (5, 4, 3, 3)])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", ["lora_unet_mid_block_x", PEFT_NAME])
def test_onetrainers_convolutions_turn_the_other_way(shape, shared, scaled, name):
    weight = torch.randn(shape)
    columns = math.prod(shape[1:])
    values = 0.3 * torch.randn(1 if shared else columns // 4, 6)
    rotation = slow_rotation(values / (2 * 3**0.5) if scaled else values, 4, columns // 4)
    theirs = scaled or name.startswith("lora_unet")
    turned = weight.double().flatten(1) @ (rotation if theirs and len(shape) > 2 else rotation.T)
    tensors = {"oft_R.weight": values, **({"oft_R.scaled_oft": torch.tensor(True)} if scaled else {})}
    assert relative(build_layer(name, tensors).delta(weight), turned.reshape(shape) - weight.double()) < 1e-5


def test_a_rotation_next_to_none_is_as_exact_as_a_large_one():
    weight, values = torch.randn(5, 12), 1e-5 * torch.randn(3, 6)
    expected = weight.double() @ slow_rotation(values, 4, 3).T - weight.double()
    assert relative(build_layer("x", {"oft_R.weight": values}).delta(weight), expected) < 1e-5


@pytest.mark.parametrize(("values", "size"), [(1, 2), (3, 3), (6, 4), (496, 32), (2, 0), (4, 0), (5, 0)])
def test_a_triangle_tells_its_size(values, size):
    assert block_size(values) == size


def test_shared_blocks_fit_every_number_of_columns_that_they_divide():
    layer = build_layer("x", {"oft_R.weight": torch.randn(1, 6)})
    assert layer.fits((3, 4)) and layer.fits((3, 12)) and layer.fits((3, 4, 3, 3)) and not layer.fits((3, 6)) and not layer.fits((4,))


@pytest.mark.parametrize(
    "tensors",
    [
        {"oft_R.scaled_oft": torch.tensor(True)},
        {"oft_R.weight": torch.ones(3, 5)},
        {"oft_R.weight": torch.ones(3, 0)},
        {"oft_R.weight": torch.ones(3)},
        {"oft_R.weight": torch.ones(3, 6).int()},
        {"oft_R.weight": torch.full((3, 6), 1e12)},
        {"oft_R.weight": torch.ones(3, 6), "oft_R.scaled_oft": torch.tensor([True, False])},
    ],
)
def test_values_that_make_no_rotation_are_refused(tensors):
    with pytest.raises(NetworkFileError, match="lora_unet_x"):
        build_layer("lora_unet_x", tensors)
