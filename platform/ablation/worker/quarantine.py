"""Quarantine of a device that cannot be used any more.

Ray gives a GPU that fails every trial to the next trial, and then to the next. So the process under which it
failed goes on holding what Ray allocated to it until the run ends.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import Any, NoReturn

from ablation.resources import Resources

ALLOCATED_WITHIN_S = 60.0
"""After so long other processes hold what was asked for."""

_holders: list[Any] = []  # Ray ends an actor to which nothing refers


@dataclass(frozen=True, slots=True)
class Device:
    """What Ray allocated to a process under which a device failed.

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
        what = f"GPU {', '.join(self.gpus)}" if self.gpus else "a worker's CPUs"
        return f"{what} of {self.host} ({self.address})"


@dataclass(frozen=True, slots=True)
class Fault:
    """A device, and what is wrong with it."""

    device: Device
    why: str

    def __str__(self) -> str:
        return f"{self.device}: {self.why}"


def this_device(workers: int) -> Device:
    """The device of this process.

    Args:
        workers: of its trial on this machine.
    """
    import ray

    address = ray.util.get_node_ip_address()
    return Device(ray.get_runtime_context().get_node_id(), socket.gethostname(), address, _gpus(), workers)


def _gpus() -> tuple[str, ...]:
    import ray

    return tuple(ray.get_runtime_context().get_accelerator_ids().get("GPU", ()))


def hold_until_killed() -> NoReturn:
    """Holds the resources of this process, and those that `allocate` got, until the process is killed."""
    while True:
        time.sleep(60)


def allocate(device: Device, resources: Resources) -> None:
    """Allocates to this process what a group had on a machine, with its bad GPU, for the life of the process.

    Ray allocates any GPU that is free. So actors are started until one of them has the bad GPU; those beyond
    the group's number of workers then end.

    Args:
        device: of one worker; Train has released, or is about to, what all workers held.
        resources: of the trial.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    holder = ray.remote(_Holder).options(
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        memory=resources.memory or None,
        resources={f"node:{device.address}": 0.001},
        scheduling_strategy="DEFAULT",  # or it would have to fit into what this process holds
    )
    with_it: list[Any] = []
    without: list[Any] = []
    while not with_it or len(with_it) + len(without) < device.workers:
        process = holder.remote()
        try:
            gpus = ray.get(process.gpus.remote(), timeout=ALLOCATED_WITHIN_S)
        except (GetTimeoutError, RayError):
            ray.kill(process)
            break
        (with_it if set(device.gpus) <= set(gpus) else without).append(process)
    number = max(0, device.workers - len(with_it))
    for process in without[number:]:
        ray.kill(process)
    _holders.extend([*with_it, *without[:number]])


class _Holder:
    """A process that does nothing, with resources of its own."""

    def gpus(self) -> tuple[str, ...]:
        """The machine's numbers of its GPUs."""
        return _gpus()
