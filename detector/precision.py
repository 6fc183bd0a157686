"""How arithmetic is done: float32, or float32 weights with bfloat16 convolutions."""

from __future__ import annotations

import torch


def autocast(precision: str, device: str) -> torch.autocast:
    """The context of a forward pass.

    Args:
        precision: "bf16" or "fp32".
        device: device type, "cpu" or "cuda".
    """
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")
