"""A profile bound to a data set: drawn, the user's own, or unusable."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ablation.errors import UserError
from ablation.fingerprint import key
from ablation.protocol import Checkpointed, Evaluated, EvaluationRequest, Progress, Request
from detector.data.coco import CheckedSplit, DataPaths, read_data
from detector.data.shapes import ShapesSpec, draw_dataset
from experiments.atss import presets
from experiments.atss.positives import fair_positives, fairness
from experiments.atss.presets import MULTI_SCALE, SINGLE_SCALE
from experiments.detection import small
from experiments.detection.options import DetectionOptions
from experiments.detection.recipe import Recipe
from experiments.detection.small import (
    SHAPES,
    SMOKE,
    Scale,
    ScaledSetting,
    supported_precision,
)
from experiments.detection.train_trial import train_trial

UNCHANGED = DetectionOptions()
TINY = replace(SMOKE, shapes=ShapesSpec(image_size=64, num_train=12, num_val=4, min_size=8))


def prepare(
    scale: Scale, workspace: Path, data: Path | None = None, options: DetectionOptions = UNCHANGED
) -> ScaledSetting:
    return small.prepare(scale, workspace, replace(options, data=data))


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> ScaledSetting:
    return prepare(TINY, tmp_path_factory.mktemp("workspace"), None)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A copy of a drawn data set that a test may spoil."""
    paths = draw_dataset(TINY.shapes, tmp_path)
    return paths.train.annotations.parent.parent


def test_the_paper_switches_survive_and_the_sizes_shrink(setting: ScaledSetting) -> None:
    detector = setting.trial(Recipe(presets.fcos(1.5)), 0).detector
    assert detector.assigner == presets.fcos(1.5).assigner
    assert detector.head.group_norm
    assert detector.num_classes == 6
    assert detector.fpn.channels == SMOKE.networks.dense.channels


def test_the_six_backbones_of_table_8_stay_six() -> None:
    papers = (
        presets.RESNET_101,
        presets.RESNEXT_101_32X8D,
        presets.RESNEXT_101_64X4D,
        presets.RESNET_101_DCN,
        presets.RESNEXT_101_32X8D_DCN,
        presets.RESNEXT_101_64X4D_DCN,
    )
    shrunk = SHAPES.networks.dense.backbone
    small = {shrunk(paper) for paper in papers}
    assert len(small) == 6
    assert all(sum(b.depths) > sum(shrunk(presets.RESNET_50).depths) for b in small)


