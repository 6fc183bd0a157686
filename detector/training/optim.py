"""Optimisers and learning rates. Rates are functions of the step; only the moments are resumed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import assert_never

import torch
from torch import nn

from detector.config import SGD, AdamW, OneCycle, Schedule, StepDecay

PAPER_BATCH = 16
"""Images per step to which the learning rate of `SGD` refers (Sec. 4.1)."""


def build_optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """The optimiser of the trainable parameters. Each group has `peak_lr`, which `set_learning_rate` scales.

    Args:
        model: the model; its frozen parameters are skipped.
        schedule: has the optimiser's config.
    """
    config = schedule.optimizer
    match config:
        case SGD():
            scale = schedule.total_batch / PAPER_BATCH
            groups = _sgd_groups(model, config, scale)
            # On a CPU the fused kernel is slower for channels-last weights.
            fused = next(model.parameters()).device.type == "cuda"
            return _with_momentum(torch.optim.SGD(groups, momentum=config.momentum, fused=fused))
        case AdamW():
            groups = _adamw_groups(model, config)
            return torch.optim.AdamW(groups, betas=(0.9, config.beta2), fused=True)
        case _:
            assert_never(config)


def set_learning_rate(optimizer: torch.optim.Optimizer, schedule: Schedule, step: int) -> float:
    """Sets every group's rate for `step` (0-based); returns the first group's."""
    factor = learning_rate_factor(schedule, step)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def learning_rate_factor(schedule: Schedule, step: int) -> float:
    """The factor of the peak rate at `step`.

    Args:
        schedule: has the decay; the warm-up of `StepDecay` has a constant factor, as in the authors'
            configs (WARMUP_METHOD "constant"), and at most half of a short run's steps.
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
    """The optimiser with momenta of zero, which give the same first step as none.

    torch allocates them in the first step. If that step overflows in float16 they stay uninitialised, and the
    next step would use them.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _sgd_groups(model: nn.Module, config: SGD, scale: float) -> list[dict[str, object]]:
    """Weights; and biases (GroupNorm's too) with their own rate and no decay, as in the authors' solver."""
    weights = [p for name, p in _trainable(model) if "bias" not in name]
    biases = [p for name, p in _trainable(model) if "bias" in name]
    lr = config.lr * scale
    return [
        {"params": weights, "lr": lr, "peak_lr": lr, "weight_decay": config.weight_decay},
        {"params": biases, "lr": lr, "peak_lr": lr * config.bias_lr_factor, "weight_decay": 0.0},
    ]


def _adamw_groups(model: nn.Module, config: AdamW) -> list[dict[str, object]]:
    """Matrices and kernels have weight decay; vectors and scalars (biases, norms, level scales) have none."""
    decayed = [p for _, p in _trainable(model) if p.ndim > 1]
    others = [p for _, p in _trainable(model) if p.ndim <= 1]
    return [
        {"params": decayed, "lr": config.lr, "peak_lr": config.lr, "weight_decay": config.weight_decay},
        {"params": others, "lr": config.lr, "peak_lr": config.lr, "weight_decay": 0.0},
    ]
