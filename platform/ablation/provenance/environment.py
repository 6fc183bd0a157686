"""The environment of a training process: host, packages and source files.

`describe` runs in the training process, takes milliseconds and imports no library. Its result is stored with
the attempt. `staleness` compares it with the files and packages of today.
"""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import re
import socket
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

_GPU_FILES = Path("/proc/driver/nvidia/gpus")


def describe(sources: Sequence[str], packages: Sequence[str]) -> dict[str, Any]:
    """The environment of this process, as JSON values.

    Args:
        sources: names of the packages whose modules can change a result (`Study.sources`).
        packages: installed packages whose version can (`Study.packages`).

    Returns:
        `host`, `gpus` (names), `python`, `packages` (versions, None when absent) and
        `modules`: `source_hash` of every imported module of the sources, by name. A file that is edited
        later keeps its first hash, because the process still runs the old code.
    """
    return {
        "host": socket.gethostname(),
        "gpus": _gpus(),
        "python": platform.python_version(),
        "packages": {name: _first_version(name) for name in packages},
        "modules": _hashes(tuple(sources), len(sys.modules)),
    }


def version(package: str) -> str | None:
    """The installed version of a package, from its metadata; None when it is absent."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def source_file(module: str) -> Path | None:
    """The .py file that an import of the module would run; None where there is none. Imports nothing."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # in sys.modules without a spec, as __main__
        return None
    for name in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        # With the last name alone: the full name would import the parents of a folder without __init__.py.
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return _python_file(spec)


def source_text(content: bytes) -> str:
    """A source file as text with \\n line ends, independent of the checkout's."""
    return content.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")


def source_hash(text: str) -> str:
    """SHA-256 of a source text, as hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


# Cached for the process: its loaded code does not change when a file or a package does.
@cache
def _first_hash(path: Path) -> str:
    return source_hash(source_text(path.read_bytes()))


_first_version = cache(version)


@cache
def _hashes(sources: tuple[str, ...], imported: int) -> dict[str, str]:
    """Hashes of the sources' modules, by name; `imported` (a count) makes new imports a new cache entry."""
    return {name: _first_hash(path) for name, path in _imported(sources)}


def _imported(sources: Sequence[str]) -> list[tuple[str, Path]]:
    """Imported modules of the sources and their .py files, sorted by name."""
    found = []
    modules = sys.modules.copy()
    for name in sorted(name for name in modules if name.partition(".")[0] in sources):
        path = _python_file(getattr(modules[name], "__spec__", None))
        if path is not None:
            found.append((name, path))
    return found


def _python_file(spec: ModuleSpec | None) -> Path | None:
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin)
    return path if path.is_file() else None


def _gpus() -> list[str]:
    """Names of the GPUs that this process uses; of all the machine's while it uses none."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    texts = [file.read_text() for file in sorted(_GPU_FILES.glob("*/information"))]
    models = [re.search(r"^Model:\s*(.+)$", text, re.MULTILINE) for text in texts]
    return [model.group(1).strip() for model in models if model]
