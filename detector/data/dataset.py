"""Images of a split at the size they are trained at, and batches of them.

Every image is decoded and resized once, by whichever process comes first, into one flat file of bytes
that all trials then map read-only: they share its memory, and loading an image is a copy. Where such a
file would be too large (COCO at 800 pixels is about 300 GB) images are decoded whenever they are asked
for, with equal pixels.

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

from detector import config
from detector.data.coco import CheckedSplit, Finding, ImageRecord, fingerprint, refuse
from detector.data.decode import Pixels, load_resized
from detector.errors import DataError
from detector.geometry.transforms import flip_boxes, resized_size, scale_boxes

MAX_PACKED_BYTES = 32 * 2**30
"""Larger splits are not packed; nor are those that would take more than half of the disk's free space."""

PIXELS = 2
"""Version of what `detector.data.decode` makes of a file, part of the names in the cache. To be raised with
every change that moves a pixel."""


@dataclass(frozen=True, slots=True, eq=False)
class SplitImages:
    """A split with its images, usually wanted at training size.

    Attributes:
        records: the images as annotated, in original pixels (crowds included).
        sizes: (height, width) of each at training size.
        short_side: what their short sides were resized to, where the long side allowed it.
        labels: per image (n,) int64, without crowds.
        directory: of the image files.
        file: the one that was written when every image had been decoded.
        packed: per image its pixels at training size, mapped from disk; None where the split is not packed.
    """

    records: tuple[ImageRecord, ...]
    sizes: tuple[tuple[int, int], ...]
    short_side: int
    labels: tuple[NDArray[np.int64], ...]
    directory: Path
    file: Path
    packed: Sequence[Pixels] | None

    def __len__(self) -> int:
        return len(self.records)

    def at(self, index: int, size: tuple[int, int] | None = None) -> Pixels:
        """One image, not to be written to.

        Args:
            index: 0..len-1.
            size: (height, width); that of training when None.

        Returns:
            (H, W, 3) uint8 RGB; decoded from its file unless packed at this size.

        Raises:
            DataError: the file was replaced or lost since the split was opened.
        """
        size = size or self.sizes[index]
        if self.packed is not None and size == self.sizes[index]:
            return self.packed[index]
        return load_resized(self.directory, self.records[index], size)

    def boxes_at(self, index: int, size: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """(n, 4) float32, xyxy, pixels of one image as `at` gives it, without crowds; `labels` are theirs."""
        record = self.records[index]
        own = (record.height, record.width)
        return scale_boxes(record.boxes[~record.crowd], own, size or self.sizes[index])


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Images of a step and what is annotated in them.

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

        In a thread other than the main one "cuda" means the first GPU: name the one meant, "cuda:1".
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
    """Images `indices` of a split, those with `flips` mirrored left to right.

    Args:
        images: the split.
        indices: N >= 1 of 0..len(images)-1; any sequence or array of integers.
        flips: N booleans.
        canvas: (height, width) to pad to; the largest of these images when None. A rank passes that of the
            whole step, because norms and anchors see the padding.
        sizes: N of (height, width) to resize images and boxes to; those of training when None.

    Returns:
        The batch, in this order, on the CPU.
    """
    chosen = [int(i) for i in indices]
    sizes = [images.sizes[i] for i in chosen] if sizes is None else sizes
    boxes = [images.boxes_at(i, size) for i, size in zip(chosen, sizes, strict=True)]
    boxes_NG4, labels_NG, valid_NG = _padded(boxes, [images.labels[i] for i in chosen])
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
    """The (height, width) that holds images of all these."""
    return max(height for height, _ in sizes), max(width for _, width in sizes)


def _on_canvas(
    pixels: Iterable[Pixels], flips: Sequence[bool] | NDArray[np.bool_], canvas: tuple[int, int]
) -> Tensor:
    images_NHW3 = np.zeros((len(flips), *canvas, 3), dtype=np.uint8)
    for image_HW3, image, flip in zip(images_NHW3, pixels, flips, strict=True):
        height, width, _ = image.shape
        slot = image_HW3[:height, :width]
        if flip:
            for channel in range(3):  # all at once take numpy three times as long
                slot[..., channel] = image[:, ::-1, channel]
        else:
            slot[:] = image
    return torch.from_numpy(images_NHW3).permute(0, 3, 1, 2)


def _padded(
    boxes: Sequence[NDArray[np.float32]], labels: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    counts = np.array([len(own) for own in labels])
    valid = np.arange(counts.max()) < counts[:, None]
    boxes_NG4 = np.zeros((*valid.shape, 4), dtype=np.float32)
    labels_NG = np.zeros(valid.shape, dtype=np.int64)
    boxes_NG4[valid] = np.concatenate(boxes)
    labels_NG[valid] = np.concatenate(labels)
    return boxes_NG4, labels_NG, valid


# --- opening ---------------------------------------------------------------------------------------


def open_split(checked: CheckedSplit, split_name: str, data: config.Data, cache_dir: Path) -> SplitImages:
    """A split at the size `data` asks for, decoding every image if nobody has yet.

    The file's name says what is in it: split, size, the fingerprint of what was annotated and `PIXELS`. It
    is written beside and renamed, by one process of a machine while the others wait; one of the wrong length
    is built again. The images' bytes are not part of the name: delete the file after replacing images by
    others of the same name and size. A split once found too large is marked so and stays unpacked: were room
    found later, each rank of a training might begin a copy.

    Args:
        checked: the split.
        split_name: "train" or "val", for the file's name.
        data: `short_side` and `max_long_side` are used.
        cache_dir: made if absent.

    Raises:
        DataError: listing all images that cannot be decoded or whose size is not the JSON's. The whole
            split is decoded once before it is first used, packed or not.
    """
    sizes = tuple(
        resized_size(r.width, r.height, data.short_side, data.max_long_side) for r in checked.images
    )
    cache_dir.mkdir(parents=True, exist_ok=True)
    name = f"{split_name}-{fingerprint(checked)}-{data.short_side}x{data.max_long_side}-v{PIXELS}"
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
    return SplitImages(
        records=checked.images,
        sizes=sizes,
        short_side=data.short_side,
        labels=tuple(record.labels[~record.crowd] for record in checked.images),
        directory=checked.source.images,
        file=path if packed else unpacked,
        packed=_mapped(path, sizes) if packed else None,
    )


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Lets one process of this machine in at a time: eight ranks would pack eight copies at once."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # of a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def unusable_images(checked: CheckedSplit) -> list[str]:
    """Why images of a split cannot be decoded or have another size than the JSON says; decodes every one."""
    own = [(record.height, record.width) for record in checked.images]  # nothing to resize
    return [image for image in _decoded(checked, own) if isinstance(image, str)]


def _is_complete(path: Path, total: int) -> bool:
    return path.is_file() and path.stat().st_size == total


def _fits(total: int, directory: Path) -> bool:
    return total <= MAX_PACKED_BYTES and total <= shutil.disk_usage(directory).free // 2


def _mapped(path: Path, sizes: Sequence[tuple[int, int]]) -> list[Pixels]:
    # asarray: slicing a memmap object costs several times as much as slicing a plain array over it.
    flat = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    ends = np.cumsum([3 * h * w for h, w in sizes]).tolist()
    return [flat[end - 3 * h * w : end].reshape(h, w, 3) for end, (h, w) in zip(ends, sizes, strict=True)]


def _decode_all(checked: CheckedSplit, sizes: Sequence[tuple[int, int]], file: BinaryIO) -> None:
    """Decode every image, in order, into `file`; then refuse all that failed."""
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
    """Every image at its size, in order; in place of one that cannot be used the reason."""
    return _in_parallel(partial(_decoded_or_fault, checked, sizes), len(sizes))


def _decoded_or_fault(checked: CheckedSplit, sizes: Sequence[tuple[int, int]], index: int) -> Pixels | str:
    try:
        return load_resized(checked.source.images, checked.images[index], sizes[index])
    except DataError as error:
        return str(error)


def _in_parallel(function: Callable[[int], Pixels | str], count: int) -> Iterator[Pixels | str]:
    """Results in order. Threads suffice: images are decoded and resized outside the interpreter's lock."""
    workers = os.cpu_count() or 1
    block = 16 * workers  # bounds how many decoded images wait to be written
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, count, block):
            yield from pool.map(function, range(start, min(start + block, count)))


def _write_beside(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Have `write` fill a new file and give it the name `path` once it is whole."""
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
