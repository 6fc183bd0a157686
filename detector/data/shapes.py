"""A synthetic detection data set: shapes of six classes on cluttered backgrounds, as COCO files.

Classes differ in outline. Each also has a mean colour, with so much variance that colours of classes overlap;
with outlines alone, short trainings on a CPU mostly learn to classify shapes, and differences between
assigners and losses are small. Sizes are log-uniform from half the finest anchor of the `shapes` profile
(32 pixels) to most of the image, so that every pyramid level has objects. Strokes, arcs and specks belong to
no class.

An image is a pure function of the spec, its split and its index, from `numpy`'s PCG64 and polygons, without
fonts or stored pictures. Axes: H and W of the image, V vertices of an outline.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from detector.data.coco import DataPaths

CLASSES = ("ellipse", "ring", "rectangle", "triangle", "cross", "star")

_COLOURS = np.array(
    ((220, 60, 60), (60, 200, 80), (70, 90, 230), (230, 210, 60), (200, 70, 210), (60, 210, 220)),
    dtype=np.float32,
)
"""Mean colour of each class, RGB."""
_COLOUR_SPREAD = 45.0

_DRAWING_VERSION = 2
"""To be raised when the drawing changes, so that files of older versions are not used."""

_SUPERSAMPLING = 4
_MIN_SIDE = 6.0
"""Smallest short side of an object before rotation, in pixels: thinner ones cannot be recognised."""

_OVERHANG = 0.12
"""Fraction of its width or height by which an object may exceed the border."""

_CONTRAST = 70.0
"""Distance in RGB between a shape and its background that makes it visible."""

_SHADE = 20.0
"""Largest change of a shape's colour from its middle to its border, along each axis."""

Floats = NDArray[np.float64]
Canvas = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ShapesSpec:
    """The parameters that decide every pixel of the data set.

    Attributes:
        seed: >= 0.
        image_size: side of the square images in pixels, at least 32.
        num_train, num_val: images of each split, at least 1.
        max_objects: largest number of objects per image, at least 1.
        min_size, max_size: side of the square with the area of an object's box, in pixels and as a
            fraction of the image's side.
        max_aspect: largest ratio of long to short side of an outline before rotation, at least 1.
        max_covered: fraction of an object that later ones may cover.
    """

    seed: int = 0
    image_size: int = 96
    num_train: int = 4000
    num_val: int = 500
    max_objects: int = 8
    min_size: float = 8.0
    max_size: float = 0.85
    max_aspect: float = 2.0
    max_covered: float = 0.5

    def __post_init__(self) -> None:
        rules = {
            "seed": (0, self.seed),
            "image_size": (32, self.image_size),
            "num_train": (1, self.num_train),
            "num_val": (1, self.num_val),
            "max_objects": (1, self.max_objects),
            "min_size": (_MIN_SIDE, self.min_size),
            "max_aspect": (1, self.max_aspect),
        }
        for name, (least, value) in rules.items():
            if value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        if not 0 <= self.max_covered <= 1:
            raise ValueError(f"max_covered must be in [0, 1], got {self.max_covered}")
        if not self.min_size / self.image_size <= self.max_size <= 1:
            raise ValueError(f"max_size must be in [min_size / image_size, 1], got {self.max_size}")


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """One image: (H, W, 3) uint8 RGB, (G, 4) float64 xyxy boxes and (G,) int64 labels into `CLASSES`."""

    image: NDArray[np.uint8]
    boxes: Floats
    labels: NDArray[np.int64]


# --- files -----------------------------------------------------------------------------------------


def draw_dataset(spec: ShapesSpec, directory: Path) -> DataPaths:
    """The data set of a spec as COCO files, drawn at its first use.

    Its directory under `directory` is named by a hash of the spec, and renamed to that name when it is
    complete: a partial one of a killed process is not used, and of two processes that draw it the first
    wins.
    """
    identity = f"{_DRAWING_VERSION} {spec}".encode()
    final = directory / f"shapes-{hashlib.sha256(identity).hexdigest()[:12]}"
    if not final.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=directory, prefix=f".{final.name}-"))
        try:
            _write_split(spec, "train", spec.num_train, beside)
            _write_split(spec, "val", spec.num_val, beside)
            _rename_unless_taken(beside, final)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return DataPaths.from_directory(final)


