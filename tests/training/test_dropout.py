from __future__ import annotations

import pytest
import torch
from torch import nn

from lib_lycoris.errors import ConfigError
from lib_lycoris.networks.low_rank import LowRankLayer
from lib_lycoris.patching.targets import find_targets
from lib_lycoris.training.config import NetworkSettings
from lib_lycoris.training.dropout import Dropout
from lib_lycoris.training.methods import create_layer

from .fake import FakeBackbone
from .rig import config_of, gradients, rig, same, start
from .test_loop import losses_of, make_config

KEY = ("unet", "mid_block_x")


def wrapped(layer, **shares):
    dropout = Dropout(NetworkSettings(**shares), 3)
    return dropout, dropout.wrap({KEY: layer})[KEY]


def make_layer(shape=(6, 5), rank=4):
    layer = LowRankLayer.create(shape, rank, 2.0, torch.Generator().manual_seed(0))
    start({KEY: layer})
    return layer


def test_without_shares_the_layers_themselves_are_attached():
    layers = {KEY: make_layer()}
    assert Dropout(NetworkSettings(), 0).wrap(layers) is layers


@pytest.mark.parametrize("shares", [{"dropout": 0.5}, {"rank_dropout": 0.5}, {"module_dropout": 0.9}])
def test_outside_a_training_step_nothing_is_left_away(shares):
    layer, x, module = make_layer(), torch.randn(3, 5), nn.Linear(5, 6)
    _, dropped = wrapped(layer, **shares)
    assert torch.equal(dropped.delta_output(x, module), layer.delta_output(x, module)) and torch.equal(dropped.delta(module.weight), layer.delta(module.weight))


@pytest.mark.parametrize("module", [nn.Linear(5, 6), nn.Conv2d(5, 6, 3, padding=1, stride=2)], ids=["linear", "convolution"])
@pytest.mark.parametrize("shares", [{"dropout": 0.4}, {"rank_dropout": 0.4}], ids=lambda shares: next(iter(shares)))
def test_on_average_the_output_is_that_without_dropout(module, shares):
    layer = make_layer(tuple(module.weight.shape))
    dropout, dropped = wrapped(layer, **shares)
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(1)) if isinstance(module, nn.Linear) else torch.randn(2, 5, 6, 6)
    outputs = []
    with torch.no_grad():
        for moment in range(1500):
            with dropout.drawing(moment):
                outputs.append(dropped.delta_output(x, module))
        stacked, whole = torch.stack(outputs), layer.delta_output(x, module)
    spread = stacked.std(0) / len(outputs) ** 0.5
    assert ((stacked.mean(0) - whole).abs() <= 5 * spread + 1e-6).all() and not torch.equal(outputs[0], outputs[1])


def test_a_dropped_input_is_a_zero_times_its_scale_and_rows_differ():
    layer, module, x = make_layer(), nn.Linear(5, 6), torch.ones(8, 5)
    dropout, dropped = wrapped(layer, dropout=0.5)
    with dropout.drawing(0), torch.no_grad():
        masked = dropout.inputs(KEY, x)
        assert set(masked.unique().tolist()) == {0.0, 2.0} and len({tuple(row) for row in masked.tolist()}) > 4
        torch.testing.assert_close(dropped.delta_output(x, module), layer.delta_output(masked, module))


def test_a_rank_is_left_away_in_both_factors_at_once():
    layer, module, x = make_layer(), nn.Linear(5, 6), torch.randn(7, 5)
    dropout, dropped = wrapped(layer, rank_dropout=0.5)
    seen = set()
    for moment in range(20):
        with dropout.drawing(moment), torch.no_grad():
            kept = dropout.ranks(KEY, "lora_down.weight", 4, torch.device("cpu"))
            seen.add(tuple(kept.tolist()))
            by_hand = x @ (layer.lora_up.weight.flatten(1) * kept @ layer.lora_down.weight.flatten(1)).T * layer.scale
            torch.testing.assert_close(dropped.delta_output(x, module), by_hand)
            torch.testing.assert_close(x @ dropped.delta(module.weight).T, by_hand)
    assert len(seen) > 5


def test_layers_are_left_away_as_often_as_the_share_says():
    dropout, dropped = wrapped(make_layer(), module_dropout=0.3)
    gone = 0
    for moment in range(1000):
        with dropout.drawing(moment), torch.no_grad():
            out = dropped.delta_output(torch.ones(1, 5), nn.Linear(5, 6))
            gone += out.shape == ()
            assert (out == 0).all() == (dropped.delta(torch.zeros(6, 5)) == 0).all()
    assert 250 < gone < 350


