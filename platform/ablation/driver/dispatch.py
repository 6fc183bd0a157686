"""The control loop: brings what runs to what the plan, the store and the nodes want.

It only decides: the scheduler knows what fits, and the attempt manager keeps the attempts.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ablation.driver.attempts import Attempt, AttemptManager
from ablation.driver.heartbeat import Heartbeat
from ablation.driver.scheduler import GangScheduler, QueueEntry
from ablation.driver.shutdown import Shutdown, StopRun
from ablation.errors import UserError
from ablation.plan import Plan, PlannedTrial
from ablation.protocol import EvaluationRequest, Request
from ablation.resources import Node, Resources
from ablation.setting import data_id
from ablation.storage import StorageError
from ablation.store import DesiredStates
from ablation.wording import counted
from ablation.worker.messages import End, Message

POLL_EVERY_S = 2.0
"""How often the store is asked for the desired states: control commands work through it."""
RECLAIM_EVERY_S = 10.0
START_WITHIN_S = 600.0
"""A trial's process that has reported nothing for so long has no node to start on."""
START_AFTER_LOSS_S = 120.0
"""Neither has one that was starting when a node was lost, and has reported nothing for so long since: Ray may
have placed it there."""
STORAGE_AWAY_S = 30.0
"""Between two probes of a storage that the driver could not reach; nothing starts meanwhile."""
SEEDS = 1000
"""Earlier seeds come first among trials of one priority, so that tables fill seed by seed."""


