"""Where a result comes from: the code, the versions, the command, the machine.

Nothing here is hashed into a key; it is written beside every attempt. Versions are read from installed
metadata, so that no heavy library is imported for its number.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "ray", "mlflow", "pycocotools", "hotcoco", "numpy")
MAX_DIFF_CHARS = 1_000_000
MAX_UNTRACKED = 20
GIT_TIMEOUT_S = 20
UNKNOWN = "unknown"


def collect(command: str, source: Path | None = None) -> dict[str, Any]:
    """Plain data that says what ran.

    Args:
        command: the command line; passwords in URLs are taken out.
        source: a folder of the code; this package's own when None.

    Returns:
        `command`, `host`, `platform`, `cpu`, `python`, `versions` (by package, None when absent), and of
        the checkout `commit` ("unknown" outside one), `dirty`, `diff` (uncommitted changes, cut at a
        million characters), `diff_sha256` (of the whole of it) and `untracked` (files git does not know,
        the first twenty).
    """
    return {
        "command": re.sub(r"(?<=://)[^/@\s]+@", "***@", command),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        **_checkout(source or Path(__file__).resolve().parent),
    }


def _checkout(source: Path) -> dict[str, Any]:
    commit = _git(source, "rev-parse", "--verify", "HEAD")
    # An installed copy may lie inside another project's checkout, in an ignored folder of it.
    tracked = _git(source, "ls-files", ".")
    if not commit or not tracked:
        return {"commit": UNKNOWN, "dirty": False, "diff": "", "diff_sha256": "", "untracked": []}
    diff = _git(source, "diff", "HEAD") or ""
    others = _git(source, "ls-files", "--others", "--exclude-standard", "--full-name", ":/")
    untracked = (others or "").splitlines()
    return {
        "commit": commit.strip(),
        "dirty": bool(diff or untracked),
        "diff": diff[:MAX_DIFF_CHARS],
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else "",
        "untracked": untracked[:MAX_UNTRACKED],
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None when it fails or is not there. Takes no lock in the checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            check=True,
            timeout=GIT_TIMEOUT_S,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1) if found else platform.processor() or UNKNOWN
