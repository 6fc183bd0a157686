"""How a row of a detection study trains, before a profile resolves it to a trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from detector.config import AnyDetector

Schedules = Literal["1x", "2x"]
SCHEDULES: tuple[Schedules, ...] = get_args(Schedules)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A row's training at its paper's scale.

    Attributes:
        schedule: the length, as papers call it: "2x" is twice as long as "1x", with images of several sizes.
            A profile gives both in iterations.
    """

    detector: AnyDetector
    schedule: Schedules = "1x"
