"""The rank allocator against PEFT's own class and against a slow one written from the paper."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lib_lycoris
from lib_lycoris.errors import ConfigError
from lib_lycoris.training.allocator import RankAllocator, stacked

SHAPES = {"down.to_q": (6, 10, 8), "down.to_k": (6, 10, 8), "mid.ff": (4, 12, 5), "up.to_q": (6, 10, 8)}  # rank, out, in
SETTINGS = {"total_steps": 40, "warmup": 5, "final": 12, "interval": 3}


def make_layers(seed: int, shapes=SHAPES) -> dict[str, dict[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: {
            "lora_A": nn.Parameter(torch.randn(rank, into, generator=generator)),
            "lora_E": nn.Parameter(torch.randn(rank, 1, generator=generator)),
            "lora_B": nn.Parameter(torch.randn(out, rank, generator=generator)),
        }
        for name, (rank, out, into) in shapes.items()
    }


def take_step(layers, seed: int) -> None:
    """Random gradients, and parameters moved along them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for factors in layers.values():
            for value in factors.values():
                value.grad = torch.randn(value.shape, generator=generator)
                value -= 0.1 * value.grad


def given_of(layers):
    return {name: {part: (value, value.grad) for part, value in factors.items()} for name, factors in layers.items()}


def mask_e(layers, masks) -> None:
    with torch.no_grad():
        for name, mask in masks.items():
            layers[name]["lora_E"][~mask] = 0


class SlowAllocator:
    """One weight after the other, in Python's own numbers."""

    def __init__(self, target_rank, total_steps, warmup, final, interval, beta=0.85):
        self.target, self.total, self.warmup, self.final, self.interval, self.beta = target_rank, total_steps, warmup, final, interval, beta
        self.average, self.distance = {}, {}

    def update(self, step, layers):
        if step < self.total - self.final:
            for name, factors in layers.items():
                for part, value in factors.items():
                    for place, (weight, slope) in enumerate(zip(value.flatten().tolist(), value.grad.flatten().tolist(), strict=True)):
                        key = (name, part, place)
                        now = abs(weight * slope)
                        self.average[key] = self.beta * self.average.get(key, 0) + (1 - self.beta) * now
                        self.distance[key] = self.beta * self.distance.get(key, 0) + (1 - self.beta) * abs(now - self.average[key])
        if step <= self.warmup or (step <= self.total - self.final and step % self.interval):
            return {name: [True] * len(factors["lora_E"]) for name, factors in layers.items()}
        first, last = sum(len(factors["lora_E"]) for factors in layers.values()), self.target * len(layers)
        left = max(0.0, 1 - (step - self.warmup) / (self.total - self.final - self.warmup))
        drop = first - int(last + (first - last) * left**3)
        scores = {name: [self._score(name, factors, rank) for rank in range(len(factors["lora_E"]))] for name, factors in layers.items()}
        limit = sorted(score for rows in scores.values() for score in rows)[drop - 1] if drop > 0 else -1.0
        return {name: [score > limit for score in rows] for name, rows in scores.items()}

    def _score(self, name, factors, rank):
        def one(part, place):
            return self.average[name, part, place] * self.distance[name, part, place]

        (ranks, into), out = factors["lora_A"].shape, factors["lora_B"].shape[0]
        row = sum(one("lora_A", rank * into + column) for column in range(into)) / into
        return one("lora_E", rank) + row + sum(one("lora_B", place * ranks + rank) for place in range(out)) / out


def ranks_of(layers):
    return {name: factors["lora_A"].shape[0] for name, factors in layers.items()}


@pytest.mark.parametrize("pause", [None, 3, 17, 33])
def test_the_masks_are_those_of_a_slow_allocator_also_through_a_saved_state(pause):
    layers = make_layers(1)
    slow = SlowAllocator(2, **SETTINGS)
    allocator = lib_lycoris.RankAllocator(ranks_of(layers), target_rank=2, **SETTINGS)
    masked = 0
    for step in range(1, 41):
        take_step(layers, step)
        if step == pause:
            state = allocator.state_dict()
            allocator = lib_lycoris.RankAllocator(ranks_of(layers), target_rank=2, **SETTINGS)
            allocator.load_state_dict(state)
        before = {name: factors["lora_E"].clone() for name, factors in layers.items()}
        masks = allocator.update(step, given_of(layers))
        assert {name: mask.tolist() for name, mask in masks.items()} == slow.update(step, layers)
        assert all(torch.equal(layers[name]["lora_E"], value) for name, value in before.items())
        masked += sum(int((~mask).sum()) for mask in masks.values()) > 0
        mask_e(layers, masks)
    assert masked > 12 and sum(int(mask.sum()) for mask in masks.values()) == 8


