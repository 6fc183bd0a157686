"""The source that workers import: shipped with the job where it is not installed.

A package that this process imports from a checkout is copied to every node of the cluster, and so is the
folder of a study file. An installed package is not copied: the nodes have it installed too.
"""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

OURS = "ablation"


class Code(NamedTuple):
    """What trials import.

    Attributes:
        packages: names of top-level packages, as `Study.sources`.
        folder: of a study file, see `Study.folder`.
    """

    packages: tuple[str, ...] = ()
    folder: Path | None = None

    def checkouts(self) -> dict[str, Path]:
        """The folders of the packages that an import would take from a checkout, by name."""
        found = {name: folder_of(name) for name in dict.fromkeys([OURS, *self.packages])}
        return {name: folder for name, folder in found.items() if folder and not _is_installed(folder)}

    def search_path(self) -> list[Path]:
        """The folders that hold them, for the processes of this machine."""
        parents = [folder.parent for folder in self.checkouts().values()]
        return list(dict.fromkeys([*parents, *([self.folder] if self.folder else [])]))

    def copy_to(self, target: Path) -> bool:
        """Copies what has to be shipped into an empty folder; False where there is nothing to ship.

        Of a study's folder these are its modules and packages, but for names that the platform uses.
        """
        for name, folder in self.checkouts().items():
            _copy(folder, target / name)
        for path in _python_of(self.folder):
            if not (target / path.name).exists():
                _copy(path, target / path.name)
        return any(target.iterdir())


NO_CODE = Code()
"""The platform alone."""


def folder_of(package: str) -> Path | None:
    """Where an import of a package would find it; None where it would not. Imports nothing."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    locations = list(spec.submodule_search_locations or []) if spec else []
    return Path(locations[0]) if locations else None


def _is_installed(folder: Path) -> bool:
    return any(folder.is_relative_to(sysconfig.get_path(kind)) for kind in ("purelib", "platlib"))


def _python_of(folder: Path | None) -> Iterator[Path]:
    """The modules and packages that lie in a folder."""
    if folder:
        yield from folder.glob("*.py")
        yield from (file.parent for file in folder.glob("*/__init__.py"))


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=_ignored)
    else:
        shutil.copy(source, target)


def _ignored(folder: str, names: Sequence[str]) -> Iterable[str]:
    return [name for name in names if name == "__pycache__" or name.startswith(".")]
