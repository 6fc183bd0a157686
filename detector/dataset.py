"""Images of a split at the size they are trained at, and batches of them.

Every image is decoded and resized once, by whichever process comes first, into one flat file of bytes
that all trials then map read-only: they share its memory, and loading an image is a copy. Where such a
file would be too large (COCO at 800 pixels is about 300 GB) images are decoded whenever they are asked
for, with equal pixels.

Axes: N images of a batch, H and W the largest of their heights and widths, G ground-truth boxes padded
per image. Boxes are xyxy in pixels of the resized image.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from detector import config
from detector.coco import CheckedSplit, Finding, ImageRecord, fingerprint, refuse
from detector.errors import DataError
from detector.transforms import flip_boxes, resized_size, scale_boxes

MAX_PACKED_BYTES = 32 * 2**30
"""Larger splits are not packed; nor are those that would take more than half of the disk's free space."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class PackedImages:
    """A split at training size; item i is image i's pixels, (H, W, 3) uint8 RGB, not to be written to.

    Attributes:
        records: the images as annotated, in original pixels (crowds included).
        sizes: (height, width) of each after resizing.
        short_side: what their short sides were resized to, where the long side allowed it.
        boxes: per image (n, 4) float32, resized pixels, without crowds.
        labels: per image (n,) int64, without crowds.
        read: from an image's index to its pixels.
    """

    records: tuple[ImageRecord, ...]
    sizes: tuple[tuple[int, int], ...]
    short_side: int
    boxes: tuple[NDArray[np.float32], ...]
    labels: tuple[NDArray[np.int64], ...]
    read: Callable[[int], Pixels]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Pixels:
        return self.read(index)


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


def load_batch(
    packed: PackedImages,
    indices: Sequence[int] | NDArray[np.int64],
    flips: Sequence[bool] | NDArray[np.bool_],
    canvas: tuple[int, int] | None = None,
) -> Batch:
    """Images `indices` of a split, those with `flips` mirrored left to right.

    Args:
        packed: the split.
        indices: N >= 1 of 0..len(packed)-1; any sequence or array of integers.
        flips: N booleans.
        canvas: (height, width) to pad to; the largest of these images when None. A rank passes that of the
            whole step, because norms and anchors see the padding.

    Returns:
        The batch, in this order, on the CPU.
    """
    chosen = [int(i) for i in indices]
    sizes = np.array([packed.sizes[i] for i in chosen], dtype=np.int64)
    height, width = canvas or sizes.max(axis=0)
    pixels = np.zeros((len(chosen), height, width, 3), dtype=np.uint8)
    images_NHW3 = torch.from_numpy(pixels)  # the same memory: numpy copies faster, torch mirrors faster
    for n, (i, flip, (h, w)) in enumerate(zip(chosen, flips, sizes.tolist(), strict=True)):
        pixels[n, :h, :w] = packed[i]
        if flip:
            images_NHW3[n, :h, :w] = images_NHW3[n, :h, :w].flip(1)
    boxes, labels, valid = _padded([packed.boxes[i] for i in chosen], [packed.labels[i] for i in chosen])
    flipped = np.asarray(flips, dtype=np.bool_)[:, None] & valid
    boxes = np.where(flipped[..., None], flip_boxes(boxes, sizes[:, 1:].astype(np.float32)), boxes)
    return Batch(
        images=images_NHW3.permute(0, 3, 1, 2),
        sizes=torch.from_numpy(sizes),
        boxes_NG4=torch.from_numpy(boxes),
        labels_NG=torch.from_numpy(labels),
        valid_NG=torch.from_numpy(valid),
        image_ids=torch.tensor([packed.records[i].id for i in chosen]),
    )


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


