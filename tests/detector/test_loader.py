import gc
import threading
import time
from collections.abc import Callable

import pytest

from detector.data.loader import prefetched


def prefetching() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_come_in_order_whichever_is_made_first(threads: int) -> None:
    def make(step: int) -> int:
        time.sleep(0.002 * (step % 3 == 0))
        return step**2

    assert list(prefetched(make, range(3, 12), threads)) == [step**2 for step in range(3, 12)]
    assert prefetching() == []


@pytest.mark.parametrize("threads", [0, 2])
def test_no_steps_are_no_results(threads: int) -> None:
    assert list(prefetched(str, range(5, 5), threads)) == []


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_an_error_is_raised_at_its_own_step(threads: int) -> None:
    def make(step: int) -> int:
        if step == 2:
            raise OSError("step 2")
        return step

    results = prefetched(make, range(9), threads)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(OSError, match="step 2"):
        next(results)
    assert prefetching() == []


@pytest.mark.parametrize("threads", [0, 2])
def test_a_stop_iteration_in_a_step_does_not_pass_for_the_end(threads: int) -> None:
    def make(step: int) -> int:
        return next(iter(()))

    with pytest.raises(RuntimeError, match="StopIteration"):
        list(prefetched(make, range(3), threads))


@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_than_threads_plus_one_wait_beside_the_one_in_use(threads: int) -> None:
    made: list[int] = []
    results = prefetched(made.append, range(100), threads)
    for step in range(4):
        next(results)
        ahead = step + 1 + threads + 1
        wait_until(lambda least=ahead: len(made) >= least)
        time.sleep(0.01)  # time for one too many
        assert sorted(made) == list(range(ahead))
    results.close()


def test_threads_work_at_the_same_time() -> None:
    barrier = threading.Barrier(3)
    assert len(list(prefetched(lambda step: barrier.wait(30), range(9), threads=3))) == 9


def test_closing_drops_what_waits_and_ends_the_threads() -> None:
    made: list[int] = []
    go_on = threading.Event()

    def make(step: int) -> None:
        if step > 0:
            go_on.wait(30)
        made.append(step)

    results = prefetched(make, range(100), threads=1)
    next(results)
    wait_until(lambda: made == [0])
    threading.Timer(1.0, go_on.set).start()
    results.close()
    assert prefetching() == []
    assert len(made) <= 2  # the first, and the one that was at work


def test_forgetting_the_results_ends_the_threads() -> None:
    results = prefetched(str, range(100), threads=2)
    assert next(results) == "0"
    assert prefetching() != []
    del results
    gc.collect()
    assert prefetching() == []