def _rename_unless_taken(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():  # otherwise another process has drawn the same
            raise


def _write_split(spec: ShapesSpec, name: str, count: int, directory: Path) -> None:
    (directory / f"{name}2017").mkdir()
    (directory / "annotations").mkdir(exist_ok=True)
    content: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": label} for i, label in enumerate(CLASSES, start=1)],
    }
    for index in range(count):
        drawing = draw_image(spec, name, index)
        file_name = f"{index:06d}.jpg"
        # A PNG takes ten times as long and three times the space; subsampled colours blur small objects.
        path = directory / f"{name}2017" / file_name
        Image.fromarray(drawing.image).save(path, quality=95, subsampling=0)
        _append(content, index + 1, file_name, drawing)
    path = directory / "annotations" / f"instances_{name}2017.json"
    path.write_text(json.dumps(content), encoding="utf-8")


def _append(
    content: dict[str, list[dict[str, Any]]], image_id: int, file_name: str, drawing: Drawing
) -> None:
    height, width = drawing.image.shape[:2]
    content["images"].append({"id": image_id, "file_name": file_name, "width": width, "height": height})
    for (x1, y1, x2, y2), label in zip(drawing.boxes.tolist(), drawing.labels.tolist(), strict=True):
        w, h = round(x2 - x1, 2), round(y2 - y1, 2)
        content["annotations"].append(
            {
                "id": len(content["annotations"]) + 1,
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": [x1, y1, w, h],
                "area": round(w * h, 2),
                "iscrowd": 0,
            }
        )


# --- an image --------------------------------------------------------------------------------------


def draw_image(spec: ShapesSpec, split: str, index: int) -> Drawing:
    """Image `index` of "train" or "val".

    Boxes are the bounds of the whole outline, covered parts included, clipped to the image and rounded to
    hundredths, so that they are equal on all machines. There is at least one.
    """
    rng = np.random.Generator(np.random.PCG64([spec.seed, ("train", "val").index(split), index]))
    canvas = _background(rng, spec.image_size)
    for _ in range(int(rng.integers(0, 5))):
        colours = rng.uniform(0, 255, (6, 3))
        _paint(rng, canvas, _rasterised([_clutter(rng, spec.image_size)], spec.image_size), colours)
    objects = _draw_objects(rng, spec, canvas)
    noise = rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(rng.uniform(2, 8))
    return Drawing(
        np.clip(np.rint(canvas + noise), 0, 255).astype(np.uint8),
        np.array([box for box, _ in objects]),
        np.array([label for _, label in objects], dtype=np.int64),
    )


def _draw_objects(rng: np.random.Generator, spec: ShapesSpec, canvas: Canvas) -> list[tuple[Floats, int]]:
    """Paints up to a random number of objects; returns the box and label of each."""
    wanted = int(rng.integers(1, spec.max_objects + 1))
    owner = np.zeros(canvas.shape[:2], dtype=np.int64)  # number of the visible object, 0 for none
    whole = [0]  # pixels of each object without covering
    objects: list[tuple[Floats, int]] = []
    for _ in range(3 * wanted):
        if len(objects) == wanted:
            break
        label = int(rng.integers(len(CLASSES)))
        outlines = _placed(rng, spec, _OUTLINES[label])
        coverage = _rasterised(outlines, spec.image_size)
        if not _hides_too_much(owner, coverage, whole, spec.max_covered):
            _paint(rng, canvas, coverage, _COLOURS[label] + rng.normal(0, _COLOUR_SPREAD, (6, 3)))
            objects.append((_bounds(outlines[0], spec.image_size), label))
            mask = coverage.alpha > 0.5
            whole.append(int(mask.sum()))
            owner[coverage.region][mask] = len(objects)
    return objects


def _hides_too_much(
    owner: NDArray[np.int64], coverage: _Coverage, whole: Sequence[int], limit: float
) -> bool:
    """Whether drawing here would cover more than `limit` of an object's pixels."""
    visible = np.bincount(owner.ravel(), minlength=len(whole))
    under = np.bincount(owner[coverage.region][coverage.alpha > 0.5], minlength=len(whole))
    left = (visible - under)[1:]
    return bool(((left < (1 - limit) * np.array(whole[1:])) & (under[1:] > 0)).any())


