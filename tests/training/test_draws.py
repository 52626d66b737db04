from __future__ import annotations

import torch

from lib_lycoris.training.draws import Order, draw

SHAPE = torch.Size((4, 8, 8))


def test_an_epoch_takes_every_sample_once_whatever_the_batch_size():
    for batch_size in (1, 2, 3, 7):
        order = Order(7, batch_size, seed=1)
        flat = [place for step in range(14) for place in order.batch(step)]
        for epoch in range(14 * batch_size // 7):
            assert sorted(sample for e, sample in flat if e == epoch) == list(range(7))


def test_the_order_does_not_depend_on_the_batch_size_and_steps_may_be_asked_in_any_order():
    one, three = Order(5, 1, seed=3), Order(5, 3, seed=3)
    assert [place for step in range(15) for place in one.batch(step)] == [place for step in range(5) for place in three.batch(step)]
    assert Order(5, 3, seed=3).batch(4) == three.batch(4)


def test_epochs_and_seeds_shuffle_differently():
    order = Order(20, 20, seed=0)
    assert [s for _, s in order.batch(0)] != [s for _, s in order.batch(1)] != [s for _, s in Order(20, 20, seed=1).batch(1)]


def test_a_draw_depends_on_seed_epoch_and_sample_alone():
    first = draw(1, 2, 3, SHAPE)
    torch.rand(5)
    again = draw(1, 2, 3, SHAPE)
    assert torch.equal(first.noise, again.noise) and first.t == again.t
    for other in (draw(0, 2, 3, SHAPE), draw(1, 3, 3, SHAPE), draw(1, 2, 2, SHAPE)):
        assert not torch.equal(first.noise, other.noise)


def test_noise_is_standard_normal_and_time_steps_cover_the_schedule():
    draws = [draw(0, 0, sample, SHAPE, caption_dropout=0.3) for sample in range(600)]
    noise = torch.stack([drawn.noise for drawn in draws])
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    t = torch.tensor([drawn.t for drawn in draws]).float()
    assert t.min() >= 0 and t.max() <= 999 and abs(t.mean() - 499.5) < 40 and abs(t.std() - 288.7) < 25
    assert 0.22 < sum(drawn.dropped for drawn in draws) / 600 < 0.38


def test_captions_are_never_dropped_at_share_zero_and_always_at_share_one():
    assert not any(draw(0, 0, sample, SHAPE).dropped for sample in range(50))
    assert all(draw(0, 0, sample, SHAPE, caption_dropout=1.0).dropped for sample in range(50))
