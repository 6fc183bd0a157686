"""Anchors of single-shot detectors ("default boxes", "prior boxes"), which are not clipped."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from detector.config import Level, SingleShot


def default_boxes(config: SingleShot) -> Tensor:
    """The anchors of all levels.

    Args:
        config: its levels and sides.

    Returns:
        (A, 4) float32, xyxy pixels: by level, y, x, then anchor of the cell. The centre of cell (x, y) is
        ((x + 0.5) stride, (y + 0.5) stride). Boxes reach over the image's borders.
    """
    levels = zip(config.levels, config.sides, strict=True)
    return torch.cat([_of_level(level, side) for level, side in levels]).float()


def _of_level(level: Level, side: int) -> Tensor:
    """(side * side * a, 4) float64."""
    centers = (torch.arange(side, dtype=torch.float64) + 0.5) * level.stride
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    half = torch.tensor(_shapes(level), dtype=torch.float64) / 2
    corners = torch.cat((-half, half), dim=1)
    return (torch.stack((x, y, x, y), dim=-1).unsqueeze(2) + corners).flatten(0, 2)


def _shapes(level: Level) -> list[tuple[float, float]]:
    """(width, height) of the anchors of a cell, in the order of the authors' code."""
    squares = [level.size] if level.next_size is None else [level.size, sqrt(level.size * level.next_size)]
    stretched = [s for r in level.ratios for s in ((sqrt(r), 1 / sqrt(r)), (1 / sqrt(r), sqrt(r)))]
    return [(s, s) for s in squares] + [(level.size * w, level.size * h) for w, h in stretched]
