"""Which trial starts next: priorities, whole groups, draining for the head, and nothing held twice."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ablation.driver.scheduler import GangScheduler, QueueEntry
from ablation.resources import Node, Resources

GB = 1 << 30


def slots(count: int) -> Resources:
    """A trial of one GPU for each of its workers."""
    return Resources(workers=count, cpus=1, gpus=1)


def box(id: str = "a", gpus: float = 8, cpus: float = 16, memory: int = 64 * GB) -> Node:
    return Node(id, cpus, gpus, memory)


def scheduler(
    *entries: QueueEntry, nodes: tuple[Node, ...] = (box(),), limit: int | None = None
) -> GangScheduler:
    made = GangScheduler(nodes, limit)
    for entry in entries:
        made.submit(entry)
    return made


def started(made: GangScheduler, now: float = 0) -> list[str]:
    """All that start now, in their order."""
    ids = []
    while entry := made.next(now):
        ids.append(entry.id)
    return ids


# --- order -------------------------------------------------------------------------------------------


def test_the_longest_starts_first_and_equals_in_the_order_in_which_they_came() -> None:
    seconds = {"short": 1, "first": 5, "second": 5, "long": 9}
    made = scheduler(*(QueueEntry(id, slots(1), s) for id, s in seconds.items()), limit=4)
    assert list(made.waiting) == ["long", "first", "second", "short"]
    assert started(made) == ["long", "first", "second", "short"]
    assert list(made.running) == ["long", "first", "second", "short"]
    assert not made.waiting


def test_priority_goes_before_length() -> None:
    made = scheduler(QueueEntry("long", slots(1), 9), QueueEntry("wanted", slots(1), 1, priority=1))
    assert started(made) == ["wanted", "long"]


def test_no_more_than_the_limit_run_at_a_time() -> None:
    made = scheduler(*(QueueEntry(str(i), slots(1), 1) for i in range(4)), limit=3)
    assert len(started(made)) == 3
    made.release("0")
    assert started(made) == ["3"]


def test_an_entry_submitted_again_is_replaced_and_keeps_its_position_among_equals() -> None:
    made = scheduler(QueueEntry("a", slots(1), 5), QueueEntry("b", slots(1), 5))
    made.submit(QueueEntry("a", slots(1), 1))
    assert list(made.waiting) == ["b", "a"]
    made.submit(QueueEntry("a", slots(1), 5))
    assert list(made.waiting) == ["a", "b"]


def test_time_waited_counts_as_length_so_that_longer_ones_that_keep_coming_starve_nobody() -> None:
    made = scheduler(QueueEntry("old", slots(8), 10), QueueEntry("0", slots(8), 50))
    for hour in range(1, 9):
        (id,) = started(made, now=1000 + 10 * hour)
        if id == "old":
            break
        made.release(id)
        made.submit(QueueEntry(str(hour), slots(8), 50))
    assert (id, hour) == ("old", 6)  # as long as the one submitted 40 s later, with those 40 s


def test_a_trial_that_lost_its_node_has_waited_since_it_first_came() -> None:
    made = scheduler(QueueEntry("lost", slots(8), 50))
    started(made, now=0)
    made.next(30)
    made.submit(QueueEntry("new", slots(8), 60))
    made.release("lost")
    made.submit(QueueEntry("lost", slots(8), 40))
    assert started(made, now=30) == ["lost"]


def test_withdrawing_or_releasing_twice_changes_nothing() -> None:
    made = scheduler(QueueEntry("a", slots(8), 5), QueueEntry("b", slots(8), 4))
    assert started(made) == ["a"]
    for _ in range(2):
        made.withdraw("b")
        made.release("a")
    assert not made.waiting and not made.running
    made.submit(QueueEntry("a", slots(8), 5))
    assert started(made) == ["a"]


def test_a_running_trial_cannot_wait_too() -> None:
    made = scheduler(QueueEntry("a", slots(1), 5))
    started(made)
    with pytest.raises(ValueError, match="a is running"):
        made.submit(QueueEntry("a", slots(1), 5))


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_an_estimate_must_be_positive(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds must be > 0"):
        QueueEntry("a", slots(1), seconds)


# --- placement ------------------------------------------------------------------------------------------


def test_a_group_starts_as_a_whole_or_not_at_all() -> None:
    made = scheduler(QueueEntry("seven", slots(7), 9), QueueEntry("two", slots(2), 5))
    assert started(made) == ["seven"]
    made.release("seven")
    assert started(made) == ["two"]


def test_a_group_lies_on_the_tightest_node_that_holds_all_of_it() -> None:
    nodes = (box("big"), box("small", gpus=2, cpus=4))
    made = scheduler(QueueEntry("pair", slots(2), 9), nodes=nodes)
    assert started(made) == ["pair"]
    assert made.placement("pair") == ("small", "small")


def test_a_group_too_large_for_a_node_lies_on_as_few_as_can_be() -> None:
    nodes = (box("two", gpus=2), box("four", gpus=4), box("three", gpus=3))
    made = scheduler(QueueEntry("six", slots(6), 9), nodes=nodes)
    assert started(made) == ["six"]
    assert made.placement("six") == ("four", "four", "four", "four", "three", "three")


def test_what_needs_no_gpu_leaves_the_nodes_with_gpus_to_others() -> None:
    made = scheduler(QueueEntry("cpu", Resources(), 9), nodes=(box("gpus"), box("none", gpus=0)))
    started(made)
    assert made.placement("cpu") == ("none",)


@pytest.mark.parametrize(
    ("each", "together"),
    [
        (Resources(cpus=5), 3),
        (Resources(cpus=1, memory=20 * GB), 3),
        (Resources(cpus=0, gpus=1), 8),
        (Resources(cpus=1, gpus=1 / 2), 16),
        # Two of 0.6 do not share a GPU, though the sum of all free parts would do.
        (Resources(cpus=1, gpus=0.6), 8),
        (Resources(cpus=1, gpus=3), 2),
    ],
)
def test_cpus_memory_and_parts_of_gpus_bound_how_many_run_together(each: Resources, together: int) -> None:
    made = scheduler(*(QueueEntry(str(i), each, 1) for i in range(20)))
    assert len(started(made)) == together


def test_three_thirds_of_a_gpu_are_one() -> None:
    third = Resources(cpus=1, gpus=1 / 3)
    made = scheduler(*(QueueEntry(str(i), third, 1) for i in range(7)), nodes=(box(gpus=2),))
    assert len(started(made)) == 6


def test_parts_of_gpus_leave_whole_ones_whole() -> None:
    half = Resources(cpus=1, gpus=0.5)
    parts = [QueueEntry(f"half{i}", half, 9 - i) for i in range(2)]
    made = scheduler(*parts, QueueEntry("whole", slots(1), 1), nodes=(box(gpus=2),))
    assert started(made) == ["half0", "half1", "whole"]


def test_an_entry_that_could_never_fit_blocks_nothing() -> None:
    made = scheduler(QueueEntry("huge", slots(9), 99), QueueEntry("small", slots(1), 1))
    assert made.never_fits(slots(9)) and not made.never_fits(slots(8))
    assert started(made) == ["small"]
    assert made.passed is None
    made.set_nodes([box("a"), box("b", gpus=1)])
    assert not made.never_fits(slots(9))
    made.release("small")
    assert started(made) == ["huge"]


# --- draining ----------------------------------------------------------------------------------------


def test_smaller_entries_start_before_a_head_that_does_not_fit_for_as_long_as_it_would_run() -> None:
    made = scheduler(QueueEntry("a", slots(6), 90), QueueEntry("all", slots(8), 60))
    assert started(made) == ["a"]
    for id in ("b", "c"):
        made.submit(QueueEntry(id, slots(2), 5))
    assert started(made, now=1) == ["b"]
    assert made.passed == ("all", 61)
    made.release("b")
    assert started(made, now=60) == ["c"]
    made.release("c")
    made.submit(QueueEntry("d", slots(2), 5))
    assert started(made, now=61) == [], "two slots are free, and nothing starts before the head any more"
    made.release("a")
    assert started(made, now=62) == ["all"]
    assert made.passed is None


def test_a_head_starts_although_endless_small_ones_run_ten_times_as_long_as_estimated() -> None:
    made = scheduler(QueueEntry("a", slots(4), 10), QueueEntry("b", slots(4), 10))
    started(made)
    made.submit(QueueEntry("all", slots(8), 5))
    for i in range(100):
        made.submit(QueueEntry(f"small{i}", slots(4), 1))
    made.release("a")
    assert started(made, now=1) == ["small0"]
    made.release("small0")
    assert started(made, now=6) == []
    made.release("b")
    assert started(made, now=100) == ["all"]


def test_longer_entries_that_come_later_do_not_replace_a_passed_head_and_a_higher_priority_does() -> None:
    made = scheduler(
        QueueEntry("a", slots(7), 10), QueueEntry("all", slots(8), 5), QueueEntry("b", slots(1), 4)
    )
    assert started(made) == ["a", "b"]
    made.submit(QueueEntry("longer", slots(8), 500))
    made.submit(QueueEntry("c", slots(1), 1))
    made.release("b")
    assert started(made, now=5) == []
    assert made.passed == ("all", 5)
    made.submit(QueueEntry("urgent", slots(2), 500, priority=1))
    assert started(made, now=7) == ["c"], "it passes another head, whose time only begins"
    assert made.passed == ("urgent", 507)
    made.release("a")
    assert started(made, now=8)[0] == "urgent"


@pytest.mark.parametrize("gone", ["withdrawn", "its node lost"])
def test_draining_ends_with_its_entry_or_when_no_node_could_hold_it(gone: str) -> None:
    made = scheduler(
        QueueEntry("a", slots(6), 50), QueueEntry("all", slots(8), 40), QueueEntry("one", slots(1), 9)
    )
    assert started(made) == ["a", "one"]
    made.submit(QueueEntry("b", slots(1), 90, priority=-1))
    assert started(made, now=40) == []
    if gone == "withdrawn":
        made.withdraw("all")
    else:
        made.set_nodes([box("c", gpus=2)])
    assert started(made, now=40) == ["b"]


# --- nodes that come and go ----------------------------------------------------------------------------


def test_a_trial_keeps_its_places_on_the_nodes_that_are_left() -> None:
    made = scheduler(
        QueueEntry("wide", slots(12), 9), QueueEntry("four", slots(4), 5), nodes=(box("a"), box("b"))
    )
    started(made)
    made.set_nodes([box("b"), box("c", gpus=2)])
    assert "a" not in made.placement("wide")
    made.submit(QueueEntry("eight", slots(8), 5))
    assert started(made) == []
    made.release("wide")
    made.release("four")
    assert started(made) == ["eight"]


def test_a_quarantined_allocation_stays_taken_and_the_rest_of_its_trial_is_freed() -> None:
    made = scheduler(QueueEntry("pair", slots(2), 1), nodes=(box("a", gpus=1), box("b", gpus=1)))
    assert started(made) == ["pair"]
    made.quarantine("pair", "b")
    assert not made.running
    for id in ("one", "two"):
        made.submit(QueueEntry(id, slots(1), 1))
    assert started(made) == ["one"]
    assert made.placement("one") == ("a",)
    made.release("one")
    assert started(made) == ["two"]


def test_an_entry_that_needs_a_quarantined_gpu_never_fits_until_its_node_joins_anew() -> None:
    made = scheduler(QueueEntry("bad", slots(1), 9), nodes=(box("a", gpus=2),))
    assert started(made) == ["bad"]
    made.submit(QueueEntry("pair", slots(2), 1))
    assert started(made) == []
    made.quarantine("bad", "a")
    made.submit(QueueEntry("late", slots(1), 1))
    assert made.never_fits(slots(2))
    assert started(made) == ["late"], "nothing waits for what cannot be"
    made.release("late")
    for nodes in ((), (box("a", gpus=2),)):
        made.set_nodes(nodes)
    assert started(made) == ["pair"]


def test_the_allocation_of_the_scheduler_is_quarantined_where_ray_used_another_node() -> None:
    made = scheduler(QueueEntry("one", slots(1), 1), nodes=(box("a", gpus=1), box("b", gpus=8)))
    assert started(made) == ["one"]
    assert made.placement("one") == ("a",)
    made.quarantine("one", "b")
    assert not made.never_fits(slots(8))
    made.submit(QueueEntry("nine", slots(9), 1))
    assert started(made) == []


def test_a_node_that_comes_back_is_empty() -> None:
    made = scheduler(QueueEntry("a", slots(8), 9))
    started(made)
    made.set_nodes([])
    made.set_nodes([box()])
    made.submit(QueueEntry("b", slots(8), 9))
    assert started(made) == ["b"]
    made.release("a")
    made.submit(QueueEntry("c", slots(1), 9))
    assert started(made) == []


def test_a_node_of_another_size_is_another_node() -> None:
    made = scheduler(QueueEntry("a", slots(8), 9))
    started(made)
    made.set_nodes([box(gpus=4)])
    assert made.placement("a") == ()
    made.release("a")
    made.submit(QueueEntry("b", slots(4), 9))
    assert started(made) == ["b"]


# --- whatever happens ----------------------------------------------------------------------------------

SIZES = [
    Resources(cpus=1),
    Resources(cpus=3, memory=GB),
    Resources(cpus=1, gpus=0.4),
    Resources(cpus=1, gpus=1),
    Resources(workers=2, cpus=2, gpus=1),
    Resources(workers=4, cpus=1, gpus=2, memory=2 * GB),
    Resources(workers=6, cpus=2),
]
NODES = [
    Node("a", 8, 4, 8 * GB),
    Node("b", 8, 4, 8 * GB),
    Node("c", 6, 0, 2 * GB),
    Node("d", 4, 1, 16 * GB),
    Node("e", 16, 8, 4 * GB),
]


class AnyCluster(RuleBasedStateMachine):
    """Nodes come and go, entries are submitted, withdrawn, started, and end whenever they like."""

    @initialize(nodes=st.sets(st.sampled_from(NODES)), limit=st.none() | st.integers(1, 5))
    def begin(self, nodes: set[Node], limit: int | None) -> None:
        self.now, self.limit, self.nodes = 0.0, limit, nodes
        self.made = GangScheduler(nodes, limit)
        self.submitted = 0
        self.quarantined: list[tuple[str, Resources]] = []

    @rule(size=st.sampled_from(SIZES), seconds=st.floats(0.1, 100), priority=st.integers(-1, 1))
    def submit(self, size: Resources, seconds: float, priority: int) -> None:
        self.made.submit(QueueEntry(str(self.submitted), size, seconds, priority))
        self.submitted += 1

    @precondition(lambda self: self.made.waiting)
    @rule(data=st.data(), seconds=st.floats(0.1, 100), priority=st.integers(-1, 1))
    def submit_again(self, data: st.DataObject, seconds: float, priority: int) -> None:
        before = data.draw(st.sampled_from(list(self.made.waiting.values())))
        self.made.submit(QueueEntry(before.id, before.resources, seconds, priority))

    @precondition(lambda self: self.made.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        self.made.withdraw(data.draw(st.sampled_from(list(self.made.waiting))))

    @precondition(lambda self: self.made.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.made.release(data.draw(st.sampled_from(list(self.made.running))))

    @precondition(lambda self: self.made.running)
    @rule(data=st.data(), node=st.sampled_from(NODES))
    def quarantine(self, data: st.DataObject, node: Node) -> None:
        id = data.draw(st.sampled_from(list(self.made.running)))
        each, places = self.made.running[id].resources, self.made.placement(id)
        self.made.quarantine(id, node.id)
        if places:
            bad = node.id if node.id in places else places[0]
            self.quarantined += [(place, each) for place in places if place == bad]

    @rule(seconds=st.floats(0, 60))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(nodes=st.sets(st.sampled_from(NODES)))
    def change_nodes(self, nodes: set[Node]) -> None:
        self.nodes = nodes
        self.made.set_nodes(nodes)
        self.quarantined = [(id, each) for id, each in self.quarantined if id in {node.id for node in nodes}]

    @rule()
    def start_all(self) -> None:
        waiting, places = self.made.waiting, {id: self.made.placement(id) for id in self.made.running}
        ids = started(self.made, self.now)
        assert set(ids) <= waiting.keys()
        assert {id: self.made.placement(id) for id in places} == places
        for id in ids:
            assert len(self.made.placement(id)) == waiting[id].resources.workers
        if not self.made.running:
            assert all(self.made.never_fits(one.resources) for one in self.made.waiting.values()), "stuck"

    @invariant()
    def no_node_holds_more_than_it_has(self) -> None:
        assert self.limit is None or len(self.made.running) <= self.limit
        for node in self.nodes:
            held = [
                entry.resources
                for id, entry in self.made.running.items()
                for place in self.made.placement(id)
                if place == node.id
            ]
            held += [each for id, each in self.quarantined if id == node.id]
            assert sum(r.cpus for r in held) <= node.cpus + 1e-6
            assert sum(r.gpus for r in held) <= node.gpus + 1e-6
            assert sum(r.memory for r in held) <= node.memory

    @invariant()
    def a_passed_head_waits(self) -> None:
        assert self.made.passed is None or self.made.passed[0] in self.made.waiting

    def teardown(self) -> None:
        """In the end everything that could ever fit has started, and all places are free again."""
        if not hasattr(self, "made"):
            return
        able = {id for id, c in self.made.waiting.items() if not self.made.never_fits(c.resources)}
        ran: set[str] = set()
        while self.made.running or ran < able:
            ids = started(self.made, self.now)
            assert ids or self.made.running, "stuck"
            ran |= set(ids)
            self.made.release(next(iter(self.made.running)))
            self.now += 1
        assert ran == able
        whole = [node for node in self.nodes if node.id not in dict(self.quarantined)]
        for node in whole:
            everything = Resources(cpus=node.cpus, gpus=node.gpus, memory=node.memory)
            self.made.submit(QueueEntry(f"all of {node.id}", everything, 1, priority=9))
        if self.limit is None:
            assert len(started(self.made, self.now)) == len(whole)


TestAnyCluster = AnyCluster.TestCase
TestAnyCluster.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 8]), st.integers(1, 30), st.integers(1, 300)), max_size=25),
    st.integers(1, 30),
)
def test_a_passed_head_waits_for_nothing_that_starts_after_its_time(
    others: list[tuple[int, int, int]], head: int
) -> None:
    """Estimates and true lengths have nothing to do with each other."""
    made = scheduler(
        *(QueueEntry(str(i), slots(size), seconds) for i, (size, seconds, _) in enumerate(others))
    )
    lengths = {str(i): length for i, (_, _, length) in enumerate(others)} | {"head": 7}
    ends: dict[str, float] = {}
    begun: dict[str, float] = {}
    made.submit(QueueEntry("head", slots(8), head))
    drains: dict[str, float] = {}
    now = 0.0
    while made.waiting or made.running:
        for id in started(made, now):
            begun[id], ends[id] = now, now + lengths[id]
        if made.passed:
            id, start = made.passed
            assert drains.setdefault(id, start) == start, "the bound does not move"
        soonest = min(made.running, key=ends.__getitem__)
        now = ends[soonest]
        made.release(soonest)
    for id, start in drains.items():
        earlier = [ends[other] for other in begun if begun[other] <= start and other != id]
        assert begun[id] <= max([start, *earlier])
