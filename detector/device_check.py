"""Whether a GPU still computes: `python device_check.py INDEX`, on its own.

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
BROKEN = 3
"""Exit status of a process that found its GPU broken; any other end of it says nothing of the GPU."""
_TAKEN = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "busy or unavailable",
)
"""What errors say of a GPU whose memory others have filled, or which is one process's alone."""


def fault(index: int) -> str:
    """What a new process finds wrong with a GPU; "" where it computes, or no process can tell.

    Args:
        index: of those that are visible to this process.
    """
    command = [sys.executable, "-P", __file__, str(index)]
    try:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except OSError:  # for want of memory
        return ""
    try:
        _, words = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()  # and not waited for: what hangs in a driver does not end
        return f"no answer within {LIMIT_S:.0f} s"
    return words.strip().rpartition("\n")[2] if process.returncode == BROKEN else ""


def check(device: torch.device) -> None:
    """Multiplies matrices there; where others have filled it, it is not asked.

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
        if any(mark in str(error) for mark in _TAKEN):
            return
        raise
    if wrong:
        raise RuntimeError("it gives wrong products")


def main() -> None:
    """Checks the GPU of that number; exit status `BROKEN`, with a line that says why, for a broken one."""
    try:
        if not torch.cuda.is_available():
            raise RuntimeError("PyTorch finds no GPU")
        check(torch.device("cuda", int(sys.argv[1])))
    except RuntimeError as error:
        print(str(error).partition("\n")[0], file=sys.stderr)
        sys.exit(BROKEN)


if __name__ == "__main__":
    main()
