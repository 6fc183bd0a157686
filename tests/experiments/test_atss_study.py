"""The study says what the paper says, and its trials keep their identity."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ablation.claim import Better
from experiments.atss.claims import CLAIMS
from experiments.atss.study import study
from experiments.atss.tables import TABLES


def test_the_papers_grid_has_47_rows_39_trainings_and_two_further_evaluations() -> None:
    variants = {cell.variant for table in TABLES for row in table.rows for cell in row.cells}
    assert sum(len(table.rows) for table in TABLES) == 47
    assert len({v.training for v in variants}) == 39
    assert len(variants) == 41


@pytest.fixture(scope="module")
def paper(authors: Path) -> dict[str, Any]:
    """What the paper reports: rows by table, differences by claim."""
    content: dict[str, Any] = json.loads((authors / "paper_tables.json").read_text())
    return content


def test_every_number_beside_a_row_is_the_papers(paper: dict[str, Any]) -> None:
    ours = {table.id: table for table in TABLES}
    for name, rows in paper["tables"].items():
        table, reported = ours[name], [row["reported"] for row in rows]
        cells = [dict(zip(table.columns, (c.paper for c in r.cells), strict=True)) for r in table.rows]
        # A row of our own has nothing to be compared with.
        assert [numbers for numbers in cells if numbers in reported] == reported, name


def test_a_cell_is_reproduced_within_three_tenths_of_a_point() -> None:
    metrics = {cell.metric for table in TABLES for row in table.rows for cell in row.cells}
    assert {study().metric(name).tolerance for name in metrics} == {0.3}


def test_table_1_checks_the_papers_switches(paper: dict[str, Any]) -> None:
    for row in paper["tables"]["table1"]:
        ours = TABLES[0].row(row["label"])
        checked = [name for name, on in zip(TABLES[0].headers[1:], ours.headers[1:], strict=True) if on]
        assert checked == row["switches"]


def test_neighbouring_rows_of_table_1_differ_in_one_switch() -> None:
    rows = [row.cells[0].variant.training.detector for row in TABLES[0].rows[1:7]]
    changed = []
    for before, after in pairwise(rows):
        fields = ("head", "anchors", "assigner", "regression", "box_loss", "focal", "backbone", "fpn")
        changed.append([name for name in fields if getattr(before, name) != getattr(after, name)])
    assert changed == [["head"], ["box_loss"], ["assigner"], ["head"], ["head"]]


def test_all_claims_of_the_paper_are_there(paper: dict[str, Any]) -> None:
    assert paper["claims"].keys() <= {claim.id for claim in CLAIMS}


@pytest.mark.parametrize("claim", [c for c in CLAIMS if isinstance(c, Better)], ids=lambda c: c.id)
def test_the_paper_itself_supports_each_comparison(claim: Better, paper: dict[str, Any]) -> None:
    whole = study()
    left, right = whole.cell(claim.left).paper, whole.cell(claim.right).paper
    assert left is not None and right is not None
    assert left - right == pytest.approx(paper["claims"][claim.id])
    assert left > right
