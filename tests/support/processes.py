"""Keeps tests that start a process apart from those that do not.

A test starts none unless it is marked `process`, `slow` or `gpu`; where one of its fixtures starts one, it is
marked here. Python tells of every start (`sys.addaudithook`), and a test without a mark fails there.
"""

import multiprocessing.process
import sys
from collections.abc import Callable
from typing import Any

import pytest

MARKERS = ("process", "slow", "gpu")
FIXTURES = {"machines", "options_of", "postgres", "validate"}
"""Those that start a process, or whose value does."""
STARTS = {"os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"}

_unmarked: list[str] = []
"""The test that runs, where it may not start a process."""


def mark(item: pytest.Item) -> None:
    """Marks a test whose fixtures start a process."""
    if FIXTURES.intersection(getattr(item, "fixturenames", ())):
        item.add_marker("process")


def watch(item: pytest.Item) -> Callable[[], None]:
    """Lets the test start a process only where a mark says so, until the returned function is called."""
    if not any(item.get_closest_marker(name) for name in MARKERS):
        _unmarked.append(item.nodeid)
    return _unmarked.clear


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in STARTS and _unmarked:
        started = arguments[1] if event == "subprocess.Popen" else event
        if "ldconfig" in str(started):  # by `ctypes.util.find_library`, when torch is imported
            return
        pytest.fail(
            f"{_unmarked[0]} starts a process ({started}). Mark it @pytest.mark.process; where a fixture "
            "starts it for several files, add the fixture to tests/support/processes.py."
        )


def _start(process: multiprocessing.process.BaseProcess) -> None:
    """Of a process that multiprocessing spawns, Python tells nothing."""
    sys.audit("os.posix_spawn", str(process))
    _start_process(process)


_start_process = multiprocessing.process.BaseProcess.start
multiprocessing.process.BaseProcess.start = _start  # type: ignore[method-assign]
sys.addaudithook(_audit)
