"""Images of a split at training size, and batches of them.

The first process decodes and resizes every image once, into one flat file that all trials map read-only: they
share its memory, and loading an image is a copy. Where such a file would be too large (COCO at 800 pixels is
about 300 GB), images are decoded when they are used, with equal pixels.

Axes: N images of a batch, H and W the largest of their heights and widths, G ground-truth boxes padded
per image. Boxes are xyxy in pixels of the resized image.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.config import AnyData, SquareData
from detector.data.checks import Finding, refuse
from detector.data.coco import CheckedSplit, ImageRecord, fingerprint
from detector.data.decode import Pixels, load_resized
from detector.errors import DataError
from detector.geometry.transforms import flip_boxes, resized_size, scale_boxes

MAX_PACKED_BYTES = 32 * 2**30
"""Larger splits are not packed, nor those that would need more than half of the disk's free space."""

MAX_STORED_SIDE = 1024
"""Pixels of the long side of images that are kept for augmentation; larger ones are reduced to it. Those of
VOC have 500."""

PIXELS = 2
"""Version of the pixels that `detector.data.decode` makes; part of file names in the cache. To be raised with
every change of a pixel."""


@dataclass(frozen=True, slots=True, eq=False)
class SplitImages:
    """A split with its images, usually at training size.

    Attributes:
        records: the annotations, in original pixels (crowds included).
        sizes: (height, width) of each image at training size; before augmentation, which makes that size.
        short_side: short side after resizing, unless the long side is limited.
        used: per image (all its boxes,) bool: those that are trained on, which are not crowds.
        labels: per image (n,) int64, of the boxes used.
        directory: directory of the image files.
        file: the one that was written when every image had been decoded.
        packed: pixels of each image at training size, mapped from disk; None where the split is not packed.
    """

    records: tuple[ImageRecord, ...]
    sizes: tuple[tuple[int, int], ...]
    short_side: int
    used: tuple[NDArray[np.bool_], ...]
    labels: tuple[NDArray[np.int64], ...]
    directory: Path
    file: Path
    packed: Sequence[Pixels] | None

    def __len__(self) -> int:
        return len(self.records)

    def at(self, index: int, size: tuple[int, int] | None = None) -> Pixels:
        """One image, read-only.

        Args:
            index: 0..len-1.
            size: (height, width); by default the training size.

        Returns:
            (H, W, 3) uint8 RGB; decoded from its file unless packed at this size.

        Raises:
            DataError: the file was replaced or removed after the split was opened.
        """
        size = size or self.sizes[index]
        if self.packed is not None and size == self.sizes[index]:
            return self.packed[index]
        return load_resized(self.directory, self.records[index], size)

    def boxes_at(self, index: int, size: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """(n, 4) float32, xyxy, pixels of the image of `at`, those used, in the order of `labels`."""
        record = self.records[index]
        own = (record.height, record.width)
        return scale_boxes(record.boxes[self.used[index]], own, size or self.sizes[index])


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Images of a step and their annotations.

    Attributes:
        images: (N, 3, H, W) uint8, RGB, channels_last in memory; zeros right of and below each image.
        sizes: (N, 2) int64, height and width of each image without padding.
        boxes_NG4: float32, zeros where not valid.
        labels_NG: int64, 0 where not valid.
        valid_NG: bool; an image may have none, and G may be 0.
        image_ids: (N,) int64, ids of the JSON.
    """

    images: Tensor
    sizes: Tensor
    boxes_NG4: Tensor
    labels_NG: Tensor
    valid_NG: Tensor
    image_ids: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device`. Copies to a GPU go through pinned memory and do not wait for it.

        In another thread than the main one, "cuda" is the first GPU: give an index, as "cuda:1".
        """
        names = [field.name for field in dataclasses.fields(self)]
        return Batch(**{name: _moved(getattr(self, name), torch.device(device)) for name in names})


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def load_batch(
    images: SplitImages,
    indices: Sequence[int] | NDArray[np.int64],
    flips: Sequence[bool] | NDArray[np.bool_],
    canvas: tuple[int, int] | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
) -> Batch:
    """A batch of images `indices` of a split; those with `flips` are flipped horizontally.

    Args:
        images: the split.
        indices: N >= 1 of 0..len(images)-1; any sequence or array of integers.
        flips: N booleans.
        canvas: (height, width) to pad to; by default the largest of these images. A rank passes that of the
            whole step, because norms and anchors depend on the padding.
        sizes: N of (height, width) to resize images and boxes to; by default the training sizes.

    Returns:
        The batch, in this order, on the CPU.
    """
    chosen = [int(i) for i in indices]
    sizes = [images.sizes[i] for i in chosen] if sizes is None else sizes
    boxes = [images.boxes_at(i, size) for i, size in zip(chosen, sizes, strict=True)]
    boxes_NG4, labels_NG, valid_NG = padded(boxes, [images.labels[i] for i in chosen])
    flipped_NG = np.asarray(flips, dtype=np.bool_)[:, None] & valid_NG
    widths_N1 = np.array([[width] for _, width in sizes], dtype=np.float32)
    boxes_NG4 = np.where(flipped_NG[..., None], flip_boxes(boxes_NG4, widths_N1), boxes_NG4)
    return Batch(
        images=_on_canvas(map(images.at, chosen, sizes), flips, canvas or largest(sizes)),
        sizes=torch.tensor(sizes, dtype=torch.int64),
        boxes_NG4=torch.from_numpy(boxes_NG4),
        labels_NG=torch.from_numpy(labels_NG),
        valid_NG=torch.from_numpy(valid_NG),
        image_ids=torch.tensor([images.records[i].id for i in chosen]),
    )


def largest(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The smallest (height, width) that contains all these sizes."""
    return max(height for height, _ in sizes), max(width for _, width in sizes)


def _on_canvas(
    pixels: Iterable[Pixels], flips: Sequence[bool] | NDArray[np.bool_], canvas: tuple[int, int]
) -> Tensor:
    images_NHW3 = np.zeros((len(flips), *canvas, 3), dtype=np.uint8)
    for image_HW3, image, flip in zip(images_NHW3, pixels, flips, strict=True):
        height, width, _ = image.shape
        slot = image_HW3[:height, :width]
        if flip:
            for channel in range(3):  # all at once takes numpy three times as long
                slot[..., channel] = image[:, ::-1, channel]
        else:
            slot[:] = image
    return torch.from_numpy(images_NHW3).permute(0, 3, 1, 2)


def padded(
    boxes: Sequence[NDArray[np.float32]], labels: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """Boxes and labels of N images as `Batch` has them: `boxes_NG4`, `labels_NG` and `valid_NG`."""
    counts = np.array([len(own) for own in labels])
    valid = np.arange(counts.max()) < counts[:, None]
    boxes_NG4 = np.zeros((*valid.shape, 4), dtype=np.float32)
    labels_NG = np.zeros(valid.shape, dtype=np.int64)
    boxes_NG4[valid] = np.concatenate(boxes)
    labels_NG[valid] = np.concatenate(labels)
    return boxes_NG4, labels_NG, valid


# --- opening ---------------------------------------------------------------------------------------


def open_split(checked: CheckedSplit, split_name: str, data: AnyData, cache_dir: Path) -> SplitImages:
    """A split at the size of `data`; decodes every image if no process has done so yet.

    The name has the split, the size, the fingerprints of the annotations and of `data` (which covers the
    images' bytes where they may change), and `PIXELS`. One process of a machine writes it atomically, while
    others wait; a file of the wrong length is written again. A split that was too large is marked and stays
    unpacked, so that later not every rank starts to pack it.

    Args:
        checked: the split.
        split_name: "train", "val" or "test"; training images alone are augmented.
        data: the size of the images, which boxes are used, and the fingerprint.
        cache_dir: created if absent.

    Raises:
        DataError: listing all images that cannot be decoded or whose size is not the JSON's. The whole
            split is decoded once before it is first used, packed or not.
    """
    augmented = isinstance(data, SquareData) and data.augmentation is not None and split_name == "train"
    stored = _stored_size if augmented else partial(seen_size, data)
    sizes = tuple(stored(record.width, record.height) for record in checked.images)
    cache_dir.mkdir(parents=True, exist_ok=True)
    size = "original" if augmented else _size_name(data)
    name = f"{split_name}-{fingerprint(checked)}-{data.fingerprint}-{size}-v{PIXELS}"
    path, unpacked = cache_dir / f"{name}.rgb", cache_dir / f"{name}.decodes"
    total = sum(3 * h * w for h, w in sizes)

    def decoded() -> bool:
        return _is_complete(path, total) or unpacked.is_file()

    if not decoded():
        with _alone_in(cache_dir):
            if decoded():  # by another process, meanwhile
                pass
            elif _fits(total, cache_dir):
                _write_beside(path, partial(_decode_all, checked, sizes))
            else:
                _refuse_images(checked, unusable_images(checked))
                unpacked.touch()
    packed = _is_complete(path, total)
    used = tuple(_used(record, data) for record in checked.images)
    return SplitImages(
        records=checked.images,
        sizes=sizes,
        short_side=data.side if isinstance(data, SquareData) else data.short_side,
        used=used,
        labels=tuple(record.labels[own] for record, own in zip(checked.images, used, strict=True)),
        directory=checked.source.images,
        file=path if packed else unpacked,
        packed=_mapped(path, sizes) if packed else None,
    )


def seen_size(data: AnyData, width: int, height: int) -> tuple[int, int]:
    """(height, width) at which a detector sees an image of this size, in tests and without augmentation."""
    if isinstance(data, SquareData):
        return data.side, data.side
    return resized_size(width, height, data.short_side, data.max_long_side)


def _stored_size(width: int, height: int) -> tuple[int, int]:
    """(height, width) at which an image is kept for augmentation: its own, up to a limit."""
    return resized_size(width, height, min(width, height), MAX_STORED_SIDE)


def _size_name(data: AnyData) -> str:
    """Of the images, in file names."""
    if isinstance(data, SquareData):
        return f"square{data.side}"
    return f"{data.short_side}x{data.max_long_side}"


def _used(record: ImageRecord, data: AnyData) -> NDArray[np.bool_]:
    """(all boxes of the image,) bool: whether each is trained on."""
    difficult = isinstance(data, SquareData) and data.difficult
    return ~record.crowd | record.difficult if difficult else ~record.crowd


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """A lock between the processes of this machine, so that eight ranks do not pack eight copies."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # of a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def unusable_images(checked: CheckedSplit) -> list[str]:
    """Decodes every image; the reasons why some cannot be decoded or have another size than in the JSON."""
    own = [(record.height, record.width) for record in checked.images]  # nothing to resize
    return [image for image in _decoded(checked, own) if isinstance(image, str)]


def _is_complete(path: Path, total: int) -> bool:
    return path.is_file() and path.stat().st_size == total


def _fits(total: int, directory: Path) -> bool:
    return total <= MAX_PACKED_BYTES and total <= shutil.disk_usage(directory).free // 2


def _mapped(path: Path, sizes: Sequence[tuple[int, int]]) -> list[Pixels]:
    # asarray: slicing a memmap object takes several times as long as slicing a plain array.
    flat = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    ends = np.cumsum([3 * h * w for h, w in sizes]).tolist()
    return [flat[end - 3 * h * w : end].reshape(h, w, 3) for end, (h, w) in zip(ends, sizes, strict=True)]


def _decode_all(checked: CheckedSplit, sizes: Sequence[tuple[int, int]], file: BinaryIO) -> None:
    """Decodes every image, in order, into `file`; then raises a `DataError` for those that failed."""
    faults: list[str] = []
    for image in _decoded(checked, sizes):
        if isinstance(image, str):
            faults.append(image)
        elif not faults:
            file.write(image.tobytes())
    _refuse_images(checked, faults)


def _refuse_images(checked: CheckedSplit, faults: Sequence[str]) -> None:
    refuse(checked.source.annotations, [Finding("images that cannot be used", faults)], limit=None)


def _decoded(checked: CheckedSplit, sizes: Sequence[tuple[int, int]]) -> Iterator[Pixels | str]:
    """Every image at its size, in order; the reason instead of an unusable one."""
    return _in_parallel(partial(_decoded_or_fault, checked, sizes), len(sizes))


def _decoded_or_fault(checked: CheckedSplit, sizes: Sequence[tuple[int, int]], index: int) -> Pixels | str:
    try:
        return load_resized(checked.source.images, checked.images[index], sizes[index])
    except DataError as error:
        return str(error)


def _in_parallel(function: Callable[[int], Pixels | str], count: int) -> Iterator[Pixels | str]:
    """Results in order, from threads: decoding and resizing release the interpreter's lock."""
    workers = os.cpu_count() or 1
    block = 16 * workers  # limits the number of decoded images in memory
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, count, block):
            yield from pool.map(function, range(start, min(start + block, count)))


def _write_beside(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Calls `write` with a new file, and renames the complete file to `path`."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
