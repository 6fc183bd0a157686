"""A trained detector on images of one's own, from the checkpoint alone."""

import json
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detector.config import FPN, Data, Detector, Evaluation, Head, ResNet, Schedule, Trial
from detector.data.coco import ImageRecord
from detector.data.decode import Decoded, load_resized, read_upright
from detector.errors import CheckpointError, DataError
from detector.model.build import build_detector
from detector.predict import image_files, load_detector, main, predict_image
from detector.serialization import to_dict
from detector.training import checkpoint

BACKBONE = ResNet(
    block="basic",
    depths=(0, 1, 1, 1),
    widths=(8, 8, 8, 8),
    stem="patch",
    stem_channels=8,
    stem_stride=2,
    stage_strides=(1, 1, 2, 2),
    norm="group_norm",
    frozen_stages=0,
)
DETECTOR = Detector(num_classes=2, backbone=BACKBONE, fpn=FPN(16), head=Head(num_convs=1))
TRIAL = Trial(DETECTOR, Schedule(), Data("0" * 12, short_side=32, max_long_side=48), seed=3)
ORIENTATION = 0x0112  # EXIF's tag


def payload(trial: Trial = TRIAL, seed: int = 0) -> dict[str, Any]:
    """A detector that finds something everywhere: random weights, and no bias against objects."""
    torch.manual_seed(seed)
    model = build_detector(trial.detector)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return {
        "config": to_dict(trial),
        "class_names": ["ring", "square"],
        "category_ids": [4, 9],
        "model": model.state_dict(),
    }


@pytest.fixture
def saved(tmp_path: Path) -> checkpoint.CheckpointFile:
    return checkpoint.save(tmp_path / "checkpoints", 20, payload())


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return draw(tmp_path / "photos" / "one.jpg", 90, 60)


def draw(path: Path, width: int, height: int, orientation: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8)
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


# --- loading ---------------------------------------------------------------------------------------


def test_a_checkpoint_alone_gives_the_model_its_trial_and_its_classes(
    saved: checkpoint.CheckpointFile,
) -> None:
    loaded = load_detector(saved.path)
    assert loaded.trial == TRIAL
    assert (loaded.class_names, loaded.category_ids) == (("ring", "square"), (4, 9))
    assert loaded.notices == ()
    assert not loaded.model.training
    for name, tensor in payload()["model"].items():
        torch.testing.assert_close(loaded.model.state_dict()[name], tensor, rtol=0, atol=0)


def test_of_a_folder_the_newest_whole_checkpoint_is_taken(saved: checkpoint.CheckpointFile) -> None:
    newer = checkpoint.save(saved.path.parent, 40, payload(replace(TRIAL, seed=4)))
    assert load_detector(saved.path.parent).trial.seed == 4
    newer.path.write_bytes(newer.path.read_bytes()[:-1])
    loaded = load_detector(saved.path.parent)
    assert loaded.trial.seed == 3
    assert "passed over a checkpoint: step_00000040" in loaded.notices[0]


def test_a_renamed_checkpoint_is_loaded_and_said_to_be_unchecked(saved: checkpoint.CheckpointFile) -> None:
    path = saved.path.rename(saved.path.with_name("best.pt"))
    loaded = load_detector(path)
    assert loaded.trial == TRIAL
    assert loaded.notices == ("best.pt: no checksum in its name, so its bytes are not checked",)


def test_a_damaged_checkpoint_is_refused_under_its_own_name_and_any_other(
    saved: checkpoint.CheckpointFile,
) -> None:
    content = saved.path.read_bytes()
    saved.path.write_bytes(content[:-9])
    with pytest.raises(CheckpointError, match=r"step_00000020.*corrupt"):
        load_detector(saved.path)
    with pytest.raises(CheckpointError, match=r"no checkpoint to load: step_00000020.*corrupt"):
        load_detector(saved.path.parent)
    for damaged in (content[:-9], content[:100], b"", b"weights"):
        renamed = saved.path.with_name("renamed.pt")
        renamed.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"renamed\.pt"):
            load_detector(renamed)


