"""Plans, runs, tracks and assembles a paper's tables. Knows no detector and no dashboard.

`ablation.open(workspace)` gives the results as pandas tables (`ablation.results.frames.open_results`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablation.results.frames import open_results as open

__all__ = ["open"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: every process of a trial imports this package.
    if name == "open":
        from ablation.results.frames import open_results

        return open_results
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
