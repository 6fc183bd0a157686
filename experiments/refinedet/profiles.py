"""The scales at which the RefineDet study runs."""

from __future__ import annotations

from dataclasses import replace

from experiments.detection import small

SHAPES = replace(
    small.SHAPES,
    summary="drawn shapes, both tables in 20 minutes on 2 cores (default)",
)

SMOKE = replace(small.SMOKE, summary=f"{small.SMOKE.summary}: half a minute on 2 cores")

SCALES = (SHAPES, SMOKE)

PROFILES = tuple(map(small.profile, SCALES))
