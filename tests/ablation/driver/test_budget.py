"""A run that would cost more than allowed asks first."""

import pytest

from ablation.driver.budget import agreed, confirm
from ablation.errors import UserError


def _never(question: str) -> str:
    raise AssertionError(question)


@pytest.mark.parametrize(
    ("hours", "budget", "yes"), [(9.0, None, False), (9.0, 9.0, False), (9.0, 1.0, True), (None, None, False)]
)
def test_within_the_budget_or_with_yes_nobody_is_asked(
    hours: float | None, budget: float | None, yes: bool
) -> None:
    asked: list[str] = []
    confirm(hours, budget, yes=yes, ask=lambda question: asked.append(question) or "", interactive=True)
    assert asked == []


@pytest.mark.parametrize(
    ("hours", "said"), [(12.34, "about 12.3 GPU-hours"), (None, "No training was measured yet")]
)
def test_over_the_budget_without_anybody_to_ask_the_run_is_refused_with_the_numbers(
    hours: float | None, said: str
) -> None:
    with pytest.raises(UserError, match=rf"{said}.*allows 10\. .*--yes"):
        confirm(hours, 10.0, yes=False, ask=_never, interactive=False)


def test_over_the_budget_the_answer_decides() -> None:
    confirm(12.0, 10.0, yes=False, ask=lambda _: "y", interactive=True)
    with pytest.raises(UserError, match="Not started"):
        confirm(12.0, 10.0, yes=False, ask=lambda _: "", interactive=True)


def test_the_end_of_the_input_is_a_no() -> None:
    def closed(question: str) -> str:
        raise EOFError

    assert not agreed("Remove?", closed)
    assert agreed("Remove?", lambda question: "YES " if question == "Remove? [y/N] " else "")
