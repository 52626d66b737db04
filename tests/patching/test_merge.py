from __future__ import annotations

import pytest
import torch
from torch import nn

from lib_lycoris.networks.low_rank import LowRankLayer
from lib_lycoris.patching import buffers, merge
from lib_lycoris.patching.buffers import Buffers
from lib_lycoris.patching.merge import Job, merge_all
from lib_lycoris.patching.plan import Effect
from lib_lycoris.patching.targets import Target

from .helpers import generator, random_layer


def target_of(weight):
    module = nn.Linear(2, 2) if weight.ndim == 2 else nn.Conv2d(2, 2, 1)
    module.weight = nn.Parameter(weight, requires_grad=False)
    return Target("unet", "a", module, module)


def jobs_of(dtype, layout):
    draw = generator(0)
    jobs = []
    for number, shape in enumerate([(6, 4), (6, 4), (6, 4), (8, 3, 3, 3), (8, 3, 3, 3), (6, 4, 1, 1)]):
        weight = torch.randn(shape, generator=draw).to(dtype)
        weight = weight.to(memory_format=torch.channels_last) if layout == "last" and weight.ndim == 4 else weight
        weight = torch.cat([weight, weight], dim=1)[:, :shape[1]] if layout == "gaps" else weight
        effects = [Effect(target_of(weight), random_layer(shape, 10 * number + part, rank=part + 1), 0.5 * part - 0.2) for part in range(number % 3 + 1)]
        jobs.append(Job(weight, weight, effects))
    return jobs


def by_hand(job):
    """In float64, one effect after the other."""
    total = job.weight.double()
    for effect in job.effects:
        up, down = (part.weight.double().flatten(1) for part in (effect.layer.lora_up, effect.layer.lora_down))
        total = total + effect.strength * effect.layer.scale * (up @ down).reshape(total.shape)
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["plain", "last", "gaps"])
@pytest.mark.parametrize("batched", [False, True])
def test_alone_or_in_groups_of_one_shape_the_sum_is_the_slow_one_rounded_once(dtype, layout, batched, monkeypatch):
    monkeypatch.setattr(merge, "BLOCK", 10)  # several blocks even here
    monkeypatch.setattr(merge, "GROUP_VALUES", 50)
    jobs = jobs_of(dtype, layout)
    merge_all(jobs, Buffers(), batched)
    step = torch.finfo(dtype).eps
    for job in jobs:
        assert job.out.dtype == dtype and job.out.shape == job.weight.shape
        assert layout == "gaps" or job.out.stride() == job.weight.stride()
        assert torch.allclose(job.out.double(), by_hand(job), rtol=max(step, 1e-6), atol=max(step, 1e-6))


def test_memory_that_nobody_needs_any_more_is_used_again_and_the_weight_is_not():
    jobs = jobs_of(torch.float32, "plain")
    merge_all(jobs, Buffers())
    pieces = [job.piece for job in jobs]
    again = jobs_of(torch.float32, "plain")
    merge_all(again, Buffers(pieces))
    assert sorted(job.out.data_ptr() for job in again) == sorted(piece.data_ptr() for piece in pieces)
    for job, twin in zip(again, jobs_of(torch.float32, "plain"), strict=True):
        assert torch.equal(job.weight, twin.weight)


@pytest.mark.parametrize("can_map", [True, False])
def test_buffers_are_whole_tensors_that_do_not_overlap(can_map, monkeypatch):
    monkeypatch.setattr(buffers, "_CAN_MAP", can_map and buffers._CAN_MAP)
    sizes = [(5, torch.float16), (1 << 20, torch.float32), (7, torch.float32), (3 << 20, torch.uint8), (1 << 18, torch.float64), (1, torch.bfloat16)]
    kept = Buffers()
    kept.reserve((size, dtype, torch.device("cpu")) for size, dtype in sizes)
    pieces = [kept.take(size, dtype, torch.device("cpu")) for size, dtype in sizes]
    for number, piece in enumerate(pieces):
        piece.fill_(number)
    for number, (piece, (size, dtype)) in enumerate(zip(pieces, sizes, strict=True)):
        assert piece.shape == (size,) and piece.dtype == dtype and bool((piece == number).all())


def test_a_kernel_that_lies_in_the_other_order_takes_the_same_sum():
    draw = generator(1)
    weight = torch.randn(8, 4, 3, 3, generator=draw)
    layer = LowRankLayer(torch.randn(2, 4, 3, 3, generator=draw), torch.randn(8, 2, 1, 1, generator=draw))
    outs = []
    for memory in (torch.contiguous_format, torch.channels_last):
        own = weight.to(memory_format=memory)
        job = Job(own, own, [Effect(target_of(own), layer, 1.0)])
        merge_all([job], Buffers())
        outs.append(job.out)
    assert torch.allclose(*outs, rtol=1e-5, atol=1e-6)
