"""Learning rates as functions of the step, and parameter groups."""

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from detector.config import SGD, AdamW, OneCycle, Schedule, StepDecay
from detector.training.optim import build_optimizer, learning_rate_factor, set_learning_rate


def test_step_decay_follows_the_reference_schedule(authors: Path) -> None:
    golden = np.load(authors / "data_lr.npz")
    schedule = Schedule(iterations=90_000, decay=StepDecay(milestones=(60 / 90, 80 / 90)))
    ours = [0.01 * learning_rate_factor(schedule, int(step)) for step in golden["lr_iters"]]
    np.testing.assert_allclose(ours, golden["lr_constant"], rtol=1e-9)


def test_step_decay_drops_exactly_at_its_milestones() -> None:
    schedule = Schedule(iterations=90_000)
    steps = (499, 500, 59_999, 60_000, 79_999, 80_000)
    factors = [learning_rate_factor(schedule, step) for step in steps]
    assert factors == pytest.approx([1 / 3, 1.0, 1.0, 0.1, 0.1, 0.01])


def test_one_cycle_rises_then_falls_to_almost_nothing() -> None:
    schedule = Schedule(iterations=100, decay=OneCycle(warmup=0.1))
    factors = [learning_rate_factor(schedule, step) for step in range(100)]
    assert factors[9] == pytest.approx(1.0)
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[-1] < 1e-3


def test_biases_learn_twice_as_fast_and_do_not_decay_under_sgd() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))
    schedule = Schedule(optimizer=SGD(lr=0.01), decay=StepDecay(warmup=0))
    optimizer = build_optimizer(model, schedule)
    set_learning_rate(optimizer, schedule, 0)
    weights, biases = optimizer.param_groups
    assert (weights["lr"], weights["weight_decay"]) == pytest.approx((0.01, 1e-4))
    assert (biases["lr"], biases["weight_decay"]) == pytest.approx((0.02, 0.0))
    assert {p.ndim for p in biases["params"]} == {1}
    assert len(weights["params"]) == 2


def test_the_rate_scales_with_the_total_batch_under_sgd() -> None:
    schedule = Schedule(total_batch=8, optimizer=SGD(lr=0.01), decay=StepDecay(warmup=0))
    optimizer = build_optimizer(nn.Conv2d(3, 4, 3), schedule)
    assert set_learning_rate(optimizer, schedule, 0) == pytest.approx(0.005)


def test_vectors_do_not_decay_under_adamw_and_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    model[0].requires_grad_(False)
    optimizer = build_optimizer(model, Schedule(optimizer=AdamW(weight_decay=0.1), decay=OneCycle()))
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 2
    assert all(p.requires_grad for g in optimizer.param_groups for p in g["params"])
