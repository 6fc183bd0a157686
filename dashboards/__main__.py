"""`python -m dashboards [--profile NAME] [--workspace DIR] ...`: write the study's page, say where it is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ablation.cli import add_study_options, exit_with, selection_of, selection_parser
from ablation.session import Session
from dashboards.report import write_dashboard


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page beside the tables; exits as `ablation` does."""
    parser = argparse.ArgumentParser(
        prog="python -m dashboards",
        description="Write one page of a study: progress, tables, claims, every trial.",
        parents=[selection_parser()],
        allow_abbrev=False,
    )
    exit_with(lambda: _write(parser, sys.argv[1:] if argv is None else argv))


def _write(parser: argparse.ArgumentParser, words: Sequence[str]) -> int:
    add_study_options(parser, words)
    session = Session.of_results(selection_of(parser.parse_args(words)))
    print(write_dashboard(session.study, session.plan, session.store, session.results / "dashboard.html"))
    return 0


if __name__ == "__main__":
    main()
