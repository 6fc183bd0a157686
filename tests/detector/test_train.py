"""Training is a function of its config and step: resumed, on other layouts, whatever is in a batch."""

import json
import math
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchvision
from PIL import Image

from detector.config import (
    ATSS,
    FPN,
    SGD,
    AdamW,
    Data,
    Detector,
    GIoU,
    Head,
    MaxIoU,
    OneCycle,
    ResNet,
    Schedule,
    SquareData,
    StepDecay,
    Trial,
    Weights,
)
from detector.data.coco import Split, read_data
from detector.data.dataset import open_split
from detector.data.shapes import ShapesSpec, draw_dataset
from detector.errors import CheckpointError, DivergedError, WeightsError
from detector.model.build import build_detector
from detector.model.dense_detector import DenseDetector
from detector.model.pretrained import sha256_of
from detector.presets import REFINEDET320, shrunk
from detector.training import checkpoint
from detector.training.ranks import Ranks
from detector.training.train import (
    CheckpointReport,
    Notice,
    RunOptions,
    StepReport,
    TrainReport,
    Validate,
    train,
)

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
# SSD's way with data: distorted, expanded and cropped images, warped to a square.
SQUARE = replace(TRIAL, data=SquareData("0" * 12, side=48))
REFINEDET = replace(
    TRIAL,
    detector=replace(shrunk(REFINEDET320, halvings=2, thinner=32), num_classes=6),
    data=SquareData("0" * 12, side=80),
)
# Its parts that have no place in the small detector: what is frozen, ATSS, deformable convolutions, SGD.
PAPER = replace(
    AUGMENTED,
    detector=replace(
        TRIAL.detector,
        backbone=ResNet(
            depths=(1, 1, 1, 1),
            widths=(4, 4, 8, 8),
            stem_channels=8,
            deformable=(False, False, False, True),
        ),
        head=Head(num_convs=2, group_norm=True, centerness=True, level_scale=True, deformable=True),
        assigner=ATSS(),
    ),
    schedule=replace(TRIAL.schedule, optimizer=SGD(lr=0.01), decay=StepDecay(warmup=2)),
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
    drawn: Path, directory: Path, trial: Trial = TRIAL, validate: Validate | None = None, **options: Any
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
@pytest.mark.parametrize("start", [TRIAL, SQUARE, REFINEDET], ids=["plain", "square", "refinedet"])
def test_a_resumed_run_equals_one_that_never_stopped_bit_for_bit(
    drawn: Path, tmp_path: Path, start: Trial, precision: Any
) -> None:
    trial = replace(start, schedule=replace(start.schedule, precision=precision))
    whole = _losses(list(_training(drawn, tmp_path / "whole", trial)))
    _stop_after(_training(drawn, tmp_path / "parts", trial), 4)
    rest = list(_training(drawn, tmp_path / "parts", trial))
    assert rest[0] == Notice("resumes at the checkpoint of step 4")
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
    assert notices[1] == Notice("resumes at the checkpoint of step 4")
    ours, theirs = _weights(tmp_path / "parts"), _weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_finished_training_is_not_trained_again(drawn: Path, tmp_path: Path) -> None:
    list(_training(drawn, tmp_path))
    assert list(_training(drawn, tmp_path)) == [Notice("resumes at the checkpoint of step 12")]


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


FP16_SGD = replace(
    TRIAL, schedule=replace(TRIAL.schedule, optimizer=SGD(), decay=StepDecay(warmup=2), precision="fp16")
)


@pytest.fixture
def overflowing_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step's gradients overflow at a scale of 1e38; after it the scale is 1e4."""
    scaler = partial(torch.amp.GradScaler, "cpu", init_scale=1e38, backoff_factor=1e-34)
    monkeypatch.setattr("detector.training.train.gradient_scaler", lambda precision, device: scaler())


@pytest.mark.usefixtures("overflowing_once")
def test_a_step_that_overflows_float16_is_left_out_and_training_goes_on(drawn: Path, tmp_path: Path) -> None:
    training = _training(drawn, tmp_path, FP16_SGD, report_every=1, checkpoint_every=1)
    _stop_after(training, 1)
    after = checkpoint.load(checkpoint.found(tmp_path)[0])
    torch.manual_seed(TRIAL.seed)
    before = build_detector(TRIAL.detector).state_dict()
    assert all(torch.equal(after["model"][name], before[name]) for name in before)
    momenta = [state["momentum_buffer"] for state in after["optimizer"]["state"].values()]
    assert momenta and not any(momentum.any() for momentum in momenta)
    list(_training(drawn, tmp_path, FP16_SGD))
    assert not all(torch.equal(value, before[name]) for name, value in _weights(tmp_path).items())


@pytest.mark.usefixtures("overflowing_once")
def test_a_run_resumed_after_an_overflow_equals_one_that_never_stopped(drawn: Path, tmp_path: Path) -> None:
    every_step = {"report_every": 1, "checkpoint_every": 1}
    list(_training(drawn, tmp_path / "whole", FP16_SGD, **every_step))
    _stop_after(_training(drawn, tmp_path / "parts", FP16_SGD, **every_step), 1)
    list(_training(drawn, tmp_path / "parts", FP16_SGD, **every_step))
    ours, theirs = _weights(tmp_path / "parts"), _weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_float16_that_overflows_in_every_step_fails(drawn: Path, tmp_path: Path) -> None:
    # After the first step the weights are far beyond float16's 65504, so that every loss is infinite.
    schedule = replace(FP16_SGD.schedule, iterations=60, optimizer=SGD(lr=1e12))
    wild = replace(FP16_SGD, schedule=schedule)
    with pytest.raises(DivergedError, match="overflow"):
        list(_training(drawn, tmp_path, wild, checkpoint_every=100))


def test_losses_fall_on_images_seen_again_and_again(drawn: Path, tmp_path: Path) -> None:
    longer = replace(TRIAL, schedule=replace(TRIAL.schedule, iterations=60))
    losses = _losses(list(_training(drawn, tmp_path, longer, report_every=10)))
    assert losses[60]["loss"] < 0.8 * losses[10]["loss"]


def _updates(trial: Trial, directory: Path) -> dict[str, torch.Tensor]:
    """What a training has changed of the weights that learn."""
    torch.manual_seed(trial.seed)
    before, after = build_detector(trial.detector), _weights(directory)
    return {name: after[name] - p.detach() for name, p in before.named_parameters() if p.requires_grad}


def _assert_same_updates(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for name, update in theirs.items():
        size = update.abs().max()
        assert size > 0, name
        assert (ours[name] - update).abs().max() < 0.001 * size, name


def test_the_fused_optimiser_computes_what_the_plain_one_does(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A fused one on a CPU is silently wrong where a gradient lies in another memory format than its weight.
    list(_training(drawn, tmp_path / "fused", TRIAL))
    plain = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, betas, fused: plain(groups, betas=betas))
    list(_training(drawn, tmp_path / "plain", TRIAL))
    _assert_same_updates(_updates(TRIAL, tmp_path / "fused"), _updates(TRIAL, tmp_path / "plain"))


@pytest.mark.parametrize("trial", [TRIAL, AUGMENTED, SQUARE], ids=["plain", "augmented", "square"])
def test_batches_prepared_ahead_are_those_prepared_when_needed(
    drawn: Path, tmp_path: Path, trial: Trial
) -> None:
    inline = _losses(list(_training(drawn, tmp_path / "inline", trial)))
    assert _losses(list(_training(drawn, tmp_path / "ahead", trial, loaders=2))) == inline


@pytest.mark.parametrize("micro_batch", [1, 3, 100])
@pytest.mark.parametrize("trial", [TRIAL, SQUARE], ids=["plain", "square"])
def test_a_batch_in_parts_gives_the_same_losses(
    drawn: Path, tmp_path: Path, trial: Trial, micro_batch: int
) -> None:
    whole = _losses(list(_training(drawn, tmp_path / "whole", trial)))
    parts = _training(drawn, tmp_path / "parts", trial, micro_batch=micro_batch)
    _assert_close(_losses(list(parts)), whole)


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
    with pytest.raises(WeightsError, match="no file of the pretrained weights"):
        next(_training(drawn, run, trial))
    list(_training(drawn, run, trial, weights=lambda: path, checkpoint_every=1, report_every=1))
    frozen = checkpoint.load(checkpoint.found(run)[0])["model"]["backbone.layer1.0.conv1.weight"]
    assert torch.equal(frozen, published["layer1.0.conv1.weight"])
    path.unlink()
    again = next(_training(drawn, run, trial, weights=lambda: path))
    assert again == Notice("resumes at the checkpoint of step 2")


# --- several workers -------------------------------------------------------------------------------


def _assert_close(ours: dict[int, dict[str, float]], theirs: dict[int, dict[str, float]]) -> None:
    for step, losses in theirs.items():
        for name, value in losses.items():
            assert math.isclose(ours[step][name], value, rel_tol=1e-4), (step, name)


def _start(world: int, work: Callable[..., None], *arguments: object) -> None:
    # They are forked from a process that has imported torch, which takes longer than all the rest.
    multiprocessing.set_forkserver_preload(["detector.training.train"])
    mp.start_processes(work, (world, *arguments), nprocs=world, start_method="forkserver")


def _join(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous-{world}", rank=rank, world_size=world)


def _rank(rank: int, world: int, drawn: Path, folder: Path, trial: Trial, options: dict[str, int]) -> None:
    _join(rank, world, folder)
    reports = list(_training(drawn, folder / f"world-{world}", trial, **options))
    if rank == 0:
        torch.save(_losses(reports), folder / f"losses-{world}.pt")
    dist.destroy_process_group()


def _with_workers(
    world: int, drawn: Path, folder: Path, trial: Trial, **options: int
) -> dict[int, dict[str, float]]:
    _start(world, _rank, drawn, folder, trial, options)
    losses: dict[int, dict[str, float]] = torch.load(folder / f"losses-{world}.pt", weights_only=True)
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("trial", [TRIAL, AUGMENTED, SQUARE], ids=["plain", "augmented", "square"])
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
def test_the_papers_own_parts_learn_the_same_on_one_two_and_four_workers(drawn: Path, tmp_path: Path) -> None:
    alone = _losses(list(_training(drawn, tmp_path / "alone", PAPER)))
    expected = _updates(PAPER, tmp_path / "alone")
    for world, options in ((2, {"micro_batch": 1}), (4, {})):
        _assert_close(_with_workers(world, drawn, tmp_path, PAPER, **options), alone)
        _assert_same_updates(_updates(PAPER, tmp_path / f"world-{world}"), expected)


def _interrupted_rank(rank: int, world: int, drawn: Path, folder: Path, trial: Trial) -> None:
    _join(rank, world, folder)
    list(_training(drawn, folder / "whole", trial))
    _stop_after(_training(drawn, folder / "parts", trial), 4)
    dist.barrier()  # the checkpoint is there for both
    list(_training(drawn, folder / "parts", trial))
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_workers_resumed_equal_two_that_never_stopped_bit_for_bit(
    drawn: Path, tmp_path: Path, precision: Any
) -> None:
    trial = replace(AUGMENTED, schedule=replace(TRIAL.schedule, precision=precision))
    _start(2, _interrupted_rank, drawn, tmp_path, trial)
    ours, theirs = _weights(tmp_path / "parts"), _weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


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
