"""The identity of every trial and evaluation, so that a change of it shows in review."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from ablation.plan import Plan, make_plan
from detector.data.coco import DataPaths, Split
from experiments.atss.profiles import SCALES
from experiments.atss.study import study
from experiments.atss.tables import TABLES
from experiments.detection.data import Context
from experiments.detection.small import Scale, ScaledSetting, size

GOLDEN = Path(__file__).parent / "golden_keys.json"


def _setting(scale: Scale) -> ScaledSetting:
    """The scale on a data set that nobody has to draw."""
    data = replace(size(scale, own=False), fingerprint="0" * 12)
    nowhere = Split(Path("none"), Path("none"))
    context = Context(DataPaths(nowhere, nowhere), Path("none"), 1, 1)
    return ScaledSetting(scale, data, "shapes", None, 6, 300, "bf16", "", (), context)


def _plan(scale: Scale) -> Plan:
    return make_plan(study(), _setting(scale), [0])


def _keys() -> dict[str, dict[str, list[str]]]:
    """By profile and trial name: the trial's key, then those of its evaluations."""
    return {
        scale.name: {t.name: [t.key, *(e.key for e in t.evaluations)] for t in _plan(scale).trials}
        for scale in SCALES
    }


def test_trial_keys_are_those_that_were_agreed_on(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-keys"):
        GOLDEN.write_text(json.dumps(_keys(), indent=1) + "\n")
    assert _keys() == json.loads(GOLDEN.read_text())


def test_no_two_profiles_share_a_trial() -> None:
    keys = [key for trials in _keys().values() for key, *_ in trials.values()]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: scale.name)
def test_every_profile_keeps_the_papers_trainings_apart(scale: Scale) -> None:
    variants = {cell.variant for table in TABLES for row in table.rows for cell in row.cells}
    counts = _plan(scale).counts()
    assert counts.trainings == len({variant.training for variant in variants})
    assert counts.evaluations == len(variants)


def test_the_paper_geometry_survives_every_profile() -> None:
    for scale in SCALES:
        for trial in _plan(scale).trials:
            strides = trial.config.detector.strides
            assert len(strides) == 5
            assert all(b == 2 * a for a, b in pairwise(strides))
