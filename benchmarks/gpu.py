"""Training and inference on one GPU: ATSS beside torchvision's FCOS, and what the convolutions alone reach.

Every row trains 16 images of 800x1333 (padded to 800x1344) in bfloat16 and channels-last, eager and compiled.
"Convolutions alone" is the time of all the model's convolutions, forward and backward, each with its own
shapes, many times in a row so that the device never waits for the host; deformable ones count with the
operator that samples for them. Their rate, and the share of it that a whole step reaches, are the bound and
the result. Before it is timed, a step runs with CUDA refusing every wait of the host for the device.

Needs torch, torchvision and numpy only: PYTHONPATH=. python -m benchmarks.gpu
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.common import Batch, Notes, Row, make_batch, report
from benchmarks.peers import torchvision_models
from detector.config import Detector, Evaluation, ResNet
from detector.evaluation.postprocess import detect
from detector.model.build import build_detector
from experiments.atss import presets

BOXES = 20
LEARNING_RATE = 1e-6
"""So small that fresh weights stay where they are."""


@dataclass(frozen=True)
class Setting:
    """What is run where.

    Attributes:
        device: "cuda", or "cpu" to try the script.
        images: of a batch.
        height, width: pixels.
        steps: timed, after `warmup` others.
        in_a_row: calls of a convolution that are timed together.
        tiny: narrow nets, to try the script.
    """

    device: str
    images: int = 16
    height: int = 800
    width: int = 1333
    steps: int = 20
    warmup: int = 5
    in_a_row: int = 20
    tiny: bool = False

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def autocast(self) -> torch.autocast:
        """bfloat16 arithmetic."""
        return torch.autocast(self.device, torch.bfloat16)

    def seconds(self, work: Callable[[], object], in_a_row: int = 1) -> float:
        """Median wall time of one run of `work`, of which the host waits only after `in_a_row`."""
        times = []
        for _ in range(self.warmup + self.steps):
            self.synchronize()
            start = time.perf_counter()
            for _ in range(in_a_row):
                work()
            self.synchronize()
            times.append((time.perf_counter() - start) / in_a_row)
        return statistics.median(times[self.warmup :])


TINY = Setting("cpu", images=1, height=64, width=96, steps=1, warmup=1, in_a_row=2, tiny=True)


# --- the convolutions alone --------------------------------------------------------------------------


class Call(NamedTuple):
    """A convolution of the model on one input, and whether backward computes both gradients."""

    module: nn.Conv2d
    shape: torch.Size
    input_learns: bool


def convolution_calls(model: nn.Module, forward: Callable[[], object]) -> list[Call]:
    """Every call of a convolution in `forward`, which must record gradients."""
    calls: list[Call] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv2d)
        calls.append(Call(module, inputs[0].shape, inputs[0].requires_grad))

    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d)]
    forward()
    for hook in hooks:
        hook.remove()
    return calls


def convolutions_alone(calls: Sequence[Call], setting: Setting) -> tuple[float, float]:
    """Seconds of all calls, forward and what backward they have, and their floating-point operations."""
    seconds, operations = 0.0, 0.0
    timed: dict[tuple[object, ...], float] = {}
    nested = {id(c.module.offset) for c in calls if hasattr(c.module, "offset")}
    for call in calls:
        conv = call.module
        if id(conv) in nested:
            continue  # its time and operations are in the deformable convolution's
        learns = conv.weight.requires_grad
        key = (type(conv), conv.weight.shape, conv.stride, conv.groups, call.shape, call.input_learns, learns)
        if key not in timed:
            timed[key] = _seconds_of(call, setting)
        seconds += timed[key]
        operations += _multiply_adds(call) * 2 * (1 + learns + call.input_learns)
    return seconds, operations


def _seconds_of(call: Call, setting: Setting) -> float:
    module, shape, input_learns = call
    x = torch.randn(shape, device=setting.device, dtype=torch.bfloat16)
    x = x.to(memory_format=torch.channels_last).requires_grad_(input_learns)
    conv = module if hasattr(module, "offset") else _in_bfloat16(module)
    with setting.autocast():
        gradient = torch.ones_like(conv(x))

    def work() -> None:
        with setting.autocast():
            out = conv(x)
        if out.requires_grad:
            inputs = [t for t in (x, *conv.parameters()) if t.requires_grad]
            torch.autograd.grad(out, inputs, gradient)

    return setting.seconds(work, setting.in_a_row)


def _in_bfloat16(conv: nn.Conv2d) -> nn.Conv2d:
    """A plain convolution with bfloat16 weights, so that no cast is timed with it; without bias."""
    alone = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=False,
    )
    alone.requires_grad_(conv.weight.requires_grad)
    alone.to(conv.weight.device, torch.bfloat16)
    return alone.to(memory_format=torch.channels_last)


def _multiply_adds(call: Call) -> float:
    """Of the product with the weights, and of a deformable convolution's offsets."""
    module, shape, _ = call
    cells = shape[0] * -(-shape[2] // module.stride[0]) * -(-shape[3] // module.stride[1])
    offset = getattr(module, "offset", None)
    return float(cells * (module.weight.numel() + (0 if offset is None else offset.weight.numel())))


# --- training ----------------------------------------------------------------------------------------


class Ours:
    """ATSS in training.

    Args:
        config: of the detector.
        batch: what it trains on, on the device.
        setting: where.
    """

    def __init__(self, config: Detector, batch: Batch, setting: Setting) -> None:
        self.model: Any = build_detector(config).to(setting.device)
        self.forward: Any = self.model
        self._batch, self._sizes_N2, self._setting = batch, batch.sizes_N2, setting
        self._valid_NG = torch.ones_like(batch.labels_NG, dtype=torch.bool)

    def loss(self) -> Tensor:
        """Sum of the losses."""
        images_N3HW, boxes_NG4, labels_NG = self._batch
        with self._setting.autocast():
            outputs = self.forward(images_N3HW, self._sizes_N2)
        canvas = (images_N3HW.shape[2], images_N3HW.shape[3])
        targets = self.model.targets(canvas, boxes_NG4, labels_NG, self._valid_NG)
        losses = self.model.losses(outputs, targets, targets.counts())
        return torch.stack(list(losses.values())).sum()

    def infer(self) -> None:
        """One image to its detections."""
        image, size = self._batch.images_N3HW[:1], self._sizes_N2[:1]
        with torch.inference_mode(), self._setting.autocast():
            outputs = self.forward(image, size)
        detect(self.model.candidates(outputs, Evaluation()), size, Evaluation())


class TorchvisionFCOS:
    """torchvision's FCOS, fed with its own list of images of final size; it normalises and pads as ours."""

    def __init__(self, batch: Batch, setting: Setting) -> None:
        model = torchvision_models.build("FCOS")
        height, width = batch.images_N3HW.shape[2:]
        model.transform.min_size, model.transform.max_size = (min(height, width),), max(height, width)
        self.model: Any = model.to(setting.device).to(memory_format=torch.channels_last)
        self.forward: Any = self.model
        self._setting = setting
        self._images = [image.float() / 255 for image in batch.images_N3HW]
        self._targets = [
            {"boxes": boxes, "labels": labels}
            for boxes, labels in zip(batch.boxes_NG4, batch.labels_NG, strict=True)
        ]

    def loss(self) -> Tensor:
        """Sum of the losses."""
        with self._setting.autocast():
            losses = self.forward(self._images, self._targets)
        return torch.stack(list(losses.values())).sum()

    def infer(self) -> None:
        """One image to its detections."""
        with torch.inference_mode(), self._setting.autocast():
            self.forward(self._images[:1])


def _step(contender: Ours | TorchvisionFCOS, optimizer: torch.optim.Optimizer) -> None:
    contender.loss().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()


def measure(name: str, contender: Ours | TorchvisionFCOS, setting: Setting, compiled: bool) -> Row:
    """A row: the training step against its convolutions alone, memory, and inference latency."""
    parameters = [p for p in contender.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, LEARNING_RATE, momentum=0.9, weight_decay=1e-4, fused=True)
    alone, operations = convolutions_alone(convolution_calls(contender.model, contender.loss), setting)
    if compiled:
        backend = "aot_eager" if setting.tiny else "inductor"  # minutes of compiling saved
        contender.forward = torch.compile(contender.model, backend=backend)
    _step(contender, optimizer)
    waits = "-" if setting.device == "cpu" else _waits(lambda: _step(contender, optimizer))
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step = setting.seconds(lambda: _step(contender, optimizer))
    memory = torch.cuda.max_memory_allocated() / 2**30 if setting.device == "cuda" else 0.0
    contender.model.eval()
    return {
        "detector": name,
        "compiled": "yes" if compiled else "no",
        "step ms": 1000 * step,
        "images/s": setting.images / step,
        "peak GiB": memory,
        "convolutions ms": 1000 * alone,
        "their TFLOP/s": operations / alone / 1e12,
        "step TFLOP/s": operations / step / 1e12,
        "share": alone / step,
        "host waits": waits,
        "inference ms": 1000 * setting.seconds(contender.infer),
    }


def _waits(work: Callable[[], None]) -> str:
    """ "none", or what CUDA says of the first operation that makes the host wait."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    except RuntimeError as error:
        return str(error).splitlines()[0][:60]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def _detectors(tiny: bool) -> dict[str, Detector]:
    r50 = replace(presets.atss(), backbone=ResNet())
    large = presets.large(presets.RESNEXT_101_64X4D_DCN).detector
    assert isinstance(large, Detector)
    found = {"ATSS R-50": r50, "ATSS X-101-64x4d-DCN": large}
    if tiny:
        return {
            name: replace(config, backbone=replace(config.backbone, depths=(1, 1, 1, 1)))
            for name, config in found.items()
        }
    return found


def _forget_the_last(setting: Setting) -> None:
    """The same start for every row: seed, compiler and memory."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    gc.collect()
    if setting.device == "cuda":
        torch.cuda.empty_cache()


def run(setting: Setting, only: str) -> None:
    """Print the table of the contenders whose name contains `only`."""
    batch = Batch(
        *(t.to(setting.device) for t in make_batch(setting.images, setting.height, setting.width, BOXES))
    )
    makers: dict[str, Callable[[], Ours | TorchvisionFCOS]] = {
        name: lambda config=config: Ours(config, batch, setting)  # type: ignore[misc]
        for name, config in _detectors(setting.tiny).items()
    }
    makers["torchvision FCOS"] = lambda: TorchvisionFCOS(batch, setting)
    notes: Notes = {"unit": "wall time, median", "steps": setting.steps, "inference": "one image"}
    rows: list[Row] = []
    for name, make in makers.items():
        for compiled in (False, True):
            if only not in name:
                continue
            _forget_the_last(setting)
            full_name = f"{name}{', compiled' if compiled else ''}"
            print(f"{full_name} ...", flush=True)
            try:
                rows.append(measure(name, make(), setting, compiled))
            except torch.OutOfMemoryError:
                notes[full_name] = "out of memory"
    size = f"{setting.images}x{setting.height}x{setting.width}"
    name = "gpu_tiny" if setting.tiny else "gpu"
    report(name, f"One GPU, bfloat16, channels-last, {size}", rows, notes)


def main() -> None:
    """Measure, where there is a GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small nets and images: tries every line")
    parser.add_argument("--images", type=int, default=16, help="of a batch (default 16)")
    parser.add_argument("--steps", type=int, default=20, help="timed (default 20)")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("No GPU here: nothing measured (--device cpu --tiny tries the script).")
        return
    if options.tiny:
        run(replace(TINY, device=options.device), options.only)
    else:
        run(Setting(options.device, images=options.images, steps=options.steps), options.only)


if __name__ == "__main__":
    main()
