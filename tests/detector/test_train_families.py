"""SSD, RefineDet and Faster R-CNN learn the same on every layout, though targets need predictions."""

import math
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image

from detector.config import (
    SGD,
    AdamW,
    AnchorRefinement,
    Data,
    OneCycle,
    Proposals,
    Schedule,
    StepDecay,
    Trial,
)
from detector.data.coco import read_data
from detector.data.dataset import open_split
from detector.data.decode import read_upright
from detector.data.shapes import ShapesSpec, draw_dataset
from detector.model.build import build_detector
from detector.model.detector import AnyModel
from detector.predict import load_detector, predict_image
from detector.presets import FASTER_RCNN, REFINEDET320, SSD300, shrunk, shrunk_two_stage
from detector.training import checkpoint
from detector.training.train import CheckpointReport, RunOptions, StepReport, TrainReport, train

REFINEDET = replace(shrunk(REFINEDET320, 2, 16), num_classes=6)
SSD = replace(shrunk(SSD300, 2, 16), num_classes=6)


FASTER = replace(
    shrunk_two_stage(FASTER_RCNN, 2, 16),
    num_classes=6,
    anchor_sides=(12.0, 24.0, 48.0),
    training=Proposals(200, 50),
    testing=Proposals(200, 30),
    rpn_samples=32,
    roi_samples=16,
)


def _trial(detector: Any, **schedule: Any) -> Trial:
    side = 80 if detector is FASTER else detector.input_size
    plan = {"iterations": 4, "total_batch": 4, "optimizer": AdamW(), "decay": OneCycle(), **schedule}
    return Trial(detector, Schedule(**plan), Data("0" * 12, short_side=side, max_long_side=side), seed=3)


TRIALS = {
    "SSD": _trial(SSD),
    "RefineDet": _trial(REFINEDET),
    "Faster R-CNN": _trial(FASTER),
    "without cascade": _trial(replace(REFINEDET, refinement=AnchorRefinement(cascade=False))),
}
# The papers' optimiser; SGD's updates are proportional to gradients, so that they show any difference.
PAPER = _trial(REFINEDET, optimizer=SGD(lr=0.004, weight_decay=5e-4), decay=StepDecay(warmup=0))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of floats depend on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawn")


def _training(drawn: Path, directory: Path, trial: Trial, **options: Any) -> Any:
    side = trial.data.short_side
    spec = ShapesSpec(image_size=side, num_train=10, num_val=2, max_objects=3, min_size=10)
    split = read_data(draw_dataset(spec, drawn))[0]
    images = open_split(split, "train", trial.data, drawn / "cache")
    chosen = {"report_every": 1, "checkpoint_every": 2, **options}
    return train(trial, split, images, RunOptions(directory, **chosen))


def _losses(reports: list[TrainReport]) -> list[dict[str, float]]:
    timing = {"images_per_second", "learning_rate"}
    steps = [r for r in reports if isinstance(r, StepReport)]
    return [{name: value for name, value in r.metrics.items() if name not in timing} for r in steps]


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    model: dict[str, torch.Tensor] = checkpoint.load(checkpoint.found(directory)[0])["model"]
    return model


def _assert_close(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    assert len(ours) == len(theirs) > 0
    for step, (own, their) in enumerate(zip(ours, theirs, strict=True)):
        assert own.keys() == their.keys()
        assert all(math.isclose(own[n], their[n], rel_tol=2e-4) for n in their), (step, own, their)


@pytest.mark.parametrize(
    ("name", "precision"),
    [("SSD", "fp32"), ("RefineDet", "fp32"), ("RefineDet", "bf16"), ("Faster R-CNN", "fp32")],
)
def test_a_resumed_run_equals_one_that_never_stopped_bit_for_bit(
    drawn: Path, tmp_path: Path, name: str, precision: Any
) -> None:
    trial = replace(TRIALS[name], schedule=replace(TRIALS[name].schedule, precision=precision))
    whole = _losses(list(_training(drawn, tmp_path / "whole", trial)))
    first = _training(drawn, tmp_path / "parts", trial)
    next(r for r in first if isinstance(r, CheckpointReport) and r.file.step == 2)
    first.close()
    rest = _losses(list(_training(drawn, tmp_path / "parts", trial)))
    assert rest == whole[2:]
    ours, theirs = _weights(tmp_path / "parts"), _weights(tmp_path / "whole")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    ("name", "micro_batch"),
    [("SSD", 3), ("RefineDet", 1), ("RefineDet", 3), ("without cascade", 1), ("Faster R-CNN", 1)],
)
def test_a_batch_in_parts_gives_the_same_losses(
    drawn: Path, tmp_path: Path, name: str, micro_batch: int
) -> None:
    whole = _losses(list(_training(drawn, tmp_path / "whole", TRIALS[name])))
    parts = _training(drawn, tmp_path / "parts", TRIALS[name], micro_batch=micro_batch)
    _assert_close(_losses(list(parts)), whole)