@pytest.mark.parametrize(
    ("flags", "gpu", "expected"),
    [
        ("avx2 avx512_bf16", False, "bf16"),
        ("amx_bf16", False, "bf16"),
        ("avx2", False, "fp32"),
        ("avx2", True, "bf16"),
    ],
)
def test_precision_follows_the_processor_and_the_gpu_and_says_so(
    flags: str, gpu: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags : {flags}\n")
    monkeypatch.setattr(Path, "exists", lambda path: gpu)
    precision, notices = supported_precision(cpuinfo)
    assert precision == expected
    assert bool(notices) == (expected == "fp32")


def test_a_profiles_name_says_which_arithmetic_trains_whichever_machine_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {}
    for machine in ("bf16", "fp32"):
        monkeypatch.setattr(small, "supported_precision", lambda able=machine: (able, []))
        for asked in (None, "bf16", "fp32"):
            setting = small.prepare(SMOKE, tmp_path, DetectionOptions(precision=asked))
            names[machine, asked] = (setting.profile, setting.precision)
    assert names["bf16", None] == names["bf16", "bf16"] == names["fp32", "bf16"] == ("smoke", "bf16")
    assert names["fp32", None] == names["bf16", "fp32"] == names["fp32", "fp32"] == ("smoke-fp32", "fp32")


def test_the_same_images_elsewhere_are_the_same_trial(dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    here, there = (prepare(TINY, tmp_path / "w", place) for place in (dataset, copy))
    recipe = Recipe(presets.atss())
    assert key(here.trial(recipe, 0)) == key(there.trial(recipe, 0))


@pytest.mark.parametrize(
    ("name", "plain"), [("cells", "cells"), ("my cells (v2)", "my-cells-v2"), ("細胞", "data")]
)
def test_any_folder_of_the_user_has_results_of_its_own(
    name: str, plain: str, dataset: Path, tmp_path: Path
) -> None:
    place = dataset.rename(tmp_path / name)
    setting = prepare(TINY, tmp_path / "w", place)
    assert setting.data_name == name
    assert setting.own_data == f"{plain}-{setting.data.fingerprint[:6]}"


def test_four_paths_name_a_data_set_as_well_as_a_directory(dataset: Path, tmp_path: Path) -> None:
    paths = DataPaths.from_directory(dataset)
    parts = DetectionOptions(
        train_annotations=paths.train.annotations,
        train_images=paths.train.images,
        val_annotations=paths.val.annotations,
        val_images=paths.val.images,
    )
    by_files = prepare(TINY, tmp_path / "w", options=parts)
    assert by_files.data == prepare(TINY, tmp_path / "w", dataset).data


def test_repairs_are_counted_and_said(dataset: Path, tmp_path: Path) -> None:
    path = DataPaths.from_directory(dataset).train.annotations
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] = 0
    content["annotations"][1]["bbox"][2] = 1000
    path.write_text(json.dumps(content))
    notices = " | ".join(prepare(TINY, tmp_path / "w", dataset).notices)
    assert "train: 1" in notices
    assert "area" in notices


def test_a_known_data_set_is_not_read_again_until_an_annotation_file_changes(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def reads(paths: DataPaths) -> tuple[CheckedSplit, CheckedSplit]:
        read.append(paths)
        return read_data(paths)

    monkeypatch.setattr("experiments.detection.data.read_data", reads)
    first, second = (prepare(TINY, tmp_path / "w", dataset) for _ in range(2))
    assert (len(read), second) == (1, first)
    path = DataPaths.from_directory(dataset).val.annotations
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] -= 1
    path.write_text(json.dumps(content))
    third = prepare(TINY, tmp_path / "w", dataset)
    assert len(read) == 2
    assert third.data.fingerprint != first.data.fingerprint


def test_a_truncated_image_stops_before_training_and_is_named(dataset: Path, tmp_path: Path) -> None:
    image = next((dataset / "val2017").iterdir())
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(UserError, match=image.name):
        prepare(TINY, tmp_path / "w", dataset)


def test_a_trial_trains_evaluates_and_leaves_its_files(suffix: str, tmp_path: Path) -> None:
    setting = prepare(TINY, tmp_path / "w", None)
    assert setting.profile.endswith(suffix)
    trial = setting.trial(Recipe(presets.atss()), 0)
    wanted = tuple(
        EvaluationRequest(key, setting.evaluation(evaluation))
        for key, evaluation in (("single", SINGLE_SCALE), ("multi", MULTI_SCALE))
    )
    request = Request("0123456789ab", trial, wanted, tmp_path, setting.context)
    reports = list(train_trial(request))
    assert [r.step for r in reports if isinstance(r, Progress)] == [5, 10]
    assert [r.step for r in reports if isinstance(r, Checkpointed)] == [5, 10]
    evaluated = [r for r in reports if isinstance(r, Evaluated)]
    assert [r.key for r in evaluated] == ["single", "multi"]
    assert all(0 <= r.metrics["AP"] <= 100 for r in evaluated)
    assert all(Path(path).is_file() for r in evaluated for path in r.artifacts.values())
    again = list(train_trial(replace(request, evaluations=wanted[:1])))
    assert not any(isinstance(r, Progress) for r in again)
    assert again[-1].metrics == evaluated[0].metrics  # type: ignore[union-attr]


def test_the_fairness_claim_without_enough_objects_is_not_measurable() -> None:
    for sizes in (np.array([]), np.full(20, 7.0)):
        result = fairness(sizes, {})
        assert result.holds is None
        assert "not measurable" in result.detail


def test_the_fairness_claim_names_all_three_rules(setting: ScaledSetting) -> None:
    result = fair_positives(setting)
    assert all(name in result.detail for name in ("ATSS", "IoU", "SSC"))


def test_a_shorter_training_has_a_name_and_keys_of_its_own(suffix: str, tmp_path: Path) -> None:
    shorter, longer, whole = (
        prepare(TINY, tmp_path, None, DetectionOptions(max_iterations=iterations))
        for iterations in (3, 10_000, None)
    )
    assert shorter.profile == f"smoke-3its{suffix}"
    assert longer.profile == whole.profile == f"smoke{suffix}"
    trials = [setting.trial(Recipe(presets.atss()), 0) for setting in (shorter, longer, whole)]
    assert trials[0].schedule.iterations == 3
    assert key(trials[0]) != key(trials[1]) == key(trials[2])


def test_small_profiles_refuse_what_they_cannot_change(suffix: str, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave out --weights"):
        prepare(TINY, tmp_path, None, DetectionOptions(weights="torchvision"))
    with pytest.raises(UserError, match="--short-side needs --data"):
        prepare(TINY, tmp_path, None, DetectionOptions(short_side=32))
    with pytest.raises(UserError, match="--short-side needs --data"):  # its own for data sets
        prepare(TINY, tmp_path, None, DetectionOptions(short_side=TINY.own_short_side))
    own = prepare(TINY, tmp_path, dataset, DetectionOptions(short_side=32))
    assert (own.profile, own.data.short_side) == (f"smoke-32px{suffix}", 32)
