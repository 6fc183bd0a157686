"""How to run, which changes no result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """What a person says about a run.

    Attributes:
        concurrency: trials at a time; as many as the CPUs or the GPUs allow when None.
        workers_per_trial: processes that train one trial together; None leaves it to the profile.
        micro_batch: see `protocol.Request`.
        cluster: address of a running Ray cluster, "auto" to find it; None starts Ray on this machine.
        max_retries: how often in a row a trial starts again after its process died without a new checkpoint.
            A Python exception would only come again, so such a trial fails at once.
        grace: seconds that running trials get to write a checkpoint when the run is stopped: at their next
            report, and not in an evaluation.
        hang_after: see `ablation.worker.watchdog.Watch`.
        niceness: of the trials' processes, 0 (a fair share of the CPUs) to 19 (what other programs leave);
            0 when None. For this machine's own Ray: a cluster's nodes set it when they start.
    """

    concurrency: int | None = None
    workers_per_trial: int | None = None
    micro_batch: int | None = None
    cluster: str | None = None
    max_retries: int = 2
    grace: float = 60.0
    hang_after: float = 600.0
    niceness: int | None = None

    def __post_init__(self) -> None:
        for name in ("concurrency", "workers_per_trial", "micro_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        for name in ("max_retries", "grace", "hang_after"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if self.niceness is not None and not 0 <= self.niceness <= 19:
            raise ValueError(f"niceness must be from 0 to 19, got {self.niceness}")
