"""What a harness hands to a train function, and what comes back.

A train function is a generator of reports. It runs in a worker process, writes only under
`request.directory`, and never touches the store: its reports travel, pickled, to the driver, which writes it.
When it is closed at a report it may save its state.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ablation.resources import Resources


def _nothing() -> None:
    """The heartbeat where nobody watches."""


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """One evaluation wanted of a trained trial: its key and its resolved config."""

    key: str
    config: Any


@dataclass(frozen=True, slots=True)
class Request:
    """One attempt at one trial.

    Attributes:
        trial_key: identity of the trial.
        config: the resolved trial config (a frozen dataclass of the study's own).
        evaluations: those still missing, in the order in which they are wanted.
        directory: where this trial's checkpoints and artifacts live, for every attempt until it is to be done
            anew: then another, in which there is nothing.
        context: what decides where and how it runs but not the result (paths, intervals); picklable.
        resources: what the trial holds; None where nothing is reserved.
        micro_batch: samples that a worker takes through the network at a time, to use less memory; None for
            its whole share of a batch.
        heartbeat: to be called in the middle of something long that yields no report, so that the process
            does not count as hanging.
    """

    trial_key: str
    config: Any
    evaluations: tuple[EvaluationRequest, ...]
    directory: Path
    context: Any = None
    resources: Resources | None = None
    micro_batch: int | None = None
    heartbeat: Callable[[], None] = _nothing

    @property
    def workers(self) -> int:
        """Processes that train this one trial."""
        return self.resources.workers if self.resources else 1

    @property
    def gpus(self) -> float | None:
        """GPUs of each worker, perhaps a part of one; None where nothing is reserved."""
        return self.resources.gpus if self.resources else None


@dataclass(frozen=True, slots=True)
class Progress:
    """Training reached `step` of `total`; `metrics` are means since the last report."""

    step: int
    total: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """A checkpoint of `step` lies at `path`, complete and checked."""

    step: int
    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation is done: its metrics by name, NaN where undefined, and its files by kind.

    Where only an evaluation server can give the numbers, there are none, and a file "submission" to give
    it. Rank 0 alone reports one or the other; what the other ranks of a group yield is passed over.
    """

    key: str
    metrics: dict[str, float]
    artifacts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Noticed:
    """Something a person should know: a corrupt checkpoint passed over, a repair."""

    message: str


@dataclass(frozen=True, slots=True)
class Described:
    """Where an attempt runs and with which code: plain data, as `ablation.provenance.environment` gathers it.

    The harness sends it, not the train function: before training begins, before the first report where the
    train function has imported modules by then, and when training has ended. The last one counts.
    """

    environment: dict[str, Any]


class OutOfMemoryError(Exception):
    """Raised by a train function that ran out of memory.

    Attributes:
        smaller: the micro-batch to try next, None when it cannot be smaller.
    """

    def __init__(self, message: str, smaller: int | None) -> None:
        super().__init__(message)
        self.smaller = smaller

    def __reduce__(self) -> tuple[Any, ...]:
        return OutOfMemoryError, (*self.args, self.smaller)


class DeviceError(Exception):
    """Raised by a train function whose device failed under it; the trial goes on from its last checkpoint.

    Attributes:
        usable: whether it works in a new process; False for one that would fail under every trial.
    """

    def __init__(self, message: str, *, usable: bool) -> None:
        super().__init__(message)
        self.usable = usable

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(DeviceError, usable=self.usable), self.args


@dataclass(frozen=True, slots=True)
class Trained:
    """One trained row of a joint measurement.

    Attributes:
        key: of the evaluation that the row cites.
        name: of the row, with its seed.
        trial, evaluation: the resolved configs.
        directory: holds what the trial left, as its `Request` had it.
    """

    key: str
    name: str
    trial: Any
    evaluation: Any
    directory: Path


@dataclass(frozen=True, slots=True)
class JointRequest:
    """The trained rows that are to be measured together, and the setting's context."""

    rows: tuple[Trained, ...]
    context: Any = None


@dataclass(frozen=True, slots=True)
class JointResult:
    """What a joint measurement found.

    Attributes:
        machine: what computed, for captions, as "NVIDIA H200" or "AMD EPYC 9V74, 2 threads".
        rounds: by key of each row, for each metric its values round by round; all rows have as many, and
            those of one round were measured one after another.
    """

    machine: str
    rounds: Mapping[str, Mapping[str, Sequence[float]]]


Report = Progress | Checkpointed | Evaluated | Noticed | Described
TrainFunction = Callable[[Request], Generator[Report, None, None]]
