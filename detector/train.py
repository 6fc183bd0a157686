"""Training as a generator of reports, the same on one process or many.

What a step computes is a function of (config, step): images and flips come from (seed, step), every
normaliser is summed over ranks, and so is the gradient. On a CPU a resumed run is bit for bit the one that
never stopped; CUDA's kernels add in any order. Nothing here knows who listens to the reports.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detector import checkpoint as checkpoints
from detector.build import build_detector
from detector.coco import CheckedSplit
from detector.config import Trial, to_plain
from detector.dataset import Batch, PackedImages, load_batch
from detector.dense_detector import DenseDetector
from detector.errors import CheckpointError, DivergedError
from detector.optim import build_optimizer, set_learning_rate
from detector.precision import autocast
from detector.sampler import rank_slice, training_batch


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What decides where and how a training runs, and never its result.

    Attributes:
        directory: where checkpoints go.
        device: "cpu" or "cuda".
        report_every: steps between two reports.
        checkpoint_every: steps between two checkpoints; rounded up to a multiple of `report_every`, so
            that a resumed run reports the same means as one that never stopped.
    """

    directory: Path
    device: str = "cpu"
    report_every: int = 20
    checkpoint_every: int = 200

    @property
    def checkpoint_interval(self) -> int:
        """Steps between two checkpoints, a multiple of `report_every`."""
        return math.ceil(self.checkpoint_every / self.report_every) * self.report_every


@dataclass(frozen=True, slots=True)
class StepReport:
    """Means over the steps since the last report, summed over ranks; `step` counts finished steps."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """A checkpoint is on disk."""

    file: checkpoints.CheckpointFile


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should know."""

    message: str


