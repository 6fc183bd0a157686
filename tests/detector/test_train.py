"""Training is a function of its config and step: resumed, on other layouts, whatever is in a batch."""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchvision
from PIL import Image

from detector import checkpoint
from detector.coco import Split, read_data
from detector.config import (
    FPN,
    AdamW,
    Data,
    Detector,
    GIoU,
    Head,
    MaxIoU,
    OneCycle,
    ResNet,
    Schedule,
    Trial,
    Weights,
)
from detector.dataset import open_split
from detector.dense_detector import DenseDetector
from detector.errors import CheckpointError, DivergedError, WeightsError
from detector.ranks import Ranks
from detector.shapes import ShapesSpec, draw_dataset
from detector.train import CheckpointReport, Notice, RunOptions, StepReport, TrainReport, Validate, train
from detector.weights import sha256_of

BACKBONE = ResNet(
    block="basic",
    depths=(0, 1, 1, 1),
    widths=(8, 8, 16, 16),
    stem="patch",
    stem_channels=8,
    stem_stride=2,
    stage_strides=(1, 1, 2, 2),
    norm="group_norm",
    frozen_stages=0,
)
TRIAL = Trial(
    Detector(
        num_classes=6,
        backbone=BACKBONE,
        fpn=FPN(16),
        head=Head(num_convs=1, group_norm=True, centerness=True, level_scale=True),
        assigner=MaxIoU(inside_gt=True),
        box_loss=GIoU(),
    ),
    Schedule(iterations=12, total_batch=4, optimizer=AdamW(), decay=OneCycle()),
    Data("0" * 12, short_side=32, max_long_side=48),
    seed=3,
)
# The paper's way with data: sizes drawn anew, images of one orientation in a batch, no empty ones.
AUGMENTED = replace(
    TRIAL, data=replace(TRIAL.data, min_short_side=20, group_by_aspect=True, skip_unannotated=True)
)
SPEC = ShapesSpec(image_size=48, num_train=10, num_val=2, max_objects=3)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of floats depend on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    _crop_every_second(draw_dataset(SPEC, folder).train)
    return folder


