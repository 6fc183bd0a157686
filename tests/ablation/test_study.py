"""A study that contradicts itself is refused, with the cell or claim that does."""

from dataclasses import replace

import pytest

from ablation.claim import Better, CellRef, Chain, Claim, Equivalent, Range, references
from ablation.metric import Metric
from ablation.study import ByClass, Profile
from tests.support.metric_studies import ERRORS, TIMED

BASE = CellRef("table1", "base", "Error")


def test_a_cell_of_an_undeclared_metric_is_named() -> None:
    with pytest.raises(ValueError, match=r"table1, row 'base': no metric 'error'.*\['loss'\]"):
        replace(ERRORS, metrics=(Metric("loss"),))


def test_two_metrics_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"names of metrics must differ.*'error', 'error'"):
        replace(ERRORS, metrics=(*ERRORS.metrics, Metric("error")))
    with pytest.raises(ValueError, match="names of progress must differ"):
        replace(ERRORS, progress=(Metric("loss"), Metric("loss")))


def test_two_things_of_one_name_are_refused_wherever_the_name_leads_to_one() -> None:
    (table, *_), (claim, *_) = ERRORS.tables, ERRORS.claims
    with pytest.raises(ValueError, match=r"errors: ids of tables must differ.*'table1', 'table1'"):
        replace(ERRORS, tables=(table, table))
    with pytest.raises(ValueError, match="errors: ids of claims must differ"):
        replace(ERRORS, claims=(claim, claim))
    with pytest.raises(ValueError, match=r"table1: columns must differ, got \['Error', 'Error'\]"):
        replace(table, columns=("Error", "Error"))
    with pytest.raises(ValueError, match="table1: headers must differ"):
        replace(table, headers=("Method", "Method"))
    with pytest.raises(ValueError, match="table1: row labels must differ"):
        replace(table, rows=(table.rows[0],) * 2)


def test_a_profile_is_declared_under_its_own_name() -> None:
    profile = Profile("long", "", 1, lambda workspace, options: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="errors: the profile 'long' is declared as 'quick'"):
        replace(ERRORS, profiles={"quick": profile})


def test_a_claim_on_a_cell_that_does_not_exist_is_named() -> None:
    for ref in (CellRef("table9", "base", "Error"), CellRef("table1", "none", "Error"),
                CellRef("table1", "base", "AP")):  # fmt: skip
        with pytest.raises(ValueError, match="claim 'c': "):
            replace(ERRORS, claims=(Better("c", "", ref, CellRef("table1", "most", "Error")),))


def test_a_claim_compares_cells_of_one_metric() -> None:
    accuracy, time = CellRef("table1", "slow", "Accuracy"), CellRef("table1", "fast", "Time")
    with pytest.raises(ValueError, match=r"claim 'c' must compare cells of one metric.*'accuracy', 'time'"):
        replace(TIMED, claims=(Better("c", "", accuracy, time),))
    with pytest.raises(ValueError, match=r"must compare cells of one metric, got \[\]"):
        replace(TIMED, claims=(Range("c", "", (), 1.0),))


@pytest.mark.parametrize(
    "claim",
    [
        Better("c", "", BASE, BASE),
        Equivalent("c", "", BASE, BASE, 1.0),
        Range("c", "", (BASE,), 1.0),
        Range("c", "", (BASE, BASE), 1.0),
        Chain("c", "", ((BASE,),)),
        Chain("c", "", ((BASE, CellRef("table1", "more", "Error")), (BASE,))),
        Chain("c", "", ((BASE, CellRef("table1", "more", "Error")), ())),
    ],
)
def test_a_claim_compares_at_least_two_cells(claim: Claim) -> None:
    with pytest.raises(ValueError, match="errors: claim 'c' must compare at least two different cells"):
        replace(ERRORS, claims=(claim,))


def test_numbers_by_class_are_of_a_declared_metric() -> None:
    with pytest.raises(ValueError, match="by_class: no metric 'AP'"):
        replace(ERRORS, by_class=ByClass("AP", lambda *_: {}))


def test_a_claim_rests_on_all_the_cells_that_it_names() -> None:
    assert [len(references(claim)) for claim in ERRORS.claims] == [2, 3, 2, 3]
