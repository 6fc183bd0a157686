"""`python -m dashboards [--profile NAME] [--workspace DIR]`: write the study's page and say where it is."""

from __future__ import annotations

import argparse
from pathlib import Path

from ablation.session import Selection, Session
from dashboards.report import write_dashboard


def main() -> None:
    """Write the page beside the tables."""
    parser = argparse.ArgumentParser(prog="python -m dashboards", description=__doc__)
    parser.add_argument("--study", default="atss")
    parser.add_argument("--profile")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--workspace", type=Path)
    session = Session.open(Selection(**vars(parser.parse_args())))
    print(write_dashboard(session.study, session.plan, session.store, session.results / "dashboard.html"))


if __name__ == "__main__":
    main()
