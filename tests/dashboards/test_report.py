from dataclasses import dataclass
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from ablation.claim import Better, CellRef, Statistic
from ablation.metric import Metric
from ablation.plan import make_plan, register
from ablation.protocol import Evaluated, Noticed, Progress
from ablation.store import Store
from ablation.study import Cell, Row, Study, Table, Variant
from dashboards.report import curve, page, write_dashboard


@dataclass(frozen=True)
class Trial:
    method: str
    seed: int = 0


@dataclass(frozen=True)
class HowTested:
    scale: int = 1


LOSS = Metric("loss", unit="", better="lower", digits=3)


def forbidden(setting):
    raise AssertionError("a dashboard computes nothing")


@pytest.fixture
def workspace(tmp_path):
    rows = tuple(
        Row(name, (name,), (Cell(Variant(Trial(name), HowTested()), "AP", 37.0),))
        for name in ("good", "bad", "late")
    )
    claims = (
        Better("g", "Good beats late", CellRef("table1", "good", "AP"), CellRef("table1", "late", "AP")),
        Statistic("s", "Is fair", forbidden),
    )
    table = Table("table1", "Methods", ("Method",), ("AP",), rows)
    study = Study(
        "paper",
        "A <paper>",
        (Metric("AP"),),
        (table,),
        claims,
        {},
        "shapes",
        lambda request: iter(()),
        (LOSS,),
    )
    setting = SimpleNamespace(
        profile="shapes", data_name="shapes", caption="Small.", notices=(), context=None,
        at_paper_scale=False, own_data=None, seed_noise={}, exclusive_gpus=False,
        trial=lambda training, seed: Trial(training.method, seed), evaluation=lambda evaluation: evaluation,
        resources=lambda trial: None, cost=lambda trial, evaluations: 1.0,
    )  # fmt: skip
    store = Store.open(tmp_path / "store.db")
    register(make_plan(study, setting, [0]), store)
    plan = make_plan(study, setting, [0], None, store)
    good, bad, _ = plan.trials
    attempt = store.claim(good.key, "test", {"commit": "0123456789abcdef"})
    store.record(attempt, [Progress(step, 100, {"loss": 2 - step / 100}) for step in range(0, 101, 50)])
    store.record(attempt, [Noticed("fell back <1>"), Evaluated(good.evaluations[0].key, {"AP": 47.25})])
    store.finish(attempt)
    store.fail(store.claim(bad.key, "test", {}), "ValueError: <loss> is NaN")
    return SimpleNamespace(study=study, store=store, plan=make_plan(study, setting, [0], None, store))


class Nesting(HTMLParser):
    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_shows_progress_tables_claims_and_every_trial(workspace):
    nesting = Nesting(page(workspace.study, workspace.plan, workspace.store))
    shown = " ".join(nesting.text)
    for part in (
        "3 trials: 1 complete, 1 waiting, 1 failed.", "Table 1. Methods", "47.2", "Good beats late",
        "table1 good, seed 0", "ValueError: <loss> is NaN", "fell back <1>", "AP 47.25", "0123456789",
    ):  # fmt: skip
        assert part in shown
    assert nesting.tags.count("svg") == 1


def test_an_evaluation_that_waits_for_a_servers_numbers_says_submit(workspace):
    late = workspace.plan.trials[2]
    attempt = workspace.store.claim(late.key, "test", {})
    workspace.store.record(
        attempt, [Evaluated(late.evaluations[0].key, {}, {"submission": "detections.json"})]
    )
    workspace.store.finish(attempt)
    plan = make_plan(workspace.study, workspace.plan.setting, [0], None, workspace.store)
    shown = page(workspace.study, plan, workspace.store)
    assert f"Evaluation {late.evaluations[0].key}</th><td>submit</td>" in shown


def test_the_page_is_written_whole_over_an_older_one(workspace, tmp_path):
    path = tmp_path / "deep" / "index.html"
    for _ in range(2):
        assert write_dashboard(workspace.study, workspace.plan, workspace.store, path) == path
    assert [found.name for found in path.parent.iterdir()] == ["index.html"]
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_store_opened_read_only_is_enough(workspace, tmp_path):
    reader = Store.open(tmp_path / "store.db", read_only=True)
    assert "Good beats late" in page(workspace.study, workspace.plan, reader)


def test_a_curve_needs_two_finite_points_at_different_steps():
    nan = float("nan")
    assert (
        curve([], LOSS)
        == curve([(1, 2.0)], LOSS)
        == curve([(1, 2.0), (2, nan)], LOSS)
        == curve([(1, 2.0), (1, 3.0)], LOSS)
        == ""
    )
    assert curve([(0, 2.0), (1, nan), (10, 2.0)], LOSS).count("L") == 1
