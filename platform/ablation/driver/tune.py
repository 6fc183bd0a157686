"""What Ray Tune calls: the searcher that gives it the next attempt, and the callback that takes the messages.

A Tune run is disposable: it starts on what is missing, and nothing of it is read again. The dispatcher starts
a trial only when its whole group of workers fits; so two groups never wait for each other half placed.

The classes are of this module, and not of a function, because Tune pickles them. It is imported when Ray is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from ablation.credentials import hidden
from ablation.driver.dispatch import Dispatcher
from ablation.driver.heartbeat import Monitor
from ablation.driver.shutdown import errors_end_the_run
from ablation.worker.harness import trial_process
from ablation.worker.training import WorkerConfig

PROCESS_DIED = "A process of the trial died (ended by hand or for lack of memory, or crashed)"


def tuner(dispatcher: Dispatcher, config: WorkerConfig, monitor: Monitor, scratch: Path) -> tune.Tuner:
    """A Tuner that starts what the dispatcher says, and prints and keeps nothing."""
    process = tune.with_resources(tune.with_parameters(trial_process(), workers=config), _reserved)
    return tune.Tuner(
        process,
        tune_config=tune.TuneConfig(
            search_alg=NextAttempt(dispatcher),
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            callbacks=[PassOn(dispatcher, monitor)],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )


def _reserved(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """What Tune reserves for the process of a trial; the workers of a group reserve their own resources.

    A group's process takes a thousandth of Ray's own resource for the driver's node, because Tune wants every
    trial to reserve something; so it runs there.
    """
    each = config["request"].resources
    if each.workers > 1:
        return tune.PlacementGroupFactory([{f"node:{ray.util.get_node_ip_address()}": 0.001}])
    held = {"CPU": each.cpus, "GPU": each.gpus, "memory": each.memory}
    return tune.PlacementGroupFactory([{name: amount for name, amount in held.items() if amount}])


class _NotRestored:
    """Tune pickles its searcher and callbacks for a restore; a run has none, for the store has everything."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class NextAttempt(_NotRestored, Searcher):  # type: ignore[misc]
    """Tune asks it for each next trial, which is one attempt."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__()
        self._dispatcher = dispatcher

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The config of the next trial; None when none can start now."""
        with errors_end_the_run():
            found = self._dispatcher.next()
        return {"attempt": found[0].id, "request": found[1]} if found else None

    def on_trial_complete(self, *_: object, **__: object) -> None:
        """The callback is told."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing is kept: see `_NotRestored`."""


class PassOn(_NotRestored, tune.Callback):  # type: ignore[misc]
    """Passes to the dispatcher what processes tell, and how they end."""

    def __init__(self, dispatcher: Dispatcher, monitor: Monitor) -> None:
        self._dispatcher = dispatcher
        self._monitor = monitor

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """At each step of Tune's loop."""
        with errors_end_the_run():
            if self._monitor.failure:
                raise self._monitor.failure
            self._dispatcher.poll()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A process told something; one whose attempt has ended is killed."""
        key, id = trial.config["request"].trial_key, trial.config["attempt"]
        with errors_end_the_run():
            if not self._dispatcher.on_messages(key, id, result["messages"]):
                # Tune would only stop the trial and use the process again, while its group trains on.
                ray.kill(result["process"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A process died."""
        key, id = trial.config["request"].trial_key, trial.config["attempt"]
        error = _last_error(trial)
        with errors_end_the_run():
            if _NOT_IMPORTED.search(error):  # another process could not import it either
                self._dispatcher.on_start_failed(key, id, error)
            else:
                self._dispatcher.on_worker_lost(key, id, f"{error}\n{PROCESS_DIED}".lstrip())


_NOT_IMPORTED = re.compile(r"^(?:ModuleNotFoundError|ImportError|SyntaxError): [^\n]*\Z", re.MULTILINE)
"""The last line of an error of a process that could not import what it was to train."""


def _last_error(trial: Any) -> str:
    """The last error of a trial that Tune has written down; "" where there is none."""
    try:
        text = Path(trial.error_file).read_text()
    except (OSError, TypeError):
        text = ""
    return hidden(text.rpartition("\nFailure #")[2].partition("\n")[2].strip())
