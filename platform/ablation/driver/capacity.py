"""Whether the nodes are large enough for a plan's trials, and what to say where they are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ablation.driver.scheduler import GangScheduler
from ablation.resources import Node, Resources


def lacking(nodes: Sequence[Node], names: Mapping[str, str], needs: Mapping[str, Resources]) -> list[str]:
    """A line for each kind of trial that does not fit even on the empty nodes.

    Args:
        nodes: all there are.
        names: of the nodes, by id.
        needs: what each trial holds, by the trial's name.
    """
    scheduler = GangScheduler(nodes)
    kinds: dict[Resources, list[str]] = {}
    for trial, resources in needs.items():
        kinds.setdefault(resources, []).append(trial)
    return [
        f"{_several(trials)} needs {_amount(resources)}; {_capacities(nodes, names, resources)}"
        for resources, trials in kinds.items()
        if scheduler.never_fits(resources)
    ]


def _capacities(nodes: Sequence[Node], names: Mapping[str, str], resources: Resources) -> str:
    """How many of the workers fit on each empty node; equal nodes share a line."""
    kinds: dict[tuple[float, float, int], list[Node]] = {}
    for node in nodes:
        kinds.setdefault((node.cpus, node.gpus, node.memory), []).append(node)
    found = [
        f"{_several([names[node.id] for node in equal])} with {_size(*size)} has room for "
        f"{_workers_on(equal[0], resources)}"
        for size, equal in kinds.items()
    ]
    return "; ".join(found) or "the cluster has no nodes"


def _workers_on(node: Node, resources: Resources) -> int:
    alone = GangScheduler([node])
    fitting = (
        n for n in range(resources.workers, 0, -1) if not alone.never_fits(replace(resources, workers=n))
    )
    return next(fitting, 0)


def _amount(resources: Resources) -> str:
    size = _size(resources.cpus, resources.gpus, resources.memory)
    return f"{size} at once" if resources.workers == 1 else f"{resources.workers} workers of {size} at once"


def _size(cpus: float, gpus: float, memory: int) -> str:
    parts = [f"{cpus:g} CPUs" if cpus != 1 else "1 CPU"]
    parts += [f"{gpus:g} GPUs" if gpus != 1 else "1 GPU"] * bool(gpus)
    parts += [f"{memory / (1 << 30):.3g} GiB"] * bool(memory)
    return ", ".join(parts)


def _several(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"each of {names[0]} and {len(names) - 1} more"
