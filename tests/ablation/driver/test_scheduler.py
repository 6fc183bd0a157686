"""Who starts next: priorities, whole groups, promises kept, and nothing held twice."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ablation.driver.scheduler import Admission, Candidate
from ablation.resources import Node, Resources

GB = 1 << 30


def slots(count: int) -> Resources:
    """A trial of one GPU for each of its workers."""
    return Resources(workers=count, cpus=1, gpus=1)


def box(id: str = "a", gpus: float = 8, cpus: float = 16, memory: int = 64 * GB) -> Node:
    return Node(id, cpus, gpus, memory)


def admission(
    *candidates: Candidate, nodes: tuple[Node, ...] = (box(),), limit: int | None = None
) -> Admission:
    made = Admission(nodes, limit)
    for candidate in candidates:
        made.offer(candidate)
    return made


def started(made: Admission, now: float = 0) -> list[str]:
    """All that start now, in their order."""
    ids = []
    while candidate := made.next(now):
        ids.append(candidate.id)
    return ids


# --- order -------------------------------------------------------------------------------------------


def test_the_longest_starts_first_and_equals_in_the_order_in_which_they_came() -> None:
    seconds = {"short": 1, "first": 5, "second": 5, "long": 9}
    made = admission(*(Candidate(id, slots(1), s) for id, s in seconds.items()), limit=4)
    assert list(made.waiting) == ["long", "first", "second", "short"]
    assert started(made) == ["long", "first", "second", "short"]
    assert list(made.running) == ["long", "first", "second", "short"]
    assert not made.waiting


def test_priority_goes_before_length() -> None:
    made = admission(Candidate("long", slots(1), 9), Candidate("wanted", slots(1), 1, priority=1))
    assert started(made) == ["wanted", "long"]


def test_no_more_than_the_limit_run_at_a_time() -> None:
    made = admission(*(Candidate(str(i), slots(1), 1) for i in range(4)), limit=3)
    assert len(started(made)) == 3
    made.release("0")
    assert started(made) == ["3"]


def test_offered_again_a_trial_is_replaced_and_keeps_its_turn_among_equals() -> None:
    made = admission(Candidate("a", slots(1), 5), Candidate("b", slots(1), 5))
    made.offer(Candidate("a", slots(1), 1))
    assert list(made.waiting) == ["b", "a"]
    made.offer(Candidate("a", slots(1), 5))
    assert list(made.waiting) == ["a", "b"]


def test_time_waited_counts_as_length_so_that_longer_ones_that_keep_coming_starve_nobody() -> None:
    made = admission(Candidate("old", slots(8), 10), Candidate("0", slots(8), 50))
    for hour in range(1, 9):
        (id,) = started(made, now=1000 + 10 * hour)
        if id == "old":
            break
        made.release(id)
        made.offer(Candidate(str(hour), slots(8), 50))
    assert (id, hour) == ("old", 6)  # as long as the one offered 40 s later, with those 40 s


def test_a_trial_that_lost_its_node_has_waited_since_it_first_came() -> None:
    made = admission(Candidate("lost", slots(8), 50))
    started(made, now=0)
    made.next(30)
    made.offer(Candidate("new", slots(8), 60))
    made.release("lost")
    made.offer(Candidate("lost", slots(8), 40))
    assert started(made, now=30) == ["lost"]


def test_withdrawn_and_released_trials_are_gone_and_going_twice_changes_nothing() -> None:
    made = admission(Candidate("a", slots(8), 5), Candidate("b", slots(8), 4))
    assert started(made) == ["a"]
    for _ in range(2):
        made.withdraw("b")
        made.release("a")
    assert not made.waiting and not made.running
    made.offer(Candidate("a", slots(8), 5))
    assert started(made) == ["a"]


def test_a_running_trial_cannot_wait_too() -> None:
    made = admission(Candidate("a", slots(1), 5))
    started(made)
    with pytest.raises(ValueError, match="a is running"):
        made.offer(Candidate("a", slots(1), 5))


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_an_estimate_must_be_positive(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds must be > 0"):
        Candidate("a", slots(1), seconds)


# --- places ------------------------------------------------------------------------------------------


def test_a_group_starts_as_a_whole_or_not_at_all() -> None:
    made = admission(Candidate("seven", slots(7), 9), Candidate("two", slots(2), 5))
    assert started(made) == ["seven"]
    made.release("seven")
    assert started(made) == ["two"]


def test_a_group_lies_on_the_tightest_node_that_holds_all_of_it() -> None:
    nodes = (box("big"), box("small", gpus=2, cpus=4))
    made = admission(Candidate("pair", slots(2), 9), nodes=nodes)
    assert started(made) == ["pair"]
    assert made.places("pair") == ("small", "small")


def test_a_group_too_large_for_a_node_lies_on_as_few_as_can_be() -> None:
    nodes = (box("two", gpus=2), box("four", gpus=4), box("three", gpus=3))
    made = admission(Candidate("six", slots(6), 9), nodes=nodes)
    assert started(made) == ["six"]
    assert made.places("six") == ("four", "four", "four", "four", "three", "three")


def test_what_needs_no_gpu_leaves_the_nodes_with_gpus_to_others() -> None:
    made = admission(Candidate("cpu", Resources(), 9), nodes=(box("gpus"), box("none", gpus=0)))
    started(made)
    assert made.places("cpu") == ("none",)


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
    made = admission(*(Candidate(str(i), each, 1) for i in range(20)))
    assert len(started(made)) == together


def test_three_thirds_of_a_gpu_are_one() -> None:
    third = Resources(cpus=1, gpus=1 / 3)
    made = admission(*(Candidate(str(i), third, 1) for i in range(7)), nodes=(box(gpus=2),))
    assert len(started(made)) == 6


def test_parts_of_gpus_leave_whole_ones_whole() -> None:
    half = Resources(cpus=1, gpus=0.5)
    parts = [Candidate(f"half{i}", half, 9 - i) for i in range(2)]
    made = admission(*parts, Candidate("whole", slots(1), 1), nodes=(box(gpus=2),))
    assert started(made) == ["half0", "half1", "whole"]


def test_what_could_never_fit_is_named_and_holds_up_nothing() -> None:
    made = admission(Candidate("huge", slots(9), 99), Candidate("small", slots(1), 1))
    assert made.never_fits(slots(9)) and not made.never_fits(slots(8))
    assert started(made) == ["small"]
    assert made.promised is None
    made.set_nodes([box("a"), box("b", gpus=1)])
    assert not made.never_fits(slots(9))
    made.release("small")
    assert started(made) == ["huge"]


# --- promises ----------------------------------------------------------------------------------------


def test_a_large_trial_is_promised_the_places_that_come_free_first() -> None:
    made = admission(Candidate("a", slots(4), 50), Candidate("b", slots(4), 40))
    started(made)
    made.offer(Candidate("all", slots(8), 60))
    made.offer(Candidate("b2", slots(4), 5))
    assert started(made, now=1) == []
    made.release("b")
    assert started(made, now=30) == ["b2"]  # over by 35, and the large one waits until 50 anyway
    assert made.promised == ("all", 50)
    made.release("b2")
    made.release("a")
    assert started(made, now=34) == ["all"]
    assert made.promised is None


def test_what_would_still_run_at_the_promised_time_waits() -> None:
    made = admission(
        Candidate("a", slots(4), 50), Candidate("all", slots(8), 40), Candidate("b", slots(4), 39)
    )
    assert started(made) == ["a", "b"]
    made.offer(Candidate("c", slots(4), 20))
    made.release("b")
    assert started(made, now=31) == []  # over by 51, one too late
    assert started(made, now=30) == ["c"]


def test_what_leaves_the_promised_places_alone_starts_however_long_it_is() -> None:
    nodes = (box("a", gpus=4), box("b", gpus=4))
    made = admission(
        Candidate("first", slots(3), 50, priority=1),
        Candidate("second", slots(3), 90, priority=1),
        Candidate("four", slots(4), 40, priority=1),
        Candidate("one", slots(1), 1000),
        Candidate("another", slots(1), 1000),
        nodes=nodes,
    )
    assert started(made) == ["second", "first", "one"]
    assert made.promised == ("four", 50)
    assert set(made.places("one")) == set(made.places("second"))


def test_a_promise_is_kept_when_estimates_are_wrong() -> None:
    """All take ten times as long as they say: without the promise small ones would follow each other."""
    made = admission(Candidate("a", slots(4), 10), Candidate("b", slots(4), 10))
    started(made)
    made.offer(Candidate("all", slots(8), 5))
    for i in range(100):
        made.offer(Candidate(f"small{i}", slots(4), 1))
    made.release("a")
    assert started(made, now=5) == ["small0"]
    made.release("small0")
    assert started(made, now=10.5) == []
    made.release("b")
    assert started(made, now=100) == ["all"]


def test_equals_that_come_later_do_not_break_a_promise_and_a_higher_priority_does() -> None:
    made = admission(
        Candidate("a", slots(8), 10), Candidate("all", slots(8), 5), Candidate("small", slots(1), 9)
    )
    started(made)
    made.offer(Candidate("half", slots(4), 10, priority=-1))
    made.release("a")
    made.offer(Candidate("one", slots(1), 7))
    assert started(made, now=3)[0] == "small"
    assert made.promised == ("all", 12)
    made.offer(Candidate("longer", slots(8), 500))
    assert made.next(3) is None or made.promised == ("all", 12)
    made.offer(Candidate("urgent", slots(5), 500, priority=1))
    assert started(made, now=4) == ["urgent"]


@pytest.mark.parametrize("gone", ["withdrawn", "its node lost"])
def test_a_promise_ends_with_its_trial_or_its_node(gone: str) -> None:
    made = admission(
        Candidate("a", slots(7), 50), Candidate("all", slots(8), 40), Candidate("b", slots(1), 90)
    )
    made.withdraw("b")
    started(made)
    made.offer(Candidate("b", slots(1), 90, priority=-1))
    assert started(made) == [] and made.promised == ("all", 50)
    if gone == "withdrawn":
        made.withdraw("all")
    else:
        made.set_nodes([box("c", gpus=2)])
    assert made.promised is None
    assert started(made) == ["b"]


# --- nodes that come and go ----------------------------------------------------------------------------


def test_a_trial_keeps_its_places_on_the_nodes_that_are_left() -> None:
    made = admission(
        Candidate("wide", slots(12), 9), Candidate("four", slots(4), 5), nodes=(box("a"), box("b"))
    )
    started(made)
    made.set_nodes([box("b"), box("c", gpus=2)])
    assert "a" not in made.places("wide")
    made.offer(Candidate("eight", slots(8), 5))
    assert started(made) == []
    made.release("wide")
    made.release("four")
    assert started(made) == ["eight"]


def test_what_is_set_aside_stays_taken_and_the_rest_of_its_trial_comes_free() -> None:
    made = admission(Candidate("pair", slots(2), 1), nodes=(box("a", gpus=1), box("b", gpus=1)))
    assert started(made) == ["pair"]
    made.set_aside("pair", "b")
    assert not made.running
    for id in ("one", "two"):
        made.offer(Candidate(id, slots(1), 1))
    assert started(made) == ["one"]
    assert made.places("one") == ("a",)
    made.release("one")
    assert started(made) == ["two"]


def test_what_would_need_a_place_that_is_set_aside_never_fits_until_its_node_comes_anew() -> None:
    made = admission(Candidate("bad", slots(1), 9), nodes=(box("a", gpus=2),))
    assert started(made) == ["bad"]
    made.offer(Candidate("pair", slots(2), 1))
    assert started(made) == []
    made.set_aside("bad", "a")
    made.offer(Candidate("late", slots(1), 1))
    assert made.never_fits(slots(2))
    assert started(made) == ["late"], "nothing waits for what cannot be"
    made.release("late")
    for nodes in ((), (box("a", gpus=2),)):
        made.set_nodes(nodes)
    assert started(made) == ["pair"]


def test_a_place_is_set_aside_on_the_node_that_was_counted_on_where_ray_took_another() -> None:
    made = admission(Candidate("one", slots(1), 1), nodes=(box("a", gpus=1), box("b", gpus=8)))
    assert started(made) == ["one"]
    assert made.places("one") == ("a",)
    made.set_aside("one", "b")
    assert not made.never_fits(slots(8))
    made.offer(Candidate("nine", slots(9), 1))
    assert started(made) == []


def test_a_node_that_comes_back_is_empty() -> None:
    made = admission(Candidate("a", slots(8), 9))
    started(made)
    made.set_nodes([])
    made.set_nodes([box()])
    made.offer(Candidate("b", slots(8), 9))
    assert started(made) == ["b"]
    made.release("a")
    made.offer(Candidate("c", slots(1), 9))
    assert started(made) == []


def test_a_node_of_another_size_is_another_node() -> None:
    made = admission(Candidate("a", slots(8), 9))
    started(made)
    made.set_nodes([box(gpus=4)])
    assert made.places("a") == ()
    made.release("a")
    made.offer(Candidate("b", slots(4), 9))
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
    """Nodes come and go, trials are offered, withdrawn, started, and end whenever they like."""

    @initialize(nodes=st.sets(st.sampled_from(NODES)), limit=st.none() | st.integers(1, 5))
    def begin(self, nodes: set[Node], limit: int | None) -> None:
        self.now, self.limit, self.nodes = 0.0, limit, nodes
        self.made = Admission(nodes, limit)
        self.offered = 0
        self.aside: list[tuple[str, Resources]] = []

    @rule(size=st.sampled_from(SIZES), seconds=st.floats(0.1, 100), priority=st.integers(-1, 1))
    def offer(self, size: Resources, seconds: float, priority: int) -> None:
        self.made.offer(Candidate(str(self.offered), size, seconds, priority))
        self.offered += 1

    @precondition(lambda self: self.made.waiting)
    @rule(data=st.data(), seconds=st.floats(0.1, 100), priority=st.integers(-1, 1))
    def offer_again(self, data: st.DataObject, seconds: float, priority: int) -> None:
        before = data.draw(st.sampled_from(list(self.made.waiting.values())))
        self.made.offer(Candidate(before.id, before.resources, seconds, priority))

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
    def set_aside(self, data: st.DataObject, node: Node) -> None:
        id = data.draw(st.sampled_from(list(self.made.running)))
        each, places = self.made.running[id].resources, self.made.places(id)
        self.made.set_aside(id, node.id)
        if places:
            bad = node.id if node.id in places else places[0]
            self.aside += [(place, each) for place in places if place == bad]

    @rule(seconds=st.floats(0, 60))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(nodes=st.sets(st.sampled_from(NODES)))
    def change_nodes(self, nodes: set[Node]) -> None:
        self.nodes = nodes
        self.made.set_nodes(nodes)
        self.aside = [(id, each) for id, each in self.aside if id in {node.id for node in nodes}]

    @rule()
    def start_all(self) -> None:
        waiting, places = self.made.waiting, {id: self.made.places(id) for id in self.made.running}
        ids = started(self.made, self.now)
        assert set(ids) <= waiting.keys()
        assert {id: self.made.places(id) for id in places} == places
        for id in ids:
            assert len(self.made.places(id)) == waiting[id].resources.workers
        if not self.made.running:
            assert all(self.made.never_fits(one.resources) for one in self.made.waiting.values()), "stuck"

    @invariant()
    def no_node_holds_more_than_it_has(self) -> None:
        assert self.limit is None or len(self.made.running) <= self.limit
        for node in self.nodes:
            held = [
                candidate.resources
                for id, candidate in self.made.running.items()
                for place in self.made.places(id)
                if place == node.id
            ]
            held += [each for id, each in self.aside if id == node.id]
            assert sum(r.cpus for r in held) <= node.cpus + 1e-6
            assert sum(r.gpus for r in held) <= node.gpus + 1e-6
            assert sum(r.memory for r in held) <= node.memory

    @invariant()
    def a_promise_is_to_one_that_waits(self) -> None:
        assert self.made.promised is None or self.made.promised[0] in self.made.waiting

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
        whole = [node for node in self.nodes if node.id not in dict(self.aside)]
        for node in whole:
            everything = Resources(cpus=node.cpus, gpus=node.gpus, memory=node.memory)
            self.made.offer(Candidate(f"all of {node.id}", everything, 1, priority=9))
        if self.limit is None:
            assert len(started(self.made, self.now)) == len(whole)


TestAnyCluster = AnyCluster.TestCase
TestAnyCluster.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 8]), st.integers(1, 30), st.integers(1, 300)), max_size=25),
    st.integers(1, 30),
)
def test_a_promised_trial_waits_for_nothing_that_starts_after_its_time(
    others: list[tuple[int, int, int]], head: int
) -> None:
    """Estimates and true lengths have nothing to do with each other."""
    made = admission(
        *(Candidate(str(i), slots(size), seconds) for i, (size, seconds, _) in enumerate(others))
    )
    lengths = {str(i): length for i, (_, _, length) in enumerate(others)} | {"head": 7}
    ends: dict[str, float] = {}
    begun: dict[str, float] = {}
    made.offer(Candidate("head", slots(8), head))
    promises: dict[str, float] = {}
    now = 0.0
    while made.waiting or made.running:
        for id in started(made, now):
            begun[id], ends[id] = now, now + lengths[id]
        if made.promised:
            id, start = made.promised
            assert promises.setdefault(id, start) == start, "a promise is not made anew"
        soonest = min(made.running, key=ends.__getitem__)
        now = ends[soonest]
        made.release(soonest)
    for id, start in promises.items():
        earlier = [ends[other] for other in begun if begun[other] <= start and other != id]
        assert begun[id] <= max([start, *earlier])
