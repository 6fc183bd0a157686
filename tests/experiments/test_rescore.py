"""What a training of the study leaves is checked against itself: its numbers, its files, its modules."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ablation.control import gc
from ablation.errors import UserError
from ablation.plan import Plan, make_plan, register
from ablation.protocol import Described, EvaluationRequest, Request
from ablation.provenance import environment, staleness
from ablation.provenance.verify import verify
from ablation.store import Store
from ablation.study import Study
from ablation.workspace import Workspace
from detector.data.coco import DataPaths
from detector.data.shapes import ShapesSpec, draw_dataset
from detector.evaluation.coco_eval import Results
from experiments.atss import study as atss
from experiments.atss.presets import MULTI_SCALE, SINGLE_SCALE
from experiments.detection import small
from experiments.detection.options import DetectionOptions
from experiments.detection.rescore import by_class, rescore
from experiments.detection.small import SMOKE
from experiments.detection.train_trial import train_trial
from experiments.refinedet import study as refinedet

# Long enough for detections that find something: then a change of any shows in the numbers.
TINY = replace(
    SMOKE,
    shapes=ShapesSpec(image_size=64, num_train=12, num_val=4, min_size=8),
    schedule=replace(SMOKE.schedule, iterations=30),
)


class Place:
    """A workspace in which one trial of the study has been trained, and tested in all its ways."""

    def __init__(self, root: Path, whole: Study, plan: Plan, store: Store) -> None:
        self.root, self.study, self.plan, self.store = root, whole, plan, store
        (self.trial,) = [trial for trial in plan.trials if trial.state == "COMPLETE"]
        self.metric = whole.metrics[0].name

    def detections(self, evaluation_key: str) -> Path:
        return self.store.resolve(self.store.evaluations()[evaluation_key].artifacts["detections"])


@pytest.fixture(scope="module", params=[(atss.study, "table8"), (refinedet.study, "table2")])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A training of ATSS that is tested at one scale and at several, and a RefineDet by VOC's rules."""
    make, table = request.param
    root = tmp_path_factory.mktemp("workspace")
    setting = small.prepare(TINY, root, DetectionOptions())
    whole = make()
    plan = make_plan(whole, setting, (0,), [table])
    trial = max(plan.trials, key=lambda trial: len(trial.evaluations))
    store = Store.open(root / "store.db")
    register(plan, store)
    attempt = store.claim(trial.key, "test", {"commit": "unknown"})
    assert attempt is not None
    wanted = tuple(EvaluationRequest(e.key, e.config) for e in trial.evaluations)
    directory = Workspace.at(root).trial_directory(trial.key)
    for report in train_trial(Request(trial.key, trial.config, wanted, directory, setting.context)):
        store.record(attempt, [report])
    store.record(attempt, [Described(environment.describe(whole.sources, whole.packages))])
    store.finish(attempt)
    yield Place(root, whole, make_plan(whole, setting, (0,), [table], store), store)
    store.close()


def test_stored_detections_give_the_stored_numbers_exactly_at_one_scale_and_at_several(place: Place) -> None:
    found = list(verify(place.plan, place.store))
    assert [(v.problems, v.notes) for v in found] == [((), ())] * len(place.trial.evaluations)
    rows = place.store.evaluations([v.evaluation_key for v in found])
    assert all(row.metrics[place.metric] > 0 for row in rows.values())


def test_detections_that_were_moved_show_in_the_numbers(place: Place, tmp_path: Path) -> None:
    trial, single = place.trial, place.trial.evaluations[0]
    results = Results.load(place.detections(single.key))
    stored = place.store.evaluations()[single.key].metrics
    assert rescore(place.plan.setting, trial.config, single.config, place.detections(single.key)) == stored
    boxes = results.boxes_xywh.copy()
    boxes[results.scores > np.median(results.scores)] = (0, 0, 1, 1)
    replace(results, boxes_xywh=boxes).save(tmp_path / "moved.npz")
    assert rescore(place.plan.setting, trial.config, single.config, tmp_path / "moved.npz") != stored


def test_ap_by_class_averages_to_the_stored_ap(place: Place) -> None:
    trial = place.trial
    for evaluation in trial.evaluations:
        detections = place.detections(evaluation.key)
        found = by_class(place.plan.setting, trial.config, evaluation.config, detections)
        assert np.mean(list(found.values())) == pytest.approx(
            place.store.evaluations()[evaluation.key].metrics[place.metric]
        )


def test_the_training_rests_on_the_modules_that_are_there_now(place: Place) -> None:
    (attempt,) = place.store.attempts()
    assert attempt.environment is not None
    modules = attempt.environment["modules"]
    loss = "losses" if place.study.name == "atss" else "multibox"
    assert {
        f"detector.objectives.{loss}",
        "detector.training.train",
        "experiments.detection.train_trial",
    } <= set(modules)
    assert all(environment.source_file(name) is not None for name in modules)
    assert staleness.find(place.plan, place.store) == []


def test_only_the_checkpoint_before_the_last_is_not_needed(place: Place) -> None:
    found = gc.unneeded([place.plan], place.store, Workspace.at(place.root))
    assert [(item.why, len(item.files)) for item in found] == [(gc.EARLIER, 1)]


def test_detections_that_cannot_be_read_are_an_error_for_people(place: Place, tmp_path: Path) -> None:
    trial = place.plan.trials[0]
    with pytest.raises(UserError, match=r"none\.npz"):
        rescore(place.plan.setting, trial.config, SINGLE_SCALE, tmp_path / "none.npz")


def test_detections_on_other_images_are_an_error_for_people(place: Place, tmp_path: Path) -> None:
    other = Results.from_coco([{"image_id": 77, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}])
    other.save(tmp_path / "other.npz")
    with pytest.raises(UserError, match="77"):
        rescore(place.plan.setting, place.plan.trials[0].config, SINGLE_SCALE, tmp_path / "other.npz")


def test_test_images_have_no_annotations_to_score_with(place: Place, tmp_path: Path) -> None:
    wanted = replace(MULTI_SCALE, split="test")
    with pytest.raises(UserError, match="not public"):
        rescore(place.plan.setting, place.plan.trials[0].config, wanted, tmp_path / "none.npz")


def test_a_data_set_that_is_gone_is_an_error_for_people(place: Place, tmp_path: Path) -> None:
    paths = draw_dataset(TINY.shapes, tmp_path)
    folder = paths.train.annotations.parent.parent
    setting = small.prepare(TINY, tmp_path / "w", DetectionOptions(data=folder))
    assert setting.context.paths == DataPaths.from_directory(folder)
    paths.val.annotations.unlink()
    results = tmp_path / "empty.npz"
    Results.from_coco([]).save(results)
    with pytest.raises(UserError, match="instances_val2017"):
        rescore(setting, place.plan.trials[0].config, SINGLE_SCALE, results)
