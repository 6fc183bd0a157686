"""A device that cannot be used any more: what is known of it, and how it is kept from every other trial.

Ray hands a GPU that fails every trial to the next one, and then to the next: after a night with one of them
every trial would have failed. So the process that found it out stays, and holds what it was given until the
run ends.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import Any, NoReturn

from ablation.resources import Resources

PLACED_S = 60.0
"""A place that a process has not got by then is taken by others."""

_kept: list[Any] = []  # Ray ends what nobody refers to


@dataclass(frozen=True, slots=True)
class Place:
    """Where a trial's device failed.

    Attributes:
        node: Ray's id of the machine.
        host, address: of the machine.
        gpus: the machine's numbers of those that the process was given; none where it had none.
        workers: of the trial that were on this machine.
    """

    node: str
    host: str
    address: str
    gpus: tuple[str, ...]
    workers: int

    def __str__(self) -> str:
        what = f"GPU {', '.join(self.gpus)}" if self.gpus else "a worker's place"
        return f"{what} of {self.host} ({self.address})"


@dataclass(frozen=True, slots=True)
class Fault:
    """A place, and what is wrong there."""

    place: Place
    why: str

    def __str__(self) -> str:
        return f"{self.place}: {self.why}"


def here(workers: int) -> Place:
    """That of this process.

    Args:
        workers: of its trial on this machine.
    """
    import ray

    address = ray.util.get_node_ip_address()
    return Place(ray.get_runtime_context().get_node_id(), socket.gethostname(), address, _gpus(), workers)


def _gpus() -> tuple[str, ...]:
    import ray

    return tuple(ray.get_runtime_context().get_accelerator_ids().get("GPU", ()))


def sit() -> NoReturn:
    """Keeps everybody else from what this process was given, and from what it `hold`s, until it is ended."""
    while True:
        time.sleep(60)


def hold(place: Place, resources: Resources) -> None:
    """Takes as much of a machine as a group had there, its bad GPU among it, for the life of this process.

    Ray gives any GPU that is free: more are asked for until one process has the bad one, and the others end.

    Args:
        place: of one worker; Train has given back, or is about to, what they all had.
        resources: of the trial.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    holder = ray.remote(_Holder).options(
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        memory=resources.memory or None,
        resources={f"node:{place.address}": 0.001},
        scheduling_strategy="DEFAULT",  # or it would have to fit into the place of this process
    )
    with_it: list[Any] = []
    without: list[Any] = []
    while not with_it or len(with_it) + len(without) < place.workers:
        process = holder.remote()
        try:
            gpus = ray.get(process.gpus.remote(), timeout=PLACED_S)
        except (GetTimeoutError, RayError):
            ray.kill(process)
            break
        (with_it if set(place.gpus) <= set(gpus) else without).append(process)
    number = max(0, place.workers - len(with_it))
    for process in without[number:]:
        ray.kill(process)
    _kept.extend([*with_it, *without[:number]])


class _Holder:
    """A process that does nothing, with resources of its own."""

    def gpus(self) -> tuple[str, ...]:
        """The machine's numbers of its GPUs."""
        return _gpus()