TrainReport = StepReport | CheckpointReport | Notice


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train one trial together."""

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


@dataclass
class Training:
    """A trial in training: what a checkpoint holds, and what is needed to go on."""

    trial: Trial
    options: RunOptions
    split: CheckedSplit
    images: PackedImages
    model: DenseDetector
    optimizer: torch.optim.Optimizer
    ranks: Ranks
    forward: nn.Module
    step: int = 0
    history: list[Tensor] = field(default_factory=list)
    loss_names: tuple[str, ...] = ()

    @staticmethod
    def start(trial: Trial, split: CheckedSplit, images: PackedImages, options: RunOptions) -> Training:
        """A fresh training: weights drawn from the trial's seed, the same on every rank."""
        ranks = Ranks.current()
        rank_slice(trial.schedule.total_batch, ranks.rank, ranks.size)  # refuses more ranks than images
        torch.manual_seed(trial.seed)
        model = build_detector(trial.detector).to(options.device)
        model.train()
        optimizer = build_optimizer(model, trial.schedule)
        forward = DistributedDataParallel(model, broadcast_buffers=False) if ranks.size > 1 else model
        return Training(trial, options, split, images, model, optimizer, ranks, forward)

    def resume(self) -> list[TrainReport]:
        """Go on from the newest good checkpoint, if there is one; say what was passed over."""
        file, payload, passed_over = checkpoints.load_latest_good(self.options.directory)
        self.ranks.agree_on(0 if file is None else file.step, self.options.device)
        reports: list[TrainReport] = [Notice(f"passed over a checkpoint: {why}") for why in passed_over]
        if file is None or payload is None:
            return reports
        if payload["config"] != to_plain(self.trial):
            raise CheckpointError(f"{file.path.name}: belongs to another trial config; move it away")
        self.model.load_state_dict(payload["model"])
        self.optimizer.load_state_dict(payload["optimizer"])
        torch.set_rng_state(payload["rng"])
        self.step = file.step
        return [*reports, Notice(f"goes on from the checkpoint of step {file.step}")]

    def save(self) -> CheckpointReport:
        """Write a checkpoint (rank 0 alone) and prune old ones.

        Raises:
            DivergedError: a weight is not finite; losses are computed before the update that did it.
        """
        directory = self.options.directory
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            raise DivergedError(f"a weight is not finite after step {self.step}; {self._last_checkpoint()}")
        if self.ranks.rank != 0:
            return CheckpointReport(checkpoints.CheckpointFile(directory, self.step, ""))
        payload = {
            "config": to_plain(self.trial),
            "class_names": list(self.split.class_names),
            "category_ids": list(self.split.category_ids),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            # Nothing draws from it after the weights; a layer that will (dropout) resumes as exactly.
            "rng": torch.get_rng_state(),
        }
        file = checkpoints.save(directory, self.step, payload)
        checkpoints.prune(directory, file)
        return CheckpointReport(file)

    def batch(self) -> Batch:
        """This rank's part of the current step's images."""
        trial = self.trial
        indices, flips = training_batch(
            len(self.images), trial.schedule.total_batch, trial.seed, self.step, trial.data.flip
        )
        heights, widths = zip(*(self.images.sizes[i] for i in indices), strict=True)
        part = rank_slice(trial.schedule.total_batch, self.ranks.rank, self.ranks.size)
        return load_batch(self.images, indices[part], flips[part], (max(heights), max(widths)))

    def advance(self) -> None:
        """One optimiser step."""
        set_learning_rate(self.optimizer, self.trial.schedule, self.step)
        batch, device = self.batch(), self.options.device
        with autocast(self.trial.schedule.precision, device):
            outputs = self.forward(batch.images.to(device), batch.sizes.to(device))
        boxes, labels, valid = (t.to(device) for t in (batch.boxes_NG4, batch.labels_NG, batch.valid_NG))
        losses = self.model.losses(outputs, boxes, labels, valid, reduce=self.ranks.sum)
        total = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        # DistributedDataParallel averages gradients; each rank's loss is its share of the sum.
        (total * self.ranks.size).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.history.append(torch.stack([*losses.values(), total]).detach())
        self.loss_names = (*(f"loss_{name}" for name in losses), "loss")
        self.step += 1

    def report(self, seconds: float) -> StepReport:
        """Means of the losses since the last report.

        Raises:
            DivergedError: a loss was not finite; names the step and the last checkpoint.
        """
        steps = len(self.history)
        losses = self.ranks.sum(torch.stack(self.history)).cpu()
        self.history.clear()
        self._check_finite(losses)
        metrics = dict(zip(self.loss_names, losses.double().mean(dim=0).tolist(), strict=True))
        metrics["learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
        metrics["images_per_second"] = steps * self.trial.schedule.total_batch / max(seconds, 1e-9)
        return StepReport(self.step, metrics)

    def _check_finite(self, losses: Tensor) -> None:
        bad = (~losses.isfinite()).any(dim=1).nonzero()
        if len(bad) == 0:
            return
        step = self.step - len(losses) + int(bad[0]) + 1
        total = self.trial.schedule.iterations
        raise DivergedError(f"the loss is not finite at step {step} of {total}; {self._last_checkpoint()}")

    def _last_checkpoint(self) -> str:
        found = checkpoints.found(self.options.directory)
        return f"the last checkpoint is of step {found[0].step}" if found else "there is no checkpoint yet"


def train(
    trial: Trial, split: CheckedSplit, images: PackedImages, options: RunOptions
) -> Generator[TrainReport, None, DenseDetector]:
    """Train to the end, from the newest good checkpoint if there is one.

    Args:
        trial: what to train.
        split: the training split; its class names go into the checkpoints.
        images: the same at the trial's size.
        options: where and how.

    Yields:
        A report every `report_every` steps, one for each checkpoint, and notices. All ranks yield the
        same sequence; checkpoint reports of ranks other than 0 name no file.

    Returns:
        The trained model, in eval mode.

    Raises:
        DivergedError: the loss became NaN or infinite.
        CheckpointError: a checkpoint could not be written.
    """
    training = Training.start(trial, split, images, options)
    yield from training.resume()
    total = trial.schedule.iterations
    since = time.perf_counter()
    while training.step < total:
        training.advance()
        last = training.step == total
        if last or training.step % options.report_every == 0:
            now = time.perf_counter()
            yield training.report(now - since)
            since = now
        if last or training.step % options.checkpoint_interval == 0:
            yield training.save()
    return training.model.eval()