def test_a_folder_or_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint to load: there is no step_\*\.pt in it"):
        load_detector(tmp_path)
    with pytest.raises(CheckpointError, match=r"none\.pt: cannot be read: No such file"):
        load_detector(tmp_path / "none.pt")


def test_a_checkpoint_of_another_version_or_of_something_else_says_so(tmp_path: Path) -> None:
    older = payload()
    del older["config"]["data"]["min_short_side"]
    for step, (content, message) in enumerate(
        [
            (older, r"Data needs min_short_side; written by another version of this program.* train again"),
            (payload(replace(TRIAL, recipe_version=0)), r"recipe version 0, this program computes version"),
            ({"config": to_dict(TRIAL)}, "holds no trained detector, 'class_names' is missing"),
            (payload() | {"model": {}}, "cannot be used: .*Missing key"),
        ]
    ):
        file = checkpoint.save(tmp_path, step, content)
        with pytest.raises(CheckpointError, match=rf"(?s)step_0000000{step}.*{message}"):
            load_detector(file.path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds no trained detector but a Tensor"),
        ([1, 2], "holds no trained detector but a list"),
        (None, "holds no trained detector but a NoneType"),
        ({}, "holds no trained detector, 'config' is missing"),
        ({"config": 1}, "holds no trained detector, 'config' is of type int, not dict"),
        (payload() | {"config": {"type": ["x"]}}, "cannot be used: .*no config class is called"),
        (payload() | {"config": to_dict(TRIAL) | {"detector": 3}}, r"cannot be used: Trial\.detector"),
        (payload() | {"class_names": "ab"}, "'class_names' is of type str, not list"),
        (payload() | {"category_ids": [1]}, "2 class names and 1 category ids for 2 classes"),
        (payload() | {"model": {"a": 1}}, "'model' is not weights by name"),
        (payload() | {"model": {1: torch.zeros(1)}}, "'model' is not weights by name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_of_something_else_is_no_checkpoint(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=rf"(?s)a\.pt: .*{message}"):
        load_detector(tmp_path / "a.pt")


def test_a_file_of_another_format_is_no_checkpoint(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("q\n")
    with tarfile.open(tmp_path / "a.tar", "w") as tar, zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        tar.add(photo)
        archive.write(photo)
    torch.save([1], tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for file in (photo, *(tmp_path / name for name in ("text", "a.tar", "a.zip", "old.pt"))):
        with pytest.raises(CheckpointError, match=rf"{file.name}: cannot be read: not a checkpoint, or cut"):
            load_detector(file)


# --- predicting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(90, 60), (16, 40), (32, 32)])
def test_boxes_are_in_pixels_of_the_image_given(
    saved: checkpoint.CheckpointFile, width: int, height: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    image = Decoded(Image.fromarray(pixels))
    found = predict_image(load_detector(saved.path), image)
    assert len(found) > 0
    assert (found.boxes >= 0).all()
    limits = torch.tensor([width, height, width, height])
    assert (found.boxes <= limits + 1e-4).all()
    assert found.boxes[:, 2].max() > 0.8 * width
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    best_two = predict_image(load_detector(saved.path), image, Evaluation(max_detections=2))
    assert best_two.boxes.shape == (2, 4)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_the_model_sees_the_pixels_that_validation_shows_it(
    saved: checkpoint.CheckpointFile, tmp_path: Path, suffix: str
) -> None:
    path = draw(tmp_path / f"a.{suffix}", 60, 45)
    none = np.zeros(0)
    no = none.astype(np.bool_)
    record = ImageRecord(1, path.name, 60, 45, none.reshape(0, 4), none.astype(np.int64), none, no, no)
    loaded, seen = load_detector(saved.path), []
    loaded.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    predict_image(loaded, read_upright(path))
    expected = load_resized(tmp_path, record, (32, 42))
    np.testing.assert_array_equal(seen[0][0].permute(1, 2, 0).numpy(), expected)


def test_a_folder_stands_for_the_images_in_it(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in image_files([tmp_path, tmp_path / "c", tmp_path / "a.jpg"])] == [
        "a.jpg",
        "b.PNG",
        "c",
    ]
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match=r"a\.jpg and .*a\.png would both write a\.json"):
        image_files([tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: has no image"):
        image_files([tmp_path / "empty"])


# --- the command -----------------------------------------------------------------------------------


def test_an_image_gives_a_list_a_picture_and_a_line(
    saved: checkpoint.CheckpointFile, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    code = main(["--checkpoint", str(saved.path), str(photo), "--output", str(output), "--min-score", "0.4"])
    record = json.loads((output / "one.json").read_text())
    assert code == 0
    assert (record["image"], record["width"], record["height"]) == ("one.jpg", 90, 60)
    found = predict_image(load_detector(saved.path), read_upright(photo))
    found = found[found.scores >= 0.4]
    assert len(record["detections"]) == len(found) > 0
    best, (x0, y0, x1, y1) = record["detections"][0], found.boxes[0].tolist()
    label = int(found.labels[0])
    assert (best["category_id"], best["category"]) == ((4, 9)[label], ("ring", "square")[label])
    assert best["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=0.006)
    assert best["score"] == pytest.approx(float(found.scores[0]), abs=6e-5)
    assert Image.open(output / "one.png").size == (6 * 90, 6 * 60)
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith(f"{photo}: {len(found)} with a score of at least 0.4: {best['category']} 0.")


def test_an_unreadable_image_is_named_and_the_others_are_done(
    saved: checkpoint.CheckpointFile, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photo.parent / "broken.jpg").write_bytes(photo.read_bytes()[:300])
    (photo.parent / "text.png").write_text("no image")
    inputs = [str(photo.parent), str(photo.parent / "absent.jpg")]
    code = main(["--checkpoint", str(saved.path.parent), *inputs, "--output", str(tmp_path / "out")])
    errors = capsys.readouterr().err.splitlines()
    assert code == 1
    assert [line.split(": ")[1].rpartition("/")[2] for line in errors] == [
        "broken.jpg",
        "text.png",
        "absent.jpg",
    ]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["one.json", "one.png"]


def test_an_image_is_never_written_over(
    saved: checkpoint.CheckpointFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = draw(tmp_path / "a.png", 9, 9)
    before = image.read_bytes()
    assert main(["--checkpoint", str(saved.path), str(image), "--output", str(tmp_path)]) == 1
    assert "would be written over it" in capsys.readouterr().err
    assert image.read_bytes() == before


def test_a_missing_checkpoint_is_an_error_line(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--checkpoint", str(tmp_path), str(photo)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: no checkpoint to load")


@pytest.mark.parametrize("score", ["-0.1", "2", "high"])
def test_a_score_outside_0_to_1_is_refused(score: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--checkpoint", "c", "a.jpg", f"--min-score={score}"])
    assert "--min-score" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["--checkpoint", "c", "a.jpg", "--device", "cuda"])
    assert "must be one of cpu on this machine, got cuda" in capsys.readouterr().err


@pytest.mark.process
def test_predicting_needs_nothing_of_the_platform(
    saved: checkpoint.CheckpointFile, photo: Path, tmp_path: Path
) -> None:
    program = (
        "import sys\n"
        "for name in ('ray', 'mlflow', 'sqlalchemy', 'pycocotools', 'pandas', 'ablation', 'experiments'):\n"
        "    sys.modules[name] = None\n"
        "from detector.predict import main\n"
        "sys.exit(main())\n"
    )
    arguments = ["--checkpoint", str(saved.path), str(photo), "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "one.json").is_file()
