"""Precision of the arithmetic: float32, or float32 weights with bfloat16 or float16 convolutions."""

from __future__ import annotations

import torch

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: str) -> torch.autocast:
    """The context of a forward pass.

    Args:
        precision: "bf16", "fp16" or "fp32".
        device: device type, "cpu" or "cuda".
    """
    return torch.autocast(device, _DTYPES.get(precision, torch.bfloat16), enabled=precision in _DTYPES)


def gradient_scaler(precision: str, device: str) -> torch.amp.GradScaler:
    """Scales the loss in "fp16", against underflow of gradients; otherwise does nothing.

    A step whose gradients overflow is skipped, and the scale halved. The optimisers are fused, so this is
    decided on the device without synchronisation.
    """
    return torch.amp.GradScaler(device, enabled=precision == "fp16")
