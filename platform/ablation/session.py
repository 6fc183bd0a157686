"""What a command works on: a study at a profile, in a workspace, with a plan made from the store."""

from __future__ import annotations

import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from ablation.credentials import without_password
from ablation.errors import UserError
from ablation.plan import Plan, make_plan
from ablation.resources import parse_overrides
from ablation.storage import Storage, storage_at
from ablation.store import Store
from ablation.store.database import NoStoreError
from ablation.study import Overrides, Profile, Setting, Study
from ablation.workspace import Workspace

SPLIT_PATHS = ("train_annotations", "train_images", "val_annotations", "val_images")
"""The four paths that together name a data set; an option each."""

SLOW_S = 1.0
"""Seconds after which a person is told what takes so long."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What a person asked to work on; None leaves a choice to the study or the profile.

    Attributes:
        tables: as typed, "3" or "table3".
        seeds: how many, counted from 0.
        data: directory of a COCO-format data set.
        split_paths: instead of `data`, by the names of `SPLIT_PATHS`.
        overrides: what to change of the profile.
        store: address of a PostgreSQL database; the workspace's own SQLite file when None.
        mlflow_uri: of a tracking server; the workspace's own file when None.
        storage: where trials keep their files, a shared folder or an fsspec URL; in the workspace when None.
        resources: what trials hold instead of the profile's choice, as `resources.parse_overrides` reads.
    """

    study: str = "atss"
    profile: str | None = None
    tables: Sequence[str] | None = None
    seeds: int | None = None
    data: Path | None = None
    split_paths: Mapping[str, Path] = field(default_factory=dict)
    overrides: Overrides = field(default_factory=Overrides)
    workspace: Path | None = None
    store: str | None = None
    mlflow_uri: str | None = None
    storage: str | None = None
    resources: Sequence[str] = ()

    def as_options(self) -> list[str]:
        """The options that name the study, the profile and the data set."""
        named = {"profile": self.profile, "data": self.data, **self.split_paths, **asdict(self.overrides)}
        given = {name: value for name, value in named.items() if value is not None}
        if self.study != Selection().study:
            given["study"] = self.study
        return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]

    @property
    def place(self) -> Path | str:
        """Where the store is, as `Store.open` takes it; UserError for an address that is none."""
        if self.store is None:
            return Workspace.at(self.workspace).store_path
        return database_url(self.store).render_as_string(hide_password=False)


@dataclass(frozen=True, slots=True)
class Session:
    """A study, where its runs lie, and what there is to do.

    Attributes:
        opened: the store; None for a look at a workspace where nothing has run.
        selection: what was asked for.
    """

    study: Study
    workspace: Workspace
    opened: Store | None
    plan: Plan
    selection: Selection = field(default_factory=Selection)

    @staticmethod
    def open(selection: Selection, *, writes: bool) -> Session:
        """Prepare the data set, open the store, plan.

        Args:
            selection: what to work on.
            writes: the caller is a driver that has made the workspace. Otherwise nothing is written but
                the cache: the data set's fingerprint is part of every key.

        Raises:
            UserError: an unknown study, profile or table; a data set or a store that cannot be used; an
                override that the profile cannot take.
        """
        return Session._planned(selection, lambda: open_store(selection, read_only=not writes))

    @staticmethod
    def of_results(selection: Selection) -> Session:
        """A session that writes nothing, on what has run: where nothing has, no data set is prepared.

        Raises:
            UserError: see `open`; or nothing has run.
        """
        if isinstance(selection.place, Path) and not selection.place.exists():
            raise nothing_has_run(selection)
        return Session.open(selection, writes=False)

    @staticmethod
    def beside_drivers(selection: Selection) -> Session:
        """A session that writes into a store that is there, whose drivers may be at work.

        Raises:
            UserError: see `open` and `existing_store`.
        """
        return Session._planned(selection, lambda: existing_store(selection))

    @staticmethod
    def _planned(selection: Selection, opened: Callable[[], Store | None]) -> Session:
        study, workspace = load_study(selection.study), Workspace.at(selection.workspace)
        profile = _profile(study, selection.profile)
        data = named_data(selection.data, selection.split_paths)
        setting = _prepared(profile, workspace, data, selection.overrides)
        _results(study, setting, workspace)  # a name that makes no folder fails before anything trains
        for notice in setting.notices:
            print(f"note: {notice}", file=sys.stderr)
        resources, seeds = parse_overrides(selection.resources), range(selection.seeds or profile.seeds)
        store = opened()
        plan = make_plan(study, setting, seeds, _table_ids(selection.tables), store, resources)
        return Session(study, workspace, store, plan, selection)

    @property
    def store(self) -> Store:
        """The store; UserError when there is none to look at."""
        if self.opened is None:
            raise nothing_has_run(self.selection)
        return self.opened

    def replanned(self) -> Session:
        """The same, with the plan made anew from what the store holds now."""
        before, store = self.plan, self.opened or open_store(self.selection, read_only=True)
        resources = parse_overrides(self.selection.resources)
        plan = make_plan(self.study, before.setting, before.seeds, before.table_ids, store, resources)
        return replace(self, opened=store, plan=plan)

    @property
    def storage(self) -> Storage:
        """Where trials keep their files; UserError for a place that cannot be used."""
        return storage_at(self.selection.storage or self.workspace.artifacts)

    @property
    def results(self) -> Path:
        """Where this session's tables go."""
        return _results(self.study, self.plan.setting, self.workspace)

    @property
    def ui_hint(self) -> str:
        """The command that shows this workspace in MLflow."""
        in_checkout = self.workspace == Workspace.at(None) and Path("Makefile").is_file()
        return "make ui" if in_checkout else self.command("ui")

    def command(self, *words: str, study: bool = False) -> str:
        """An `ablation` command on this workspace, as a person types it.

        Args:
            words: the command and its arguments.
            study: whether it is about a study in particular, which has to be named then.
        """
        given = [] if self.workspace == Workspace.at(None) else ["--workspace", str(self.workspace.root)]
        if study:
            given += self.selection.as_options()
        if self.selection.store is not None:
            given += ["--store", without_password(database_url(self.selection.store))]
        return shlex.join(["ablation", *words, *given])


