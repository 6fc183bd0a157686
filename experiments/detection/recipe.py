"""How a row of a detection study trains: what its profiles turn into a trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from detector.config import Detector


@dataclass(frozen=True, slots=True)
class Recipe:
    """A row's training at the paper's scale.

    Attributes:
        schedule: "1x" is 90k iterations of 16 images; "2x" is 180k with the short side drawn from
            640 to 800 (Table 8).
    """

    detector: Detector
    schedule: Literal["1x", "2x"] = "1x"
