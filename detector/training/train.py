"""Training as a generator of reports, the same on one process or many.

A step is a function of (config, step): images, flips and sizes come from (seed, step); normalisers and
gradients are summed over ranks and over the micro-batches of a worker. On a CPU a resumed run equals an
uninterrupted one bit for bit; CUDA kernels add in varying order. The receiver of the reports is not known
here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detector.config import Trial
from detector.data.batches import step_batch
from detector.data.coco import CheckedSplit
from detector.data.dataset import Batch, SplitImages
from detector.data.loader import prefetched
from detector.data.sampler import Pool, pool_of, rank_slice
from detector.errors import CheckpointError, DivergedError, WeightsError
from detector.model.build import build_detector
from detector.model.detector import AnyModel, Targets
from detector.model.weights import load_pretrained
from detector.serialization import to_dict
from detector.training import checkpoint as checkpoints
from detector.training.optim import build_optimizer, set_learning_rate
from detector.training.precision import autocast, gradient_scaler
from detector.training.ranks import Ranks

Validate = Callable[[AnyModel], dict[str, float]]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Settings that do not change a training's result.

    Attributes:
        directory: of the checkpoints.
        device: "cpu" or "cuda".
        report_every: steps between two reports.
        checkpoint_every: steps between two checkpoints; rounded up to a multiple of `report_every`, so
            that a resumed run reports the same means as an uninterrupted one.
        micro_batch: images that a worker processes at a time, summing their gradients; None for its whole
            part of the batch.
        loaders: threads that prepare batches ahead; 0 prepares each when it is needed.
        weights: returns the file that `Trial.weights` describes; called only when a training starts.
        validate_every: steps between two calls of `validate`, whose metrics are reported.
    """

    directory: Path
    device: str = "cpu"
    report_every: int = 20
    checkpoint_every: int = 200
    micro_batch: int | None = None
    loaders: int = 0
    weights: Callable[[], Path] | None = None
    validate_every: int | None = None

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
    """A checkpoint was written."""

    file: checkpoints.CheckpointFile


@dataclass(frozen=True, slots=True)
class Notice:
    """A message to the user."""

    message: str


TrainReport = StepReport | CheckpointReport | Notice


