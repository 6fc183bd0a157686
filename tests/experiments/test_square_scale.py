"""The paper's own scale of the RefineDet study: its schedule, each detector's square, VGG-16's weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ablation.errors import UserError
from ablation.plan import make_plan
from detector.config import SGD, FasterRCNN, SingleShot, SquareData, StepDecay
from detector.data.shapes import draw_dataset
from detector.model.pretrained import PUBLISHED
from experiments.detection.options import DetectionOptions
from experiments.detection.recipe import Recipe
from experiments.detection.small import SMOKE
from experiments.detection.square_scale import VGG16, SquareSetting, prepare
from experiments.refinedet.presets import ABLATION
from experiments.refinedet.profiles import VOC
from experiments.refinedet.study import study

REFINEDET = Recipe(ABLATION["RefineDet320"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of a user's."""
    spec = replace(SMOKE.shapes, num_train=8, num_val=4)
    return draw_dataset(spec, tmp_path_factory.mktemp("drawn")).train.annotations.parent.parent


@pytest.fixture
def options(folder: Path) -> DetectionOptions:
    return DetectionOptions(data=folder)


def setting(workspace: Path, options: DetectionOptions) -> SquareSetting:
    return prepare(VOC, workspace, options)


def test_the_schedule_is_the_papers() -> None:
    schedule = VOC.schedule
    assert isinstance(schedule.optimizer, SGD) and isinstance(schedule.decay, StepDecay)
    assert schedule.optimizer.lr * schedule.total_batch / 16 == 1e-3
    steps = [share * schedule.iterations for share in schedule.decay.milestones]
    assert steps == pytest.approx([80_000, 100_000])
    assert (schedule.optimizer.weight_decay, schedule.optimizer.bias_lr_factor) == (5e-4, 2.0)
    assert schedule.decay.warmup == 0


def test_every_row_sees_its_own_square_with_ssds_augmentation(
    tmp_path: Path, options: DetectionOptions
) -> None:
    plan = make_plan(study(), setting(tmp_path, options), [0])
    seen = {}
    for trial in plan.trials:
        data, detector = trial.config.data, trial.config.detector
        if isinstance(detector, FasterRCNN):
            assert (data.short_side, data.max_long_side) == (600, 1000), "it keeps the shape of an image"
            continue
        assert isinstance(data, SquareData) and isinstance(detector, SingleShot)
        assert data.augmentation is not None
        seen[trial.name] = (data.side, detector.num_classes)
    assert sorted(seen.values()) == [(300, 6), *[(320, 6)] * 4, (512, 6), (512, 6)]


def test_torchvisions_vgg_is_what_rows_start_from_unless_the_user_says_otherwise(
    tmp_path: Path, options: DetectionOptions
) -> None:
    ours = setting(tmp_path, options)
    trial = ours.trial(REFINEDET, 0)
    assert ours.profile == "voc"
    assert trial.weights is not None and trial.weights.sha256 == PUBLISHED[VGG16].sha256
    assert ours.context.weights == {trial.weights.sha256: VGG16}
    assert isinstance(trial.detector, SingleShot) and trial.detector.pixel_std != (1.0, 1.0, 1.0)
    random = setting(tmp_path, replace(options, weights="none"))
    assert random.profile == "voc-scratch"
    scratch = random.trial(REFINEDET, 0)
    assert isinstance(scratch.detector, SingleShot)
    assert (scratch.weights, scratch.detector.backbone.norm) == (None, "group_norm")


def test_a_file_of_a_reduced_vgg_is_known_by_its_tensors_and_named_by_its_content(
    tmp_path: Path, options: DetectionOptions
) -> None:
    file = tmp_path / "vgg16_reducedfc.pth"
    torch.save({f"{layer}.weight": torch.zeros(1) for layer in (0, 31, 33)}, file)
    own = setting(tmp_path, replace(options, weights=file))
    trial = own.trial(REFINEDET, 0)
    assert trial.weights is not None and trial.weights.layout == "vgg_reduced"
    assert own.profile == f"voc-weights-{trial.weights.sha256[:6]}"
    assert isinstance(trial.detector, SingleShot) and trial.detector.pixel_mean == (123.0, 117.0, 104.0)
    torch.save({"other": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="is no VGG-16"):
        setting(tmp_path, replace(options, weights=file))
    with pytest.raises(UserError, match="--weights"):
        setting(tmp_path, replace(options, weights=tmp_path / "none.pth"))


def test_another_data_set_or_fewer_iterations_are_not_the_papers_scale(
    tmp_path: Path, options: DetectionOptions
) -> None:
    shorter = setting(tmp_path, replace(options, max_iterations=10))
    assert not shorter.at_paper_scale and not setting(tmp_path, options).at_paper_scale
    assert shorter.profile == "voc-10its"
    assert "10 iterations of 32, fp32, from pretrained weights" in shorter.caption
    whole = setting(tmp_path, options)
    papers = replace(whole.dataset, images={**whole.dataset.images, "train": VOC.train_images})
    assert replace(whole, dataset=papers).at_paper_scale


def test_what_the_profile_cannot_take_is_refused(tmp_path: Path, options: DetectionOptions) -> None:
    with pytest.raises(UserError, match="The profile voc trains on VOC 2007 and 2012 trainval"):
        setting(tmp_path, DetectionOptions())
    with pytest.raises(UserError, match="each detector has its own input; leave out --short-side"):
        setting(tmp_path, replace(options, short_side=300))
