"""Work for coming steps done in threads while the present one computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetched(make: Callable[[int], T], steps: range, threads: int) -> Generator[T, None, None]:
    """`make(step)` of every step, in order, made ahead of their use.

    Threads suffice: decoding, resizing and copying release the interpreter's lock. Where `make` is a function
    of the step alone, what comes out does not depend on `threads`, and `range(s, end)` goes on exactly as
    `range(0, end)` does from step s.

    Args:
        make: called once a step, from any of the threads, in any order.
        steps: which, in order.
        threads: 0 to make each when it is asked for; otherwise up to `threads` + 1 results wait beside the
            one in use.

    Yields:
        The result of each step. What `make` raises is raised at its own step and ends the iteration.
        When it ends, is closed or is no longer referred to, the threads finish what they are at and end.
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
