"""The place of a device that works no more: what is known of it, and how it is kept from every other trial.

Ray hands a GPU that fails every trial to the next one, and then to the next: after a night with one of them
every trial would have failed. So the process that found it out stays, and holds what it was given until the
run ends.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import NoReturn

from ablation.resources import Resources


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
        machine = f"{self.host} ({self.address})"
        return f"GPU {', '.join(self.gpus)} of {machine}" if self.gpus else machine


def here(workers: int) -> Place:
    """That of this process.

    Args:
        workers: of its trial on this machine.
    """
    import ray

    context = ray.get_runtime_context()
    gpus = tuple(context.get_accelerator_ids().get("GPU", ()))
    return Place(context.get_node_id(), socket.gethostname(), ray.util.get_node_ip_address(), gpus, workers)


def sit(place: Place, resources: Resources) -> NoReturn:
    """Keeps everybody else from the place until this process is ended.

    Args:
        place: of one worker, in this process where the trial has no other.
        resources: of the trial.
    """
    if resources.workers > 1:
        _hold(place, resources)
    while True:
        time.sleep(60)


def _hold(place: Place, resources: Resources) -> None:
    """Takes, of the place's machine, what the group's workers held there, as soon as Train has given it back.

    Which of its GPUs a process gets, Ray decides: so it is all that the group had.
    """
    from ray.util import placement_group

    each = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.memory}
    worker = {name: amount for name, amount in each.items() if amount}
    on_it = {f"node:{place.address}": 0.001}
    placement_group([{**worker, **on_it}] * place.workers, strategy="STRICT_PACK")
