"""The paper's own scale, on a data set of the same format that a test draws."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.models import get_model

from ablation.errors import UserError
from ablation.fingerprint import key
from ablation.plan import make_plan
from ablation.protocol import Evaluated, EvaluationRequest, Progress, Request
from ablation.resources import Resources
from detector.config import SGD, Data, StepDecay, Weights
from detector.data.coco import DataPaths
from detector.data.shapes import ShapesSpec, draw_dataset
from detector.model.pretrained import DETECTRON_MEAN, TORCHVISION, sha256_of
from experiments.atss import presets
from experiments.atss.presets import MULTI_SCALE, SINGLE_SCALE
from experiments.atss.profiles import COCO
from experiments.atss.study import study
from experiments.detection.options import DetectionOptions
from experiments.detection.paper_scale import PaperSetting, prepare, pretrained, starting_from
from experiments.detection.recipe import Recipe
from experiments.detection.train_trial import SUBMISSION, train_trial

UNCHANGED = DetectionOptions()
SHORT = DetectionOptions(max_iterations=2, short_side=64, weights="none")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> DataPaths:
    spec = ShapesSpec(image_size=64, num_train=4, num_val=2, max_objects=3, min_size=8)
    return draw_dataset(spec, tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module")
def dataset(paths: DataPaths) -> Path:
    return paths.train.annotations.parent.parent


def with_test_dev(dataset: Path, folder: Path) -> Path:
    """A copy of the data set with its validation images as test-dev, which has no annotations."""
    (folder / "annotations").mkdir(parents=True)
    for name in ("train2017", "val2017"):
        (folder / name).symlink_to(dataset / name)
        annotations = f"annotations/instances_{name}.json"
        (folder / annotations).symlink_to(dataset / annotations)
    (folder / "test2017").symlink_to(dataset / "val2017")
    content = json.loads((dataset / "annotations" / "instances_val2017.json").read_text())
    del content["annotations"]
    (folder / "annotations" / "image_info_test-dev2017.json").write_text(json.dumps(content))
    return folder


def setting_of(dataset: Path, tmp_path: Path, options: DetectionOptions = UNCHANGED) -> PaperSetting:
    return prepare(COCO, tmp_path / "workspace", replace(options, data=dataset))


def test_the_recipe_is_the_papers(dataset: Path, tmp_path: Path) -> None:
    setting = setting_of(dataset, tmp_path)
    once = setting.trial(Recipe(presets.atss()), 0)
    assert (once.schedule.iterations, once.schedule.total_batch) == (90_000, 16)
    assert once.schedule.optimizer == SGD(lr=0.01, momentum=0.9, weight_decay=1e-4, bias_lr_factor=2)
    decay = once.schedule.decay
    assert isinstance(decay, StepDecay)
    assert [round(m * 90_000) for m in decay.milestones] == [60_000, 80_000]
    assert (decay.warmup, decay.warmup_factor) == (500, pytest.approx(1 / 3))
    fingerprint = once.data.fingerprint
    assert once.data == Data(fingerprint, 800, 1333, group_by_aspect=True, skip_unannotated=True)
    assert once.detector.backbone.frozen_stages == 2
    assert once.detector.backbone.norm == "frozen_bn"
    assert once.weights == Weights("torchvision", TORCHVISION["resnet50"].sha256)

    twice = setting.trial(presets.large(presets.RESNEXT_101_64X4D_DCN), 0)
    assert twice.schedule.iterations == 180_000
    assert (twice.data.min_short_side, twice.data.short_side) == (640, 800)
    assert twice.weights == Weights("torchvision", TORCHVISION["resnext101_64x4d"].sha256)


def test_the_whole_grid_is_39_trainings_and_41_evaluations(dataset: Path, tmp_path: Path) -> None:
    counts = make_plan(study(), setting_of(dataset, tmp_path), [0]).counts()
    assert (counts.trainings, counts.evaluations) == (39, 41)


def test_a_training_holds_a_gpu_of_its_own_and_the_longest_are_those_of_table_8(
    dataset: Path, tmp_path: Path
) -> None:
    trials = make_plan(study(), setting_of(dataset, tmp_path), [0]).trials
    assert {trial.resources for trial in trials} == {Resources(workers=1, cpus=4, gpus=1, memory=12 << 30)}
    costs = {trial.name: trial.cost for trial in trials}
    longest = sorted(costs, key=costs.__getitem__)[-6:]
    assert all(name.startswith("table8") for name in longest)


def test_without_a_data_set_the_profile_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data DIR"):
        prepare(COCO, tmp_path, UNCHANGED)


def test_what_the_user_changes_is_in_the_name_and_in_the_identity(dataset: Path, tmp_path: Path) -> None:
    plain, short = setting_of(dataset, tmp_path), setting_of(dataset, tmp_path, SHORT)
    assert (plain.profile, short.profile) == ("coco", "coco-2its-64px-scratch")
    assert not plain.at_paper_scale  # these are not COCO's 118,287 images
    recipe = Recipe(presets.atss())
    assert key(plain.trial(recipe, 0)) != key(short.trial(recipe, 0))
    same = setting_of(
        dataset, tmp_path, DetectionOptions(max_iterations=180_000, short_side=800, weights="torchvision")
    )
    assert (same.profile, key(same.trial(recipe, 0))) == (plain.profile, key(plain.trial(recipe, 0)))
    trial = short.trial(presets.large(presets.RESNET_101), 0)
    assert (trial.data.min_short_side, trial.data.short_side, trial.data.max_long_side) == (51, 64, 107)


def test_a_made_weight_file_serves_its_backbone_and_names_itself(dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.save(get_model("resnet50").state_dict(), path)
    setting = setting_of(dataset, tmp_path, replace(UNCHANGED, weights=path))
    assert setting.profile.startswith("coco-weights-")
    weights = setting.trial(Recipe(presets.atss()), 0).weights
    assert weights is not None
    assert setting.context.weights[weights.sha256] == path
    others = setting.trial(presets.large(presets.RESNET_101), 0).weights
    assert others == Weights("torchvision", TORCHVISION["resnet101"].sha256)
    assert any(f"resnet50: weights of {path}" in notice for notice in setting.notices)
    with pytest.raises(UserError, match=r"--weights: .*no such file"):
        setting_of(dataset, tmp_path, replace(UNCHANGED, weights=tmp_path / "absent.pth"))


def test_torchvisions_file_named_as_a_file_is_the_same_trial(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fetched.pth"
    torch.save(get_model("resnet50").state_dict(), path)
    published = TORCHVISION["resnet50"]._replace(sha256=sha256_of(path)[:8])
    monkeypatch.setitem(TORCHVISION, "resnet50", published)
    by_name, by_file = (setting_of(dataset, tmp_path, DetectionOptions(weights=w)) for w in (None, path))
    recipe = Recipe(presets.atss())
    assert key(by_name.trial(recipe, 0)) == key(by_file.trial(recipe, 0))
    assert by_name.profile == by_file.profile == "coco"
    assert by_file.context.weights[published.sha256] == path


def test_another_precision_is_another_trial(dataset: Path, tmp_path: Path) -> None:
    half = setting_of(dataset, tmp_path, DetectionOptions(precision="bf16"))
    assert half.profile == "coco-bf16"
    assert half.trial(Recipe(presets.atss()), 0).schedule.precision == "bf16"
    assert setting_of(dataset, tmp_path, DetectionOptions(precision="fp32")).profile == "coco"


def test_weights_at_a_relative_path_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(get_model("resnet50").state_dict(), tmp_path / "resnet50.pth")
    monkeypatch.chdir(tmp_path)
    _, files, _ = pretrained(Path("resnet50.pth"), tmp_path)
    assert tmp_path / "resnet50.pth" in files.values()


def test_the_detector_follows_the_layout_of_its_weights() -> None:
    detector = presets.atss()
    caffe = starting_from(Weights("detectron", "0" * 8), detector)
    assert caffe.backbone.stride_in_1x1
    assert caffe.pixel_mean == DETECTRON_MEAN
    assert not starting_from(Weights("torchvision", "0" * 8), detector).backbone.stride_in_1x1
    scratch = starting_from(None, detector)
    assert (scratch.backbone.norm, scratch.backbone.frozen_stages) == ("group_norm", 0)


def test_table_8_is_tested_on_test_dev_where_its_images_are(dataset: Path, tmp_path: Path) -> None:
    wanted = replace(MULTI_SCALE, split="test")
    without = setting_of(dataset, tmp_path)
    assert without.evaluation(wanted).split == "val"
    assert any("Table 8" in notice for notice in without.notices)
    setting = setting_of(with_test_dev(dataset, tmp_path / "coco"), tmp_path)
    assert setting.dataset.test_fingerprint not in (None, setting.dataset.data.fingerprint)
    assert setting.evaluation(wanted) == replace(wanted, test_fingerprint=setting.dataset.test_fingerprint)
    assert setting.evaluation(SINGLE_SCALE) == SINGLE_SCALE


@pytest.mark.slow
def test_a_trial_trains_validates_and_leaves_a_submission_for_test_dev(dataset: Path, tmp_path: Path) -> None:
    setting = setting_of(with_test_dev(dataset, tmp_path / "coco"), tmp_path, SHORT)
    context = replace(setting.context, report_every=1, checkpoint_every=1, validate_every=1)
    wanted = (
        EvaluationRequest("val", SINGLE_SCALE),
        EvaluationRequest("dev", replace(SINGLE_SCALE, split="test")),
    )
    trial = setting.trial(Recipe(presets.atss()), 0)
    reports = list(train_trial(Request("0" * 12, trial, wanted, tmp_path / "trial", context, micro_batch=3)))
    assert any("val_AP" in r.metrics for r in reports if isinstance(r, Progress))
    val, dev = (r for r in reports if isinstance(r, Evaluated))
    assert 0 <= val.metrics["AP"] <= 100
    assert dev.metrics == {}
    submission = Path(dev.artifacts["submission"])
    assert submission.name == SUBMISSION
    assert {"image_id", "category_id", "bbox", "score"} == set(json.loads(submission.read_text())[0])
