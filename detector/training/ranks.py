"""The ranks (processes) that train one trial together."""

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
    """This process among the ranks of a trial."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def current() -> Ranks:
        """From torch.distributed if it is initialised, otherwise a single process."""
        if not (dist.is_available() and dist.is_initialized()):
            return Ranks()
        return Ranks(dist.get_rank(), dist.get_world_size())

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over ranks, without gradient. Every rank must call it."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on rank 0; nothing on others. Every rank must call it.

        Values are pickled, so they must come from this program.
        """
        if self.size == 1:
            return [value]
        gathered: list[T] | None = [value] * self.size if self.rank == 0 else None
        dist.gather_object(value, gathered)
        return gathered or []

    def agree_on(self, step: int, device: str) -> None:
        """Checks that all ranks found the same checkpoint.

        Raises:
            CheckpointError: they found different ones, so they have different files.
        """
        steps = torch.zeros(self.size, dtype=torch.int64, device=device)
        steps[self.rank] = step
        found = self.sum(steps).tolist()
        if len(set(found)) > 1:
            raise CheckpointError(
                f"the workers would resume at different steps, {found}: the workspace must be on a file "
                "system that all of them share"
            )
