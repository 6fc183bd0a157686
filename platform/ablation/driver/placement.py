"""What is free on each node, and where the workers of one trial go.

Amounts are whole numbers (ten-thousandths of a CPU or GPU, bytes), as Ray counts them, so that three thirds
of a GPU never exceed one. Knows no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from ablation.resources import Node, Resources

UNIT = 10_000
"""Parts of one CPU or GPU."""


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """What each worker of a trial takes of a node. Equal resources give the same object (`demand_of`)."""

    workers: int
    cpus: int
    gpus: int
    memory: int


@cache
def demand_of(resources: Resources) -> Demand:
    """The demand in whole numbers."""
    return Demand(
        resources.workers, round(resources.cpus * UNIT), round(resources.gpus * UNIT), resources.memory
    )


@dataclass(frozen=True, slots=True)
class Allocation:
    """What the workers of one trial hold on one node; `gpus` are pairs of a GPU's number and its part."""

    workers: int
    cpus: int
    memory: int
    gpus: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class FreeResources:
    """What is free on one node; `gpus` is the free part of each GPU."""

    cpus: int
    memory: int
    gpus: list[int]
    _capacity: dict[Demand, int] = field(default_factory=dict)

    @staticmethod
    def of(node: Node) -> FreeResources:
        """All that an empty node has."""
        whole, part = divmod(round(node.gpus * UNIT), UNIT)
        return FreeResources(round(node.cpus * UNIT), node.memory, [UNIT] * whole + [part] * bool(part))

    @property
    def size(self) -> tuple[int, int, int]:
        """GPUs, CPUs, memory: scarcest first, so that a trial without GPUs avoids nodes that have them."""
        return sum(self.gpus), self.cpus, self.memory

    def capacity(self, demand: Demand) -> int:
        """How many of the workers fit, at most all of them."""
        if demand not in self._capacity:
            pairs = ((self.cpus, demand.cpus), (self.memory, demand.memory))
            fitting = [demand.workers, *(free // each for free, each in pairs if each)]
            if demand.gpus:
                fitting.append(self._gpu_capacity(demand.gpus))
            self._capacity[demand] = max(0, min(fitting))
        return self._capacity[demand]

    def _gpu_capacity(self, each: int) -> int:
        if each < UNIT:
            return sum(free // each for free in self.gpus)
        return self.gpus.count(UNIT) // (each // UNIT)

    def allocation(self, demand: Demand, workers: int) -> Allocation:
        """What so many workers would hold; `capacity` must be as large."""
        free, taken = self.gpus.copy(), []
        part = min(demand.gpus, UNIT)
        for _ in range(workers * demand.gpus // part if part else 0):
            # The fullest GPU that still has the part, so that whole GPUs stay whole.
            number = min((i for i, left in enumerate(free) if left >= part), key=free.__getitem__)
            free[number] -= part
            taken.append((number, part))
        return Allocation(workers, workers * demand.cpus, workers * demand.memory, tuple(taken))

    def take(self, allocation: Allocation) -> None:
        """The allocation is held from now on."""
        self._change(allocation, -1)

    def give(self, allocation: Allocation) -> None:
        """The allocation is free again."""
        self._change(allocation, 1)

    def _change(self, allocation: Allocation, sign: int) -> None:
        self.cpus += sign * allocation.cpus
        self.memory += sign * allocation.memory
        for number, part in allocation.gpus:
            self.gpus[number] += sign * part
        self._capacity.clear()


def place(free: Mapping[str, FreeResources], demand: Demand) -> dict[str, Allocation] | None:
    """Allocations by node for all workers at once: on the tightest node that fits them, else on few nodes.

    Returns:
        None when they do not all fit.
    """
    capacities = {id: fits for id, node in free.items() if (fits := node.capacity(demand))}
    if sum(capacities.values()) < demand.workers:
        return None
    alone = [id for id, fits in capacities.items() if fits == demand.workers]
    if alone:
        tightest = min(alone, key=lambda id: free[id].size)
        return {tightest: free[tightest].allocation(demand, demand.workers)}
    allocations: dict[str, Allocation] = {}
    left = demand.workers
    for id in sorted(capacities, key=capacities.__getitem__, reverse=True):
        workers = min(left, capacities[id])
        allocations[id] = free[id].allocation(demand, workers)
        left -= workers
        if not left:
            break
    return allocations
