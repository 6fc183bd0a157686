"""Finds a study by its name or its file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

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
        raise UserError(f"--study must be one of {known}, or a Python file; got {name!r}.")
    make: Callable[[], Study] = studies[name].load()
    return make()


def _study_of(file: Path) -> Study:
    if not file.is_file():
        raise UserError(f"--study: there is no file {file}.")
    if not file.stem.isidentifier():
        raise UserError(f"--study: Python cannot import a file named {file.name}; rename the file.")
    if (folder := str(file.parent)) not in sys.path:
        sys.path.insert(0, folder)
    module = import_module(file.stem)
    if module.__file__ is None or Path(module.__file__).resolve() != file:
        raise UserError(f"--study: another module {file.stem!r} is imported already; rename the file.")
    found = make() if callable(make := getattr(module, "study", None)) else None
    if not isinstance(found, Study):
        raise UserError(f"--study: {file} has no function `study` that returns a Study.")
    return replace(found, folder=file.parent)
