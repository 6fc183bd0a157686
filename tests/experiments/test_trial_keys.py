"""The identity of every trial and evaluation, so that a change of it shows in review."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from ablation.plan import Plan, make_plan
from ablation.study import Study
from detector.config import Detector
from detector.data.coco import DataPaths, Split
from experiments.atss import profiles as atss
from experiments.atss import study as atss_study
from experiments.detection.data import Context
from experiments.detection.small import Scale, ScaledSetting, size
from experiments.refinedet import profiles as refinedet
from experiments.refinedet import study as refinedet_study

GOLDEN = {
    "atss": Path(__file__).parent / "golden_keys.json",
    "refinedet": Path(__file__).parent / "golden_keys_refinedet.json",
}
STUDIES = {"atss": atss_study.study(), "refinedet": refinedet_study.study()}
SCALES = {"atss": atss.SCALES, "refinedet": refinedet.SCALES}
BOTH = pytest.mark.parametrize("name", STUDIES)
EVERY_SCALE = pytest.mark.parametrize(
    ("name", "scale"), [pytest.param(n, s, id=f"{n}-{s.name}") for n, own in SCALES.items() for s in own]
)


def _setting(scale: Scale) -> ScaledSetting:
    """The scale on a data set that nobody has to draw."""
    data = replace(size(scale, own=False), fingerprint="0" * 12)
    nowhere = Split(Path("none"), Path("none"))
    context = Context(DataPaths(nowhere, nowhere), Path("none"), 1, 1)
    return ScaledSetting(scale, data, "shapes", None, 6, 300, "bf16", "", (), context)


def _plan(study: Study, scale: Scale) -> Plan:
    return make_plan(study, _setting(scale), [0])


def _keys(name: str) -> dict[str, dict[str, list[str]]]:
    """By profile and trial name: the trial's key, then those of its evaluations."""
    return {
        scale.name: {
            t.name: [t.key, *(e.key for e in t.evaluations)] for t in _plan(STUDIES[name], scale).trials
        }
        for scale in SCALES[name]
    }


@BOTH
def test_trial_keys_are_those_that_were_agreed_on(name: str, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-keys"):
        GOLDEN[name].write_text(json.dumps(_keys(name), indent=1) + "\n")
    assert _keys(name) == json.loads(GOLDEN[name].read_text())


def test_no_two_profiles_or_studies_share_a_trial() -> None:
    keys = [key for name in STUDIES for trials in _keys(name).values() for key, *_ in trials.values()]
    assert len(keys) == len(set(keys))


@EVERY_SCALE
def test_every_profile_keeps_the_papers_trainings_apart(name: str, scale: Scale) -> None:
    variants = {cell.variant for _, _, cell in STUDIES[name].cells() if cell.variant}
    counts = _plan(STUDIES[name], scale).counts()
    assert counts.trainings == len({variant.training for variant in variants})
    assert counts.evaluations == len(variants)


def test_the_paper_geometry_survives_every_profile() -> None:
    for scale in SCALES["atss"]:
        for trial in _plan(STUDIES["atss"], scale).trials:
            assert isinstance(trial.config.detector, Detector)
            strides = trial.config.detector.strides
            assert len(strides) == 5
            assert all(b == 2 * a for a, b in pairwise(strides))
