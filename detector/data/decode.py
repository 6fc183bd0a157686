"""Decodes image files at training size.

PIL reads every file and decides which are refused. JPEGs are resized by torch, whose kernel is PIL's with
weights of fewer bits: some pixels differ by one level, in a third of the time. Other files are resized by
PIL. The pixels do not depend on the machine's load or on threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from detector.data.coco import ImageRecord
from detector.data.exif import orientation_of
from detector.errors import DataError

Pixels = NDArray[np.uint8]

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that makes an image upright, by EXIF orientation."""

_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
"""Largest number of pixels of an image that Pillow opens."""


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A decoded file, before it is resized.

    Attributes:
        image: the image, of mode RGB.
        is_jpeg: whether the file is a JPEG, by its content; torch resizes these.
    """

    image: Image.Image
    is_jpeg: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.height, self.image.width

    def at(self, size: tuple[int, int]) -> Pixels:
        """(H, W, 3) uint8 RGB of `size` (height, width), by an antialiased bilinear filter.

        An image that already has `size` keeps its pixels.
        """
        if self.is_jpeg and size != self.size:
            return _resized(self.image, size)
        return np.asarray(self.image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def load_resized(directory: Path, record: ImageRecord, size: tuple[int, int]) -> Pixels:
    """One image of a data set as (H, W, 3) uint8 RGB of `size` (height, width), resized by `Decoded.at`.

    As in COCO's tools, EXIF orientation is not applied, unless only the turned image has the JSON's size.

    Raises:
        DataError: the file cannot be decoded, is not of 8 bits, or has another size than the JSON says.
    """
    path = directory / record.file_name
    decoded = _decoded(path, partial(_upright_if, (record.width, record.height)))
    if decoded.size != (record.height, record.width):
        height, width = decoded.size
        raise DataError(
            f"{path}: is {width}x{height}, but width x height of image id {record.id} in the "
            f"JSON is {record.width}x{record.height}"
        )
    return decoded.at(size)


def read_upright(path: Path) -> Decoded:
    """A single image file, turned by its EXIF orientation.

    Raises:
        DataError: the file cannot be decoded or is not of 8 bits.
    """
    return _decoded(path, _turned)


def _upright_if(size: tuple[int, int], image: Image.Image) -> Image.Image:
    """The image, turned if only then it has (width, height)."""
    if image.size == size:
        return image
    turned = _turned(image)
    return turned if turned.size == size else image


def _turned(image: Image.Image) -> Image.Image:
    """The image, turned by its EXIF orientation; damaged EXIF data are ignored.

    `ImageOps.exif_transpose` also rewrites the EXIF data, and fails on those that it cannot write.
    """
    turn = _TURNS.get(orientation_of(image) or 1)
    return image if turn is None else image.transpose(turn)


def _decoded(path: Path, turn: Callable[[Image.Image], Image.Image]) -> Decoded:
    try:
        with Image.open(path) as stored:
            image = turn(stored)
            if image.mode[0] in "IF":
                raise DataError(f"{path}: has more than 8 bits a channel ({image.mode}); convert it to 8")
            return Decoded(image.convert("RGB"), stored.format == "JPEG")
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: has more than {_MAX_PIXELS:,} pixels; cut it into tiles") from error
    except Exception as error:  # Pillow's readers may raise any exception on damaged bytes
        reason = getattr(error, "strerror", None) or error  # strerror: the full text would repeat the path
        raise DataError(f"{path}: cannot be decoded ({reason})") from error


def _resized(image: Image.Image, size: tuple[int, int]) -> Pixels:
    """`image.resize`, within one level of 255."""
    # unsqueeze: torch does not take the stride of numpy's [None] for channels_last, which is faster.
    images_1HW3 = torch.from_numpy(np.array(image)).unsqueeze(0)
    resized_13HW = F.interpolate(images_1HW3.permute(0, 3, 1, 2), size, mode="bilinear", antialias=True)
    pixels: Pixels = resized_13HW[0].permute(1, 2, 0).numpy()
    return pixels
