"""The processes that work on one trial together, as the code that they share sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from detector.errors import CheckpointError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that work on one trial together."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def current() -> Ranks:
        """From torch.distributed where it is initialised, else a single process."""
        if not (dist.is_available() and dist.is_initialized()):
            return Ranks()
        return Ranks(dist.get_rank(), dist.get_world_size())

    def sum(self, value: Tensor) -> Tensor:
        """`value` summed over ranks, without gradient; every rank must call it."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks, on rank 0; nothing elsewhere. Every rank must call it.

        The value is pickled, so it must come from this program, as it does.
        """
        if self.size == 1:
            return [value]
        gathered: list[T] | None = [value] * self.size if self.rank == 0 else None
        dist.gather_object(value, gathered)
        return gathered or []

    def agree_on(self, step: int, device: str) -> None:
        """Checks that all ranks found the same checkpoint.

        Raises:
            CheckpointError: they did not, so they do not see the same files.
        """
        steps = torch.zeros(self.size, dtype=torch.int64, device=device)
        steps[self.rank] = step
        found = self.sum(steps).tolist()
        if len(set(found)) > 1:
            raise CheckpointError(
                f"the workers would go on from different steps, {found}: the workspace must lie on a file "
                "system that all of them share"
            )