@pytest.mark.parametrize(("interval", "warmup", "final"), [(3, 5, 12), (1, 26, 12), (9, 25, 12), (1, 0, 38), (2, 1, 36), (4, 5, 0)])
def test_the_masks_are_those_of_pefts_own_allocator(interval, warmup, final):
    adalora = pytest.importorskip("peft.tuners.adalora.layer", reason="peft is not installed here: its own allocator can't be compared")
    from peft import AdaLoraConfig

    layers = make_layers(2)

    class Adapted(nn.Module):
        def named_parameters(self, *args, **kwargs):
            return iter([(f"{name}.{part}.default", value) for name, factors in layers.items() for part, value in factors.items()])

    config = AdaLoraConfig(target_r=2, init_r=6, tinit=warmup, tfinal=final, deltaT=interval, total_step=40)
    theirs = adalora.RankAllocator(Adapted(), config, "default")
    ours = RankAllocator(ranks_of(layers), target_rank=2, total_steps=40, warmup=warmup, final=final, interval=interval)
    for step in range(1, 41):
        take_step(layers, step)
        masks = ours.update(step, given_of(layers))
        _, pattern = theirs.update_and_allocate(Adapted(), step)
        expected = pattern or {f"{name}.lora_E.default": [True] * rank for name, rank in ranks_of(layers).items()}
        assert {f"{name}.lora_E.default": mask.tolist() for name, mask in masks.items()} == expected


@settings(max_examples=30, deadline=None)
@given(ranks=st.lists(st.integers(1, 9), min_size=1, max_size=4), target=st.integers(0, 9), warmup=st.integers(0, 5), final=st.integers(0, 5),
       interval=st.integers(1, 4), seed=st.integers(0, 99))
def test_as_many_ranks_are_kept_as_the_budget_says(ranks, target, warmup, final, interval, seed):
    layers = make_layers(seed, {f"layer {index}": (rank, 3 + index, 4) for index, rank in enumerate(ranks)})
    allocator = RankAllocator(ranks_of(layers), target, 15, warmup, final, interval)
    budgets = [allocator.budget(step) for step in range(1, 16)]
    for step, budget in enumerate(budgets, start=1):
        take_step(layers, step)
        masks = allocator.update(step, given_of(layers))
        kept = sum(int(mask.sum()) for mask in masks.values())
        if allocator.masks_at(step) and step < 15 - final:  # later, scores of a final phase without a step before it may all be equal
            assert kept == min(budget, sum(ranks))
    assert budgets == sorted(budgets, reverse=target <= sum(ranks) / len(ranks))


def test_a_target_above_the_initial_rank_keeps_everything():
    layers = make_layers(0)
    allocator = RankAllocator(ranks_of(layers), 99, **SETTINGS)
    take_step(layers, 1)
    assert all(mask.all() for step in range(1, 41) for mask in allocator.update(step, given_of(layers)).values())


def test_parameters_in_one_piece_of_memory_are_stacked_without_a_copy():
    flat = torch.arange(24.0)
    rows = [flat[start : start + 8].view(2, 4) for start in (0, 8, 16)]
    assert torch.equal(stacked(rows), torch.stack(rows)) and stacked(rows).data_ptr() == flat.data_ptr()
    apart = [rows[0], rows[2]]
    assert torch.equal(stacked(apart), torch.stack(apart)) and stacked(apart).data_ptr() != flat.data_ptr()


def test_a_missing_gradient_counts_as_zero():
    layers = make_layers(3)
    take_step(layers, 1)
    nothing = {name: {part: (value, None) for part, value in factors.items()} for name, factors in layers.items()}
    allocator = RankAllocator(ranks_of(layers), 2, **SETTINGS)
    allocator.update(1, nothing)
    assert all(torch.count_nonzero(value) == 0 for value in allocator.state_dict().values())


@pytest.mark.parametrize(
    ("change", "words"),
    [({"target_rank": float("nan")}, "target_rank"), ({"interval": 0}, "interval"), ({"warmup": 30}, "leave none"), ({"beta1": 1.0}, "beta1"),
     ({"ranks": {}}, "ranks"), ({"ranks": {"a": 0}}, "ranks"), ({"total_steps": 2.5}, "total_steps")],
)
def test_a_bad_argument_is_told_when_the_allocator_is_made(change, words):
    with pytest.raises(ConfigError, match=words):
        RankAllocator(**{"ranks": {"a": 4}, "target_rank": 2, **SETTINGS, **change})


def test_layers_of_another_rank_and_a_state_of_other_layers_are_told():
    layers = make_layers(0)
    take_step(layers, 1)
    with pytest.raises(ConfigError, match="not the rank 3"):
        RankAllocator(dict.fromkeys(layers, 3), 2, **SETTINGS).update(1, given_of(layers))
    missing = given_of(layers)
    del missing["mid.ff"]["lora_E"]
    with pytest.raises(ConfigError, match=r"no lora_E of layer mid\.ff"):
        RankAllocator(ranks_of(layers), 2, **SETTINGS).update(1, missing)
    with pytest.raises(ConfigError, match="other layers"):
        RankAllocator(ranks_of(layers), 2, **SETTINGS).load_state_dict({"sensitivity.elsewhere.lora_A": torch.zeros(1)})
