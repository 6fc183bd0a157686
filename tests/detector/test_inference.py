"""Detecting on a whole split: boxes in original pixels, and the same on one process and on two."""

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from numpy.typing import NDArray
from PIL import Image

from detector.config import (
    FPN,
    AdamW,
    Data,
    Detector,
    Evaluation,
    Head,
    MultiScale,
    OneCycle,
    ResNet,
    ScalePass,
    Schedule,
    Trial,
)
from detector.data.coco import CheckedSplit, read_data
from detector.data.dataset import SplitImages, open_split
from detector.data.shapes import ShapesSpec, draw_dataset
from detector.evaluation import inference
from detector.evaluation.coco_eval import Results
from detector.evaluation.inference import detect_split
from detector.evaluation.postprocess import multi_scale_detect
from detector.model.build import build_detector
from detector.model.dense_detector import DenseDetector
from detector.training.train import RunOptions, StepReport, train

TRIAL = Trial(
    Detector(
        num_classes=6,
        backbone=ResNet(
            block="basic",
            depths=(0, 1, 1, 1),
            widths=(8, 8, 16, 16),
            stem="patch",
            stem_channels=8,
            stem_stride=2,
            stage_strides=(1, 1, 2, 2),
            norm="group_norm",
            frozen_stages=0,
        ),
        fpn=FPN(16),
        head=Head(num_convs=1),
    ),
    Schedule(iterations=6, total_batch=4, optimizer=AdamW(), decay=OneCycle()),
    Data("0" * 12, short_side=32, max_long_side=40),
    seed=3,
)
SPEC = ShapesSpec(image_size=48, num_train=9, num_val=1, max_objects=3)
TWO_A_BATCH = 2 * 32 * 40  # pixels: five batches of the nine images, the last of one

