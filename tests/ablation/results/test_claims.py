import numpy as np
import pytest

from ablation.metric import SeedNoise
from ablation.results.claims import summary, verdicts
from ablation.results.table import assemble


def judge(workspace, table_ids=None):
    tables = assemble(workspace.study, workspace.plan, workspace.store, table_ids)
    return {v.id: v for v in verdicts(workspace.study, tables, workspace.setting)}


def test_clear_results_support_every_kind_of_claim(full):
    judged = judge(full)
    assert {v.id: v.verdict for v in judged.values()} == dict.fromkeys(judged, "supported")
    assert all(v.points_the_papers_way for v in judged.values())
    assert judged["better"].estimate == pytest.approx(5.3)
    assert judged["chain"].estimate == pytest.approx(0.9)  # the smallest step
    assert judged["range"].estimate == pytest.approx(0.4)
    assert judged["statistic"].detail == "on shapes"


def test_the_papers_own_estimates_stand_beside_ours(full):
    paper = {v.id: v.paper for v in judge(full).values()}
    assert paper == {
        "better": 5.3,
        "chain": pytest.approx(0.9),
        "equal": pytest.approx(0.1),
        "range": pytest.approx(0.4),
        "statistic": None,
    }


def test_clear_results_the_other_way_refute(make_workspace):
    workspace = make_workspace()
    numbers = {"other": 40.0, "base": 45.0, "gn": 44.0, "giou": 46.0, "iou-box": 40.0, "iou-point": 44.0}
    for method, value in (numbers | {"k3": 40.0, "k5": 41.0, "k7": 45.0}).items():
        workspace.measure(method, value)
    judged = judge(workspace)
    refuted = {v.id for v in judged.values() if v.verdict == "refuted"}
    assert refuted == {"better", "chain", "equal", "range"}
    assert not any(judged[claim].points_the_papers_way for claim in refuted)


def test_noisy_results_leave_claims_undecided_but_pointing(make_workspace):
    workspace = make_workspace()
    for method, value in {"other": 42.6, "base": 42.5, "iou-box": 40.0, "iou-point": 40.9}.items():
        workspace.measure(method, value, noise=1.0)
    judged = judge(workspace)
    assert {judged["better"].verdict, judged["equal"].verdict} == {"undecided"}
    assert judged["better"].points_the_papers_way
    assert judged["equal"].points_the_papers_way
    low, high = judged["better"].interval
    assert low < 0 < high
    assert "one seed" in judged["better"].detail


def test_a_claim_on_missing_cells_is_pending_and_says_on_which(partial):
    judged = judge(partial)
    assert judged["better"].verdict == "pending"
    assert judged["better"].points_the_papers_way is None
    assert "'other' (running 41 %)" in judged["better"].detail
    assert "'base+gn+giou' (failed)" in judged["chain"].detail
    assert "(not planned)" in judge(partial, ["table1"])["range"].detail


def test_claims_are_judged_on_the_seeds_that_all_their_cells_have(make_workspace):
    workspace = make_workspace((0, 1, 2))
    for seed in (0, 1):
        workspace.measure("other", 47.8 + seed / 10, seed=seed)
        workspace.measure("base", 42.5, seed=seed)
    workspace.measure("base", 10.0, seed=2)
    verdict = judge(workspace)["better"]
    assert verdict.estimate == pytest.approx(5.35)
    assert "2 of 3 seeds so far" in verdict.detail


def test_cleared_artifacts_leave_the_spread_over_seeds(make_workspace):
    workspace = make_workspace((0, 1))
    for seed in (0, 1):
        workspace.measure("other", 47.8 + seed / 10, seed=seed)
        workspace.measure("base", 42.5, seed=seed)
    for path in workspace.root.rglob("bootstrap.npz"):
        path.unlink()
    verdict = judge(workspace)["better"]
    assert verdict.verdict == "supported"
    assert "no bootstrap kept" in verdict.detail


