"""What a number of a study means: its name, its unit, which way is better and how it is rounded.

A `Metric` says this once; tables, claims, figures, displays and exports read it. A value may be negative.
A number that does not exist, because the test data holds nothing to measure, is absent or NaN: an
evaluation that has run, and not one that is still awaited.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

MINUS = "−"
PERCENT, POINTS, SECONDS = "%", "points", "s"
"""Units: any text can be one. Percentages differ by points; a count has the unit ""."""


class SeedNoise(NamedTuple):
    """How much one metric of a training varies with the seed.

    What a seed does to both rows of a comparison alike is left out.

    Attributes:
        sd: standard deviation, in the metric's unit.
        degrees_of_freedom: of this estimate.
    """

    sd: float
    degrees_of_freedom: int


@dataclass(frozen=True, slots=True)
class Metric:
    """One kind of number that a study reports.

    Attributes:
        name: its key in `Evaluated.metrics` or `Progress.metrics`, and what a `Cell` cites.
        unit: of its values; "" for a count or a ratio.
        better: the direction of improvement; "neither" for what describes a row, as a number of parameters.
        digits: decimals that tables show. Cells that show the same digits are equally good; statistics
            show one decimal more.
        label: what people read; the name when "".
        tolerance: a result at the paper's own scale that differs by at most this much from the paper's
            number is reproduced, in the metric's unit; None leaves that open.
        rescore_tolerance: how much a number that `Study.rescore` computes anew may differ from the stored
            one; None for a number that stored predictions do not give, such as a measured time.
        comparable: whether the paper's number and ours are of one kind. A speed on another machine is not:
            the paper's stands beside ours, without a difference.

    Raises:
        ValueError: an empty name, a direction that is none, or a negative number of digits.
    """

    name: str
    unit: str = PERCENT
    better: Literal["higher", "lower", "neither"] = "higher"
    digits: int = 1
    label: str = ""
    tolerance: float | None = None
    rescore_tolerance: float | None = 0.0
    comparable: bool = True

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a metric needs a name")
        if self.better not in ("higher", "lower", "neither"):
            raise ValueError(f"{self.name}: better must be higher, lower or neither, got {self.better!r}")
        if self.digits < 0:
            raise ValueError(f"{self.name}: digits must be >= 0, got {self.digits}")

    # --- as text ---------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """The label, or the name where there is none."""
        return self.label or self.name

    @property
    def difference_unit(self) -> str:
        """The unit of a difference: percentages differ by points."""
        return POINTS if self.unit == PERCENT else self.unit

    @property
    def axis(self) -> str:
        """The label of an axis: "AP (%)", "error (%, lower is better)"."""
        direction = "lower is better" if self.better == "lower" else ""
        inside = ", ".join(part for part in (self.unit, direction) if part)
        return f"{self.title} ({inside})" if inside else self.title

    def legend(self, *, differences: bool = False) -> str:
        """Unit and direction in words: "error in %, lower is better".

        Args:
            differences: name the unit of differences instead.
        """
        unit = self.difference_unit if differences else self.unit
        direction = "" if self.better == "neither" else f", {self.better} is better"
        return f"{self.title}{f' in {unit}' if unit else ''}{direction}"

    def rounded(self, value: float) -> float:
        """The value as tables show it; never minus zero."""
        return round(value, self.digits) + 0.0

    def text(self, value: float, more: int = 0) -> str:
        """The value with its digits (and `more`), a real minus sign, and no unit."""
        digits = self.digits + more
        return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", MINUS)

    def signed(self, value: float, more: int = 0) -> str:
        """`text` of a difference, with its sign; one that rounds to 0 has none."""
        sign = "+" if round(value, self.digits + more) > 0 else ""
        return sign + self.text(value, more)

    def with_unit(self, value: float) -> str:
        """The value with label and unit: "loss 1.250", "speed 80 images/s"."""
        return " ".join(part for part in (self.title, self.text(value), self.unit) if part)

    # --- comparing -------------------------------------------------------------------------------

    def improvement(self, difference: float) -> float:
        """A difference as a gain: positive where the first of two values is better than the second."""
        return -difference if self.better == "lower" else difference

    def best(self, values: Iterable[float]) -> float | None:
        """The best of the values; None where neither is better. ValueError when there is none."""
        if self.better == "neither":
            return None
        return max(values) if self.better == "higher" else min(values)

    def reproduces(self, ours: float, papers: float) -> bool | None:
        """Whether ours, as shown, lies within the tolerance of the paper's; None without a tolerance."""
        if self.tolerance is None or not self.comparable:
            return None
        return abs(self.rounded(ours) - papers) < self.tolerance + 1e-6


def in_words(metrics: Sequence[Metric], values: Mapping[str, float], more: int = 0) -> list[str]:
    """The values of the metrics that an evaluation reported: "AP 43.6", "APS undefined".

    Args:
        values: by name; one that is not of the metrics is left out.
        more: decimals beyond those of tables.
    """
    reported = {metric: values[metric.name] for metric in metrics if metric.name in values}
    return [
        f"{metric.title} {metric.text(value, more) if math.isfinite(value) else 'undefined'}"
        for metric, value in reported.items()
    ]
