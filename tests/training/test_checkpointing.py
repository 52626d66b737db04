from __future__ import annotations

import pytest
import torch
from torch import nn

from lib_lycoris.functional import kept
from lib_lycoris.patching.session import attach
from lib_lycoris.patching.targets import find_targets
from lib_lycoris.training.checkpointing import checkpointed, find_blocks
from lib_lycoris.training.loop import train

from .fake import FakeBackbone
from .rig import config_of, gradients, material_of, rig, same
from .test_loop import losses_of, make_config
from .test_methods import METHODS


@pytest.fixture
def plainly(monkeypatch):
    """Layers keep their inputs as they are, instead of how to make them anew, which rounds otherwise and is switched off in checkpointed blocks anyway."""
    monkeypatch.setattr(kept, "_HOOKS", None)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_checkpointed_gradients_are_the_same_bit_for_bit(name, precision, plainly):
    changes = {**METHODS[name], "network.kind": name.partition(",")[0], "network.alpha": None, "training.precision": precision}
    found = []
    for on in (False, True):
        with rig(config_of(training__gradient_checkpointing=on, **changes)) as trainer:
            loss = trainer.step(0)
            found.append((loss, gradients(trainer)))
    assert found[0][0] == found[1][0] and same(found[0][1], found[1][1])
    assert any(value.abs().max() > 0 for value in found[1][1].values())


@pytest.mark.parametrize("name", METHODS)
def test_checkpointed_gradients_are_those_of_layers_that_make_their_inputs_anew(name):
    found = []
    for on in (False, True):
        with rig(config_of(training__gradient_checkpointing=on, **{**METHODS[name], "network.kind": name.partition(",")[0], "network.alpha": None})) as trainer:
            trainer.step(0)
            found.append(gradients(trainer))
    for part, gradient in found[0].items():
        torch.testing.assert_close(found[1][part], gradient, rtol=1e-3, atol=1e-6)


def test_dropout_draws_the_same_in_the_second_run(plainly):
    shares = {"network.dropout": 0.3, "network.rank_dropout": 0.3, "network.module_dropout": 0.3, "training.prior_weight": 0.5}
    found = []
    for on in (False, True):
        with rig(config_of(training__gradient_checkpointing=on, **shares), prior=material_of(3, seed=7)) as trainer:
            found.append(([trainer.step(step) for step in range(3)], gradients(trainer)))
    assert found[0][0] == found[1][0] and same(found[0][1], found[1][1])


def kept_bytes(on):
    """What the graph of one loss keeps, each memory once, beyond what is there anyway: blocks' inputs, which checkpoints hold, among it."""
    found = {}

    def note(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    backbone = FakeBackbone()

    def note_inputs(module, args, kwargs):
        for value in (*args, *kwargs.values()):
            note(value)

    blocks = find_blocks([backbone.unet, *backbone.text_encoders]) if on else []
    inputs = [block.register_forward_pre_hook(note_inputs, with_kwargs=True) for block in blocks]
    with rig(config_of(training__gradient_checkpointing=on, data__batch_size=4), backbone) as trainer:
        rows = trainer._order.batch(0)
        latents = torch.stack([trainer._material.latents(sample, epoch) for epoch, sample in rows])
        draws = [trainer._draw(0, epoch, sample, latents.shape[1:]) for epoch, sample in rows]
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = trainer.loss_of(trainer._material, rows, latents, draws)
        loss.backward()
    for handle in inputs:
        handle.remove()
    return sum(found.values())


def test_much_less_is_kept_for_the_backward_pass():
    assert kept_bytes(True) < 0.6 * kept_bytes(False)


def test_blocks_are_found_by_structure_none_inside_another():
    backbone = FakeBackbone()
    names = {type(block).__name__ for block in find_blocks([backbone.unet, *backbone.text_encoders])}
    assert names == {"Resnet", "Block", "EncoderLayer"} and len(find_blocks([backbone.unet])) == 4


@pytest.mark.parametrize("fails", [False, True])
def test_every_block_is_as_before_also_after_an_exception(fails):
    backbone = FakeBackbone()
    blocks = find_blocks([backbone.unet])
    blocks[0].forward = own = blocks[0].forward  # somebody else's
    before = [dict(block.__dict__) for block in blocks]
    try:
        with checkpointed([backbone.unet]):
            assert all("forward" in block.__dict__ for block in blocks)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert [dict(block.__dict__) for block in blocks] == before and blocks[0].__dict__["forward"] is own


class FusedEncoder(nn.Module):
    """Two layers of open_clip's kind around nn.MultiheadAttention."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([FusedBlock() for _ in range(2)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class FusedBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


def test_layers_merged_into_a_fused_attention_are_merged_again_in_the_second_run_and_taken_out():
    from lib_lycoris.networks.low_rank import LowRankLayer

    torch.manual_seed(0)
    encoder = FusedEncoder().requires_grad_(False)
    targets = find_targets(None, [encoder])
    chosen = {key: target for key, target in targets.items() if target.fused}
    layers = {key: LowRankLayer.create(tuple(target.shape), 2, generator=torch.Generator().manual_seed(1)) for key, target in chosen.items()}
    for layer in layers.values():
        nn.init.normal_(layer.lora_up.weight)
    before = {name: id(value) for name, value in encoder.named_parameters()}
    x, found = torch.randn(2, 3, 8), []
    for on in (False, True):
        with attach(chosen, layers):
            if on:
                with checkpointed([encoder]):
                    encoder(x).square().sum().backward()
            else:
                encoder(x).square().sum().backward()
        found.append([layer.lora_down.weight.grad.clone() for layer in layers.values()])
        for layer in layers.values():
            layer.zero_grad()
        assert {name: id(value) for name, value in encoder.named_parameters()} == before
    assert len(layers) == 8 and all(torch.equal(one, two) and one.abs().max() > 0 for one, two in zip(*found, strict=True))


def test_a_whole_training_with_checkpointing_is_that_without(tmp_path, plainly):
    plain, _ = losses_of(make_config(tmp_path / "a"))
    found, _ = losses_of(make_config(tmp_path / "b", training__gradient_checkpointing=True))
    assert found == plain


def test_a_model_without_known_blocks_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("lib_lycoris.training.loop.find_blocks", lambda modules: [])
    result = train(make_config(tmp_path, training__gradient_checkpointing=True, training__steps=1), FakeBackbone())
    assert any("gradient_checkpointing" in problem and "saves no memory" in problem for problem in result.problems)