def _bounds(outline: Floats, size: int) -> Floats:
    """(4,) float64, xyxy: tight bounds of the part of an outline that is inside the image."""
    for axis in (0, 1):
        outline = _cut(outline, axis, 0, above=True)
        outline = _cut(outline, axis, size, above=False)
    return np.concatenate((outline.min(axis=0), outline.max(axis=0))).round(2)


def _cut(points: Floats, axis: int, limit: float, above: bool) -> Floats:
    """The part of a polygon on one side of a line along the other axis (Sutherland and Hodgman, 1974)."""
    beyond = points[:, axis] < limit if above else points[:, axis] > limit
    if not beyond.any():
        return points
    after = np.roll(points, -1, axis=0)
    crosses = beyond != np.roll(beyond, -1)
    run = np.where(crosses, after[:, axis] - points[:, axis], 1.0)
    crossings = points + ((limit - points[:, axis]) / run)[:, None] * (after - points)
    both = np.stack((points, crossings), axis=1).reshape(-1, 2)
    return np.asarray(both[np.stack((~beyond, crosses), axis=1).ravel()])


# --- outlines --------------------------------------------------------------------------------------


def _polygon(corners: int, radii: Sequence[float] = (1.0,)) -> Floats:
    """(V, 2) points at equal angles from straight up, with alternating `radii`."""
    angles = np.arange(corners) * (2 * math.pi / corners)
    radius = np.resize(np.array(radii), corners)
    return np.stack((radius * np.sin(angles), -radius * np.cos(angles)), axis=1)


def _cross(arm: float) -> Floats:
    """(12, 2) points of an upright cross of half-width 1 with arms of half-width `arm`."""
    quarter = np.array(((-arm, -1.0), (arm, -1.0), (arm, -arm)))
    turn = np.array(((0.0, 1.0), (-1.0, 0.0)))  # a quarter turn of row vectors
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


_OUTLINES: tuple[tuple[Floats, ...], ...] = (
    (_polygon(40),),
    (_polygon(40), 0.55 * _polygon(40)),
    (np.array(((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))),),
    (_polygon(3),),
    (_cross(0.3),),
    (_polygon(10, (1.0, 0.42)),),
)
"""The outline and then the holes of each class, around the origin."""


def _placed(rng: np.random.Generator, spec: ShapesSpec, outlines: Sequence[Floats]) -> list[Floats]:
    """Outlines stretched, rotated, scaled and moved to an object's place, in pixels."""
    low, high = math.log(spec.min_size), math.log(spec.max_size * spec.image_size)
    size = math.exp(rng.uniform(low, high))
    aspect = math.log(min(spec.max_aspect, (size / _MIN_SIDE) ** 2))
    stretch = math.exp(rng.uniform(-aspect, aspect) / 2)
    # Up to 15 degrees off the axes: at 45 degrees every box would be square.
    angle = rng.integers(4) * math.pi / 2 + rng.uniform(-math.pi / 12, math.pi / 12)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.array(((stretch * cos, stretch * sin), (-sin / stretch, cos / stretch)))
    corner, extent = _span(outlines[0] @ matrix)
    scale = min(size / math.sqrt(extent.prod()), 0.95 * spec.image_size / extent.max())
    extent = extent * scale
    room = spec.image_size - (1 - 2 * _OVERHANG) * extent
    place = rng.uniform(0, 1, 2) * room - _OVERHANG * extent
    return [(outline @ matrix - corner) * scale + place for outline in outlines]


def _span(points: Floats) -> tuple[Floats, Floats]:
    low = points.min(axis=0)
    return low, points.max(axis=0) - low