def _forwards(
    drawn: Path, tmp_path: Path, trial: Trial, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> int:
    """Forward passes of the first step."""
    calls = []
    kind = type(build_detector(trial.detector))
    forward = kind.forward

    def counted(self: AnyModel, *arguments: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        return forward(self, *arguments)

    monkeypatch.setattr(kind, "forward", counted)
    next(_training(drawn, tmp_path, trial, **options))
    return len(calls)


@pytest.mark.parametrize(
    ("name", "micro_batch", "expected"),
    [("SSD", 1, 4), ("RefineDet", None, 1), ("RefineDet", 2, 4), ("without cascade", 2, 2)],
)
def test_a_batch_is_predicted_once_more_only_if_its_targets_need_it(
    drawn: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    micro_batch: int | None,
    expected: int,
) -> None:
    assert _forwards(drawn, tmp_path, TRIALS[name], monkeypatch, micro_batch=micro_batch) == expected


@pytest.mark.parametrize("name", ["RefineDet", "Faster R-CNN"])
def test_a_trained_detector_predicts(drawn: Path, tmp_path: Path, name: str) -> None:
    list(_training(drawn, tmp_path / "run", TRIALS[name]))
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)).save(photo)
    found = predict_image(load_detector(tmp_path / "run"), read_upright(photo))
    assert 0 < len(found) <= 500
    assert (found.boxes >= 0).all() and (found.boxes <= 80).all()
    assert (found.scores > 0.01).all() and (found.scores.diff() <= 0).all()


# --- several workers ---------------------------------------------------------------------------------


def _rank(rank: int, world: int, drawn: Path, folder: Path, trial: Trial, options: dict[str, int]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous-{world}", rank=rank, world_size=world)
    losses = _losses(list(_training(drawn, folder / f"world-{world}", trial, **options)))
    if rank == 0:
        torch.save(losses, folder / f"losses-{world}.pt")
    dist.destroy_process_group()


def _with_workers(
    world: int, drawn: Path, folder: Path, trial: Trial, **options: int
) -> list[dict[str, float]]:
    multiprocessing.set_forkserver_preload(["detector.training.train"])
    arguments = (world, drawn, folder, trial, options)
    mp.start_processes(_rank, arguments, nprocs=world, start_method="forkserver")
    losses: list[dict[str, float]] = torch.load(folder / f"losses-{world}.pt", weights_only=True)
    return losses


def _updates(trial: Trial, directory: Path) -> dict[str, torch.Tensor]:
    """What a training has changed."""
    torch.manual_seed(trial.seed)
    after = _weights(directory)
    return {name: after[name] - p.detach() for name, p in build_detector(trial.detector).named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "trial", [PAPER, TRIALS["SSD"], TRIALS["Faster R-CNN"]], ids=["RefineDet", "SSD", "Faster R-CNN"]
)
def test_one_two_and_four_workers_learn_the_same(drawn: Path, tmp_path: Path, trial: Trial) -> None:
    alone = _losses(list(_training(drawn, tmp_path / "alone", trial)))
    for world, options in ((2, {}), (2, {"micro_batch": 1}), (4, {})):
        folder = tmp_path / f"{world}-{len(options)}"
        folder.mkdir()
        _assert_close(_with_workers(world, drawn, folder, trial, **options), alone)
        expected = _updates(trial, tmp_path / "alone")
        for name, update in _updates(trial, folder / f"world-{world}").items():
            size = expected[name].abs().max()
            assert size > 0, name
            assert (update - expected[name]).abs().max() < 0.01 * size, (world, options, name)
