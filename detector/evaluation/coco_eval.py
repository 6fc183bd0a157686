"""Detections as files, and their COCO metrics.

pycocotools does the matching of every reported metric. At most 100 detections per image and class count
towards AP (COCO's rule), although multi-scale testing keeps more. During a training `fast_evaluate` computes
the same metrics with hotcoco, about 70 times faster. Both libraries are imported when used.

Axes: D detections of all images, T IoU thresholds (0.50 to 0.95), R recall thresholds, K classes,
A area ranges (all, small, medium, large), M detection limits (1, 10, 100).
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from detector.errors import DataError
from detector.files import write_and_rename

Array = npt.NDArray[Any]

AP_NAMES = ("AP", "AP50", "AP75", "APS", "APM", "APL")
"""The six precisions, in the order of pycocotools' summary; the six recalls come after them."""

METRIC_NAMES = (*AP_NAMES, "AR1", "AR10", "AR100", "ARS", "ARM", "ARL")

AREA_LABELS = ("all", "small", "medium", "large")

_ABSENT = -1.0  # pycocotools' value of an undefined metric
_LARGEST_AREA = 1e5**2
_JSON_ROWS = 100_000


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """Detections of a whole split in columns, in the order of detection.

    The order matters: of equal scores in an image the earlier ranks first. Floats keep their precision, so a
    saved file has exactly the same metrics.

    Attributes:
        image_ids: (D,) int64, ids of the annotation file.
        category_ids: (D,) int64, ids of the annotation file (not labels 0..K-1).
        boxes_xywh: (D, 4) float32 or float64, left, top, width, height in original pixels.
        scores: (D,) float32 or float64.

    Raises:
        ValueError: columns of different lengths, a value that is not finite, or a negative size.
    """

    image_ids: Array
    category_ids: Array
    boxes_xywh: Array
    scores: Array

    def __post_init__(self) -> None:
        shapes = [getattr(self, field.name).shape for field in fields(self)]
        count = len(self.image_ids)
        if shapes != [(count,), (count,), (count, 4), (count,)]:
            raise ValueError(f"columns must have shapes (D,), (D,), (D, 4) and (D,), got {shapes}")
        _require_finite("scores", self.scores)
        _require_finite("boxes_xywh", self.boxes_xywh)
        if (self.boxes_xywh[:, 2:] < 0).any():
            row = int(np.flatnonzero((self.boxes_xywh[:, 2:] < 0).any(axis=1))[0])
            raise ValueError(f"widths and heights must be >= 0, got {self.boxes_xywh[row]} in row {row}")

    def __len__(self) -> int:
        return len(self.image_ids)

    @classmethod
    def from_coco(cls, detections: Sequence[Mapping[str, Any]]) -> Results:
        """From COCO's results list: dicts with image_id, category_id, bbox (xywh) and score."""
        return cls(
            np.array([d["image_id"] for d in detections], dtype=np.int64),
            np.array([d["category_id"] for d in detections], dtype=np.int64),
            np.array([d["bbox"] for d in detections], dtype=np.float64).reshape(-1, 4),
            np.array([d["score"] for d in detections], dtype=np.float64),
        )

    def to_coco(self) -> list[dict[str, Any]]:
        """COCO's results list, which COCO tools read."""
        return list(self._rows(slice(None)))

    def _rows(self, part: slice) -> Iterator[dict[str, Any]]:
        columns = (getattr(self, field.name)[part].tolist() for field in fields(self))
        names = ("image_id", "category_id", "bbox", "score")
        return (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))

    def write_json(self, path: Path) -> None:
        """Writes COCO's results file, for an evaluation server.

        It is written in parts: multi-scale testing of test-dev gives up to 20 million detections. Floats are
        written with full precision.
        """
        write_and_rename(path, self._json_parts())

    def _json_parts(self) -> Iterator[bytes]:
        yield b"["
        for start in range(0, len(self), _JSON_ROWS):
            rows = json.dumps(list(self._rows(slice(start, start + _JSON_ROWS))))
            yield (", " if start else "").encode() + rows[1:-1].encode()
        yield b"]"

    def save(self, path: Path) -> None:
        """Writes the columns as a compressed .npz; equal detections give equal bytes."""
        save_arrays(path, {field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Results:
        """Reads a file of `save`.

        Raises:
            DataError: the file is missing, truncated, or has other content.
        """
        return cls(**load_arrays(path, [field.name for field in fields(cls)]))


@dataclass(frozen=True, slots=True)
class Scores:
    """The metrics of one evaluation, in percent.

    Attributes:
        metrics: by name, COCO's by those of `METRIC_NAMES`; an undefined one (APS of a data set without small
            objects) is absent.
        class_ap: AP by category name; NaN where undefined. An ambiguous or empty name has its id added.
    """

    metrics: dict[str, float]
    class_ap: dict[str, float]


def evaluate(
    ground_truth: Mapping[str, Any],
    results: Results,
    small_side: float = 32.0,
    medium_side: float = 96.0,
) -> Scores:
    """Evaluates detections on a split: `run_cocoeval` and `scores`.

    Args:
        ground_truth: COCO-format dict with images, annotations and categories; not changed.
        results: detections on its images.
        small_side: original pixels; areas up to its square are small.
        medium_side: original pixels; areas from there to its square are medium.

    Raises:
        ValueError, DataError: as `run_cocoeval`.
    """
    return scores(run_cocoeval(ground_truth, results, small_side, medium_side))


def run_cocoeval(
    ground_truth: Mapping[str, Any],
    results: Results,
    small_side: float = 32.0,
    medium_side: float = 96.0,
) -> Any:
    """Matches and accumulates; arguments as `evaluate`.

    Returns:
        A finished `pycocotools.cocoeval.COCOeval`, for `scores` and `bootstrap.match_data`.

    Raises:
        ValueError: area limits out of order, or a detection of an unknown image or category.
        DataError: the split has no object.
    """
    from pycocotools.cocoeval import COCOeval

    _check(ground_truth, results, small_side, medium_side)
    truth = _indexed(ground_truth, _numbered(ground_truth["annotations"]))
    detections = [_detection(number, row) for number, row in enumerate(results.to_coco(), start=1)]
    return _finished(COCOeval(truth, _indexed(ground_truth, detections), "bbox"), small_side, medium_side)


def fast_evaluate(
    ground_truth: Mapping[str, Any],
    results: Results,
    small_side: float = 32.0,
    medium_side: float = 96.0,
) -> Scores:
    """The metrics of `evaluate`, bit for bit, computed by hotcoco if it is installed.

    For validation during a training; metrics of tables come from `run_cocoeval`. Arguments and errors are
    those of `evaluate`, which is called where hotcoco is absent.
    """
    if find_spec("hotcoco") is None:
        return evaluate(ground_truth, results, small_side, medium_side)
    from hotcoco import COCOeval

    _check(ground_truth, results, small_side, medium_side)
    return scores(_finished(COCOeval(*_columns(ground_truth, results), "bbox"), small_side, medium_side))


def scores(judged: Any) -> Scores:
    """The metrics of a finished COCOeval, of either library, in percent."""
    metrics = zip(METRIC_NAMES, judged.stats.tolist(), strict=True)
    precision_TRK = judged.eval["precision"][..., 0, -1]  # all areas, 100 detections
    labels = disambiguate(
        {category: judged.cocoGt.cats[category]["name"] for category in judged.params.catIds}
    )
    class_ap = {
        labels[category]: 100 * float(precision_TRK[..., k].mean())
        if precision_TRK[0, 0, k] != _ABSENT
        else math.nan
        for k, category in enumerate(judged.params.catIds)
    }
    return Scores({name: 100 * value for name, value in metrics if value != _ABSENT}, class_ap)


def disambiguate(names: Mapping[int, str]) -> dict[int, str]:
    """Unique names of categories by id; they differ in more than spaces.

    A name that several categories share, or that is empty, has its id added. If that gives a name that
    exists, all names have their ids added.
    """
    plain = {category: " ".join(name.split()) for category, name in names.items()}
    with_id = {category: f"{name} (id {category})".lstrip() for category, name in plain.items()}
    times = Counter(plain.values())
    labels = {
        category: names[category] if name and times[name] == 1 else with_id[category]
        for category, name in plain.items()
    }
    alike = len({" ".join(label.split()) for label in labels.values()}) < len(labels)
    return with_id if alike else labels


def save_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Writes named arrays as a compressed .npz, atomically; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_and_rename(path, buffer.getvalue())


_OF_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    TypeError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Exceptions of reading a damaged .npz."""


def load_arrays(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """Reads the named arrays of an .npz, without pickle.

    Raises:
        DataError: the file is missing or truncated, or lacks one of the arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except _OF_DAMAGE as error:
        raise DataError(f"{path}: expected an .npz with {', '.join(names)}: {error}") from error


def _check(ground_truth: Mapping[str, Any], results: Results, small_side: float, medium_side: float) -> None:
    if not 0 < small_side < medium_side < 1e5:
        raise ValueError(f"need 0 < small_side < medium_side < 1e5, got {small_side} and {medium_side}")
    if all(annotation.get("iscrowd", 0) for annotation in _listed(ground_truth)):
        raise DataError("the split has no annotation besides crowds: AP is undefined")
    require_known("image", results.image_ids, [entry["id"] for entry in ground_truth["images"]])
    require_known("category", results.category_ids, [entry["id"] for entry in ground_truth["categories"]])


def _finished(judged: Any, small_side: float, medium_side: float) -> Any:
    """A COCOeval of either library, run with these area limits."""
    small, medium = small_side**2, medium_side**2
    judged.params.areaRng = [[0, _LARGEST_AREA], [0, small], [small, medium], [medium, _LARGEST_AREA]]
    with _silent():
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return judged


def _columns(ground_truth: Mapping[str, Any], results: Results) -> tuple[Any, Any]:
    """Ground truth and detections as hotcoco's data sets, from columns, which is faster than dicts.

    hotcoco refuses ids below 0, so both have indices into the sorted ids instead: pycocotools iterates in
    that order.
    """
    from hotcoco import COCO

    image_ids = sorted({image["id"] for image in ground_truth["images"]})
    # Made unique here, with the original ids.
    names = disambiguate({category["id"]: category["name"] for category in ground_truth["categories"]})
    class_ids = sorted(names)
    objects = _listed(ground_truth)
    truth = COCO.from_arrays(
        [{"id": place} for place in range(len(image_ids))],
        [{"id": place, "name": names[class_id]} for place, class_id in enumerate(class_ids)],
        np.searchsorted(image_ids, [a["image_id"] for a in objects]),
        np.searchsorted(class_ids, [a["category_id"] for a in objects]),
        np.array([a["bbox"] for a in objects], dtype=np.float64),
        area=np.array([a["area"] for a in objects], dtype=np.float64),
        iscrowd=np.array([a.get("iscrowd", 0) for a in objects]),
    )
    images = np.searchsorted(image_ids, results.image_ids)
    classes = np.searchsorted(class_ids, results.category_ids)
    # float64 represents the indices and every float32 exactly.
    return truth, truth.loadRes(np.column_stack([images, results.boxes_xywh, results.scores, classes]))


def _listed(ground_truth: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The annotations of images and categories that the ground truth lists; others are ignored."""
    image_ids = {image["id"] for image in ground_truth["images"]}
    category_ids = {category["id"] for category in ground_truth["categories"]}
    return [
        annotation
        for annotation in ground_truth["annotations"]
        if annotation["image_id"] in image_ids and annotation["category_id"] in category_ids
    ]


def _numbered(annotations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    # pycocotools stores a match as the annotation's id, where 0 means none, so an object with id 0 could
    # never be matched; and it changes its input. Copies with ids from 1 avoid both.
    return [{"iscrowd": 0, **annotation, "id": n} for n, annotation in enumerate(annotations, start=1)]


def _detection(number: int, row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}


def _indexed(ground_truth: Mapping[str, Any], annotations: list[dict[str, Any]]) -> Any:
    from pycocotools.coco import COCO

    # Not COCO.loadRes, which fails for an empty list and makes needless polygons.
    index = COCO()
    index.dataset = {
        "images": ground_truth["images"],
        "categories": ground_truth["categories"],
        "annotations": annotations,
    }
    with _silent():
        index.createIndex()
    return index


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    # Both libraries always print progress and summary. hotcoco also warns of area limits other than COCO's,
    # which are intended here.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="hotcoco: area range")
        yield


def _require_finite(name: str, values: Array) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argwhere(bad)[0, 0])
        raise ValueError(
            f"{name} must be finite, got {values[row]} in row {row} ({int(bad.sum())} such values)"
        )


def require_known(what: str, ids: Array, known: Iterable[int]) -> None:
    """Refuses ids of detections, of images or categories, that are not known (ValueError)."""
    unknown = sorted(set(np.unique(ids).tolist()) - set(known))
    if unknown:
        raise ValueError(f"detections have {what} ids that the annotations lack: {unknown[:5]}")
