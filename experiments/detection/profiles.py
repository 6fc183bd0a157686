"""The profiles at which the study can run, by name."""

from __future__ import annotations

from experiments.detection.paper_scale import PAPER_PROFILE
from experiments.detection.small import SMALL_PROFILES

PROFILES = {profile.name: profile for profile in (*SMALL_PROFILES, PAPER_PROFILE)}
