"""What COCO's evaluation server returns: read, or refused with what is wrong."""

import json
import math
import re

import pytest

from ablation.errors import UserError
from experiments.detection.server_scores import read_scores
from tests.support.coco_summary import SUMMARY

SCORES = {"AP": 43.6, "AP50": 62.1, "AP75": 47.4, "APS": 26.1, "APM": 47.0, "APL": 53.6}
FRACTIONS = {name: round(value / 100, 3) for name, value in SCORES.items()}


def test_the_summary_of_pycocotools_is_read_as_fractions() -> None:
    assert read_scores(SUMMARY, "stdout.txt") == SCORES


@pytest.mark.parametrize(
    "given",
    [
        SCORES,
        FRACTIONS,
        {
            "AP": 0.436,
            "AP_50": 0.621,
            "AP_75": 0.474,
            "AP_small": 0.261,
            "AP_medium": 0.47,
            "AP_large": 0.536,
        },
        FRACTIONS | {"AR_max_100": 0.622, "ARs": 0.424},
    ],
)
def test_json_is_read_in_percent_or_fractions_and_in_either_spelling(given: dict[str, float]) -> None:
    assert read_scores(json.dumps(given), "scores.json") == SCORES


def test_one_number_above_1_makes_all_of_a_json_percent() -> None:
    low = dict.fromkeys(SCORES, 0.4)
    assert read_scores(json.dumps(low), "x")["APS"] == 40.0
    assert read_scores(json.dumps(low | {"AP50": 1.2}), "x")["APS"] == 0.4


def test_minus_one_is_undefined() -> None:
    for content in (SUMMARY.replace("0.261", "-1.000"), json.dumps(SCORES | {"APS": -1})):
        found = read_scores(content, "x")
        assert math.isnan(found["APS"])
        assert {name: value for name, value in found.items() if name != "APS"} == {
            name: value for name, value in SCORES.items() if name != "APS"
        }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "AP, AP50, AP75, APS, APM, APL missing. It must be the 12 lines"),
        (SUMMARY.replace("area= small", "area=  tiny"), "APS missing"),
        (SUMMARY + SUMMARY, "AP, AP50, AP75, APL, APM, APS given twice"),
        (SUMMARY.replace("0.436", "43.6"), "AP is 43.6, read as a fraction: it must lie in 0..1"),
        (SUMMARY.replace("0.436", "nan"), "AP is nan"),
        (json.dumps({"AP": 43.6}), "AP50, AP75, APS, APM, APL missing"),
        (json.dumps(SCORES | {"AP_50": 1.0}), "AP50 given twice"),
        (json.dumps(SCORES | {"mask": 1.0}), "mask unknown"),
        (json.dumps(SCORES | {"AP": 436}), "AP is 436, read as percent: it must lie in 0..100"),
        (json.dumps(SCORES | {"AP": True}), "AP must be a number, got True"),
        (json.dumps(SCORES | {"AP": [1]}), "AP must be a number"),
        (json.dumps(SCORES | {"AP": {"a": 1}}), "AP must be a number"),
        ("{", "no valid JSON"),
    ],
)
def test_a_file_without_the_six_numbers_is_refused_with_what_is_wrong(content: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        read_scores(content, "scores.txt")
