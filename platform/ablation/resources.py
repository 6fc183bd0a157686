"""Resources that a trial holds while it runs, and their overrides (`--resources`)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from ablation.errors import UserError

EVERYWHERE = "all"


@dataclass(frozen=True, slots=True)
class Resources:
    """Resources of one trial: a number of equal workers, all started at once.

    Attributes:
        workers: number of processes that train the trial together.
        cpus, gpus: per worker. A fraction of a GPU lets trials of one worker share it.
        memory: bytes per worker; 0 for no request.
    """

    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be >= 1, got {self.workers}")
        if min(self.cpus, self.gpus, self.memory) < 0 or not self.cpus + self.gpus > 0:
            raise ValueError(f"cpus, gpus and memory must be >= 0, and cpus or gpus > 0; got {self}")
        if self.workers > 1 and self.gpus % 1:
            raise ValueError(f"gpus must be a whole number where workers > 1, got {self.gpus}")
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError(f"gpus must be <= 1 or a whole number, got {self.gpus}")


@dataclass(frozen=True, slots=True)
class Node:
    """A machine with its CPUs, GPUs and memory in bytes."""

    id: str
    cpus: float
    gpus: float
    memory: int


# --- overrides -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResourceOverride:
    """Changed resources of some trials.

    Attributes:
        where: "all", a table's id, "table8/ROW LABEL", or a trial's key; before a plan, as typed.
        changes: new values of fields of `Resources`; the others are unchanged.
    """

    where: str
    changes: Mapping[str, float]


def parse_overrides(texts: Sequence[str]) -> tuple[ResourceOverride, ...]:
    """Parses "WHERE=workers:8,cpus:4,gpus:1,memory:16G", with any of the fields; WHERE may contain "=".

    Memory is in bytes or with K, M, G or T (powers of 1,024). What WHERE means is looked up by a plan.

    Raises:
        UserError: a text has another form, or a field a wrong number.
    """
    return tuple(_parsed(text) for text in texts)


def overridden(
    resources: Resources | None, places: Collection[str], overrides: Sequence[ResourceOverride]
) -> Resources | None:
    """A trial's resources after the overrides.

    An override of a trial's key goes before one of its row, a row before its table, a table before "all"; of
    equal ones the later goes first.

    Args:
        resources: the profile's choice. If it is None, the overrides change a worker of one CPU and must set
            `gpus`.
        places: the trial's key, the tables that cite it, and their rows as "table8/ROW LABEL".

    Raises:
        UserError: the result is not valid, or `gpus` is not set.
    """
    found = [o for o in overrides if o.where == EVERYWHERE or o.where in places]
    if not found:
        return resources
    changes: dict[str, float] = {}
    for override in sorted(found, key=lambda o: _closeness(o.where)):
        changes |= override.changes
    if resources is None and "gpus" not in changes:
        raise UserError(
            f"--resources {found[-1].where}: the profile sets no GPUs for its trials; "
            "add gpus:N (gpus:0 for none)."
        )
    try:
        return replace(resources or Resources(), **changes)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f"--resources {found[-1].where}: {error}") from error


def without_gpus(resources: Resources) -> Resources:
    """The resources on a machine without GPUs: at least one CPU per worker."""
    return replace(resources, gpus=0.0, cpus=max(1.0, resources.cpus))


def held(wanted: Resources | None, share: Resources, *, gpus: bool) -> Resources:
    """What a trial holds: the machine's share if `wanted` is None, and no GPUs on a machine without any."""
    size = wanted or share
    return size if gpus or not size.gpus else without_gpus(size)


def _closeness(where: str) -> int:
    if where == EVERYWHERE:
        return 0
    if "/" in where:
        return 2
    return 3 if re.fullmatch(r"[0-9a-f]{12}", where) else 1


def _parsed(text: str) -> ResourceOverride:
    where, equals, fields = text.rpartition("=")
    where = where.strip()
    if not equals or not where:
        raise UserError(
            f"--resources must be WHERE=workers:N,cpus:N,gpus:N,memory:SIZE with any of the four, such as "
            f"table8=workers:8,gpus:1 or all=memory:16G; got {text!r}."
        )
    return ResourceOverride(where, dict(_field(f, text) for f in fields.split(",")))


def _field(field: str, text: str) -> tuple[str, float]:
    name, _, value = (part.strip() for part in field.partition(":"))
    try:
        number = _READ[name](value)
    except KeyError:
        raise UserError(
            f"--resources {text}: fields are workers, cpus, gpus and memory; got {name!r}."
        ) from None
    except ValueError:
        raise UserError(f"--resources {text}: {name} must be a number, got {value!r}.") from None
    if not (math.isfinite(number) and number >= 0):
        raise UserError(f"--resources {text}: {name} must be >= 0, got {value!r}.")
    return name, number


def _bytes(text: str) -> int:
    size = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if size is None:
        raise ValueError(text)
    return round(float(size[1]) * (1 << 10 * " KMGT".index(size[2].upper() or " ")))


_READ: Mapping[str, Callable[[str], float]] = {"workers": int, "cpus": float, "gpus": float, "memory": _bytes}
