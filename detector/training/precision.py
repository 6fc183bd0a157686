"""How arithmetic is done: float32, or float32 weights with bfloat16 or float16 convolutions."""

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
    """Scales the loss of a "fp16" backward pass, whose small gradients would become 0; else does nothing.

    A step whose gradients overflow is left out and the scale halved. The optimisers here are fused, so
    that decision is made on the device, and nothing waits for it.
    """
    return torch.amp.GradScaler(device, enabled=precision == "fp16")
