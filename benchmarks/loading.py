"""From JPEG files of 640x480 to pixels of 1067x800, images a second and core, against the usual ways.

"PIL + ToTensor + Normalize" is torchvision's references' and most detectors' way, to normalised float32. Ours
ends at uint8, which the model normalises. The last row is all that a training step asks for: the batch of
16 in its canvas, every second image mirrored.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

from benchmarks.common import Laps, Row, Worker, interleaved, laps_of, report, serve
from detector.data.coco import ImageRecord
from detector.data.dataset import SplitImages, load_batch
from detector.geometry.transforms import resized_size

MODULE = "benchmarks.loading"
IMAGES = 16
SHORT_SIDE, MAX_LONG_SIDE = 800, 1333
NORMALISED = "PIL + ToTensor + Normalize"


def make_images(directory: Path) -> None:
    """Gradients with noise in JPEGs of quality 90, about as large as photographs of that size."""
    generator = np.random.default_rng(0)
    for number in range(IMAGES):
        corners = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        smooth = np.asarray(corners.resize((640, 480), Image.Resampling.BICUBIC), dtype=np.float64)
        noisy = smooth + generator.normal(scale=8, size=smooth.shape)
        pixels = noisy.clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(directory / f"{number:02}.jpg", quality=90)


def open_images(directory: Path) -> SplitImages:
    """The first JPEGs of a directory, by name, as a split without annotations.

    Raises:
        FileNotFoundError: it has too few.
    """
    paths = sorted(directory.glob("*.jpg"))[:IMAGES]
    if len(paths) < IMAGES:
        raise FileNotFoundError(f"{directory}: needs {IMAGES} .jpg files, has {len(paths)}")
    records = tuple(_record(path) for path in paths)
    sizes = tuple(resized_size(r.width, r.height, SHORT_SIDE, MAX_LONG_SIDE) for r in records)
    labels = tuple(record.labels for record in records)
    used = tuple(~record.crowd for record in records)
    return SplitImages(records, sizes, SHORT_SIDE, used, labels, directory, directory, packed=None)


def _record(path: Path) -> ImageRecord:
    with Image.open(path) as image:
        width, height = image.size
    none: NDArray[np.float64] = np.zeros(0)
    labels, crowd = none.astype(np.int64), none.astype(np.bool_)
    return ImageRecord(0, path.name, width, height, none.reshape(0, 4), labels, none, crowd, crowd)


# --- contenders --------------------------------------------------------------------------------------


def _normalised_by_pil(images: SplitImages) -> None:
    finish = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    )
    for image in _resized_by_pil(images):
        finish(image)


def _bytes_by_pil(images: SplitImages) -> None:
    for image in _resized_by_pil(images):
        np.asarray(image)


def _resized_by_pil(images: SplitImages) -> list[Image.Image]:
    resized = []
    for record, (height, width) in zip(images.records, images.sizes, strict=True):
        with Image.open(images.directory / record.file_name) as image:
            resized.append(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    return resized


def _ours(images: SplitImages) -> None:
    for index in range(IMAGES):
        images.at(index)


def _our_batch(images: SplitImages) -> None:
    load_batch(images, range(IMAGES), [index % 2 == 1 for index in range(IMAGES)])


CONTENDERS: dict[str, Callable[[SplitImages], None]] = {
    NORMALISED: _normalised_by_pil,
    "PIL, uint8": _bytes_by_pil,
    "ours, uint8": _ours,
    "ours, uint8, batch of 16": _our_batch,
}


# --- the table ---------------------------------------------------------------------------------------


def _work(name: str, directory: Path) -> None:
    """A worker's life: load the images whenever asked."""
    torch.set_num_threads(1)
    serve(partial(laps_of, partial(CONTENDERS[name], open_images(directory))))


def _rows(measured: dict[str, Laps]) -> Sequence[Row]:
    reference = measured[NORMALISED]["total"]
    return [
        {
            "contender": name,
            "images/s/core": IMAGES / laps["total"],
            "ms an image": 1000 * laps["total"] / IMAGES,
            "times as fast": reference / laps["total"],
        }
        for name, laps in measured.items()
    ]


def compare(directory: Path, rounds: int) -> None:
    """Measure all contenders on the images of a directory, in turns."""
    open_images(directory)  # complains here and not in every worker
    arguments = ["--data", str(directory.resolve())]
    workers = [Worker.start(name, MODULE, ["--worker", name, *arguments]) for name in CONTENDERS]
    rows = _rows(interleaved(workers, rounds))
    notes: dict[str, str | float] = {
        "unit": "CPU time of one thread, median",
        "rounds": rounds,
        "images": IMAGES,
    }
    report("loading", "Loading JPEGs at short side 800", rows, notes)


def main() -> None:
    """Measure, or be the process that is measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each contender (default 15)")
    parser.add_argument("--data", type=Path, help=f"a directory of at least {IMAGES} .jpg files of your own")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(options.worker, options.data)
    elif options.data:
        compare(options.data, options.rounds)
    else:
        with tempfile.TemporaryDirectory() as directory:
            make_images(Path(directory))
            compare(Path(directory), options.rounds)


if __name__ == "__main__":
    main()