@dataclass(slots=True)
class Dispatcher:
    """Decides what starts and what stops.

    Attributes:
        trials: all that the run may start, by key.
        seconds: how long each trial should take, by key; corrected by those that finish.
        resources: what each trial holds, by key.
        micro_batch: see `ablation.run_options.Options`.
        nodes: returns the present nodes.
        more_may_join: whether other nodes can ever join.
        clock: seconds.
    """

    plan: Plan
    manager: AttemptManager
    scheduler: GangScheduler
    shutdown: Shutdown
    heartbeat: Heartbeat
    seconds: Mapping[str, float]
    resources: Mapping[str, Resources]
    micro_batch: int | None
    nodes: Callable[[], tuple[Node, ...]]
    more_may_join: bool = True
    clock: Callable[[], float] = time.monotonic
    trials: dict[str, PlannedTrial] = field(init=False)
    desired: DesiredStates = field(default_factory=lambda: DesiredStates(paused=False, trials={}))
    _polled: float | None = None
    _reclaimed: float = 0.0
    _present: tuple[Node, ...] = ()
    _node_lost: float = -math.inf
    _first_attempts: Mapping[str, int] = field(default_factory=dict)
    _ratios: list[float] = field(default_factory=list)
    _stuck: frozenset[str] = frozenset()
    _stuck_since: float = math.inf
    _storage_away_until: float | None = None

    def __post_init__(self) -> None:
        self.trials = {trial.key: trial for trial in self.plan.trials if trial.missing}

    # --- what starts ---------------------------------------------------------------------------------

    def next(self) -> tuple[Attempt, Request] | None:
        """The attempt to start now, claimed; None when there is none at the moment.

        Raises:
            StopRun: see `poll`.
        """
        self.poll()
        if self.shutdown.requested:
            return None
        while self._storage_answers() and (entry := self.scheduler.next(self.clock())):
            if attempt := self._claim(entry.id):
                return attempt, self._request(attempt)
            self.scheduler.release(entry.id)
            self._polled = None
        return None

    def _claim(self, key: str) -> Attempt | None:
        try:
            return self.manager.claim(self.trials[key], self.clock())
        except StorageError as error:
            self.manager.listener.noted(f"No trial starts until the storage of trials answers again: {error}")
            self._storage_away_until = self.clock() + STORAGE_AWAY_S
            return None

    def _storage_answers(self) -> bool:
        """Whether trials can start; a storage that was away is probed now and then, at no trial's cost."""
        if self._storage_away_until is None:
            return True
        if self.clock() < self._storage_away_until:
            return False
        try:
            self.manager.storage.probe()
        except StorageError:
            self._storage_away_until = self.clock() + STORAGE_AWAY_S
            return False
        self.manager.listener.noted("The storage of trials answers again.")
        self._storage_away_until = None
        return True

    def _request(self, attempt: Attempt) -> Request:
        trial, wanted = attempt.trial, self.desired.trials[attempt.key]
        sizes = [size for size in (self.micro_batch, wanted.micro_batch) if size is not None]
        directory = self.manager.workspace.trial_directory(trial.key)
        directory.mkdir(parents=True, exist_ok=True)
        return Request(
            trial.key,
            trial.config,
            tuple(EvaluationRequest(e.key, e.config) for e in trial.missing if e.key not in attempt.done),
            directory / attempt.folder,
            self.plan.setting.context,
            self.resources[trial.key],
            min(sizes, default=None),
        )

    # --- what processes tell --------------------------------------------------------------------------

    def on_messages(self, key: str, id: int, messages: Sequence[Message]) -> bool:
        """Takes messages of an attempt's process; False where the process goes on and the attempt does not.

        Such a process must be killed: another attempt may work in the trial's directory. The first list is
        empty and says that the process is there; the workers of a group may still have no node.
        """
        attempt = self.manager.find(key, id)
        if attempt is None:
            return False
        if messages or self.resources[key].workers == 1:
            self.manager.on_messages(attempt, messages)
            self._release_ended()
        says_end = bool(messages) and isinstance(messages[-1], End)
        return says_end or self.manager.find(key, id) is not None

    def on_worker_lost(self, key: str, id: int, reason: str) -> None:
        """The process of an attempt died."""
        if attempt := self.manager.find(key, id):
            self.manager.on_worker_lost(attempt, reason)
            self._release_ended()

    def on_start_failed(self, key: str, id: int, error: str) -> None:
        """The process of an attempt could not start what it was to train, and no other one could."""
        if attempt := self.manager.find(key, id):
            self.manager.on_start_failed(attempt, error)
            self._release_ended()

    def _release_ended(self) -> None:
        """Frees what ended attempts held, and asks the store at once what becomes of unfinished trials."""
        for key in self.scheduler.running.keys() - self.manager.running.keys():
            attempt = self.manager.ended.get(key)
            if attempt and (fault := self.manager.quarantined.get(attempt.id)):
                self.scheduler.quarantine(key, fault.device.node)
            self.scheduler.release(key)
            if attempt and key in self.manager.finished:
                self._ratios.append((self.clock() - attempt.began) / self.seconds[key])
                done = replace(self.desired.trials[key], state="COMPLETE")
                self.desired = replace(self.desired, trials={**self.desired.trials, key: done})
            else:
                self._polled = None

    # --- what is wanted -------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether nothing is left that could start, now or later, here or in another driver.

        A trial that ended without a result may wait again: the store is asked first.
        """
        if self._polled is None or self.manager.running or self.scheduler.waiting or self.desired.paused:
            return False
        return all(wanted.state != "RUNNING" for wanted in self.desired.trials.values())

    def poll(self) -> None:
        """Takes in desired states, what other drivers did, and the present nodes, every few seconds.

        Raises:
            StopRun: nothing is left to do, or the run was interrupted.
            UserError: trials are left that no node can hold.
        """
        if self.shutdown.requested:
            self.shutdown.poll(self.manager)
            return
        now = self.clock()
        if self._polled is None or now - self._polled >= POLL_EVERY_S:
            self._polled = now
            self._reclaim(now)
            self._update_nodes(now)
            self._update_desired()
            self._report_unschedulable(now)
        if self.over:
            raise StopRun

    def _reclaim(self, now: float) -> None:
        if self.manager.store.shared and now - self._reclaimed >= RECLAIM_EVERY_S:
            self._reclaimed = now
            self.heartbeat.reclaim()

    def _update_nodes(self, now: float) -> None:
        before, self._present = self._present, self.nodes()
        if self._present != before:
            if {node.id for node in before} - {node.id for node in self._present}:
                self._node_lost = now
            self.scheduler.set_nodes(self._present)

    def _update_desired(self) -> None:
        setting, keys = self.plan.setting, list(self.trials)
        self.desired = self.manager.store.desired_states(
            self.plan.study.name, setting.profile, data_id(setting), keys
        )
        self._first_attempts = self._first_attempts or {
            key: wanted.first_attempt for key, wanted in self.desired.trials.items()
        }
        waiting = self.scheduler.waiting
        pace = statistics.median(self._ratios) if self._ratios else 1.0
        for trial in self.trials.values():
            if attempt := self.manager.running.get(trial.key):
                self._update_running(attempt)
            else:
                self._update_waiting(trial, waiting.get(trial.key), pace)
        self._release_ended()

    def _update_running(self, attempt: Attempt) -> None:
        """Stops an attempt that is no longer wanted, and gives up one that does not start."""
        unwanted = self.desired.paused or self.desired.trials[attempt.key].state == "CANCELLED"
        if not attempt.started and (unwanted or self._is_overdue(attempt)):
            self.manager.give_up(attempt)
        elif unwanted:
            self.manager.ask_to_stop(attempt)

    def _is_overdue(self, attempt: Attempt) -> bool:
        """Whether its process should have started by now."""
        lost = self._node_lost if self._node_lost >= attempt.began else math.inf
        return self.clock() > min(attempt.began + START_WITHIN_S, lost + START_AFTER_LOSS_S)

    def _update_waiting(self, trial: PlannedTrial, entry: QueueEntry | None, pace: float) -> None:
        """Submits or withdraws a trial; trials here take `pace` times as long as estimated."""
        key, wanted = trial.key, self.desired.trials[trial.key]
        if wanted.state == "WAITING" and not self.desired.paused and self._is_missing(trial):
            priority = wanted.priority * SEEDS - self.plan.seeds.index(trial.seed)
            new = QueueEntry(key, self.resources[key], self.seconds[key] * pace, priority)
            if new != entry:
                self.scheduler.submit(new)
        else:
            self.scheduler.withdraw(key)

    def _is_missing(self, trial: PlannedTrial) -> bool:
        """Whether this plan still wants something of it; what only other plans want makes it wait too.

        A trial that was renewed since this run began is left to the next run, which has today's code.
        """
        if self.desired.trials[trial.key].first_attempt != self._first_attempts[trial.key]:
            return False
        last = self.manager.ended.get(trial.key)
        return last is None or bool(last.lacks)

    # --- what cannot start ----------------------------------------------------------------------------

    def _report_unschedulable(self, now: float) -> None:
        """Says, once, which trials no longer fit on the present nodes.

        Raises:
            UserError: no other trials are left, and no other nodes will join, or have joined for long where
                devices are quarantined.
        """
        stuck = frozenset(
            key for key, entry in self.scheduler.waiting.items() if self.scheduler.never_fits(entry.resources)
        )
        for key in stuck - self._stuck:
            self.manager.listener.noted(
                f"{self.trials[key].name} waits for nodes that can hold it: it needs {self.resources[key]}"
            )
        self._stuck = stuck
        if stuck and not self.manager.running and stuck == self.scheduler.waiting.keys():
            self._stuck_since = min(self._stuck_since, now)
            self._end_when_nothing_can_start(now - self._stuck_since)
        else:
            self._stuck_since = math.inf

    def _end_when_nothing_can_start(self, for_s: float) -> None:
        faults = list(map(str, self.manager.quarantined.values()))
        if self.more_may_join and not (faults and for_s > START_WITHIN_S):
            return
        first = min(self.trials[key].name for key in self._stuck)
        lines = [f"No node can hold what waits: {counted(len(self._stuck), 'trial')}, {first} among them."]
        if faults:
            lines += [f"{counted(len(faults), 'device')} quarantined, as:", *faults[:3]]
        lines.append("The same command continues with them where there are enough nodes.")
        raise UserError("\n".join(lines))
