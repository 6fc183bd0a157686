"""What every benchmark needs: workers in processes of their own, timing, a table and a JSON file.

Imports only torch and numpy beside the standard library, so that a worker runs in any environment.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PEERS_PYTHON = Path(sys.prefix) / "peers" / "bin" / "python"
"""The environment with mmdet that `make bench` sets up beside ours."""

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "pycocotools", "hotcoco", "mmdet", "mmcv-lite")

Row = Mapping[str, str | float]
Notes = dict[str, str | float]
Laps = dict[str, float]


# --- data --------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Images of noise with boxes of 16 to 256 pixels anywhere in them.

    Attributes:
        images_N3HW: (N, 3, H, W) uint8.
        boxes_NG4: (N, G, 4) float32, xyxy pixels.
        labels_NG: (N, G) int64, 0..79.
    """

    images_N3HW: Tensor
    boxes_NG4: Tensor
    labels_NG: Tensor

    @property
    def sizes_N2(self) -> Tensor:
        """Height and width of each image, (N, 2) int64: none has padding."""
        count, _, height, width = self.images_N3HW.shape
        return torch.tensor([(height, width)] * count, device=self.images_N3HW.device)

    @property
    def normalised(self) -> Tensor:
        """The images as float32 of about unit variance, for detectors that normalise outside the model."""
        return (self.images_N3HW.float() - 116.0) / 58.0


def make_batch(images: int, height: int, width: int, boxes: int, seed: int = 0) -> Batch:
    """The same batch for the same arguments, on any machine with the same torch."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (images, 3, height, width), generator=generator, dtype=torch.uint8)
    room = torch.tensor([width, height], dtype=torch.float32)
    size = 16 * 2 ** (4 * torch.rand(images, boxes, 2, generator=generator))
    corner = torch.rand(images, boxes, 2, generator=generator) * (room - size).clamp(min=0)
    boxes_NG4 = torch.cat((corner, (corner + size).minimum(room)), dim=-1)
    return Batch(pixels, boxes_NG4, torch.randint(80, (images, boxes), generator=generator))


# --- timing ------------------------------------------------------------------------------------------


class Stopwatch:
    """CPU seconds of this process between marks."""

    def __init__(self) -> None:
        self.laps: Laps = {}
        self._last = time.process_time()

    def mark(self, name: str) -> None:
        """Add what has passed since the last mark to the lap `name`."""
        now = time.process_time()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now


def laps_of(work: Callable[[], object]) -> Laps:
    """One run of `work` as a single lap."""
    watch = Stopwatch()
    work()
    watch.mark("time")
    return watch.laps


def serve(measure: Callable[[], Laps]) -> None:
    """Answer each line on standard input with the laps of one measurement, until it closes."""
    for _ in sys.stdin:
        print(json.dumps(measure()), flush=True)


@dataclass
class Worker:
    """A process that measures one contender whenever it is asked, and sleeps otherwise."""

    name: str
    process: subprocess.Popen[str]

    @staticmethod
    def start(name: str, module: str, arguments: Sequence[str], python: Path | None = None) -> Worker:
        """Run `python -m module arguments` with one thread; it must call `serve`."""
        command = [str(python or sys.executable), "-W", "ignore", "-m", module, *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        return Worker(
            name,
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ),
        )

    def measure(self) -> Laps:
        """Laps of one measurement.

        Raises:
            RuntimeError: the worker has ended; its own message is on standard error.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise RuntimeError(f"the worker of {self.name} ended with {self.process.wait()}")

    def close(self) -> None:
        """Let the process end."""
        self.process.communicate()


def interleaved(workers: Sequence[Worker], rounds: int, warmup: int = 2) -> dict[str, Laps]:
    """Median laps of each worker, measured in turns so that the machine's other load hits all alike.

    The sum of the laps, "total", has a median of its own. All workers are closed at the end.
    """
    measured: dict[str, list[Laps]] = {worker.name: [] for worker in workers}
    try:
        for _ in range(warmup + rounds):
            for worker in workers:
                laps = worker.measure()
                measured[worker.name].append({**laps, "total": sum(laps.values())})
    finally:
        for worker in workers:
            worker.close()
    return {name: _medians(laps[warmup:]) for name, laps in measured.items()}


def _medians(laps: Sequence[Laps]) -> Laps:
    return {name: statistics.median(lap[name] for lap in laps) for name in laps[0]}


# --- report ------------------------------------------------------------------------------------------


def machine() -> dict[str, str]:
    """The processor, its instructions that matter here, the GPU if any, and the software, peers included."""
    found = {"processor": _processor(), "instructions": torch.backends.cpu.get_cpu_capability()}
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
    found["python"] = platform.python_version()
    places = [*sys.path, *map(str, PEERS_PYTHON.parents[1].glob("lib/python*/site-packages"))]
    for package in PACKAGES:
        for distribution in islice(distributions(name=package, path=places), 1):
            found[package] = distribution.version
    return found


def _processor() -> str:
    flags = ("avx512f", "avx512_bf16", "amx_bf16")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    entries = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    known = [flag for flag in flags if flag in entries.get("flags", "").split()]
    return f"{entries.get('model name', platform.machine())}, {os.cpu_count()} cores ({', '.join(known)})"


def report(name: str, title: str, rows: Sequence[Row], notes: Notes) -> None:
    """Print a table with the machine it was made on, and write it to `results/NAME.json`.

    Args:
        name: of the benchmark, and of the file.
        title: what was measured, in a line.
        rows: all with the same columns; none where nothing could be measured.
        notes: ratios and settings, a line each.
    """
    described = machine()
    print(f"\n{title}")
    print("; ".join(f"{key} {value}" for key, value in described.items()))
    if rows:
        print_table(rows)
    for key, value in notes.items():
        print(f"{key}: {_shown(value)}")
    RESULTS.mkdir(exist_ok=True)
    contents = {"title": title, "machine": described, "rows": rows, "notes": notes}
    (RESULTS / f"{name}.json").write_text(json.dumps(contents, indent=2) + "\n")


def print_table(rows: Sequence[Row]) -> None:
    """Rows under the headings of the first, numbers to three digits."""
    cells = [list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(_aligned(line, widths)))


def _aligned(line: Sequence[str], widths: Sequence[int]) -> Iterable[str]:
    yield line[0].ljust(widths[0])
    for cell, width in zip(line[1:], widths[1:], strict=True):
        yield cell.rjust(width)


def _shown(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
