"""What to start next: the plan's trials as the store wants them now, as far as there is room."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ablation.driver.attempts import Desk
from ablation.driver.scheduler import GangScheduler, QueueEntry
from ablation.errors import UserError
from ablation.plan import Plan, PlannedTrial
from ablation.resources import Node, Resources
from ablation.storage import StorageError
from ablation.store import DesiredStates
from ablation.study import data_id
from ablation.worker.harness import Order

LOOK_EVERY_S = 2.0
"""How often the store is asked what people want: control commands work through it."""
RECLAIM_EVERY_S = 10.0
UNHEARD_S = 600.0
"""A trial's process that has told nothing for so long has no machine to start on."""
UNHEARD_AFTER_LOSS_S = 120.0
"""Nor has one that was about to start when a machine was lost, and told nothing for so long since: Ray may
have sent it there."""
STORAGE_AWAY_S = 30.0
"""Between two questions to a storage that the driver could not reach; nothing starts meanwhile."""
SEEDS = 1000
"""Earlier seeds come first among trials of one priority, so that tables fill seed by seed."""


class Told(NamedTuple):
    """What the process of an attempt has told, and the store has not kept yet."""

    key: str
    attempt: int
    messages: Sequence[Mapping[str, Any]]


@dataclass(slots=True)
class Dispatcher:
    """Decides, claims what it decides, and passes on what comes of it.

    Attributes:
        seconds: how long each trial should take, by key; corrected by those that finish.
        resources: what each trial holds, by key.
        micro_batch: see `ablation.driver.options.Options`.
        nodes: asked for the machines there are now.
        more_may_join: whether that can ever be more machines.
        clock: seconds.
    """

    plan: Plan
    desk: Desk
    scheduler: GangScheduler
    seconds: Mapping[str, float]
    resources: Mapping[str, Resources]
    micro_batch: int | None
    nodes: Callable[[], tuple[Node, ...]]
    more_may_join: bool = True
    clock: Callable[[], float] = time.monotonic
    desired: DesiredStates = field(default_factory=lambda: DesiredStates(paused=False, trials={}))
    _looked: float | None = None
    _reclaimed: float = 0.0
    _there: tuple[Node, ...] = ()
    _lost: float = -math.inf
    _first: Mapping[str, int] = field(default_factory=dict)
    _began: dict[str, float] = field(default_factory=dict)
    _ratios: list[float] = field(default_factory=list)
    _stuck: frozenset[str] = frozenset()
    _stuck_since: float = math.inf
    _away_until: float | None = None
    _told: list[Told] = field(default_factory=list)

    def next(self) -> Order | None:
        """The attempt to start now, claimed; None when there is none at the moment."""
        self.desk.check()
        if self.desk.interrupted:
            return None
        self.look()
        while self._storage_there() and (candidate := self.scheduler.next(self.clock())):
            if self._claims(candidate.id):
                self._began[candidate.id] = self.clock()
                return self._order(candidate.id)
            self.ended(candidate.id)
        return None

    def _claims(self, key: str) -> bool:
        try:
            return self.desk.claim(key)
        except StorageError as error:
            self.desk.listener.noted(f"Nothing new starts until the storage is back: {error}")
            self._away_until = self.clock() + STORAGE_AWAY_S
            return False

    def _storage_there(self) -> bool:
        """Whether trials can start; one that was away is asked again now and then, at no trial's cost."""
        if self._away_until is None:
            return True
        if self.clock() < self._away_until:
            return False
        try:
            self.desk.storage.probe()
        except StorageError:
            self._away_until = self.clock() + STORAGE_AWAY_S
            return False
        self.desk.listener.noted("The storage is back.")
        self._away_until = None
        return True

    @property
    def over(self) -> bool:
        """Whether nothing is left that could start, now or later, here or in another driver.

        What ended without a result may wait again: the store is asked first.
        """
        if self._looked is None or self.desk.running or self.scheduler.waiting or self.desired.paused:
            return False
        return all(wanted.state != "RUNNING" for wanted in self.desired.trials.values())

    def start(self, key: str) -> None:
        """A running trial's process has its place; the workers of a group have their own, and tell of it."""
        if self.resources[key].workers == 1:
            self.desk.heard.add(key)

    def hear(self, key: str, attempt: int, messages: Sequence[Mapping[str, Any]]) -> None:
        """What an attempt's process tells."""
        self._told.append(Told(key, attempt, messages))

    def keep(self) -> None:
        """Hands to the desk what was told: when Tune has sent the process on, which then does not wait."""
        told, self._told = self._told, []
        for key, attempt, messages in told:
            if self.desk.holds(key, attempt):
                self.desk.guard(self.desk.receive, key, messages)
                if fault := self.desk.set_aside.get(attempt):
                    self.scheduler.quarantine(key, fault.place.node)
                if key not in self.desk.running:
                    self.desk.guard(self.ended, key)

    def lose(self, key: str, attempt: int, reason: str) -> None:
        """The process of an attempt died; what it told before counts."""
        self.keep()
        if self.desk.holds(key, attempt):
            self.desk.guard(self.desk.lose, key, reason)
            self.desk.guard(self.ended, key)

    def ended(self, key: str) -> None:
        """Its places are free; where it is not over, the store is asked at once what becomes of it."""
        began = self._began.pop(key, None)
        if key in self.desk.finished:
            if began is not None:
                self._ratios.append((self.clock() - began) / self.seconds[key])
            done = replace(self.desired.trials[key], state="COMPLETE")
            self.desired = replace(self.desired, trials={**self.desired.trials, key: done})
        else:
            self._looked = None
        self.scheduler.release(key)

    def look(self) -> None:
        """Takes in what people want, what other drivers did, and which machines there are."""
        now = self.clock()
        if self._looked is not None and now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        if self.desk.store.shared and now - self._reclaimed >= RECLAIM_EVERY_S:
            self._reclaimed = now
            self.desk.reclaim()
        if (there := self.nodes()) != self._there:
            if {node.id for node in self._there} - {node.id for node in there}:
                self._lost = now
            self._there = there
            self.scheduler.set_nodes(there)
        setting = self.plan.setting
        keys = list(self.desk.trials)
        self.desired = self.desk.store.desired_states(
            self.plan.study.name, setting.profile, data_id(setting), keys
        )
        self._first = self._first or {
            key: wanted.first_attempt for key, wanted in self.desired.trials.items()
        }
        waiting = self.scheduler.waiting
        pace = statistics.median(self._ratios) if self._ratios else 1.0
        for trial in self.desk.trials.values():
            self._apply(trial, waiting.get(trial.key), pace)
        self._say_stuck()

    def _apply(self, trial: PlannedTrial, offered: QueueEntry | None, pace: float) -> None:
        """Offers a trial, takes it back, or stops it; trials here take `pace` times as long as estimated."""
        wanted, key = self.desired.trials[trial.key], trial.key
        if key in self.desk.running:
            unwanted = self.desired.paused or wanted.state == "CANCELLED"
            if key not in self.desk.heard and (unwanted or self._has_no_machine(key)):
                self.desk.give_up(key)  # should its process start after all, it is not listened to
                self.ended(key)
            elif unwanted:
                self.desk.ask_to_stop(key)
        elif wanted.state == "WAITING" and not self.desired.paused and self._lacks(trial):
            priority = wanted.priority * SEEDS - self.plan.seeds.index(trial.seed)
            candidate = QueueEntry(key, self.resources[key], self.seconds[key] * pace, priority)
            if candidate != offered:
                self.scheduler.submit(candidate)
        else:
            self.scheduler.withdraw(key)

    def _has_no_machine(self, key: str) -> bool:
        """Whether its process should have started by now."""
        now = self.clock()
        began = self._began.get(key, now)
        lost = self._lost if self._lost >= began else math.inf
        return now > min(began + UNHEARD_S, lost + UNHEARD_AFTER_LOSS_S)

    def _lacks(self, trial: PlannedTrial) -> bool:
        """Whether the plan still wants something of it; what only other plans want makes it wait too.

        What is to be done anew since this run began is for the next one, with the code of today.
        """
        if self.desired.trials[trial.key].first_attempt != self._first[trial.key]:
            return False
        return bool({e.key for e in trial.missing} - set(self.desk.done.get(trial.key, ())))

    def _say_stuck(self) -> None:
        """Tells, once, of trials that no longer fit on the machines there are.

        Raises:
            UserError: no other trials are left, and no other machines will come, or have come for long where
                devices are set aside.
        """
        stuck = frozenset(
            key for key, waits in self.scheduler.waiting.items() if self.scheduler.never_fits(waits.resources)
        )
        for key in stuck - self._stuck:
            self.desk.listener.noted(
                f"{self.desk.trials[key].name} waits for machines: it needs {self.resources[key]}"
            )
        self._stuck = stuck
        if stuck and not self.desk.running and stuck == self.scheduler.waiting.keys():
            self._stuck_since = min(self._stuck_since, self.clock())
            self._end_where_nothing_can_start(self.clock() - self._stuck_since)
        else:
            self._stuck_since = math.inf

    def _end_where_nothing_can_start(self, for_s: float) -> None:
        faults = list(map(str, self.desk.set_aside.values()))
        if not self.more_may_join or (faults and for_s > UNHEARD_S):
            why = [f"{len(faults)} set aside, as:", *faults[:3]] if faults else []
            raise UserError("\n".join(["What waits has no place any more.", *why]))

    def _order(self, key: str) -> Order:
        wanted = self.desired.trials[key]
        sizes = [size for size in (self.micro_batch, wanted.micro_batch) if size is not None]
        start = self.desk.store.start_of(key)  # claimed, it does not change any more
        missing = [evaluation.key for evaluation in self.desk.trials[key].missing]
        done = tuple(evaluation for evaluation in missing if evaluation in start.done)  # by other drivers too
        self.desk.done[key] = list(done)
        return Order(key, done, min(sizes, default=None), self.resources[key], start.folder)
