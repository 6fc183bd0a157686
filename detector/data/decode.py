"""Image files to pixels at the size they are trained at.

PIL reads every file and alone decides which are refused. JPEGs are then resized by torch, whose kernel is
PIL's with weights of fewer bits: some pixels come out a level apart, in a third of the time. What other
files hold is resized by PIL. Nothing depends on the machine's load or on which thread decodes.
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
"""What makes an image upright, by its EXIF orientation."""

_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
"""Of an image, above which Pillow does not open it."""


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """What a file holds, before it is resized.

    Attributes:
        image: of mode RGB.
        is_jpeg: whether the file was one, whatever its name; it decides who resizes.
    """

    image: Image.Image
    is_jpeg: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.height, self.image.width

    def at(self, size: tuple[int, int]) -> Pixels:
        """(H, W, 3) uint8 RGB of `size` (height, width), by an antialiased bilinear filter.

        An image that has `size` keeps its pixels.
        """
        if self.is_jpeg and size != self.size:
            return _resized(self.image, size)
        return np.asarray(self.image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def load_resized(directory: Path, record: ImageRecord, size: tuple[int, int]) -> Pixels:
    """One image of a data set as (H, W, 3) uint8 RGB of `size` (height, width), as `Decoded.at` resizes.

    As COCO's tools have it, pixels are taken as stored and EXIF orientation is not applied, unless it is
    what makes the image as wide and high as the JSON says.

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
    """An image file by itself, turned as its EXIF orientation says.

    Raises:
        DataError: the file cannot be decoded or is not of 8 bits.
    """
    return _decoded(path, _turned)


def _upright_if(size: tuple[int, int], image: Image.Image) -> Image.Image:
    """Turned where only that gives (width, height)."""
    if image.size == size:
        return image
    turned = _turned(image)
    return turned if turned.size == size else image


def _turned(image: Image.Image) -> Image.Image:
    """Turned as the EXIF orientation says; damaged EXIF says nothing.

    As `ImageOps.exif_transpose`, which also rewrites the EXIF data and fails on those that it cannot write.
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
    except Exception as error:  # Pillow's readers let through whatever damaged bytes make them raise
        reason = getattr(error, "strerror", None) or error  # strerror: the whole would repeat the path
        raise DataError(f"{path}: cannot be decoded ({reason})") from error


def _resized(image: Image.Image, size: tuple[int, int]) -> Pixels:
    """`image.resize` within a level of 255."""
    # unsqueeze: numpy's [None] has a stride that torch does not take for channels_last, its quick layout.
    images_1HW3 = torch.from_numpy(np.array(image)).unsqueeze(0)
    resized_13HW = F.interpolate(images_1HW3.permute(0, 3, 1, 2), size, mode="bilinear", antialias=True)
    pixels: Pixels = resized_13HW[0].permute(1, 2, 0).numpy()
    return pixels
