"""`python -m dashboards [--profile NAME] [--workspace DIR] ...`: write the study's page, say where it is."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ablation.cli import exit_with, selection_of, selection_parser
from ablation.session import Selection, Session
from dashboards.report import write_dashboard


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page beside the tables; exits as `ablation` does."""
    parser = argparse.ArgumentParser(
        prog="python -m dashboards",
        description="Write one page of a study: progress, tables, claims, every trial.",
        parents=[selection_parser()],
        allow_abbrev=False,
    )
    selection = selection_of(parser.parse_args(argv))
    exit_with(lambda: _write(selection))


def _write(selection: Selection) -> int:
    session = Session.of_results(selection)
    print(write_dashboard(session.study, session.plan, session.store, session.results / "dashboard.html"))
    return 0


if __name__ == "__main__":
    main()