def _crop_every_second(split: Split) -> None:
    """Images of two sizes, so that what a batch is padded to depends on what is in it."""
    content = json.loads(split.annotations.read_text())
    for image in content["images"][::2]:
        path = split.images / image["file_name"]
        with Image.open(path) as whole:
            whole.crop((0, 0, 48, 32)).save(path)
        image["height"] = 32
    inside = {image["id"]: image["height"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["bbox"][1] < inside[a["image_id"]] - 8]
    split.annotations.write_text(json.dumps(content))


def _training(
    drawn: Path, directory: Path, trial: Trial = TRIAL, validate: Validate | None = None, **options: int
) -> Any:
    paths = draw_dataset(SPEC, drawn)
    split = read_data(paths)[0]
    images = open_split(split, "train", trial.data, drawn / "cache")
    chosen = {"report_every": 2, "checkpoint_every": 4, **options}
    return train(trial, split, images, RunOptions(directory, **chosen), validate)


def _losses(reports: list[TrainReport]) -> dict[int, dict[str, float]]:
    timing = {"images_per_second"}
    return {
        r.step: {name: value for name, value in r.metrics.items() if name not in timing}
        for r in reports
        if isinstance(r, StepReport)
    }


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    newest = checkpoint.found(directory)[0]
    assert newest.step == TRIAL.schedule.iterations
    model: dict[str, torch.Tensor] = checkpoint.load(newest)["model"]
    return model


def _stop_after(training: Iterator[TrainReport], step: int) -> None:
    for report in training:
        if isinstance(report, CheckpointReport) and report.file.step == step:
            return


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_resumed_run_equals_one_that_never_stopped_bit_for_bit(
    drawn: Path, tmp_path: Path, precision: Any
) -> None:
    trial = replace(TRIAL, schedule=replace(TRIAL.schedule, precision=precision))
    whole = _losses(list(_training(drawn, tmp_path / "whole", trial)))
    _stop_after(_training(drawn, tmp_path / "parts", trial), 4)
    rest = list(_training(drawn, tmp_path / "parts", trial))
    assert rest[0] == Notice("goes on from the checkpoint of step 4")
    resumed = _losses(rest)
    assert list(resumed) == [6, 8, 10, 12]
    assert all(resumed[step] == whole[step] for step in resumed)
    ours, theirs = _weights(tmp_path / "parts"), _weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_corrupt_checkpoint_is_passed_over_and_the_result_is_the_same(drawn: Path, tmp_path: Path) -> None:
    list(_training(drawn, tmp_path / "whole"))
    _stop_after(_training(drawn, tmp_path / "parts"), 8)
    newest = checkpoint.found(tmp_path / "parts")[0]
    newest.path.write_bytes(newest.path.read_bytes()[:1000])
    notices = [r for r in _training(drawn, tmp_path / "parts") if isinstance(r, Notice)]
    assert "passed over" in notices[0].message and "step_00000008" in notices[0].message
    assert notices[1] == Notice("goes on from the checkpoint of step 4")
    ours, theirs = _weights(tmp_path / "parts"), _weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_finished_training_is_not_trained_again(drawn: Path, tmp_path: Path) -> None:
    list(_training(drawn, tmp_path))
    assert list(_training(drawn, tmp_path)) == [Notice("goes on from the checkpoint of step 12")]


def test_a_checkpoint_of_another_config_is_refused(drawn: Path, tmp_path: Path) -> None:
    list(_training(drawn, tmp_path))
    with pytest.raises(CheckpointError, match="another trial config"):
        list(_training(drawn, tmp_path, replace(TRIAL, seed=4)))


def test_a_loss_that_is_not_finite_fails_with_its_step(drawn: Path, tmp_path: Path) -> None:
    wild = replace(TRIAL, schedule=replace(TRIAL.schedule, optimizer=AdamW(lr=1e30), decay=OneCycle(0.0)))
    with pytest.raises(DivergedError, match=r"not finite at step [23] of 12; there is no checkpoint yet"):
        list(_training(drawn, tmp_path, wild))


def test_weights_that_are_not_finite_are_never_saved(drawn: Path, tmp_path: Path) -> None:
    schedule = replace(TRIAL.schedule, iterations=1, optimizer=AdamW(lr=1e38), decay=OneCycle(0.0))
    with pytest.raises(DivergedError, match="a weight is not finite after step 1"):
        list(_training(drawn, tmp_path, replace(TRIAL, schedule=schedule)))
    assert checkpoint.found(tmp_path) == []


def test_losses_fall_on_images_seen_again_and_again(drawn: Path, tmp_path: Path) -> None:
    longer = replace(TRIAL, schedule=replace(TRIAL.schedule, iterations=60))
    losses = _losses(list(_training(drawn, tmp_path, longer, report_every=10)))
    assert losses[60]["loss"] < 0.8 * losses[10]["loss"]


@pytest.mark.parametrize("trial", [TRIAL, AUGMENTED], ids=["plain", "augmented"])
def test_batches_prepared_ahead_are_those_prepared_when_needed(
    drawn: Path, tmp_path: Path, trial: Trial
) -> None:
    inline = _losses(list(_training(drawn, tmp_path / "inline", trial)))
    assert _losses(list(_training(drawn, tmp_path / "ahead", trial, loaders=2))) == inline


@pytest.mark.parametrize("micro_batch", [1, 3, 100])
def test_a_batch_in_parts_gives_the_same_losses(drawn: Path, tmp_path: Path, micro_batch: int) -> None:
    whole = _losses(list(_training(drawn, tmp_path / "whole")))
    _assert_close(_losses(list(_training(drawn, tmp_path / "parts", micro_batch=micro_batch))), whole)


def test_a_validation_is_reported_and_changes_nothing(drawn: Path, tmp_path: Path) -> None:
    def validate(model: DenseDetector) -> dict[str, float]:
        assert not model.training
        torch.rand(3)
        return {"val_AP": 12.5}

    plain = _losses(list(_training(drawn, tmp_path / "plain")))
    reports = list(_training(drawn, tmp_path / "validated", validate=validate, validate_every=4))
    validations = [r for r in reports if isinstance(r, StepReport) and "val_AP" in r.metrics]
    assert validations == [StepReport(step, {"val_AP": 12.5}) for step in (4, 8)]
    assert _losses([r for r in reports if r not in validations]) == plain


def test_training_starts_from_the_pretrained_weights_and_resumes_without_them(
    drawn: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    path = tmp_path / "resnet50.pth"
    published = torchvision.models.resnet50(weights=None).state_dict()
    torch.save(published, path)
    backbone = ResNet(depths=(3, 4, 6, 3))
    trial = replace(
        TRIAL,
        detector=replace(TRIAL.detector, backbone=backbone),
        schedule=Schedule(iterations=2, total_batch=2),
        weights=Weights("torchvision", sha256_of(path)),
    )
    run = tmp_path / "run"
    with pytest.raises(WeightsError, match="not given"):
        next(_training(drawn, run, trial))
    list(_training(drawn, run, trial, weights=path, checkpoint_every=1, report_every=1))
    frozen = checkpoint.load(checkpoint.found(run)[0])["model"]["backbone.layer1.0.conv1.weight"]
    assert torch.equal(frozen, published["layer1.0.conv1.weight"])
    path.unlink()
    again = next(_training(drawn, run, trial, weights=path))
    assert again == Notice("goes on from the checkpoint of step 2")


# --- several workers -------------------------------------------------------------------------------


def _assert_close(ours: dict[int, dict[str, float]], theirs: dict[int, dict[str, float]]) -> None:
    for step, losses in theirs.items():
        for name, value in losses.items():
            assert math.isclose(ours[step][name], value, rel_tol=1e-4), (step, name)


def _rank(rank: int, world: int, drawn: Path, folder: Path, trial: Trial, options: dict[str, int]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous-{world}", rank=rank, world_size=world)
    reports = list(_training(drawn, folder / f"world-{world}", trial, **options))
    if rank == 0:
        torch.save(_losses(reports), folder / f"losses-{world}.pt")
    dist.destroy_process_group()


def _with_workers(
    world: int, drawn: Path, folder: Path, trial: Trial, **options: int
) -> dict[int, dict[str, float]]:
    mp.spawn(_rank, args=(world, drawn, folder, trial, options), nprocs=world)
    losses: dict[int, dict[str, float]] = torch.load(folder / f"losses-{world}.pt", weights_only=True)
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("trial", [TRIAL, AUGMENTED], ids=["plain", "augmented"])
def test_one_two_and_four_workers_give_the_same_losses(drawn: Path, tmp_path: Path, trial: Trial) -> None:
    alone = _losses(list(_training(drawn, tmp_path / "alone", trial)))
    for world in (2, 4):
        _assert_close(_with_workers(world, drawn, tmp_path, trial), alone)


@pytest.mark.slow
def test_two_workers_in_parts_of_one_image_give_the_same_losses_and_resume(
    drawn: Path, tmp_path: Path
) -> None:
    alone = _losses(list(_training(drawn, tmp_path / "alone")))
    _assert_close(_with_workers(2, drawn, tmp_path, TRIAL, micro_batch=1), alone)
    newest = checkpoint.found(tmp_path / "world-2")[0]
    newest.path.unlink()
    (tmp_path / "rendezvous-2").unlink(missing_ok=True)
    resumed = _with_workers(2, drawn, tmp_path, TRIAL, micro_batch=1)
    assert list(resumed) == [10, 12]
    _assert_close(resumed, {step: alone[step] for step in resumed})


@pytest.mark.slow
def test_a_worker_without_objects_neither_hangs_nor_changes_the_result(drawn: Path, tmp_path: Path) -> None:
    # One image a worker and every second image empty: ranks without ground truth in almost every step.
    copy = tmp_path / "drawn"
    shutil.copytree(drawn, copy)
    annotations = draw_dataset(SPEC, copy).train.annotations
    content = json.loads(annotations.read_text())
    empty = {image["id"] for image in content["images"][::2]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in empty]
    annotations.write_text(json.dumps(content))
    alone = _losses(list(_training(copy, tmp_path / "alone")))
    _assert_close(_with_workers(4, copy, tmp_path, TRIAL), alone)


def test_more_workers_than_images_a_step_are_refused(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ranks, "current", staticmethod(lambda: Ranks(0, 8)))
    with pytest.raises(ValueError, match="number of workers"):
        next(_training(drawn, tmp_path))
