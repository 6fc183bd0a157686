"""Reproduce the tables of a paper, `python experiments/reproduce_tables.py --study refinedet`, or of ATSS.

The same as `ablation run`, for those who look for a script.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the study with the arguments of the command line."""
    try:
        from ablation.cli import main as ablation
    except ModuleNotFoundError as error:
        sys.exit(
            f"This needs the project's package, and {error.name!r} is not installed here. "
            "Run `make install`, then `.venv/bin/python experiments/reproduce_tables.py`."
        )
    ablation(["run", *sys.argv[1:]])


if __name__ == "__main__":
    main()
