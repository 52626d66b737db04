from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lib_lycoris.errors import NetworkFileError
from lib_lycoris.networks.kinds import build_layer
from lib_lycoris.networks.rotations import LIMIT

from .oracles import relative
from .peers import lycoris_layer, peft_layer


def slow_product(blocks: Tensor, limit: float = 0.0) -> Tensor:
    """The butterfly's whole matrix in float64, in LyCORIS' order: every stage as a permuted block-diagonal matrix."""
    stages, count, size = blocks.shape[:3]
    skew = blocks.double() - blocks.double().transpose(2, 3)
    if 0 < limit < skew.norm():
        skew = skew * limit / skew.norm()
    whole, identity = torch.eye(count * size, dtype=torch.float64), torch.eye(size, dtype=torch.float64)
    for stage in range(stages):
        half = 2**stage * size // 2
        order = [2 * half * run + half * side + place for run in range(count * size // (2 * half)) for place in range(half) for side in range(2)]
        permuted = torch.block_diag(*((identity + one) @ torch.linalg.inv(identity - one) for one in skew[stage]))
        matrix = torch.zeros_like(whole)
        for i, row in enumerate(order):
            for j, column in enumerate(order):
                matrix[row, column] = permuted[i, j]
        whole = matrix @ whole
    return whole


@pytest.mark.parametrize("module", [nn.Linear(6, 16), nn.Conv2d(6, 8, 3), nn.Linear(6, 24)], ids=str)
@pytest.mark.parametrize("constraint", [0, 0.02])
@pytest.mark.parametrize("rescaled", [False, True])
def test_lycoris_makes_the_same_of_its_own_tensors(module, constraint, rescaled):
    tensors, theirs = lycoris_layer("boft", module, lora_dim=6, constraint=constraint, rescaled=rescaled)
    held = {name: tensor for name, tensor in tensors.items() if name != "dtype_tensor"}
    assert held["oft_blocks"].shape[0] > 1
    assert relative(build_layer("x", held).delta(module.weight), theirs.get_diff_weight()[0]) < 1e-5


@pytest.mark.parametrize("alpha", [0.0, 0.01])
@pytest.mark.parametrize("size", [1.0, 1e-5])
@pytest.mark.parametrize("shape", [(16, 5), (16, 3, 3, 3)])
def test_the_whole_matrix_gives_the_same(alpha, size, shape):
    weight, blocks = torch.randn(shape), size * torch.randn(3, 4, 4, 4)
    expected = (slow_product(blocks, alpha * 16) @ weight.double().flatten(1)).reshape(shape) - weight.double()
    assert relative(build_layer("x", {"oft_blocks": blocks, "alpha": torch.tensor(alpha)}).delta(weight), expected) < 1e-5


@pytest.mark.parametrize("new", [lambda: nn.Linear(16, 5), lambda: nn.Conv2d(16, 5, 1), lambda: nn.Conv2d(4, 5, 2)], ids=["linear", "conv 1×1", "conv 2×2"])
@pytest.mark.parametrize("factors", [1, 2, 3])
def test_peft_makes_the_same_of_its_own_tensors(new, factors, monkeypatch):
    boft = pytest.importorskip("peft.tuners.boft.layer")
    # PEFT has more than one factor with its CUDA extension alone; what that computes is this
    extension = SimpleNamespace(forward=lambda blocks: [torch.stack([torch.block_diag(*stage) for stage in blocks])])
    monkeypatch.setattr(boft, "get_fbd_cuda", lambda: extension)
    module = new()
    weight = module.weight.detach().clone()
    tensors, delta, _ = peft_layer("BOFTConfig", module, boft_block_size=4, boft_n_butterfly_factor=factors)
    assert tensors["boft_R"].shape == (factors, 4, 4, 4)
    assert relative(build_layer("x", tensors).delta(weight), delta) < 1e-5


@pytest.mark.parametrize(
    "tensors",
    [
        {"oft_blocks": torch.ones(2, 4, 4, 3)},
        {"oft_blocks": torch.ones(1, 4, 3, 3)},
        {"oft_blocks": torch.ones(4, 4, 4, 4)},
        {"oft_blocks": torch.ones(2, 3, 4, 4)},
        {"oft_blocks": torch.ones(60, 4, 4, 4)},
        {"oft_blocks": torch.ones(2, 0, 4, 4)},
        {"oft_blocks": torch.ones(2, 4, 4, 4), "rescale": torch.ones(8, 1)},
        {"oft_blocks": torch.full((2, 4, 4, 4), 2 * LIMIT)},
        {"boft_s": torch.ones(4, 1)},
        {"boft_R": torch.ones(4, 4)},
        {"boft_R": torch.ones(2, 4, 3, 3)},
        {"boft_R": torch.ones(1, 4, 4, 4), "boft_s": torch.ones(4, 2)},
    ],
)
def test_blocks_that_make_no_butterfly_are_refused(tensors):
    with pytest.raises(NetworkFileError, match="lora_unet_x"):
        build_layer("lora_unet_x", tensors)
