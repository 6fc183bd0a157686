"""Where an attempt runs and with which code, gathered in the process that trains, and what they are today.

Cheap (milliseconds), and imports nothing: a library that the process has not loaded is not loaded for its
sake. `describe` is what an attempt keeps; `staleness` compares it with what the other functions find now.
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

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "pycocotools")
"""Installed packages whose version can decide a number of a result."""

_GPU_FILES = Path("/proc/driver/nvidia/gpus")


def describe(sources: Sequence[str]) -> dict[str, Any]:
    """What this process is and what it has imported, as JSON values.

    Args:
        sources: names of the packages whose modules decide a result, as `Study.sources`.

    Returns:
        `host`, `gpus` (names), `python`, `packages` (versions of `PACKAGES`, None when absent) and
        `modules`: `source_hash` by name of every module of the sources that is imported by now. A
        module edited since keeps the hash that it had when it was first described here.
    """
    return {
        "host": socket.gethostname(),
        "gpus": _gpus(),
        "python": platform.python_version(),
        "packages": _first_versions(),
        "modules": _hashes(tuple(sources), len(sys.modules)),
    }


def package_versions() -> dict[str, str | None]:
    """The installed version of each of `PACKAGES`, None when absent."""
    return {name: version(name) for name in PACKAGES}


def version(package: str) -> str | None:
    """The installed version of a package, from its metadata; None when it is absent."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def source_file(module: str) -> Path | None:
    """The .py file that an import of the module would run now; None where there is none. Imports nothing."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # in sys.modules without a spec, as __main__
        return None
    for name in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        # By its last name alone: with the full one, a folder without __init__.py looks its parents up.
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return _python_file(spec)


def source_text(content: bytes) -> str:
    """A source file as text with \\n line ends, whatever ends they have in this checkout."""
    return content.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")


def source_hash(text: str) -> str:
    """SHA-256, as hex digits, of what `source_text` gives."""
    return hashlib.sha256(text.encode()).hexdigest()


# Both once a process: what is in memory does not change when a file or a package does.
@cache
def _first_hash(path: Path) -> str:
    return source_hash(source_text(path.read_bytes()))


_first_versions = cache(package_versions)


@cache
def _hashes(sources: tuple[str, ...], imported: int) -> dict[str, str]:
    """Of the sources' modules, by name; looked for again when another number of modules is imported."""
    return {name: _first_hash(path) for name, path in _imported(sources)}


def _imported(sources: Sequence[str]) -> list[tuple[str, Path]]:
    """Modules of the sources in memory and their files, by name; those without a .py file are left out."""
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
    """Names of the GPUs: those that this process uses where it does, else the machine's."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    texts = [file.read_text() for file in sorted(_GPU_FILES.glob("*/information"))]
    models = [re.search(r"^Model:\s*(.+)$", text, re.MULTILINE) for text in texts]
    return [model.group(1).strip() for model in models if model]
