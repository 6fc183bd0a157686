"""Whether the GPUs of this process still compute: `python device_check.py`, on its own.

A process in which CUDA failed cannot use its GPU any more, whatever the reason was. A new one can, or sees
that the GPU itself is at fault. Imports torch and nothing of ours, so that it runs as a file.
"""

from __future__ import annotations

import subprocess
import sys

import torch

SIZE, ROUNDS = 2048, 20
LIMIT_S = 120.0
"""A GPU that hangs holds up whoever asks it for ever."""


def fault() -> str:
    """What a new process finds wrong with the GPUs that are visible to this one; "" where they compute."""
    command = [sys.executable, "-P", __file__]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"no answer within {LIMIT_S:.0f} s"
    words = done.stderr.strip() or f"a process on it ended with status {done.returncode}"
    return "" if done.returncode == 0 else words.rpartition("\n")[2]


def check(device: torch.device) -> None:
    """Multiplies matrices there; where others have filled its memory it is not asked.

    Raises:
        RuntimeError: the product is wrong, or there is none.
    """
    numbers = torch.Generator().manual_seed(0)
    # Sums of whole numbers that float32 (and TensorFloat-32) holds exactly, in whatever order.
    left, right = (torch.randint(-8, 9, (SIZE, SIZE), generator=numbers).float() for _ in range(2))
    expected = left @ right
    try:
        left, right = left.to(device), right.to(device)
        wrong = any(not torch.equal((left @ right).cpu(), expected) for _ in range(ROUNDS))
    except RuntimeError as error:
        if "out of memory" in str(error):
            return
        raise
    if wrong:
        raise RuntimeError("it gives wrong products")


def main() -> None:
    """Checks all; exit status 0 where they compute, 1 with a line that says what is wrong."""
    try:
        if not torch.cuda.is_available():
            raise RuntimeError("PyTorch finds no GPU")
        for index in range(torch.cuda.device_count()):
            check(torch.device("cuda", index))
    except RuntimeError as error:
        sys.exit(str(error).partition("\n")[0])


if __name__ == "__main__":
    main()