SINGLE = Evaluation(pre_nms_topk=50, max_detections=20)
MULTI = replace(SINGLE, scales=MultiScale((ScalePass(), ScalePass(1.5, 2.0, min_side=0.2))))
both = pytest.mark.parametrize("evaluation", [SINGLE, MULTI], ids=["single-scale", "multi-scale"])


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "BATCH_PIXELS", TWO_A_BATCH)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 48x48, larger than they are trained at; every second one cropped to 48x32, without boxes."""
    folder = tmp_path_factory.mktemp("drawn")
    split = draw_dataset(SPEC, folder).train
    content = json.loads(split.annotations.read_text())
    cropped = {image["id"]: image for image in content["images"][::2]}
    for image in cropped.values():
        image["height"] = 32
        path = split.images / image["file_name"]
        with Image.open(path) as whole:
            whole.crop((0, 0, 48, 32)).save(path)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in cropped]
    split.annotations.write_text(json.dumps(content))
    return folder


def _opened(drawn: Path) -> tuple[CheckedSplit, SplitImages]:
    split = read_data(draw_dataset(SPEC, drawn))[0]
    return split, open_split(split, "train", TRIAL.data, drawn / "cache")


def _model() -> DenseDetector:
    torch.manual_seed(0)
    return build_detector(TRIAL.detector).eval()


def _found(model: DenseDetector, drawn: Path, evaluation: Evaluation, loaders: int = 0) -> Results:
    split, images = _opened(drawn)
    results = detect_split(model, images, split, evaluation, "fp32", loaders)
    assert results is not None
    return results


def _threshold_met_by_half_the_images(drawn: Path) -> float:
    """A score that the best detection of some images is above, and that of others below."""
    results = _found(_model(), drawn, replace(SINGLE, score_threshold=0.0))
    best = [results.scores[results.image_ids == image].max() for image in np.unique(results.image_ids)]
    return float(np.median(best))


def _rows(results: Results, image_id: int) -> NDArray[np.float64]:
    rows: NDArray[np.float64] = results.boxes_xywh[results.image_ids == image_id]
    return rows


@both
def test_a_box_over_the_whole_image_has_the_size_of_the_stored_image(
    drawn: Path, evaluation: Evaluation
) -> None:
    model = _model()
    for parameter in (model.head.box_output.weight, model.head.cls_output.weight):
        torch.nn.init.zeros_(parameter)
    bias = model.head.box_output.bias
    assert bias is not None
    with torch.no_grad():
        bias.copy_(torch.tensor([0.0, 0.0, 20.0, 20.0]).repeat(len(bias) // 4))  # exp(20 / 5) anchors wide
    results = _found(model, drawn, replace(evaluation, score_threshold=0.005))
    split, _ = _opened(drawn)
    assert {(record.height, record.width) for record in split.images} == {(32, 48), (48, 48)}
    for record in split.images:
        whole = np.array([[0, 0, record.width, record.height]])
        boxes = _rows(results, record.id)
        assert len(boxes) >= 1
        np.testing.assert_allclose(boxes, whole.repeat(len(boxes), axis=0), atol=1e-4)


def test_multi_scale_testing_sees_the_stored_image_and_not_one_resized_before(drawn: Path) -> None:
    evaluation = replace(MULTI, score_threshold=0.0)
    assert isinstance(evaluation.scales, MultiScale)
    results, model = _found(_model(), drawn, evaluation), _model()
    for record in _opened(drawn)[0].images[:2]:
        with Image.open(draw_dataset(SPEC, drawn).train.images / record.file_name) as image:
            stored = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        expected = multi_scale_detect(model, stored, evaluation, evaluation.scales, TRIAL.data.short_side)
        boxes = _rows(results, record.id)
        low_and_high = np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)
        np.testing.assert_allclose(low_and_high, expected.boxes.numpy(), atol=1e-4)


@both
def test_images_without_detections_leave_the_others_in_place(drawn: Path, evaluation: Evaluation) -> None:
    every = _found(_model(), drawn, replace(evaluation, score_threshold=0.0))
    threshold = _threshold_met_by_half_the_images(drawn)
    some = _found(_model(), drawn, replace(evaluation, score_threshold=threshold))
    assert 0 < len(set(some.image_ids)) < len(set(every.image_ids)) == len(_opened(drawn)[1])
    assert list(some.image_ids) == sorted(some.image_ids)


def test_a_split_without_any_detection_gives_empty_columns(drawn: Path) -> None:
    results = _found(_model(), drawn, replace(SINGLE, score_threshold=0.99))
    assert results.boxes_xywh.shape == (0, 4) and results.image_ids.shape == (0,)


def test_images_read_ahead_give_the_same_detections(drawn: Path) -> None:
    evaluation = replace(SINGLE, score_threshold=0.0)
    ahead = _found(_model(), drawn, evaluation, loaders=2)
    assert ahead.to_coco() == _found(_model(), drawn, evaluation).to_coco()


# --- two workers -----------------------------------------------------------------------------------


def _on_two_workers(work: Callable[..., None], *arguments: object) -> None:
    # They are forked from a process that has imported torch, which takes longer than all the rest.
    multiprocessing.set_forkserver_preload(["detector.training.train"])
    mp.start_processes(work, arguments, nprocs=2, start_method="forkserver")


def _join(rank: int, folder: Path) -> None:
    inference.BATCH_PIXELS = TWO_A_BATCH
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)


def _detecting_rank(rank: int, drawn: Path, folder: Path, evaluations: list[Evaluation]) -> None:
    _join(rank, folder)
    split, images = _opened(drawn)
    for number, evaluation in enumerate(evaluations):
        results = detect_split(_model(), images, split, evaluation, "fp32")
        found = None if results is None else results.to_coco()
        (folder / f"{number}-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_detect_exactly_what_one_does(drawn: Path, tmp_path: Path) -> None:
    threshold = _threshold_met_by_half_the_images(drawn)
    evaluations = [
        replace(evaluation, score_threshold=least)
        for evaluation in (SINGLE, MULTI)
        for least in (0.0, threshold, 0.99)
    ]
    alone = [_found(_model(), drawn, evaluation).to_coco() for evaluation in evaluations]
    _on_two_workers(_detecting_rank, drawn, tmp_path, evaluations)
    for number, expected in enumerate(alone):
        assert json.loads((tmp_path / f"{number}-0.json").read_text()) == expected
        assert json.loads((tmp_path / f"{number}-1.json").read_text()) is None


def _trained(drawn: Path, directory: Path, validated: bool) -> list[StepReport]:
    """The numbers that a training reports, with those of the validations after steps 2 and 4."""
    split, images = _opened(drawn)

    def validate(model: DenseDetector) -> dict[str, float]:
        evaluation = replace(SINGLE, score_threshold=0.0)
        results = detect_split(model, images, split, evaluation, "fp32")
        return {} if results is None else {"val_detections": float(len(results))}

    options = RunOptions(directory, report_every=1, checkpoint_every=6, validate_every=2)
    training = train(TRIAL, split, images, options, validate if validated else None)
    return [report for report in training if isinstance(report, StepReport)]


def _validating_rank(rank: int, drawn: Path, folder: Path) -> None:
    _join(rank, folder)
    plain = _trained(drawn, folder / "plain", validated=False)
    validated = _trained(drawn, folder / "validated", validated=True)
    torch.save([[(r.step, r.metrics) for r in reports] for reports in (plain, validated)], folder / f"{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_validate_together_and_train_on_as_if_they_had_not(drawn: Path, tmp_path: Path) -> None:
    _on_two_workers(_validating_rank, drawn, tmp_path)
    for rank in (0, 1):
        plain, validated = torch.load(tmp_path / f"{rank}", weights_only=True)
        losses = [(step, metrics["loss"]) for step, metrics in validated if "loss" in metrics]
        assert losses == [(step, metrics["loss"]) for step, metrics in plain]
        validations = [(step, metrics) for step, metrics in validated if "loss" not in metrics]
        assert [step for step, _ in validations] == [2, 4]
        counted = ["val_detections" in metrics for _, metrics in validations]
        assert counted == [rank == 0] * 2