@dataclass
class Training:
    """A trial in training: the content of a checkpoint, and what the next step needs."""

    trial: Trial
    options: RunOptions
    split: CheckedSplit
    images: SplitImages
    model: AnyModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    pool: Pool
    ranks: Ranks
    forward: nn.Module
    step: int = 0
    saved: int = 0
    history: list[Tensor] = field(default_factory=list)
    loss_names: tuple[str, ...] = ()

    @staticmethod
    def start(trial: Trial, split: CheckedSplit, images: SplitImages, options: RunOptions) -> Training:
        """A new training: random weights from the trial's seed, the same on every rank."""
        ranks, schedule = Ranks.current(), trial.schedule
        rank_slice(schedule.total_batch, ranks.rank, ranks.size)  # refuses more ranks than images
        torch.manual_seed(trial.seed)
        model = build_detector(trial.detector).to(options.device)
        model.train()
        forward = DistributedDataParallel(model, broadcast_buffers=False) if ranks.size > 1 else model
        return Training(
            trial=trial,
            options=options,
            split=split,
            images=images,
            model=model,
            optimizer=build_optimizer(model, schedule),
            scaler=gradient_scaler(schedule.precision, options.device),
            pool=pool_of(images.records, trial.data),
            ranks=ranks,
            forward=forward,
        )

    def resume(self) -> list[TrainReport]:
        """Resumes at the newest intact checkpoint, or loads pretrained weights; returns notices."""
        file, payload, passed_over = checkpoints.load_latest_good(self.options.directory)
        self.ranks.agree_on(0 if file is None else file.step, self.options.device)
        reports: list[TrainReport] = [Notice(f"passed over a checkpoint: {why}") for why in passed_over]
        if file is None or payload is None:
            self._load_weights()
            return reports
        if payload["config"] != to_dict(self.trial):
            raise CheckpointError(f"{file.path.name}: belongs to another trial config; move it away")
        self.model.load_state_dict(payload["model"])
        self.optimizer.load_state_dict(payload["optimizer"])
        self.scaler.load_state_dict(payload["scaler"])
        torch.set_rng_state(payload["rng"])
        self.step = self.saved = file.step
        return [*reports, Notice(f"resumes at the checkpoint of step {file.step}")]

    def _load_weights(self) -> None:
        wanted, find = self.trial.weights, self.options.weights
        if wanted is None:
            return
        if find is None:
            raise WeightsError(f"no file of the pretrained weights {wanted.sha256} was given")
        load_pretrained(self.model, find(), wanted)

    def save(self) -> CheckpointReport:
        """Writes a checkpoint (on rank 0) and removes old ones.

        Raises:
            DivergedError: a weight is not finite; the losses before the last update may be.
        """
        directory, self.saved = self.options.directory, self.step
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            raise DivergedError(f"a weight is not finite after step {self.step}; {self._last_checkpoint()}")
        if self.ranks.rank != 0:
            return CheckpointReport(checkpoints.CheckpointFile(directory, self.step, ""))
        payload = {
            "config": to_dict(self.trial),
            "class_names": list(self.split.class_names),
            "category_ids": list(self.split.category_ids),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            # Used for the initial weights alone so far; a layer such as dropout would resume exactly too.
            "rng": torch.get_rng_state(),
        }
        file = checkpoints.save(directory, self.step, payload)
        checkpoints.prune(directory, file)
        return CheckpointReport(file)

    def batch(self, step: int) -> Batch:
        """This rank's part of a step's images."""
        own = rank_slice(self.trial.schedule.total_batch, self.ranks.rank, self.ranks.size)
        return step_batch(self.images, self.pool, self.trial, step, own)

    def batches(self) -> Generator[Batch, None, None]:
        """This rank's part of the remaining steps, prepared ahead."""
        return prefetched(self.batch, range(self.step, self.trial.schedule.iterations), self.options.loaders)

    def advance(self, batch: Batch) -> None:
        """One optimiser step on this rank's part of the current step's images."""
        set_learning_rate(self.optimizer, self.trial.schedule, self.step)
        seeds = [_seed(self.trial.seed, self.step, image) for image in batch.image_ids.tolist()]
        batch = batch.to(self.options.device)
        parts = _parts(len(batch.images), self.options.micro_batch)
        alone = self.model.targets_need_outputs and len(parts) == 1
        whole = self._predicted(batch, parts[0]) if alone else None
        targets, own = self._targets(batch, parts, whole, seeds)
        counts = self.ranks.sum(own)
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for part, wanted in zip(parts, targets, strict=True):
            with self._exchange(part is parts[-1]):
                outputs = whole if whole is not None else self._predicted(batch, part)
                losses.append(self._backward(outputs, wanted, counts))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.history.append(torch.stack(losses).sum(dim=0))
        self.step += 1

    def _targets(
        self, batch: Batch, parts: list[slice], whole: Any | None, seeds: list[int]
    ) -> tuple[list[Targets], Tensor]:
        """The targets of each micro-batch, and the counts of all.

        Args:
            batch: this rank's part of the step's images.
            parts: its micro-batches.
            whole: the outputs, where targets need them and there is one micro-batch. Each of several is
                predicted here once more, without gradient, because its losses need the counts of all.
            seeds: one per image, for targets that are drawn.
        """
        canvas = batch.images.shape[2], batch.images.shape[3]
        boxes, labels, valid = batch.boxes_NG4, batch.labels_NG, batch.valid_NG
        if not self.model.targets_need_outputs:
            targets: Targets = self.model.targets(canvas, boxes, labels, valid)
            return [targets[part] for part in parts], targets.counts()
        each: list[Targets] = []
        for part in parts:
            with torch.no_grad():
                outputs = whole if whole is not None else self._predicted(batch, part)
            found = self.model.targets(canvas, boxes[part], labels[part], valid[part], outputs, seeds[part])
            each.append(found)
        return each, torch.stack([targets.counts() for targets in each]).sum(dim=0)

    def _predicted(self, batch: Batch, part: slice) -> Any:
        with autocast(self.trial.schedule.precision, self.options.device):
            return self.forward(batch.images[part], batch.sizes[part])

    def _backward(self, outputs: Any, targets: Targets, counts: Tensor) -> Tensor:
        """Adds the gradients of a micro-batch; returns its losses."""
        losses = self.model.losses(outputs, targets, counts)
        total = torch.stack(list(losses.values())).sum()
        # DistributedDataParallel averages gradients; each rank's loss is a part of the sum.
        self.scaler.scale(total * self.ranks.size).backward()  # type: ignore[no-untyped-call]
        self.loss_names = (*(f"loss_{name}" for name in losses), "loss")
        return torch.stack([*losses.values(), total]).detach()

    def _exchange(self, last: bool) -> AbstractContextManager[None]:
        """Ranks exchange gradients after the last micro-batch."""
        if last or not isinstance(self.forward, DistributedDataParallel):
            return nullcontext()
        return self.forward.no_sync()

    def validation(self, validate: Validate) -> StepReport:
        """The metrics of `validate` for the current model."""
        metrics = validate(self.model.eval())
        self.model.train()
        return StepReport(self.step, metrics)

    def report(self, seconds: float) -> StepReport:
        """Means of the losses since the last report.

        Raises:
            DivergedError: a loss was not finite; names the step and the last checkpoint.
        """
        steps = len(self.history)
        losses = self._finite(self.ranks.sum(torch.stack(self.history)).cpu())
        self.history.clear()
        means = losses.double().mean(dim=0).tolist() if len(losses) else []
        metrics = dict(zip(self.loss_names, means, strict=False))
        metrics["learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
        metrics["images_per_second"] = steps * self.trial.schedule.total_batch / max(seconds, 1e-9)
        return StepReport(self.step, metrics)

    def _finite(self, losses: Tensor) -> Tensor:
        """The losses, (steps, kinds); in float16 without skipped steps, whose gradients overflowed."""
        good = losses.isfinite().all(dim=1)
        if self.scaler.is_enabled():
            if self.scaler.get_scale() < 1:
                raise DivergedError(
                    f"float16 overflows step after step, up to step {self.step}; {self._last_checkpoint()}"
                )
        elif not good.all():
            step = self.step - len(losses) + int((~good).nonzero()[0]) + 1
            total = self.trial.schedule.iterations
            raise DivergedError(
                f"the loss is not finite at step {step} of {total}; {self._last_checkpoint()}"
            )
        return losses[good]

    def _last_checkpoint(self) -> str:
        found = checkpoints.found(self.options.directory)
        return f"the last checkpoint is of step {found[0].step}" if found else "there is no checkpoint yet"


def _seed(*numbers: int) -> int:
    """A seed that depends on all these numbers."""
    return int(np.random.SeedSequence([abs(number) for number in numbers]).generate_state(1)[0])


def _parts(count: int, micro_batch: int | None) -> list[slice]:
    """Micro-batches of at most `micro_batch` images; the last may be smaller."""
    size = min(count, micro_batch or count)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def train(
    trial: Trial,
    split: CheckedSplit,
    images: SplitImages,
    options: RunOptions,
    validate: Validate | None = None,
) -> Generator[TrainReport, None, AnyModel]:
    """Trains to the end, from the newest intact checkpoint if there is one.

    Args:
        trial: what to train.
        split: the training split; its class names go into the checkpoints.
        images: the split's images at the trial's size.
        options: settings that do not change the result.
        validate: returns metrics of the model, which it gets in eval mode on every rank.

    Yields:
        A report every `report_every` steps, for each checkpoint and validation, and notices. All ranks
        yield the same sequence; checkpoint reports of ranks other than 0 have no file.

    Returns:
        The trained model, in eval mode.

    Raises:
        DivergedError: the loss became NaN or infinite.
        CheckpointError: a checkpoint could not be written.
        WeightsError: the pretrained weights do not fit, or are not those that the trial names.

    When it is closed at a report (`close()`, at the same one on every rank), it writes a checkpoint first.
    """
    training = Training.start(trial, split, images, options)
    yield from training.resume()
    try:
        yield from _steps(training, validate)
    except GeneratorExit:
        if training.step > training.saved and not training.history:
            training.save()
        raise
    return training.model.eval()


def _steps(training: Training, validate: Validate | None) -> Generator[TrainReport, None, None]:
    """The remaining steps, with their reports, validations and checkpoints."""
    options, total = training.options, training.trial.schedule.iterations
    since = time.perf_counter()
    with closing(training.batches()) as batches:
        for batch in batches:
            training.advance(batch)
            last = training.step == total
            if last or training.step % options.report_every == 0:
                now = time.perf_counter()
                yield training.report(now - since)
                since = now
            if validate and not last and training.step % (options.validate_every or total) == 0:
                yield training.validation(validate)
                since = time.perf_counter()
            if last or training.step % options.checkpoint_interval == 0:
                yield training.save()
                since = time.perf_counter()
