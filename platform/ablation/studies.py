"""Finds a study by its name or its file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from ablation.errors import UserError
from ablation.study import Study

DEFAULT_STUDY = "atss"
"""The study that a command is about where --study names none."""

GROUP = "ablation.studies"
"""Entry points of packages that bring a study: a name, and a function without arguments that returns it."""


def load_study(name: str) -> Study:
    """The installed study of that name, or the study of a Python file.

    A file `NAME.py` has a function `study` without arguments that returns it. From then on this process
    imports from the file's folder too, and so do the processes of trials.

    Raises:
        UserError: there is no such study.
    """
    if name.endswith(".py"):
        return _study_of(Path(name).resolve())
    studies = {point.name: point for point in entry_points(group=GROUP)}
    if name not in studies:
        known = ", ".join(sorted(studies)) or "(none is installed)"
        near = get_close_matches(name, studies, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"--study must be one of {known}, or a Python file; got {name!r}.{meant}")
    make: Callable[[], Study] = studies[name].load()
    return make()


def _imported(file: Path) -> ModuleType:
    """The module of a file; UserError for what a person mistypes, an import or the syntax."""
    try:
        return import_module(file.stem)
    except SyntaxError as error:
        raise UserError(f"--study: {error.filename}, line {error.lineno}: {error.msg}.") from error
    except ImportError as error:
        raise UserError(f"--study: {file} cannot be imported: {error}.") from error


def _study_of(file: Path) -> Study:
    if not file.is_file():
        raise UserError(f"--study: there is no file {file}.")
    if not file.stem.isidentifier():
        raise UserError(f"--study: Python cannot import a file named {file.name}; rename the file.")
    if (folder := str(file.parent)) not in sys.path:
        sys.path.insert(0, folder)
    module = _imported(file)
    if module.__file__ is None or Path(module.__file__).resolve() != file:
        raise UserError(f"--study: another module {file.stem!r} is imported already; rename the file.")
    found = make() if callable(make := getattr(module, "study", None)) else None
    if not isinstance(found, Study):
        raise UserError(f"--study: {file} has no function `study` that returns a Study.")
    return replace(found, folder=file.parent)
