"""The provenance of an attempt, found by its driver: command, commit, versions, machine.

It is stored with every attempt and is no part of a key. Versions are read from package metadata, without
importing the packages. `environment.describe` adds what the training process finds.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ablation.credentials import hidden
from ablation.provenance.environment import version

PLATFORM_PACKAGES = ("ray", "mlflow")
MAX_DIFF_CHARS = 1_000_000
MAX_UNTRACKED = 20
GIT_TIMEOUT_S = 20
UNKNOWN = "unknown"


def collect(command: str, source: Path | None = None, packages: Sequence[str] = ()) -> dict[str, Any]:
    """The provenance of what this process runs, as JSON values.

    Args:
        command: the command line; passwords in URLs are hidden.
        source: a folder of the code; this package's own when None.
        packages: packages of the study, whose versions are recorded beside those of the platform.

    Returns:
        `command`, `host`, `platform`, `cpu`, `python`, `versions` (by package, None when absent), and of
        the checkout `commit` ("unknown" outside one), `committed` (date, as "2026-11-20"), `dirty`,
        `diff` (uncommitted changes, cut at a million characters), `diff_sha256` (of the uncut diff) and
        `untracked` (the first twenty untracked files).
    """
    return {
        "command": hidden(command),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in (*packages, *PLATFORM_PACKAGES)},
        **_checkout(source or Path(__file__).resolve().parent),
    }


def inputs(config_json: str) -> dict[str, str]:
    """Hashes of data and weights in a config: its fields `...fingerprint` and `...sha256`.

    Args:
        config_json: `fingerprint.canonical_json` of a trial or an evaluation.

    Returns:
        The hashes by the field's path, as {"data.fingerprint": "3f..."}.
    """
    return {
        path: value
        for path, value in leaves(json.loads(config_json))
        if isinstance(value, str) and path.endswith(("fingerprint", "sha256"))
    }


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of decoded JSON with their paths, as ("detector.assigner.topk", 9)."""
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{path}.{name}" if path else str(name))
    else:
        yield path, value


def _checkout(source: Path) -> dict[str, Any]:
    commit = git(source, "rev-parse", "--verify", "HEAD")
    # An installed copy may be in an ignored folder of another project's checkout.
    tracked = git(source, "ls-files", ".")
    if not commit or not tracked:
        # A container image has no checkout; its build sets the commit.
        built_from = os.environ.get("ABLATION_COMMIT") or UNKNOWN
        absent = {"commit": built_from, "committed": "", "dirty": False}
        return {**absent, "diff": "", "diff_sha256": "", "untracked": []}
    diff = git(source, "diff", "HEAD")
    others = git(source, "ls-files", "--others", "--exclude-standard", "--full-name", ":/")
    untracked = (others or "").splitlines()
    return {
        "commit": commit.strip(),
        "committed": (git(source, "show", "--no-patch", "--format=%cs", "HEAD") or "").strip(),
        # A failed git command may hide changes.
        "dirty": diff is None or others is None or bool(diff or untracked),
        "diff": (diff or "")[:MAX_DIFF_CHARS],
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else "",
        "untracked": untracked[:MAX_UNTRACKED],
    }


def git(folder: Path, *arguments: str) -> str | None:
    """The output of git; None when it fails or is not installed. Takes no lock in the checkout."""
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


def cpu_model() -> str:
    """The processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1) if found else platform.processor() or UNKNOWN
