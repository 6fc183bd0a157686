"""Detects objects in images: `python -m detector.predict --checkpoint FILE image.jpg`.

A checkpoint has the trial's config, class names, category ids and weights. Images are resized as the trial's
validation images, and processed one by one, in float32, without padding.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detector.config import RECIPE_VERSION, Evaluation, Trial
from detector.data.dataset import seen_size
from detector.data.decode import Decoded, read_upright
from detector.errors import CheckpointError, DataError
from detector.evaluation.postprocess import Detections, detect
from detector.files import write_and_rename
from detector.model.build import build_detector
from detector.model.detector import AnyModel
from detector.pictures import draw_by_class, write_png
from detector.presets import usual_test
from detector.serialization import from_dict
from detector.training import checkpoint as checkpoints

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
"""Endings of the images in a folder; a file that is given itself may have any."""

MIN_PICTURE, MAX_PICTURE = 384, 1600
"""Pixels: pictures are enlarged by an integer factor to a short side of about the first, and reduced to a
long side of the second, for legible tags and small files."""

_LISTED = 3

_KINDS = {"config": dict, "class_names": list, "category_ids": list, "model": dict}
"""The required content of a checkpoint."""


# --- the detector ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class LoadedDetector:
    """A trained detector with its classes.

    Attributes:
        model: in eval mode.
        trial: the trial's config, with the image size.
        class_names, category_ids: those of label c at index c.
        notices: messages to the user about the checkpoint.
    """

    model: AnyModel
    trial: Trial
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    notices: tuple[str, ...] = ()


def load_detector(path: Path, device: str = "cpu") -> LoadedDetector:
    """The detector of a checkpoint file, or of the newest intact checkpoint in a folder.

    Reading executes no pickled code. A file must have the checksum in its name; a renamed one without a
    checksum gives a notice.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged, of another program, or of a version with
            other configs.
    """
    payload, name, notices = _newest(path) if path.is_dir() else _file(path)
    _refuse_other_contents(payload, name)
    try:
        trial = from_dict(payload["config"], Trial)
        if trial.recipe_version != RECIPE_VERSION:
            raise ValueError(
                f"of recipe version {trial.recipe_version}, this program computes version {RECIPE_VERSION}: "
                "use the version that wrote it, or train again"
            )
        model = build_detector(trial.detector)
        model.load_state_dict(payload["model"])
        names, ids = tuple(payload["class_names"]), tuple(payload["category_ids"])
        if not len(names) == len(ids) == trial.detector.num_classes:
            classes = trial.detector.num_classes
            raise ValueError(f"{len(names)} class names and {len(ids)} category ids for {classes} classes")
    except (TypeError, ValueError, RuntimeError) as error:  # TypeError: by values of a config
        raise CheckpointError(f"{name}: cannot be used: {error}") from error
    return LoadedDetector(model.to(device).eval(), trial, names, ids, tuple(notices))


def _refuse_other_contents(payload: object, name: str) -> None:
    """Refuses other content: a user's file may have anything that `torch.save` writes."""
    what = f"{name}: holds no trained detector"
    if not isinstance(payload, dict):
        raise CheckpointError(f"{what} but a {type(payload).__name__}")
    for key, kind in _KINDS.items():
        if key not in payload:
            raise CheckpointError(f"{what}, {key!r} is missing")
        if not isinstance(payload[key], kind):
            found = type(payload[key]).__name__
            raise CheckpointError(f"{what}, {key!r} is of type {found}, not {kind.__name__}")
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in payload["model"].items()):
        raise CheckpointError(f"{what}, 'model' is not weights by name")


def _newest(directory: Path) -> tuple[dict[str, Any], str, list[str]]:
    file, payload, passed_over = checkpoints.load_latest_good(directory)
    if file is None or payload is None:
        why = "; ".join(passed_over) or "there is no step_*.pt in it"
        raise CheckpointError(f"{directory}: no checkpoint to load: {why}")
    return payload, file.path.name, [f"passed over a checkpoint: {why}" for why in passed_over]


