"""What a command works on: a study at a profile, in a workspace, with a plan made from the store."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path

from ablation.errors import UserError
from ablation.plan import Plan, make_plan
from ablation.store import Store
from ablation.study import Study
from ablation.workspace import Workspace

SPLIT_PATHS = ("train_annotations", "train_images", "val_annotations", "val_images")
"""The four paths that together name a data set; an option each."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What a person asked to work on; None leaves a choice to the study or the profile.

    Attributes:
        tables: as typed, "3" or "table3".
        seeds: how many, counted from 0.
        data: directory of a COCO-format data set.
        split_paths: instead of `data`, by the names of `SPLIT_PATHS`.
    """

    study: str = "atss"
    profile: str | None = None
    tables: Sequence[str] | None = None
    seeds: int | None = None
    data: Path | None = None
    split_paths: Mapping[str, Path] = field(default_factory=dict)
    workspace: Path | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """A study, where its runs lie, and what there is to do."""

    study: Study
    workspace: Workspace
    store: Store
    plan: Plan

    @staticmethod
    def open(selection: Selection) -> Session:
        """Prepare the data set, open the store, plan.

        Raises:
            UserError: an unknown study, profile or table; a data set or a store that cannot be used.
        """
        study = load_study(selection.study)
        name = selection.profile or study.default_profile
        if name not in study.profiles:
            raise UserError(f"--profile must be one of {', '.join(study.profiles)}; got {name!r}.")
        profile = study.profiles[name]
        workspace = Workspace.at(selection.workspace)
        workspace.create()
        setting = profile.prepare(workspace.root, _data(selection))
        for notice in setting.notices:
            print(f"note: {notice}", file=sys.stderr)
        store = Store.open(workspace.store_path)
        seeds = range(selection.seeds or profile.seeds)
        plan = make_plan(study, setting, seeds, _table_ids(selection.tables), store)
        return Session(study, workspace, store, plan)

    def replanned(self) -> Session:
        """The same, with the plan made anew from what the store holds now."""
        plan = make_plan(self.study, self.plan.setting, self.plan.seeds, self.plan.table_ids, self.store)
        return Session(self.study, self.workspace, self.store, plan)

    @property
    def results(self) -> Path:
        """Where this session's tables go. Another data set than the profile's own has a folder of its own."""
        setting = self.plan.setting
        own = setting.data_name == self.study.default_profile
        name = setting.profile if own else f"{setting.profile}-{setting.data_name}"
        return self.workspace.results_directory(self.study.name, name)


def load_study(name: str) -> Study:
    """The installed study of that name (entry points of the group "ablation.studies")."""
    studies = {point.name: point for point in entry_points(group="ablation.studies")}
    if name not in studies:
        known = ", ".join(sorted(studies)) or "(none is installed)"
        raise UserError(f"--study must be one of {known}; got {name!r}.")
    make: Callable[[], Study] = studies[name].load()
    return make()


def _data(selection: Selection) -> Mapping[str, Path] | None:
    """What was given as data set: nothing, a directory, or all four paths."""
    given, directory = selection.split_paths, selection.data
    flags = {name: "--" + name.replace("_", "-") for name in SPLIT_PATHS}
    if directory and given:
        raise UserError(f"Give --data, or the four of {', '.join(flags.values())}; not both.")
    missing = [flag for name, flag in flags.items() if name not in given]
    if given and missing:
        raise UserError(f"A data set named by its files takes all four; missing: {', '.join(missing)}.")
    return {"directory": directory} if directory else given or None


def _table_ids(tables: Sequence[str] | None) -> list[str] | None:
    return None if tables is None else [f"table{t}" if t.isdigit() else t for t in tables]