def open_packed(checked: CheckedSplit, split_name: str, data: config.Data, cache_dir: Path) -> PackedImages:
    """A split at the size `data` asks for, decoding every image if nobody has yet.

    The file's name says what is in it: split, size and the fingerprint of what was annotated. It is
    written beside and renamed, so two processes may build it at once; one of the wrong length is built
    again. Pixels are not part of the name: delete the file after replacing images by others of the same
    name and size.

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
    name = f"{split_name}-{fingerprint(checked)}-{data.short_side}x{data.max_long_side}"
    path, total = cache_dir / f"{name}.rgb", sum(3 * h * w for h, w in sizes)
    if _is_complete(path, total) or _fits(total, cache_dir):
        if not _is_complete(path, total):
            _write_beside(path, partial(_decode_all, checked, sizes))
        read = _mapped(path, sizes)
    else:
        passed = cache_dir / f"{name}.decodes"
        if not passed.is_file():
            _decode_all(checked, sizes, None)
            passed.touch()
        read = partial(_decoded, checked.source.images, checked.images, sizes)
    kept = [~record.crowd for record in checked.images]
    scaled = (
        scale_boxes(r.boxes, (r.height, r.width), hw) for r, hw in zip(checked.images, sizes, strict=True)
    )
    return PackedImages(
        records=checked.images,
        sizes=sizes,
        short_side=data.short_side,
        boxes=tuple(boxes[keep] for boxes, keep in zip(scaled, kept, strict=True)),
        labels=tuple(r.labels[keep] for r, keep in zip(checked.images, kept, strict=True)),
        read=read,
    )


def _is_complete(path: Path, total: int) -> bool:
    return path.is_file() and path.stat().st_size == total


def _fits(total: int, directory: Path) -> bool:
    return total <= MAX_PACKED_BYTES and total <= shutil.disk_usage(directory).free // 2


def _mapped(path: Path, sizes: Sequence[tuple[int, int]]) -> Callable[[int], Pixels]:
    # asarray: slicing a memmap object costs several times as much as slicing a plain array over it.
    flat = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    ends = np.cumsum([3 * h * w for h, w in sizes]).tolist()
    return [
        flat[end - 3 * h * w : end].reshape(h, w, 3) for end, (h, w) in zip(ends, sizes, strict=True)
    ].__getitem__


def _decoded(
    directory: Path, records: Sequence[ImageRecord], sizes: Sequence[tuple[int, int]], index: int
) -> Pixels:
    return load_resized(directory, records[index], sizes[index])


# --- decoding --------------------------------------------------------------------------------------


def load_resized(directory: Path, record: ImageRecord, size: tuple[int, int]) -> Pixels:
    """One image as (H, W, 3) uint8 RGB, resized to `size` (height, width) by PIL's bilinear filter.

    As COCO's tools have it, pixels are taken as stored and EXIF orientation is not applied, unless it is
    what makes the image as wide and high as the JSON says.

    Raises:
        DataError: the file cannot be decoded, is not of 8 bits, or has another size than the JSON says.
    """
    path = directory / record.file_name
    try:
        with Image.open(path) as stored:
            image = _upright(stored, (record.width, record.height))
            if image.mode[0] in "IF":
                raise DataError(f"{path}: has more than 8 bits a channel ({image.mode}); convert it to 8")
            image = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded ({error})") from error
    if image.size != (record.width, record.height):
        raise DataError(
            f"{path}: is {image.width}x{image.height}, but width x height of image id {record.id} in the "
            f"JSON is {record.width}x{record.height}"
        )
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _upright(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.size == size:
        return image
    turned = ImageOps.exif_transpose(image)
    return turned if turned.size == size else image


def _decode_all(checked: CheckedSplit, sizes: Sequence[tuple[int, int]], file: BinaryIO | None) -> None:
    """Decode every image, in order, into `file` if there is one; then refuse all that failed."""
    faults: list[str] = []
    for image in _in_parallel(partial(_decoded_or_fault, checked, sizes), len(sizes)):
        if isinstance(image, str):
            faults.append(image)
        elif file is not None and not faults:
            file.write(image.tobytes())
    refuse(checked.source.annotations, [Finding("images that cannot be used", faults)], limit=None)


def _decoded_or_fault(checked: CheckedSplit, sizes: Sequence[tuple[int, int]], index: int) -> Pixels | str:
    try:
        return load_resized(checked.source.images, checked.images[index], sizes[index])
    except DataError as error:
        return str(error)


def _in_parallel(function: Callable[[int], Pixels | str], count: int) -> Iterator[Pixels | str]:
    """Results in order. Threads suffice, for PIL decodes and resizes outside the interpreter's lock."""
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
