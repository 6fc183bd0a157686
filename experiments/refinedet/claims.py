"""What the paper and its slides say of the tables, as statements that a run can support or refute."""

from __future__ import annotations

from ablation.claim import Better, CellRef, Chain, Claim, Statistic, StatisticResult
from ablation.setting import Setting
from detector.presets import REFINEDET320, REFINEDET512, SSD300, SSD512
from experiments.detection.recipe import Recipe
from experiments.refinedet.presets import ABLATION


def _map(row: str) -> CellRef:
    return CellRef("table1", row, "mAP")


def _fps(row: str) -> CellRef:
    return CellRef("table1", row, "FPS")


def _part(label: str) -> CellRef:
    return CellRef("table2", label, "mAP")


_WHOLE, _NO_FILTER, _NO_CASCADE, _SSD_HEAD = ABLATION


def fewer_boxes(setting: Setting) -> StatisticResult:
    """Whether RefineDet has fewer boxes than SSD at either size, counted from the configs of the profile."""
    pairs = ((REFINEDET320, SSD300), (REFINEDET512, SSD512))
    counts = [[setting.trial(Recipe(one), 0).detector.num_anchors for one in pair] for pair in pairs]
    holds = all(refined < ssd for refined, ssd in counts)
    return StatisticResult(holds, "; ".join(f"{refined:,} against {ssd:,}" for refined, ssd in counts))


CLAIMS: tuple[Claim, ...] = (
    Chain(
        "each-part-adds",
        "Each part adds: the TCB, the two-step cascaded regression, the negative anchor filtering",
        (tuple(map(_part, (_SSD_HEAD, _NO_CASCADE, _NO_FILTER, _WHOLE))),),
    ),
    Better("tcb-adds", "The TCB adds to an SSD head on the same maps", _part(_NO_CASCADE), _part(_SSD_HEAD)),
    Better("cascade-adds", "The two-step cascaded regression adds", _part(_NO_FILTER), _part(_NO_CASCADE)),
    Better("filtering-adds", "The negative anchor filtering adds", _part(_WHOLE), _part(_NO_FILTER)),
    Better("beats-ssd-small", "RefineDet320 beats SSD300*", _map("RefineDet320"), _map("SSD300*")),
    Better("beats-ssd-large", "RefineDet512 beats SSD512*", _map("RefineDet512"), _map("SSD512*")),
    Better(
        "larger-input-adds", "A larger input adds to RefineDet", _map("RefineDet512"), _map("RefineDet320")
    ),
    Better(
        "faster-than-ssd-large",
        "RefineDet512 is faster than SSD512* (the slides' +5 FPS)",
        _fps("RefineDet512"),
        _fps("SSD512*"),
    ),
    Better(
        "slower-than-ssd-small",
        "At the small size it is not: SSD300* is faster than RefineDet320 (the paper's 46 and 40 FPS)",
        _fps("SSD300*"),
        _fps("RefineDet320"),
    ),
    Statistic("fewer-boxes", "RefineDet has fewer boxes than SSD at both sizes", fewer_boxes),
)
