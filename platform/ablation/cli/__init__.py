"""The command line, `ablation COMMAND`, by what its commands are for.

inspect     plan, status, logs
run         run
results     tables, verify, measure, import-scores
compare     best, compare
control     pause, resume, cancel, retry, prioritise, gc
data        check-data
mlflow      sync, ui
arguments   what the parsers of several commands share
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from ablation.cli import compare, control, data, inspect, mlflow, results, run
from ablation.cli.arguments import add_study_options, selection_of, selection_parser
from ablation.credentials import hidden
from ablation.driver.run import EXIT_INTERRUPTED
from ablation.errors import UserError

__all__ = ["add_study_options", "exit_with", "main", "selection_of", "selection_parser"]

EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code: 0 done, 1 a trial failed, 2 bad input, 130 interrupted."""
    words = sys.argv[1:] if argv is None else argv
    exit_with(lambda: _run(words))


def _run(words: Sequence[str]) -> int:
    arguments = _parser(words).parse_args(words)
    arguments.command_line = hidden(shlex.join(["ablation", *words]))
    command: Callable[[argparse.Namespace], int] = arguments.command
    return command(arguments)


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


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of all commands; the one that the words name has the options of their study too."""
    parser = argparse.ArgumentParser(
        prog="ablation",
        description="Reproduce the tables of a paper: plan what they need, train it, and put them together.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in (inspect, run, results, compare, control, data, mlflow):
        module.add_commands(commands)
    if words and words[0] in commands.choices:
        add_study_options(commands.choices[words[0]], words[1:])
    return parser