def open_store(selection: Selection, *, read_only: bool) -> Store | None:
    """The selection's store; None where a look finds nothing. Artifacts lie in the workspace."""
    place = selection.place
    if read_only and isinstance(place, Path) and not place.exists():
        return None
    try:
        return Store.open(place, root=Workspace.at(selection.workspace).root, read_only=read_only)
    except NoStoreError:
        return None


def existing_store(selection: Selection) -> Store:
    """The selection's store, to be written beside its drivers.

    Raises:
        UserError: there is none, or one of another version, which only a driver brings up to date.
    """
    there = open_store(selection, read_only=True)
    if there is None:
        raise nothing_has_run(selection)
    there.close()
    return Store.open(selection.place, root=Workspace.at(selection.workspace).root)


def database_url(text: str) -> URL:
    """The address of a PostgreSQL database; UserError, which does not repeat it, for anything else."""
    with suppress(ArgumentError, ValueError):
        if (url := make_url(text)).get_backend_name() == "postgresql":
            return url
    raise UserError(
        "--store must be a PostgreSQL address, postgresql+psycopg://USER@HOST/DATABASE (or ABLATION_STORE, "
        "where --store is not given). Without one the store is a file in the workspace."
    )


def load_study(name: str) -> Study:
    """The installed study of that name (entry points of the group "ablation.studies"), or that of a file.

    A file `NAME.py` has a function `study` without arguments that returns it; this process and those of the
    trials then import from its folder too.
    """
    if name.endswith(".py"):
        return _study_of(Path(name).resolve())
    studies = {point.name: point for point in entry_points(group="ablation.studies")}
    if name not in studies:
        known = ", ".join(sorted(studies)) or "(none is installed)"
        raise UserError(f"--study must be one of {known}, or a Python file; got {name!r}.")
    make: Callable[[], Study] = studies[name].load()
    return make()


def _study_of(file: Path) -> Study:
    if not file.is_file():
        raise UserError(f"--study: there is no file {file}.")
    if not file.stem.isidentifier():
        raise UserError(f"--study: Python cannot import a file named {file.name}; call it otherwise.")
    if (folder := str(file.parent)) not in sys.path:
        sys.path.insert(0, folder)
    module = import_module(file.stem)
    if module.__file__ is None or Path(module.__file__).resolve() != file:
        raise UserError(
            f"--study: Python knows another module {file.stem!r} already; call the file otherwise."
        )
    found = make() if callable(make := getattr(module, "study", None)) else None
    if not isinstance(found, Study):
        raise UserError(f"--study: {file} has no function `study` that returns a Study.")
    return replace(found, folder=file.parent)


def nothing_has_run(selection: Selection) -> UserError:
    """Why there is no store to look at."""
    where = str(Workspace.at(selection.workspace).root)
    if selection.store is not None:
        where = without_password(database_url(selection.store))
    return UserError(f"Nothing has run in {where} yet: `ablation run` does.")


def named_data(directory: Path | None, split_paths: Mapping[str, Path]) -> Mapping[str, Path] | None:
    """The data set given: a directory, all four of `SPLIT_PATHS`, or None; a UserError for a mixture."""
    flags = {name: "--" + name.replace("_", "-") for name in SPLIT_PATHS}
    if directory and split_paths:
        raise UserError(f"Give a folder, or the four of {', '.join(flags.values())}; not both.")
    missing = [flag for name, flag in flags.items() if name not in split_paths]
    if split_paths and missing:
        raise UserError(f"A data set named by its files takes all four; missing: {', '.join(missing)}.")
    return {"directory": directory} if directory else split_paths or None


def _profile(study: Study, name: str | None) -> Profile:
    name = name or study.default_profile
    if name not in study.profiles:
        known = "\n".join(f"  {p.name:<12} {p.summary}" for p in study.profiles.values())
        raise UserError(f"There is no profile {name!r}. --profile is one of\n{known}")
    return study.profiles[name]


def _prepared(
    profile: Profile, workspace: Workspace, data: Mapping[str, Path] | None, overrides: Overrides
) -> Setting:
    try:
        with _said_when_slow("Preparing the data set (drawn or decoded once) ..."):
            return profile.prepare(workspace.root, data, overrides)
    except OSError as error:
        raise UserError(
            f"The data set cannot be prepared: {error.strerror or error} "
            f"({error.filename or workspace.cache})."
        ) from error


@contextmanager
def _said_when_slow(text: str) -> Iterator[None]:
    """Tells a person what is being done, if it takes long enough to wonder."""
    timer = threading.Timer(SLOW_S, print, [text], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _results(study: Study, setting: Setting, workspace: Workspace) -> Path:
    """A folder for each profile, and under it for each data set that is not the profile's own."""
    name = setting.profile if setting.own_data is None else f"{setting.profile}-{setting.own_data}"
    return workspace.results_directory(study.name, name)


def _table_ids(tables: Sequence[str] | None) -> list[str] | None:
    return None if tables is None else [f"table{t}" if t.isdigit() else t for t in tables]