def _clutter(rng: np.random.Generator, size: int) -> Floats:
    """A stroke, an arc or a speck: thinner or smaller than any object."""
    kind = rng.integers(3)
    if kind == 0:
        length, width = rng.uniform(0.1, 0.7) * size, rng.uniform(1, 3)
        points = np.array(((0, 0), (length, 0), (length, width), (0, width)))
    elif kind == 1:
        radius, width = rng.uniform(0.06, 0.4) * size, rng.uniform(1, 3)
        arc = np.linspace(0, rng.uniform(0.6, 2.6), 12)
        unit = np.stack((np.cos(arc), np.sin(arc)), axis=1)
        points = np.concatenate((radius * unit, (radius - width) * unit[::-1]))
    else:
        points = _polygon(5, rng.uniform(0.6, 2.2, 5).tolist())
    angle = rng.uniform(0, 2 * math.pi)
    turn = np.array(((math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))))
    return np.asarray((points - points.mean(axis=0)) @ turn + rng.uniform(0, size, 2))


# --- pixels ----------------------------------------------------------------------------------------


class _Coverage(NamedTuple):
    """A region of the image, and the covered fraction of each of its pixels."""

    region: tuple[slice, slice]
    alpha: Canvas


def _rasterised(outlines: Sequence[Floats], size: int) -> _Coverage:
    """Coverage of the first outline without the others, (h, w) float32 in [0, 1]."""
    low = np.clip(np.floor(outlines[0].min(axis=0)), 0, size - 1).astype(int)
    high = np.clip(np.ceil(outlines[0].max(axis=0)), low + 1, size).astype(int)
    (x1, y1), (x2, y2) = low.tolist(), high.tolist()
    fine = Image.new("L", ((x2 - x1) * _SUPERSAMPLING, (y2 - y1) * _SUPERSAMPLING))
    draw = ImageDraw.Draw(fine)
    for outline, value in zip(outlines, (255, 0), strict=False):
        # In PIL, the centre of a pixel has whole coordinates.
        points = (outline - low) * _SUPERSAMPLING - 0.5
        draw.polygon(points.ravel().tolist(), fill=value)
    alpha = np.asarray(fine.reduce(_SUPERSAMPLING), dtype=np.float32) / np.float32(255)
    return _Coverage((slice(y1, y2), slice(x1, x2)), alpha)


def _paint(rng: np.random.Generator, canvas: Canvas, coverage: _Coverage, colours: Floats) -> None:
    """Blends in one of the colours (n, 3), shaded, with enough distance from its background."""
    alpha = coverage.alpha[..., None]
    under = canvas[coverage.region]
    mean = (under * alpha).sum(axis=(0, 1)) / max(float(alpha.sum()), 1e-3)
    candidates = np.clip(colours, 0, 255).astype(np.float32)
    contrast = np.sqrt(((candidates - mean) ** 2).sum(axis=1))
    # The first with enough distance, otherwise the one with the largest; always as many random numbers.
    colour = candidates[int(np.argmax(np.minimum(contrast, _CONTRAST)))]
    shade = rng.uniform(-_SHADE, _SHADE, 2)
    height, width = alpha.shape[:2]
    ramp = np.float32(shade[0]) * _ramp(height)[:, None] + np.float32(shade[1]) * _ramp(width)
    canvas[coverage.region] = under + alpha * (colour + ramp[..., None] - under)


def _background(rng: np.random.Generator, size: int) -> Canvas:
    """(H, W, 3) float32: a smooth random field of colours, coarse and fine."""
    canvas = np.tile(rng.uniform(40, 215, 3).astype(np.float32)[:, None, None], (size, size))
    for cells, strength in ((2, 30.0), (5, 15.0), (16, 8.0)):
        grid = rng.standard_normal((3, cells + 1, cells + 1)) * rng.uniform(0.2, 1) * strength
        weights = _interpolation(cells + 1, size)
        canvas += weights @ grid.astype(np.float32) @ weights.T
    return np.ascontiguousarray(canvas.transpose(1, 2, 0))


@lru_cache
def _interpolation(points: int, size: int) -> Canvas:
    """(size, points) float32 matrix that interpolates values at equal distances linearly."""
    position = np.linspace(0, points - 1, size)[:, None]
    weights: Floats = np.maximum(0, 1 - np.abs(position - np.arange(points)))
    return weights.astype(np.float32)


@lru_cache
def _ramp(length: int) -> Canvas:
    return np.linspace(-1, 1, length, dtype=np.float32)
