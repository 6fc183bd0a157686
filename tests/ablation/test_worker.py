"""The harness in a trial's own process; the one with several workers is run in test_scheduler."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ablation import worker
from ablation.protocol import EvaluationRequest, Progress, Report, Request, from_wire

REQUEST = Request("0123456789ab", "config", (EvaluationRequest("a", 1), EvaluationRequest("b", 2)), Path("x"))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    monkeypatch.setattr(worker, "_send", messages.append)
    return messages


def counts(request: Request) -> Iterator[Report]:
    yield Progress(1, 2, {"loss": 0.5})
    yield Progress(2, 2)


def breaks(request: Request) -> Iterator[Report]:
    yield Progress(1, 2)
    raise FloatingPointError("loss is NaN at step 2")


def test_every_report_is_sent_in_order(sent: list[dict[str, Any]]) -> None:
    assert worker.run_here(counts, REQUEST) is None
    assert [from_wire(message) for message in sent] == [Progress(1, 2, {"loss": 0.5}), Progress(2, 2)]


def test_an_exception_is_a_message_with_its_traceback_and_does_not_escape(sent: list[dict[str, Any]]) -> None:
    run_trial = worker.trainable(worker.Job(breaks, [REQUEST], 0.0, Path("x")))
    run_trial({"index": 0, "done": []})
    assert [message["kind"] for message in sent] == ["progress", worker.FAILED]
    assert sent[1]["error"].endswith("FloatingPointError: loss is NaN at step 2\n")
    assert "in breaks" in sent[1]["error"]


def test_an_evaluation_that_an_earlier_attempt_did_is_not_asked_for_again() -> None:
    assert worker.without(REQUEST, ["a"]).evaluations == (EvaluationRequest("b", 2),)
    assert worker.without(REQUEST, []) == REQUEST


class GroupError(Exception):
    def __init__(self, *ranks: int) -> None:
        super().__init__("the group failed")
        self.worker_failures = dict.fromkeys(ranks, ValueError())


def test_a_group_that_failed_in_python_names_the_lowest_rank_that_did() -> None:
    errors = {1: "ValueError: one", 0: "ValueError: zero"}
    assert worker._judged(GroupError(0, 1), errors) == "On rank 0:\nValueError: zero"


@pytest.mark.parametrize(
    ("failed", "errors"),
    [
        (GroupError(0, 1), {0: "RuntimeError: something"}),  # rank 1 died without a word
        (GroupError(0), {0: "RuntimeError: Connection closed by peer [127.0.0.1]:1234"}),
        (RuntimeError("the controller died"), {}),
    ],
)
def test_a_group_that_lost_a_process_may_start_again(failed: Exception, errors: dict[int, str]) -> None:
    with pytest.raises(worker.WorkersLostError):
        worker._judged(failed, errors)
