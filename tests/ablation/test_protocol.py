import pickle

import pytest

from ablation.protocol import (
    Checkpointed,
    DeviceError,
    Evaluated,
    Noticed,
    OutOfMemoryError,
    Progress,
    Report,
)

REPORTS: list[Report] = [
    Progress(3, 10, {"loss": 0.5}),
    Checkpointed(3, "artifacts/x/3.pt", "0" * 64),
    Evaluated("k" * 12, {"AP": 39.3}, {"matches": "artifacts/x/matches.npz"}),
    Noticed("a checkpoint was damaged"),
]


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
def test_a_report_crosses_a_process_border_unchanged(report: Report) -> None:
    assert pickle.loads(pickle.dumps(report)) == report


@pytest.mark.parametrize(
    "error",
    [OutOfMemoryError("too many", 4), OutOfMemoryError("one", None), DeviceError("ECC", usable=False)],
)
def test_what_a_train_function_raises_crosses_to_other_processes(error: Exception) -> None:
    there = pickle.loads(pickle.dumps(error))
    assert (type(there), str(there), vars(there)) == (type(error), str(error), vars(error))
