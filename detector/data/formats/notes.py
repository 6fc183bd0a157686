"""What a reader tells the user: things that were changed or left out, counted, with their first case."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Notes:
    """Lines in the order in which each was first written."""

    _counts: dict[str, int] = field(default_factory=dict)
    _first: dict[str, str] = field(default_factory=dict)

    def say(self, line: str) -> None:
        """A line without a count; said again, it is not repeated."""
        self._counts.setdefault(line, 0)

    def count(self, what: str, case: str) -> None:
        """One more case of `what`."""
        self._counts[what] = self._counts.get(what, 0) + 1
        self._first.setdefault(what, case)

    def lines(self) -> tuple[str, ...]:
        """ "label files without an image, left out: 3 (first: a.txt)", ..."""
        return tuple(
            f"{what}: {count:,} (first: {self._first[what]})" if count else what
            for what, count in self._counts.items()
        )
