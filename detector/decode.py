"""Image files to pixels at the size they are trained at.

PIL reads every file and alone decides which are refused. JPEGs are then resized by torch, whose kernel is
PIL's with weights of fewer bits: some pixels come out a level apart, in a third of the time. What other
files hold is resized by PIL. Nothing depends on the machine's load or on which thread decodes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch.nn import functional as F

from detector.coco import ImageRecord
from detector.errors import DataError

Pixels = NDArray[np.uint8]


def load_resized(directory: Path, record: ImageRecord, size: tuple[int, int]) -> Pixels:
    """One image as (H, W, 3) uint8 RGB, resized to `size` (height, width) by an antialiased bilinear filter.

    As COCO's tools have it, pixels are taken as stored and EXIF orientation is not applied, unless it is
    what makes the image as wide and high as the JSON says. An image that has `size` keeps its pixels.

    Raises:
        DataError: the file cannot be decoded, is not of 8 bits, or has another size than the JSON says.
    """
    path = directory / record.file_name
    try:
        with Image.open(path) as stored:
            is_jpeg = stored.format == "JPEG"
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
    if is_jpeg and size != (image.height, image.width):
        return _resized(image, size)
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _upright(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.size == size:
        return image
    turned = ImageOps.exif_transpose(image)
    return turned if turned.size == size else image


def _resized(image: Image.Image, size: tuple[int, int]) -> Pixels:
    """`image.resize` within a level of 255."""
    # unsqueeze: numpy's [None] has a stride that torch does not take for channels_last, its quick layout.
    images_1HW3 = torch.from_numpy(np.array(image)).unsqueeze(0)
    resized_13HW = F.interpolate(images_1HW3.permute(0, 3, 1, 2), size, mode="bilinear", antialias=True)
    pixels: Pixels = resized_13HW[0].permute(1, 2, 0).numpy()
    return pixels
