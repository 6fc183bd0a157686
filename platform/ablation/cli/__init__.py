"""The command line, `ablation COMMAND`, by what its commands are for.

looking       plan, status, tables, logs
running       run
controlling   pause, resume, cancel, retry, prioritise, gc
checking      check-data, verify, import-scores
mirroring     sync, ui
parts         options that commands share
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from ablation.cli import checking, controlling, looking, mirroring, running
from ablation.cli.parts import selection_of, selection_parser
from ablation.credentials import hidden
from ablation.driver.run import EXIT_INTERRUPTED
from ablation.errors import UserError

__all__ = ["exit_with", "main", "selection_of", "selection_parser"]

EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code: 0 done, 1 a trial failed, 2 bad input, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(argv)
    arguments.command_line = hidden(shlex.join(["ablation", *argv]))
    command: Callable[[argparse.Namespace], int] = arguments.command
    exit_with(lambda: command(arguments))


def exit_with(command: Callable[[], int]) -> NoReturn:
    """Run `command` and exit with its code; what a person can act on is printed without a traceback."""
    try:
        sys.exit(command())
    except UserError as error:
        print(f"ablation: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on where this one was.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ablation",
        description="Reproduce the tables of a paper: plan what they need, train it, and put them together.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in (looking, running, controlling, checking, mirroring):
        module.add_commands(commands)
    return parser
