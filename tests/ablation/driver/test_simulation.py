"""The scheduler on whole clusters, on a virtual clock: how full, how fair, and never stuck."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablation.driver.scheduler import GangScheduler
from ablation.resources import Node, Resources
from benchmarks.scheduling import (
    HOUR,
    NODES,
    Fifo,
    Greedy,
    Job,
    Outage,
    Simulation,
    bound,
    make_jobs,
    make_outages,
)

EIGHT = (Node("a", cpus=16, gpus=8, memory=0),)


def job(id: str, slots: int, length: float, estimate: float | None = None, arrival: float = 0.0) -> Job:
    return Job(id, Resources(slots, cpus=1, gpus=1), length, estimate or length, arrival)


def test_a_thousand_trials_on_64_nodes_that_fail_and_return() -> None:
    jobs = make_jobs(1000, random.Random(0))
    outages = make_outages(random.Random(1), until=60 * 24 * HOUR)
    outcome = Simulation(GangScheduler(NODES), jobs, NODES).run(outages)
    assert outcome.waits.keys() == {job.id for job in jobs}
    assert outcome.interrupted.total() > 0
    assert bound(jobs, NODES) / outcome.makespan > 0.93
    assert outcome.steps / outcome.cpu_seconds > 1000


def test_large_trials_are_not_starved_by_small_ones_that_keep_coming() -> None:
    jobs = make_jobs(600, random.Random(0), load=0.9)
    large = [job.id for job in jobs if job.resources.workers >= 32]
    waits = {}
    for policy in (GangScheduler, Greedy):
        outcome = Simulation(policy(NODES), jobs, NODES).run()
        waits[policy] = max(outcome.waits[id] for id in large)
    assert waits[GangScheduler] < 12 * HOUR < waits[Greedy]


def test_a_cluster_of_eight_slots_is_shared_by_trials_of_one_two_and_eight() -> None:
    mixed = [job(f"{size}-{i}", size, 10) for size in (8, 2, 1) for i in range({8: 3, 2: 8, 1: 16}[size])]
    random.Random(0).shuffle(mixed)
    outcome = Simulation(GangScheduler(EIGHT), mixed, EIGHT).run()
    assert outcome.makespan == bound(mixed, EIGHT) == 70


def test_a_large_trial_starts_among_endless_small_ones() -> None:
    small = [job(f"small{i}", 1, 10, arrival=i) for i in range(400)]
    large = job("large", 8, 10, arrival=50)
    outcome = Simulation(GangScheduler(EIGHT), [*small, large], EIGHT).run()
    assert outcome.waits["large"] <= 40
    starved = Simulation(Greedy(EIGHT), [*small, large], EIGHT).run()
    assert starved.waits["large"] > 340


def test_a_large_trial_starts_though_all_estimates_are_a_tenth_of_the_truth() -> None:
    small = [job(f"small{i}", 2, 100, estimate=10, arrival=10 * i) for i in range(100)]
    large = job("large", 8, 10, arrival=50)
    outcome = Simulation(GangScheduler(EIGHT), [*small, large], EIGHT).run()
    assert outcome.waits["large"] <= 300


def test_a_lost_node_costs_the_work_since_the_last_checkpoint() -> None:
    nodes = (Node("a", 8, 8, 0), Node("b", 8, 8, 0))
    jobs = [job("one", 8, 2000), job("two", 8, 1900)]
    outcome = Simulation(GangScheduler(nodes), jobs, nodes).run(
        [Outage("a", 700, 800), Outage("b", 9000, 9001)]
    )
    assert outcome.interrupted.total() == 1
    assert outcome.makespan == 800 + 1400  # of 700 s, 600 were saved
    assert outcome.busy == 8 * (2000 + 1900 + 100)


def test_trials_wait_for_nodes_that_come_back() -> None:
    jobs = [job("wide", 16, 100)]
    nodes = (Node("a", 8, 8, 0), Node("b", 8, 8, 0))
    outcome = Simulation(GangScheduler(nodes), jobs, nodes).run([Outage("a", 0, 500), Outage("b", 0, 700)])
    assert outcome.waits["wide"] == 700


@pytest.mark.parametrize("policy", [GangScheduler, Greedy, Fifo])
def test_policies_differ_in_order_alone_never_in_what_is_done(policy: type[GangScheduler]) -> None:
    jobs = make_jobs(100, random.Random(3))
    outcome = Simulation(policy(NODES[:32]), jobs, NODES[:32]).run()
    work = sum(job.resources.workers * job.length for job in jobs)
    assert outcome.busy == pytest.approx(work)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.booleans())
def test_every_trial_ends_whatever_fails(seed: int, count: int, wrong: bool) -> None:
    """The simulation itself asserts that no node holds too much and that nothing waits for ever."""
    state = random.Random(seed)
    nodes = [Node(str(i), 8, 8, 0) for i in range(count)]
    jobs = [
        job(
            str(i),
            state.choice([1, 1, 2, 4, 8, 8 * count]),
            state.uniform(1, 5000),
            state.uniform(1, 5000) if wrong else None,
            state.uniform(0, 9000),
        )
        for i in range(30)
    ]
    outages = [
        Outage(str(i), start, start + state.uniform(1, 900)) for i in range(count) for start in (1000, 4000)
    ]
    outcome = Simulation(GangScheduler(nodes), jobs, nodes).run(outages)
    assert len(outcome.waits) == 30
    assert outcome.makespan >= bound(jobs, nodes) * 0.999
