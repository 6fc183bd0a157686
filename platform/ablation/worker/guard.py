"""Kills the process that started it once that process is frozen: `python -I -S guard.py PID`.

A process that is stopped (SIGSTOP), or waits for a file system that is gone, runs no thread that could end
it. This one imports the standard library alone, holds nothing open but the memory that both share (its
standard input), and ends with the process that it guards.

It counts its own rounds instead of time: while the whole machine sleeps, neither process counts.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import sys
import threading
import time

TICK_S = 1.0
LATER_S = 5.0
"""Waited beyond the limit: the watchdog in the process may end it first, and writes more about it."""

SIGN = struct.Struct("=qd")
"""A heartbeat: its number, and the seconds within which the next one is due; 0 for never."""
WATCH, BEAT, PATH = 0, SIGN.size, 2 * SIGN.size
"""Offsets in the memory: the last heartbeat of the training; that of the process, which counts while none of
the training is due; the path of the file to write a line to, with a zero byte at its end."""
SIZE = PATH + 4097


def main() -> None:
    """Runs until the process that started it has ended, or is frozen and killed."""
    pid = int(sys.argv[1])
    shared = mmap.mmap(sys.stdin.fileno(), SIZE, prot=mmap.PROT_READ)
    last, silent = (0, 0.0), 0.0
    while os.getppid() == pid:  # another one's child as soon as that has ended, long before its id is free
        sign = expected(shared)
        silent = silent + TICK_S if sign == last else 0.0
        last = sign
        if last[1] and silent > last[1] + LATER_S:
            _leave_word(bytes(shared[PATH:SIZE]).partition(b"\0")[0], pid, silent)
            if os.getppid() == pid and expected(shared) == last:  # it has not woken meanwhile
                os.kill(pid, signal.SIGKILL)
                return
        time.sleep(TICK_S)


def expected(shared: mmap.mmap) -> tuple[int, float]:
    """The heartbeat after which another is due."""
    watch, beat = SIGN.unpack_from(shared, WATCH), SIGN.unpack_from(shared, BEAT)
    return watch if watch[1] else beat


def _leave_word(path: bytes, pid: int, silent: float) -> None:
    line = f"process {pid} stood still for {silent:.0f} s: no thread of it ran. The guard process kills it.\n"
    # In a thread: what the process waits for may be the very disk that the file is on.
    writing = threading.Thread(target=_write, args=(path, line), daemon=True)
    writing.start()
    writing.join(LATER_S)


def _write(path: bytes, line: str) -> None:
    os.write(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), line.encode())


if __name__ == "__main__":
    main()
