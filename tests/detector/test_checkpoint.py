"""Checkpoints are whole or not there."""

import errno
import os
from pathlib import Path

import pytest
import torch

from detector.errors import CheckpointError
from detector.training import checkpoint


def _payload(step: int) -> dict[str, object]:
    return {"step": step, "model": {"weight": torch.arange(6.0) + step}}


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path: Path) -> None:
    saved = checkpoint.save(tmp_path, 7, _payload(7))
    payload = checkpoint.load(saved)
    assert payload["step"] == 7
    torch.testing.assert_close(payload["model"]["weight"], torch.arange(6.0) + 7)


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, damage: str) -> None:
    checkpoint.save(tmp_path, 10, _payload(10))
    newest = checkpoint.save(tmp_path, 20, _payload(20)).path
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes({"truncate": bytes(content[:100]), "flip": bytes(content), "empty": b""}[damage])
    found, payload, passed_over = checkpoint.load_latest_good(tmp_path)
    assert found is not None and payload is not None
    assert payload["step"] == 10
    assert len(passed_over) == 1 and "corrupt" in passed_over[0] and "step_00000020" in passed_over[0]


def test_no_good_checkpoint_means_a_fresh_start(tmp_path: Path) -> None:
    saved = checkpoint.save(tmp_path, 10, _payload(10))
    saved.path.write_bytes(b"not a checkpoint")
    found, payload, passed_over = checkpoint.load_latest_good(tmp_path)
    assert (found, payload, len(passed_over)) == (None, None, 1)


def test_a_full_disk_is_named_and_leaves_earlier_checkpoints_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, 10, _payload(10))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"step 20 .* No space left on device"):
        checkpoint.save(tmp_path, 20, _payload(20))
    assert [c.step for c in checkpoint.found(tmp_path)] == [10]
    assert list(tmp_path.glob("*.part")) == []


def test_pruning_keeps_the_newest_and_sweeps_up_after_killed_writers(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        saved = checkpoint.save(tmp_path, step, _payload(step))
    (tmp_path / "step_00000005-abc.part").write_bytes(b"half")
    checkpoint.prune(tmp_path, saved, keep=2)
    assert [c.step for c in checkpoint.found(tmp_path)] == [4, 3]
    assert list(tmp_path.glob("*.part")) == []


def test_corrupt_later_checkpoints_never_push_out_the_one_just_written(tmp_path: Path) -> None:
    for step in (8, 12):
        checkpoint.save(tmp_path, step, _payload(step)).path.write_bytes(b"corrupt")
    saved = checkpoint.save(tmp_path, 4, _payload(4))
    checkpoint.prune(tmp_path, saved)
    assert [c.step for c in checkpoint.found(tmp_path)] == [4]


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("true",)

    saved = checkpoint.save(tmp_path, 1, {"model": Evil()})
    with pytest.raises(CheckpointError, match="contains more than weights"):
        checkpoint.load(saved)
