"""Atomic checkpoints with a checksum.

A file is written under a temporary name, flushed and renamed. Its name has its step and the SHA-256 of its
bytes. Reading executes no pickled code (`weights_only`).
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detector.errors import CheckpointError
from detector.files import write_and_rename

_NAME = re.compile(r"step_(\d{8})-([0-9a-f]{64})\.pt")


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """A checkpoint on disk: its step and the SHA-256 of its bytes."""

    path: Path
    step: int
    sha256: str


def save(directory: Path, step: int, payload: dict[str, Any]) -> CheckpointFile:
    """Writes the checkpoint of `step` and returns it.

    Args:
        directory: created if absent.
        step: number of finished iterations.
        payload: tensors and plain values only, as `torch.load(weights_only=True)` accepts.

    Raises:
        CheckpointError: the disk is full or not writable; no partial file is left.
    """
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    content = buffer.getvalue()
    sha256 = hashlib.sha256(content).hexdigest()
    path = directory / f"step_{step:08d}-{sha256}.pt"
    try:
        write_and_rename(path, content)
    except OSError as error:
        raise CheckpointError(
            f"cannot write the checkpoint of step {step} to {directory}: {error.strerror or error}; "
            "free some space or check the permissions, then start again: earlier checkpoints are untouched"
        ) from error
    return CheckpointFile(path, step, sha256)


def found(directory: Path) -> list[CheckpointFile]:
    """Every checkpoint in the directory, newest first; their checksums are not verified."""
    files = [(path, _NAME.fullmatch(path.name)) for path in directory.glob("step_*.pt")]
    checkpoints = [CheckpointFile(path, int(m[1]), m[2]) for path, m in files if m]
    return sorted(checkpoints, key=lambda c: c.step, reverse=True)


def load(checkpoint: CheckpointFile) -> dict[str, Any]:
    """The payload of a checkpoint, after its checksum was verified.

    Raises:
        CheckpointError: the file is missing, truncated, changed, or has more than weights.
    """
    try:
        content = checkpoint.path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{checkpoint.path}: {error.strerror or error}") from error
    if hashlib.sha256(content).hexdigest() != checkpoint.sha256:
        raise CheckpointError(
            f"{checkpoint.path.name}: corrupt, its {len(content)} bytes do not have the checksum in its name"
        )
    try:
        payload: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{checkpoint.path.name}: refused, it contains more than weights") from error
    return payload


def load_latest_good(directory: Path) -> tuple[CheckpointFile | None, dict[str, Any] | None, list[str]]:
    """The newest intact checkpoint, its payload, and the reasons why newer ones were skipped."""
    passed_over: list[str] = []
    for checkpoint in found(directory):
        try:
            return checkpoint, load(checkpoint), passed_over
        except CheckpointError as error:
            passed_over.append(str(error))
    return None, None, passed_over


def prune(directory: Path, saved: CheckpointFile, keep: int = 2) -> None:
    """Removes all but the `keep` newest checkpoints up to `saved`, later ones and partial files.

    A later checkpoint was skipped as corrupt when the training resumed; it must not count as one of the
    newest.
    """
    others = [c for c in found(directory) if c.path != saved.path]
    earlier = [c for c in others if c.step < saved.step]
    for checkpoint in {*others} - {*earlier[: keep - 1]}:
        checkpoint.path.unlink(missing_ok=True)
    for leftover in directory.glob("step_*.part"):
        leftover.unlink(missing_ok=True)
