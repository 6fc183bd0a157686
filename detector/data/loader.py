"""Prepares coming steps in threads, while the current step computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetched(make: Callable[[int], T], steps: range, threads: int) -> Generator[T, None, None]:
    """`make(step)` of every step, in order, computed ahead in threads.

    Decoding, resizing and copying release the interpreter's lock. If `make` is a function of the step alone,
    results do not depend on `threads`, and `range(s, end)` continues exactly as `range(0, end)` from step s.

    Args:
        make: called once per step, from any thread, in any order.
        steps: the steps, in order.
        threads: 0 to compute each result when it is needed; otherwise up to `threads` + 1 results are
            prepared beside the one in use.

    Yields:
        The result of each step. An exception of `make` is raised at its step and ends the iteration. When the
        iteration ends, is closed or is garbage, the threads finish their current call and end.
    """
    if threads == 0:
        for step in steps:
            yield make(step)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="prefetch") as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for step in steps:
                waiting.append(pool.submit(make, step))
                if len(waiting) > threads + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
