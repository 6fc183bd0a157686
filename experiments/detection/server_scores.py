"""Reads what COCO's evaluation server returns for an upload."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from ablation.errors import UserError
from detector.evaluation.coco_eval import AP_NAMES

_UNDEFINED = -1.0
"""What COCO's tools print for a number that no ground truth defines."""

# "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.436"
_SUMMARY_LINE = re.compile(
    r"\(AP\)\s*@\[\s*IoU=([\d.:]+)\s*\|\s*area=\s*(\w+)\s*\|\s*maxDets=\s*\d+\s*\]\s*=\s*(\S+)"
)
_SUMMARY_NAMES = {
    ("0.50:0.95", "all"): "AP",
    ("0.50", "all"): "AP50",
    ("0.75", "all"): "AP75",
    ("0.50:0.95", "small"): "APS",
    ("0.50:0.95", "medium"): "APM",
    ("0.50:0.95", "large"): "APL",
}
_LONG_NAMES = {"APSMALL": "APS", "APMEDIUM": "APM", "APLARGE": "APL"}


def read_scores(content: str, source: str) -> dict[str, float]:
    """The six precisions in a file that an evaluation server returned: `ablation.study.Study.read_scores`.

    Args:
        content: the summary that pycocotools prints, whose numbers are fractions; or a JSON object with
            AP, AP50, AP75, APS, APM and APL (AP_50 and AP_small are read too), in percent when one of them
            is above 1, else fractions. Average recalls are skipped.
        source: the file's path, for messages.

    Returns:
        In percent, by the names of `AP_NAMES`; NaN where the file says -1, COCO's sign for undefined.

    Raises:
        UserError: one of the six numbers is missing, given twice, or out of range.
    """
    is_json = content.lstrip().startswith("{")
    pairs = _from_json(content, source) if is_json else _from_summary(content)
    names = [name for name, _ in pairs]
    missing = [name for name in AP_NAMES if name not in names]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if missing or repeated:
        problem = f"{', '.join(missing)} missing" if missing else f"{', '.join(repeated)} given twice"
        raise UserError(
            f"{source}: {problem}. It must be the 12 lines that pycocotools prints, or a JSON object with "
            f"{', '.join(AP_NAMES)}."
        )
    scores = {name: _number(name, value, source) for name, value in pairs}
    scale = 1.0 if is_json and max(scores.values()) > 1 else 100.0
    return {name: _percent(name, scores[name], scale, source) for name in AP_NAMES}


def _from_summary(content: str) -> list[tuple[str, Any]]:
    found = [(_SUMMARY_NAMES.get((iou, area)), value) for iou, area, value in _SUMMARY_LINE.findall(content)]
    return [(name, value) for name, value in found if name is not None]


def _from_json(content: str, source: str) -> list[tuple[str, Any]]:
    try:
        given = json.loads(content, object_pairs_hook=list)
    except ValueError as error:
        raise UserError(f"{source} is no valid JSON: {error}.") from error
    plain = [(re.sub(r"[^A-Z0-9]", "", name.upper()), value, name) for name, value in given]
    pairs = [(_LONG_NAMES.get(short, short), value, name) for short, value, name in plain]
    unknown = [name for short, _, name in pairs if short not in AP_NAMES and not short.startswith("AR")]
    if unknown:
        raise UserError(
            f"{source}: {', '.join(unknown)} unknown; {', '.join(AP_NAMES)} and average recalls (AR...) are "
            "what a COCO evaluation gives."
        )
    return [(short, value) for short, value, _ in pairs if short in AP_NAMES]


def _number(name: str, value: Any, source: str) -> float:
    try:
        if isinstance(value, bool | list):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"{source}: {name} must be a number, got {value!r}.") from None


def _percent(name: str, value: float, scale: float, source: str) -> float:
    """In percent, to ten digits; NaN where it is undefined."""
    if value == _UNDEFINED:
        return math.nan
    percent = round(value * scale, 10)
    if not 0 <= percent <= 100:
        unit = "percent" if scale == 1 else "a fraction"
        raise UserError(f"{source}: {name} is {value:g}, read as {unit}: it must lie in 0..{100 / scale:g}.")
    return percent
