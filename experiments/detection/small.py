"""Scales of a laptop: the rows of a study with small images, small networks and few iterations.

They keep a paper's geometry (five levels, anchors in strides, k, thresholds) and every switch that a row
turns. The data set is drawn, unless the user names one. A study makes its profiles of these scales with its
own summary and seed noise, `profile(replace(SHAPES, summary=...))`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from ablation.errors import UserError
from ablation.metric import SeedNoise
from ablation.options import named
from ablation.resources import Resources
from ablation.study import Profile
from detector.config import (
    AdamW,
    AnyData,
    AnyDetector,
    Data,
    Evaluation,
    MultiScale,
    OneCycle,
    Precision,
    ScalePass,
    Schedule,
    SingleScale,
    SingleShot,
    SquareData,
    Trial,
)
from detector.data.shapes import ShapesSpec, draw_dataset
from experiments.detection.cost import trial_cost
from experiments.detection.data import Context, DataSet, open_data
from experiments.detection.networks import SmallDense, SmallNetworks, SmallSingleShot
from experiments.detection.options import DetectionOptions
from experiments.detection.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Scale:
    """A profile's numbers.

    Attributes:
        summary: one line of help: what it is for, and how long the study takes at it.
        shapes: the data set to draw when the user names none.
        own_short_side, own_max_long_side: what the user's own images are resized to, in pixels.
            Photographs hold smaller things than the drawings do: on blood cells RetinaNet (#A=1) with
            the five improvements has AP50 74.6 at 128 and 86.7 at 192 (seed 100).
        finest_anchor: side of the smallest anchor on the drawings, in pixels: it scales COCO's areas.
        networks: makes the paper's detectors small.
        report_every, checkpoint_every: in iterations.
        seed_noise: see `ablation.setting.Setting`.
    """

    name: str
    summary: str
    seeds: int
    shapes: ShapesSpec
    own_short_side: int
    own_max_long_side: int
    schedule: Schedule
    finest_anchor: float
    networks: SmallNetworks
    report_every: int
    checkpoint_every: int
    seed_noise: Mapping[str, SeedNoise] = field(default_factory=dict)


SHAPES = Scale(
    name="shapes",
    summary="drawn shapes",
    seeds=1,
    shapes=ShapesSpec(seed=2020, image_size=128, num_train=3000, num_val=300, max_objects=6, min_size=16),
    own_short_side=192,
    own_max_long_side=320,
    schedule=Schedule(iterations=750, total_batch=16, optimizer=AdamW(lr=3e-3), decay=OneCycle()),
    finest_anchor=32.0,
    networks=SmallNetworks(
        SmallDense(widths=(16, 32, 64, 96), stem_channels=16, stem_stride=4, channels=32, num_convs=2),
        SmallSingleShot(halvings=2, thinner=16),
    ),
    report_every=20,
    checkpoint_every=250,
)

SMOKE = replace(
    SHAPES,
    name="smoke",
    summary="every row for a few seconds, to see that everything works",
    shapes=ShapesSpec(seed=2020, image_size=64, num_train=64, num_val=16, max_objects=6, min_size=8),
    own_short_side=64,
    own_max_long_side=107,
    schedule=replace(SHAPES.schedule, iterations=10, total_batch=4),
    finest_anchor=16.0,
    networks=SmallNetworks(
        SmallDense(widths=(16, 16, 16, 16), stem_channels=16, stem_stride=2, channels=16, num_convs=1),
        SmallSingleShot(halvings=2, thinner=32),
    ),
    report_every=5,
    checkpoint_every=5,
)


def profile(scale: Scale) -> Profile:
    """The profile of a scale."""
    return Profile(scale.name, scale.summary, scale.seeds, partial(prepare, scale))


PRECISION: Precision = "bf16"
"""Of all scales, where the machine has it."""


@dataclass(frozen=True, slots=True)
class ScaledSetting:
    """A scale with its data set at hand: an `ablation.setting.Setting`.

    Attributes:
        num_val: validation images.
    """

    scale: Scale
    data: Data
    data_name: str
    own_data: str | None
    num_classes: int
    num_val: int
    precision: Precision
    caption: str
    notices: Sequence[str]
    context: Context

    @property
    def profile(self) -> str:
        """The profile's name, and what the user changed of it."""
        return self.scale.name

    @property
    def at_paper_scale(self) -> bool:
        """See `ablation.setting.Setting`."""
        return False

    @property
    def seed_noise(self) -> Mapping[str, SeedNoise]:
        """See `ablation.setting.Setting`. It was measured on the drawings."""
        return {} if self.own_data else self.scale.seed_noise

    @property
    def exclusive_gpus(self) -> bool:
        """See `ablation.setting.Setting`."""
        return False

    def trial(self, training: Recipe, seed: int) -> Trial:
        """The row at this scale. The paper's 1x and 2x schedules are one here."""
        detector = self.scale.networks.small(training.detector, self.num_classes)
        schedule = replace(self.scale.schedule, precision=self.precision)
        return Trial(detector, schedule, _seen_by(detector, self.data), seed)

    def evaluation(self, evaluation: Evaluation) -> Evaluation:
        """The paper's test on the validation split; 13 sizes become five, each with its areas."""
        evaluation = replace(evaluation, split="val")
        match evaluation.scales:
            case SingleScale():
                return evaluation
            case MultiScale():
                return replace(evaluation, scales=replace(evaluation.scales, passes=SMALL_PASSES))

    def resources(self, trial: Trial) -> Resources | None:
        """A fair share of the machine: so small a network leaves room beside it on any CPU and GPU."""
        return None

    def cost(self, trial: Trial, evaluations: Sequence[Evaluation]) -> float:
        """See `ablation.setting.Setting`; in 10^12 multiply-adds."""
        return trial_cost(trial, evaluations, {"val": self.num_val})


def _seen_by(detector: AnyDetector, data: Data) -> AnyData:
    """The data set as a detector sees it: warped to its own square, or at the scale's size.

    Images are flipped and not augmented otherwise, for every detector alike.
    """
    if not isinstance(detector, SingleShot):
        return data
    return SquareData(
        data.fingerprint,
        detector.input_size,
        augmentation=None,
        flip=data.flip,
        small_side=data.small_side,
        medium_side=data.medium_side,
    )


SMALL_PASSES = (
    ScalePass(1.0),
    ScalePass(0.5, min_side=0.12),
    ScalePass(0.75, min_side=0.08),
    ScalePass(1.25, max_scale=3.75),
    ScalePass(1.5, max_scale=3.75, max_side=0.32),
)
"""Multi-scale testing of small images: large objects from small images, small objects from large."""


# --- preparing a setting -----------------------------------------------------------------------------


def prepare(scale: Scale, workspace: Path, options: DetectionOptions) -> ScaledSetting:
    """The scale bound to a data set: drawn on first use, or the user's own, checked and decoded once.

    Args:
        workspace: holds drawn data sets and decoded images.
        options: what the user changed of the scale.

    Raises:
        UserError: the data set cannot be used, or an option means nothing here.
    """
    supported, fallback = supported_precision()
    precision = options.precision or supported
    # Named by what is trained, whichever machine asks.
    scale, cache = changed(scale, replace(options, precision=precision)), workspace / "cache"
    own = options.data_set(cache)
    paths, name = (own.paths, own.name) if own else (draw_dataset(scale.shapes, cache), "shapes")
    dataset = open_data(paths, size(scale, own=own is not None), cache, name, drawn=own is None)
    return ScaledSetting(
        scale=scale,
        data=dataset.data,
        data_name=dataset.name,
        own_data=dataset.folder_name if own else None,
        num_classes=len(dataset.class_names),
        num_val=dataset.images["val"],
        precision=precision,
        caption=_caption(scale, dataset, precision),
        notices=[*(own.report if own else ()), *dataset.repairs, *([] if options.precision else fallback)],
        context=Context(dataset.paths, cache, scale.report_every, scale.checkpoint_every),
    )


def changed(scale: Scale, options: DetectionOptions) -> Scale:
    """The scale with what the user changed, which its name then says.

    Raises:
        UserError: pretrained weights, or another size for drawn images.
    """
    schedule = scale.schedule
    changes = options.changes(
        iterations=schedule.iterations, short_side=scale.own_short_side, precision=PRECISION, weights="none"
    )
    if changes.weights:
        raise UserError(f"The small networks of {scale.name} start from random weights; leave out --weights.")
    if options.short_side and not options.names_data:
        raise UserError(f"{scale.name} draws its images at their size; --short-side needs --data.")
    side = changes.short_side or scale.own_short_side
    return replace(
        scale,
        name=named(scale.name, changes),
        schedule=replace(schedule, iterations=changes.max_iterations or schedule.iterations),
        own_short_side=side,
        seed_noise={} if changes.max_iterations else scale.seed_noise,
        own_max_long_side=round(side * scale.own_max_long_side / scale.own_short_side),
    )


def supported_precision(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[Precision, list[str]]:
    """bf16 where the processor multiplies it natively or a GPU is there, else fp32 and why."""
    if Path("/dev/nvidiactl").exists():
        return "bf16", []
    flags = cpuinfo.read_text() if cpuinfo.is_file() else ""
    if "avx512_bf16" in flags or "amx_bf16" in flags:
        return "bf16", []
    return "fp32", ["this processor has no bf16 arithmetic: training in fp32, about twice as long"]


def size(scale: Scale, *, own: bool) -> Data:
    """What a trial's key holds of a data set but for its fingerprint: the user's own, or the drawings."""
    if own:
        return Data("", scale.own_short_side, scale.own_max_long_side)
    # COCO's limits of 32 and 96 px are 0.83 and 2.5 sides of the finest anchor at the paper's size.
    finest = scale.finest_anchor
    return Data(
        "",
        short_side=scale.shapes.image_size,
        max_long_side=scale.shapes.image_size,
        small_side=finest * 32 * 800 / 480 / 64,
        medium_side=finest * 96 * 800 / 480 / 64,
    )


def _caption(scale: Scale, dataset: DataSet[Data], precision: Precision) -> str:
    schedule = scale.schedule
    return (
        f"{dataset.summary}, short side {dataset.data.short_side}, {schedule.iterations} iterations of "
        f"{schedule.total_batch}, {precision}, from scratch."
    )
