"""Checks whether a GPU computes correctly, in a new process: `python device_check.py INDEX`.

After a CUDA error a process cannot use its GPU any more. A new process can, unless the GPU is broken. This
file imports torch only, so that it runs as a script.
"""

from __future__ import annotations

import subprocess
import sys

import torch

SIZE, ROUNDS = 2048, 20
LIMIT_S = 120.0
"""Time limit: a process on a hanging GPU does not end."""
BROKEN = 3
"""Exit status for a broken GPU; every other status means that the check failed for another reason."""
_TAKEN = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "busy or unavailable",
)
"""Texts of errors on a GPU whose memory is full, or that another process uses exclusively."""


def fault(index: int) -> str:
    """The fault of a GPU, as a new process finds it; "" if it computes, or if the check cannot run.

    Args:
        index: index among the GPUs that are visible to this process.
    """
    command = [sys.executable, "-P", __file__, str(index)]
    try:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except OSError:  # not enough memory
        return ""
    try:
        _, words = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()  # without waiting: a process that hangs in a driver does not end
        return f"no answer within {LIMIT_S:.0f} s"
    return words.strip().rpartition("\n")[2] if process.returncode == BROKEN else ""


def check(device: torch.device) -> None:
    """Multiplies matrices on a device; does nothing if its memory is full.

    Raises:
        RuntimeError: the product is wrong, or the multiplication failed.
    """
    numbers = torch.Generator().manual_seed(0)
    # Sums of integers that float32 (and TensorFloat-32) represents exactly, in any order.
    left, right = (torch.randint(-8, 9, (SIZE, SIZE), generator=numbers).float() for _ in range(2))
    expected = left @ right
    try:
        left, right = left.to(device), right.to(device)
        wrong = any(not torch.equal((left @ right).cpu(), expected) for _ in range(ROUNDS))
    except RuntimeError as error:
        if any(mark in str(error) for mark in _TAKEN):
            return
        raise
    if wrong:
        raise RuntimeError("it gives wrong products")


def main() -> None:
    """Checks a GPU by index; prints the fault and exits with `BROKEN` if it is broken."""
    try:
        if not torch.cuda.is_available():
            raise RuntimeError("PyTorch finds no GPU")
        check(torch.device("cuda", int(sys.argv[1])))
    except RuntimeError as error:
        print(str(error).partition("\n")[0], file=sys.stderr)
        sys.exit(BROKEN)


if __name__ == "__main__":
    main()
