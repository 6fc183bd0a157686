"""Images as a network sees them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def normalised(
    images_N3HW: Tensor, sizes_N2: Tensor | None, mean: Tensor, inverse_std: Tensor, multiple: int
) -> Tensor:
    """Normalises, and pads with zeros at the bottom and right to a multiple of some pixels.

    The padding has the mean colour, as in the code of ATSS's authors.

    Args:
        images_N3HW: (N, 3, H, W) uint8 or float, RGB, 0-255; smaller images are at the top left.
        sizes_N2: (N, 2) int, height and width of each image without padding; None where every image
            fills the tensor.
        mean, inverse_std: (3, 1, 1) float32.
        multiple: of both sides of the result.

    Returns:
        (N, 3, H', W') float32.
    """
    height, width = images_N3HW.shape[-2:]
    x = (images_N3HW - mean) * inverse_std
    if sizes_N2 is not None:
        sizes_N2 = sizes_N2.to(x.device)
        rows = torch.arange(height, device=x.device) < sizes_N2[:, :1]
        columns = torch.arange(width, device=x.device) < sizes_N2[:, 1:]
        x = x * (rows[:, None, :, None] & columns[:, None, None, :])
    bottom, right = -height % multiple, -width % multiple
    return F.pad(x, (0, right, 0, bottom)) if bottom or right else x