def test_damaged_artifacts_block_no_report_and_are_named(make_workspace):
    workspace = make_workspace((0, 1))
    for seed in (0, 1):
        workspace.measure("other", 47.8 + seed / 10, seed=seed)
        workspace.measure("base", 42.5, seed=seed)
    damaged = workspace.root / "artifacts" / workspace.trial_key("other") / "bootstrap.npz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    verdict = judge(workspace)["better"]
    assert verdict.verdict == "supported"
    assert verdict.detail == f"no bootstrap kept; unreadable: {damaged}"


def test_bootstraps_of_different_lengths_count_as_not_kept(make_workspace):
    """Between rows, and between the seeds of one row."""
    workspace = make_workspace((0, 1))
    for seed in (0, 1):
        workspace.measure("other", 47.8 + seed / 10, seed=seed)
        workspace.measure("base", 42.5, seed=seed)
    for seed in (1, 0):
        path = workspace.root / "artifacts" / workspace.trial_key("other", seed) / "bootstrap.npz"
        np.savez(path, replicates=np.zeros((100, 2)), metrics=["AP", "APS"])
        verdict = judge(workspace)["better"]
        assert verdict.verdict == "supported"
        note = "no bootstrap kept; bootstraps of different lengths (100, 200 resamples) cannot be paired"
        assert verdict.detail == note


def test_bootstraps_of_an_earlier_version_are_named_as_such(make_workspace):
    workspace = make_workspace()
    for method in ("other", "base"):
        workspace.measure(method, 42.5)
    path = workspace.root / "artifacts" / workspace.trial_key("other") / "bootstrap.npz"
    np.savez(path, replicates=np.zeros((200, 2)))
    verdict = judge(workspace)["better"]
    assert (verdict.earlier, verdict.unreadable) == ((str(path),), ())
    assert verdict.detail.endswith(f"; of an earlier version: {path}")


def test_a_bootstrap_without_a_metric_is_no_damage(make_workspace):
    workspace = make_workspace()
    for method in ("other", "base"):
        workspace.measure(method, 42.5)
        path = workspace.root / "artifacts" / workspace.trial_key(method) / "bootstrap.npz"
        np.savez(path, replicates=np.zeros((200, 1)), metrics=["APS"])
    verdict = judge(workspace)["better"]
    assert verdict.detail == "no bootstrap kept; one seed: spread over seeds taken from the profile"


def test_the_summary_counts_verdicts_and_directions(full, make_workspace):
    assert summary(list(judge(full).values())) == "5 claims: 5 supported; 5 point the paper's way."


def test_the_summary_of_an_empty_store_names_what_is_pending(make_workspace):
    judged = list(judge(make_workspace()).values())
    assert summary(judged) == "5 claims: 1 supported, 4 pending; 1 point the paper's way."


def test_a_claim_on_a_cell_to_submit_is_pending_and_says_so(make_workspace):
    workspace = make_workspace()
    workspace.measure("base", 42.5)
    workspace.submit("other")
    verdict = judge(workspace)["better"]
    assert verdict.verdict == "pending"
    assert verdict.detail == "needs table1 'other' (an evaluation server's number)"


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_imported_numbers_have_a_difference_and_no_interval_so_nothing_is_decided(make_workspace, seeds):
    workspace = make_workspace(seeds)
    workspace.setting.seed_noise = {"AP": SeedNoise(0.1, 8)}
    for seed in seeds:
        workspace.measure("base", 42.5, seed=seed)
        workspace.measure("gn", 43.4, seed=seed)
        for method in ("other", "giou"):
            for key in workspace.submit(method, seed):
                workspace.give(key, 47.8 + seed)
    judged = judge(workspace)
    mean = sum(47.8 + seed for seed in seeds) / len(seeds)
    for claim, estimate in {"better": mean - 42.5, "chain": 0.9}.items():
        verdict = judged[claim]
        assert (verdict.verdict, verdict.interval) == ("undecided", None)
        assert verdict.estimate == pytest.approx(estimate)
        assert verdict.points_the_papers_way
        assert "an evaluation server's numbers: no interval" in verdict.detail
        assert "[" not in verdict.detail
