from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lib_lycoris.errors import NetworkFileError
from lib_lycoris.networks.hints import Hints
from lib_lycoris.networks.kinds import build_layer
from lib_lycoris.networks.rotations import LIMIT

from .oracles import relative
from .peers import lycoris_layer


def slow_delta(weight: Tensor, blocks: Tensor, limit: float = 0.0, rescale: Tensor | None = None) -> Tensor:
    """rescale·diag(R)ᵀ·W − W in float64, the block-diagonal matrix built whole; the limit as kohya has it."""
    skew = blocks.double() - blocks.double().transpose(1, 2)
    if limit > 0:
        norm = skew.norm()
        skew = skew * ((norm.clamp(max=limit) + 1e-8) / (norm + 1e-8))
    identity = torch.eye(blocks.shape[1], dtype=torch.float64)
    rotation = torch.block_diag(*((identity + one) @ torch.linalg.inv(identity - one) for one in skew))
    turned = (rotation.T @ weight.double().flatten(1)).reshape(weight.shape)
    return (turned if rescale is None else turned * rescale.double()) - weight.double()


@pytest.mark.parametrize("module", [nn.Linear(6, 12), nn.Conv2d(6, 8, 3), nn.Conv2d(6, 6, 1)], ids=str)
@pytest.mark.parametrize("constraint", [0, 0.01, 100.0])
@pytest.mark.parametrize("rescaled", [False, True])
def test_lycoris_makes_the_same_of_its_own_tensors(module, constraint, rescaled):
    tensors, theirs = lycoris_layer("oft", module, lora_dim=2, constraint=constraint, rescaled=rescaled)
    held = {name: tensor for name, tensor in tensors.items() if name != "dtype_tensor"}
    delta = theirs.get_diff_weight()[0]
    if constraint == 0.01:
        assert relative(delta, slow_delta(module.weight.detach(), held["oft_blocks"], 0.0, held.get("rescale"))) > 0.01  # the limit does limit here
    assert relative(build_layer("x", held).delta(module.weight), delta) < 1e-5


@pytest.mark.parametrize("shape", [(12, 5), (12, 5, 3, 3)])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.02, 1e3])
@pytest.mark.parametrize("rescaled", [False, True])
def test_kohyas_formula_gives_the_same(shape, alpha, rescaled):
    weight, blocks = torch.randn(shape), torch.randn(3, 4, 4)
    rescale = torch.rand(shape[0], *(1 for _ in shape[1:])) if rescaled else None
    tensors = {"oft_blocks": blocks, **({} if alpha is None else {"alpha": torch.tensor(alpha)}), **({"rescale": rescale} if rescaled else {})}
    assert relative(build_layer("x", tensors).delta(weight), slow_delta(weight, blocks, (alpha or 0.0) * shape[0], rescale)) < 1e-5


@pytest.mark.parametrize("size", [1e-3, 1e-5])
def test_a_rotation_next_to_none_is_as_exact_as_a_large_one(size):
    weight, blocks = torch.randn(12, 5), size * torch.randn(3, 4, 4)
    assert relative(build_layer("x", {"oft_blocks": blocks}).delta(weight), slow_delta(weight, blocks)) < 1e-5


@pytest.mark.parametrize("size", [1.0, 100.0, LIMIT])
@pytest.mark.parametrize("side", [3, 4])
def test_any_block_that_is_let_in_gives_a_rotation(size, side):
    blocks = size * (2 * torch.rand(5, side, side) - 1)
    weight = torch.eye(5 * side)
    turned = weight + build_layer("x", {"oft_blocks": blocks}).delta(weight)
    torch.testing.assert_close(turned @ turned.T, torch.eye(5 * side), atol=1e-2, rtol=0)


def test_an_old_files_blocks_are_the_rotation_itself():
    weight, rotation = torch.randn(6, 5), torch.linalg.qr(torch.randn(2, 3, 3)).Q
    expected = torch.block_diag(*rotation.double()).T @ weight.double() - weight.double()
    assert relative(build_layer("x", {"oft_diag": rotation}).delta(weight), expected) < 1e-5


def test_a_config_or_callers_alpha_is_no_limit():
    weight, blocks = torch.randn(6, 5), torch.randn(2, 3, 3)
    assert torch.equal(build_layer("x", {"oft_blocks": blocks}, Hints(alpha=1e-3)).delta(weight), build_layer("x", {"oft_blocks": blocks}).delta(weight))


@pytest.mark.parametrize(
    "tensors",
    [
        {"oft_blocks": torch.ones(2, 3, 4)},
        {"oft_blocks": torch.ones(3, 3)},
        {"oft_blocks": torch.ones(0, 3, 3)},
        {"oft_blocks": torch.ones(2, 3, 3).int()},
        {"oft_diag": torch.ones(2, 2, 3, 3)},
        {"oft_blocks": torch.ones(2, 3, 3), "rescale": torch.ones(5, 1)},
        {"oft_blocks": torch.ones(2, 3, 3), "rescale": torch.ones(2, 3)},
        {"oft_blocks": torch.full((2, 3, 3), 3 * LIMIT)},
        {"oft_blocks": torch.full((2, 3, 3), -3 * LIMIT)},
    ],
)
def test_blocks_that_make_no_rotation_are_refused(tensors):
    with pytest.raises(NetworkFileError, match="lora_unet_x"):
        build_layer("lora_unet_x", tensors)
