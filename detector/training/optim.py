"""Optimisers and learning rates, as functions of the step alone, so that nothing of them needs resuming
but the optimiser's own moments."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import assert_never

import torch
from torch import nn

from detector.config import SGD, AdamW, OneCycle, Schedule, StepDecay

PAPER_BATCH = 16
"""Images a step that the learning rates of `SGD` are given for (Sec. 4.1)."""


def build_optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """The optimiser over the parameters that learn.

    Each group carries `peak_lr`, which `set_learning_rate` multiplies.

    Args:
        model: its frozen parameters are left out.
        schedule: names the optimiser and its settings.
    """
    config = schedule.optimizer
    match config:
        case SGD():
            scale = schedule.total_batch / PAPER_BATCH
            groups = _sgd_groups(model, config, scale)
            # On a CPU the fused kernel is the slower one on channels-last weights.
            fused = next(model.parameters()).device.type == "cuda"
            return _with_momentum(torch.optim.SGD(groups, momentum=config.momentum, fused=fused))
        case AdamW():
            groups = _adamw_groups(model, config)
            return torch.optim.AdamW(groups, betas=(0.9, config.beta2), fused=True)
        case _:
            assert_never(config)


def set_learning_rate(optimizer: torch.optim.Optimizer, schedule: Schedule, step: int) -> float:
    """Set every group's rate for `step` (0-based) and return the first group's."""
    factor = learning_rate_factor(schedule, step)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def learning_rate_factor(schedule: Schedule, step: int) -> float:
    """What the peak rate is multiplied by at `step`.

    Args:
        schedule: its `decay` names the shape; a `StepDecay` warm-up holds a constant factor, as the
            authors' configs do (WARMUP_METHOD "constant"), and never takes over half of a short run.
        step: 0-based iteration.
    """
    decay, total = schedule.decay, schedule.iterations
    match decay:
        case StepDecay():
            if step < min(decay.warmup, total // 2):
                return decay.warmup_factor
            return float(0.1 ** sum(step >= round(m * total) for m in decay.milestones))
        case OneCycle():
            rising = max(1, round(decay.warmup * total))
            if step < rising:
                return (step + 1) / rising
            return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))
        case _:
            assert_never(decay)


def _trainable(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def _with_momentum(optimizer: torch.optim.SGD) -> torch.optim.SGD:
    """With momenta of zero, which give the same first step as none.

    torch makes them in the first step and leaves them unset when that step overflows in float16; the next
    step would take whatever the memory held.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _sgd_groups(model: nn.Module, config: SGD, scale: float) -> list[dict[str, object]]:
    """Weights, and biases (GroupNorm's too) at their own rate without decay, as the authors' solver."""
    weights = [p for name, p in _trainable(model) if "bias" not in name]
    biases = [p for name, p in _trainable(model) if "bias" in name]
    lr = config.lr * scale
    return [
        {"params": weights, "lr": lr, "peak_lr": lr, "weight_decay": config.weight_decay},
        {"params": biases, "lr": lr, "peak_lr": lr * config.bias_lr_factor, "weight_decay": 0.0},
    ]


def _adamw_groups(model: nn.Module, config: AdamW) -> list[dict[str, object]]:
    """Matrices and kernels decay; vectors and scalars (biases, norms, level scales) do not."""
    decayed = [p for _, p in _trainable(model) if p.ndim > 1]
    others = [p for _, p in _trainable(model) if p.ndim <= 1]
    return [
        {"params": decayed, "lr": config.lr, "peak_lr": config.lr, "weight_decay": config.weight_decay},
        {"params": others, "lr": config.lr, "peak_lr": config.lr, "weight_decay": 0.0},
    ]
