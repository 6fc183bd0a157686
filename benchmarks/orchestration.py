"""What a trial costs beyond its own time: seconds a no-op trial, ours beside plain Ray Tune.

Ours does what a run does with every trial: claims it in the store, records a report and a result, describes
the code that ran. Plain Tune reports one number and keeps nothing. Both use the same Ray settings and reuse
processes. Starting Ray is left out; starting the trial processes is in the whole run and not in its second
half.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablation.cluster import connection as cluster
from ablation.driver.launch import run
from ablation.metric import Metric
from ablation.plan import PlannedTrial, make_plan, register
from ablation.protocol import Evaluated, Progress, Report, Request
from ablation.resources import Resources
from ablation.run_options import Options
from ablation.setting import PlainSetting
from ablation.storage import storage_at
from ablation.store import Store
from ablation.study import Cell, Profile, Row, Study, Table, Variant
from ablation.workspace import Workspace
from benchmarks.common import report

SINGLE, GROUPS = 100, 4
"""Trials of a measurement: of one process, and of worker groups."""


@dataclass(frozen=True)
class Nothing:
    """A training that does nothing; as many of them as there are numbers."""

    number: int
    seed: int = 0


@dataclass(frozen=True)
class Score:
    """An evaluation of nothing."""

    scale: float = 1.0


def train(request: Request) -> Generator[Report, None, None]:
    """One report, and a result."""
    yield Progress(1, 1, {"loss": 0.5})
    for wanted in request.evaluations:
        yield Evaluated(wanted.key, {"AP": 1.0})


SETTING = PlainSetting("none", data_name="none")


def study_of(trials: int) -> Study:
    """One table with a row for each."""
    rows = tuple(Row(str(n), (str(n),), (Cell(Variant(Nothing(n), Score()), "AP"),)) for n in range(trials))
    table = Table("table1", "Nothing", ("number",), ("AP",), rows)
    profile = Profile("none", "nothing", 1, lambda *_: SETTING)
    return Study("nothing", "Nothing", (Metric("AP"),), (table,), (), {"none": profile}, "none", train)


@dataclass
class Ends:
    """A listener that keeps when trials ended."""

    times: list[float] = field(default_factory=list)
    began: float = 0.0

    def started(self, trial: PlannedTrial) -> None:
        """Keeps when the first one was asked for."""
        self.began = self.began or time.monotonic()

    def finished(self, trial: PlannedTrial) -> None:
        """Keeps the time."""
        self.times.append(time.monotonic())

    def failed(self, trial: PlannedTrial, error: str) -> None:
        """No trial of a benchmark may fail."""
        raise RuntimeError(f"{trial.name}: {error}")

    def noted(self, *_: object) -> None:
        """Of no interest, like the rest."""

    reported = lost = released = stopping = noted


@dataclass(frozen=True)
class Cost:
    """Seconds a trial: of the whole run without the start of Ray, and of its second half, all warm."""

    whole: float
    warm: float

    @staticmethod
    def of(began: float, ends: Sequence[float]) -> Cost:
        """From when the run began and its trials ended."""
        half = len(ends) // 2
        return Cost((ends[-1] - began) / len(ends), (ends[-1] - ends[half - 1]) / (len(ends) - half))


def ours(trials: int, concurrency: int, workers: int) -> Cost:
    """What a trial costs on this platform."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.at(Path(folder))
        workspace.create()
        store = Store.open(workspace.store_path)
        study = study_of(trials)
        register(make_plan(study, SETTING, [0]), store)
        plan = make_plan(study, SETTING, [0], store=store)
        storage, ends = storage_at(workspace.artifacts), Ends()
        options = Options(concurrency=concurrency, workers_per_trial=workers)
        seconds = {trial.key: 1.0 for trial in plan.trials}
        run(plan, options, store, storage, workspace, ends, seconds, facts={})
        store.close()
    return Cost.of(ends.began, ends.times)


def plain(trials: int, concurrency: int, workers: int) -> Cost:
    """What a trial costs by Ray Tune alone, its processes reused; a group by Ray Train inside."""
    options = Options(concurrency=concurrency, workers_per_trial=workers)
    times: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        cluster.ray_for(options, [Resources(workers)], exclusive_gpus=False),
    ):
        from ray import tune

        class Note(tune.Callback):  # type: ignore[misc]
            def on_trial_complete(self, *_: Any, **__: Any) -> None:
                times.append(time.monotonic())

        held = {"CPU": 1} if workers == 1 else {"memory": 1 << 20}
        began = time.monotonic()
        tune.Tuner(
            tune.with_resources(_single if workers == 1 else _group(workers, folder), held),
            param_space={"number": tune.grid_search(list(range(trials)))},
            tune_config=tune.TuneConfig(max_concurrent_trials=concurrency, reuse_actors=True),
            run_config=tune.RunConfig(storage_path=folder, callbacks=[Note()], verbose=0),
        ).fit()
    return Cost.of(began, times)


def _single(config: dict[str, Any]) -> None:
    from ray import tune

    tune.report({"loss": 0.5})


def _group(workers: int, folder: str) -> Callable[[dict[str, Any]], None]:
    """A Tune function that starts a group, as Ray's documentation has it."""

    def run(config: dict[str, Any]) -> None:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.tune.integration.ray_train import TuneReportCallback

        def loop() -> None:
            from ray.train import report as tell

            tell({"loss": 0.5})

        TorchTrainer(
            loop,
            scaling_config=ScalingConfig(num_workers=workers),
            run_config=RunConfig(
                name=f"group{config['number']}", storage_path=folder, callbacks=[TuneReportCallback()]
            ),
        ).fit()

    return run


def compare(rounds: int) -> None:
    """Print the table."""
    rows: list[dict[str, str | float]] = []
    for workers, concurrency, trials in ((1, 1, SINGLE), (1, 2, SINGLE), (2, 1, GROUPS)):
        pairs = [
            (ours(trials, concurrency, workers), plain(trials, concurrency, workers)) for _ in range(rounds)
        ]
        kind = "1 process" if workers == 1 else f"group of {workers}"
        row: dict[str, str | float] = {"trials": kind, "at a time": concurrency}
        for name in ("whole", "warm"):
            both = [(getattr(a, name), getattr(b, name)) for a, b in pairs]
            mine, theirs = (statistics.median(column) for column in zip(*both, strict=True))
            ratio = statistics.median(a / b for a, b in both)
            row |= {f"{name}: ours": mine, f"{name}: plain": theirs, f"{name}: ratio": ratio}
        rows.append(row)
    report(
        "orchestration",
        "Seconds a no-op trial: of the whole run, and warm (its second half)",
        rows,
        {"rounds": rounds, "trials in a round": f"{SINGLE} of one process, {GROUPS} of a group"},
    )


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="medians of so many (default 3)")
    compare(parser.parse_args().rounds)


if __name__ == "__main__":
    main()