@pytest.mark.parametrize("settings", [
    NetworkSettings(kind="loha", rank=3, rank_dropout=0.5), NetworkSettings(kind="lokr", rank=1, factor=2, rank_dropout=0.5, decompose_both=True),
    NetworkSettings(kind="adalora", rank=3, rank_dropout=0.5), NetworkSettings(kind="locon", rank=3, dora=True, rank_dropout=0.5),
    NetworkSettings(kind="loha", rank=3, tucker=True, rank_dropout=0.5),
], ids=["loha", "lokr", "adalora", "dora", "loha, Tucker"])
def test_every_kind_with_ranks_drops_them_and_learns_only_what_is_left(settings):
    backbone = FakeBackbone()
    target = find_targets(backbone.unet, backbone.text_encoders)["unet", "down_blocks_0_resnets_0_conv1"]
    layer = create_layer(target, settings, 0)
    start({KEY: layer})
    dropout = Dropout(settings, 1)
    dropped = dropout.wrap({KEY: layer})[KEY]
    whole = layer.delta_output(torch.ones(1, 8, 4, 4), target.module)
    outputs = set()
    for moment in range(12):
        with dropout.drawing(moment):
            out = dropped.delta_output(torch.ones(1, 8, 4, 4), target.module)
            outputs.add(out.detach().numpy().tobytes())
            out.sum().backward()
    assert len(outputs) > 1 and whole.detach().numpy().tobytes() not in outputs
    assert all(parameter.grad is not None for parameter in layer.parameters())


SHARES = {"network.dropout": 0.2, "network.rank_dropout": 0.3, "network.module_dropout": 0.2}


def test_resuming_draws_the_same(tmp_path):
    whole, _ = losses_of(make_config(tmp_path / "a", **SHARES))
    without, _ = losses_of(make_config(tmp_path / "c"))
    config = make_config(tmp_path / "b", **SHARES)
    count = iter(range(100))
    first, _ = losses_of(config, should_stop=lambda: next(count) == 7)
    second, _ = losses_of(config, resume=True)
    assert first + second == whole and whole[1:] != without[1:]


class Share:
    """One of two processes, without the other."""

    count = 2

    def __init__(self, rank):
        self.rank = rank

    def mean_(self, tensor):
        """As if the other had the same."""


def test_processes_draw_for_their_rows_what_one_process_draws():
    found = []
    with rig(config_of(data__batch_size=4, training__max_grad_norm=0.0, **SHARES)) as trainer:
        loss = trainer.step(0)
        found.append(gradients(trainer))
    parts = []
    for rank in range(2):
        with rig(config_of(data__batch_size=2, training__max_grad_norm=0.0, **SHARES), processes=Share(rank)) as trainer:
            parts.append((trainer.step(0), gradients(trainer)))
    assert sum(part[0] for part in parts) / 2 == pytest.approx(loss, rel=1e-5)
    for name, gradient in found[0].items():
        torch.testing.assert_close((parts[0][1][name] + parts[1][1][name]) / 2, gradient, rtol=1e-3, atol=1e-6)


def test_a_step_that_lost_every_layer_moves_nothing_but_goes_on():
    with rig(config_of(**{"network.module_dropout": 0.99, "network.targets": ["q"], "network.text_encoder": False, "training.weight_decay": 0.0})) as trainer:
        losses = [trainer.step(step) for step in range(4)]
        assert all(loss > 0 for loss in losses)
        assert same(gradients(trainer), {name: torch.zeros_like(value) for name, value in trainer.parameters.items()})


@pytest.mark.parametrize(("kind", "changes", "words"), [
    ("full", {"rank_dropout": 0.1}, "knows no rank_dropout"), ("norm", {"dropout": 0.1}, "knows no dropout"),
    ("ia3", {"rank_dropout": 0.1}, "knows no rank_dropout"),
    ("lokr", {"rank_dropout": 0.1, "full_matrix": True}, "has no ranks"), ("locon", {"dora": True, "max_norm": 1.0}, "DoRA"),
])
def test_what_a_kind_cannot_drop_is_told_at_once(kind, changes, words):
    with pytest.raises(ConfigError, match=words):
        NetworkSettings(kind=kind, **changes)


def test_a_layer_inside_a_fused_attention_drops_columns_of_its_delta():
    dropout, dropped = wrapped(make_layer(), dropout=0.5)
    with dropout.drawing(4), torch.no_grad():
        delta, whole = dropped.delta(torch.zeros(6, 5)), make_layer().delta(torch.zeros(6, 5))
        kept = delta.abs().sum(0) > 0
        assert kept.any() and not kept.all()
        torch.testing.assert_close(delta[:, kept], 2 * whole[:, kept])