def _file(path: Path) -> tuple[dict[str, Any], str, list[str]]:
    notices = []
    named = next((c for c in checkpoints.found(path.parent) if c.path == path), None)
    try:
        if named is None:
            # Its own checksum, so that only its loading is checked.
            named = checkpoints.CheckpointFile(path, 0, hashlib.sha256(path.read_bytes()).hexdigest())
            notices.append(f"{path.name}: no checksum in its name, so its bytes are not checked")
            if not zipfile.is_zipfile(path):  # torch would read other bytes as a pickle
                raise RuntimeError("no archive")
        return checkpoints.load(named), path.name, notices
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (EOFError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be read: not a checkpoint, or cut short") from error


@torch.no_grad()
def predict_image(loaded: LoadedDetector, image: Decoded, evaluation: Evaluation | None = None) -> Detections:
    """Detections in one image.

    Args:
        loaded: the result of `load_detector`.
        image: an upright image of any size.
        evaluation: thresholds, single scale; None for those of the detector's paper.

    Returns:
        Detections, best first, on the CPU; boxes in pixels of `image`.
    """
    height, width = image.size
    size = seen_size(loaded.trial.data, width, height)
    device = next(loaded.model.parameters()).device
    image_13HW = torch.from_numpy(np.array(image.at(size))).permute(2, 0, 1)[None].to(device)
    test = evaluation or usual_test(loaded.trial.detector)
    found = detect(loaded.model.candidates(loaded.model(image_13HW), test), [size], test)[0]
    back = torch.tensor([width / size[1], height / size[0]]).repeat(2)
    return Detections(found.boxes.cpu() * back, found.scores.cpu(), found.labels.cpu())


# --- images ----------------------------------------------------------------------------------------


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The files among `paths`, and the images of each folder, in order of name.

    Raises:
        DataError: a folder has no image, or two images have one stem, and so one name of their results.
    """
    files = [file for path in paths for file in (_images_in(path) if path.is_dir() else [path])]
    by_stem: dict[str, Path] = {}
    for file in files:
        other = by_stem.setdefault(file.stem, file)
        if other != file:
            raise DataError(f"{other} and {file} would both write {file.stem}.json: rename one of them")
    return list(by_stem.values())


def _images_in(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError(f"{folder}: has no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return files


# --- results ---------------------------------------------------------------------------------------


def to_record(
    path: Path, size: tuple[int, int], detections: Detections, loaded: LoadedDetector
) -> dict[str, Any]:
    """The JSON result of one image: name, size, and detections as in COCO.

    Args:
        path: of the image.
        size: (height, width) of the image.
        detections: in pixels of the image.
        loaded: the detector.

    Returns:
        "image", "width", "height", and "detections": a list, best first, of "category_id", "category" (its
        name), "bbox" ([x, y, width, height] in original pixels) and "score".
    """
    rows = zip(detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
    return {
        "image": path.name,
        "width": size[1],
        "height": size[0],
        "detections": [
            {
                "category_id": loaded.category_ids[label],
                "category": loaded.class_names[label],
                "bbox": [round(side, 2) for side in (x0, y0, x1 - x0, y1 - y0)],
                "score": round(score, 4),
            }
            for (x0, y0, x1, y1), score, label in rows
        ],
    }


def _predict_file(path: Path, loaded: LoadedDetector, output: Path, min_score: float) -> str:
    """Writes the results of one image; returns a line to print."""
    image = read_upright(path)
    found = predict_image(loaded, image)
    found = found[found.scores >= min_score]
    record = to_record(path, image.size, found, loaded)
    tags = [f"{d['category']} {d['score']:.2f}" for d in record["detections"]]
    scale = min(max(1, MIN_PICTURE // min(image.size)), MAX_PICTURE / max(image.size))
    picture = draw_by_class(image.at(image.size), found.boxes.numpy(), found.labels.numpy(), tags, scale)
    write_png(picture, output / f"{path.stem}.png")
    write_and_rename(
        output / f"{path.stem}.json", (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()
    )
    best = ", ".join(tags[:_LISTED]) + (", ..." if len(tags) > _LISTED else "")
    return f"{path}: {len(found)} with a score of at least {min_score:g}" + (f": {best}" if best else "")


def predict_files(
    files: Sequence[Path], loaded: LoadedDetector, output: Path, min_score: float
) -> Iterator[str | DataError]:
    """Processes each image and writes its `<stem>.json` and `<stem>.png` to `output`.

    Yields:
        A line for each image, or the reason why it cannot be read; the next ones are processed.
    """
    for path in files:
        try:
            yield _predict_file(path, loaded, output, min_score)
        except DataError as error:
            yield error
        except OSError as error:
            yield DataError(f"{path}: its results cannot be written: {error}")


# --- command line ----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 1 if an image could not be read."""
    options = _parser().parse_args(arguments)
    try:
        files = image_files(options.images)
        _refuse_overwriting(files, options.output)
        loaded = load_detector(options.checkpoint, options.device)
        options.output.mkdir(parents=True, exist_ok=True)
    except (CheckpointError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for notice in loaded.notices:
        print(f"note: {notice}", file=sys.stderr)
    failed = False
    for result in predict_files(files, loaded, options.output, options.min_score):
        if isinstance(result, DataError):
            failed = True
            print(f"error: {result}", file=sys.stderr)
        else:
            print(result)
    print(f"results in {options.output}/")
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m detector.predict",
        description="Detect objects in images with a trained detector. Writes IMAGE.json and IMAGE.png.",
        epilog="Photographs are turned upright as their EXIF data say; boxes are in pixels of that.",
    )
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them"
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        help="checkpoint file, or folder: its newest intact checkpoint",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("detections"), help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--min-score",
        type=_score,
        default=0.3,
        help="detections below are left out (default: %(default)s)",
    )
    parser.add_argument("--device", type=_device, default="cpu", help="cpu or cuda (default: %(default)s)")
    return parser


def _score(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, got {text}")
    return value


def _device(text: str) -> str:
    available = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if text not in available:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(available)} on this machine, got {text}")
    return text


def _refuse_overwriting(files: Sequence[Path], output: Path) -> None:
    for file in files:
        if (output / f"{file.stem}.png").resolve() == file.resolve():
            raise DataError(f"{file}: its picture would be written over it; choose another --output")


if __name__ == "__main__":
    sys.exit(main())
