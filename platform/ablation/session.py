"""What a command works on: a study at a profile, in a workspace, with a plan made from the store."""

from __future__ import annotations

import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from ablation import studies
from ablation.credentials import without_account, without_password
from ablation.errors import UserError
from ablation.options import words
from ablation.plan import Plan, make_plan
from ablation.resources import parse_overrides
from ablation.setting import Setting
from ablation.storage import Storage, storage_at
from ablation.store import Store
from ablation.store.database import NoStoreError
from ablation.studies import DEFAULT_STUDY
from ablation.study import Profile, Study
from ablation.workspace import Workspace

About = Literal["workspace", "study", "setting", "part"]
"""What a command is about, each with all before it: a workspace; a study, by its name alone; a study at a
profile with its options; some of its tables and seeds."""

STORE_VARIABLE = "ABLATION_STORE"
"""The environment variable that stands for --store, so that its password is in no list of processes."""

SLOW_S = 1.0
"""Seconds after which a person is told what takes so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Locations:
    """Where everything lies; None leaves a choice to the workspace.

    Attributes:
        workspace: ./runs and ./results when None.
        store: address of a PostgreSQL database; the workspace's own SQLite file when None.
        mlflow_uri: of a tracking server; the workspace's own file when None.
        storage: where trials keep their files, a shared folder or an fsspec URL; in the workspace when None.
    """

    workspace: Path | None = None
    store: str | None = None
    mlflow_uri: str | None = None
    storage: str | None = None

    @property
    def store_location(self) -> Path | str:
        """The store's file or address, as `Store.open` takes it; UserError for an address that is none."""
        if self.store is None:
            return Workspace.at(self.workspace).store_path
        return database_url(self.store).render_as_string(hide_password=False)

    def command(self, *words: str, about: About = "workspace") -> str:
        """An `ablation` command on these places, for a shell; passwords are left to the environment.

        Args:
            words: the command and its arguments.
            about: what of the selection the command takes.
        """
        return shlex.join(["ablation", *words, *self.as_typed(about), *self._places()])

    def as_typed(self, about: About) -> list[str]:
        """What was asked for but for the places, as words of a command line."""
        return []

    def _places(self) -> list[str]:
        workspace = Workspace.at(self.workspace)
        words = [] if workspace == Workspace.at(None) else ["--workspace", str(workspace.root)]
        if self.store is not None and self.store != os.environ.get(STORE_VARIABLE):
            words += ["--store", without_password(database_url(self.store))]
        if self.mlflow_uri is not None:
            words += ["--mlflow-uri", without_account(self.mlflow_uri)]
        return words if self.storage is None else [*words, "--storage", self.storage]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection(Locations):
    """What a person asked to work on, and where; None leaves a choice to the study or the profile.

    Attributes:
        options: an instance of the study's `options`; none given when None.
        tables: as typed, "3" or "table3".
        seeds: how many, counted from 0.
        resources: what trials hold instead of the profile's choice, as `resources.parse_overrides` reads.
    """

    study: str = DEFAULT_STUDY
    profile: str | None = None
    options: Any = None
    tables: Sequence[str] | None = None
    seeds: int | None = None
    resources: Sequence[str] = ()

    def as_typed(self, about: About) -> list[str]:
        """See `Locations.as_typed`."""
        depth = get_args(About).index(about)
        chosen = [] if depth < 1 or self.study == DEFAULT_STUDY else ["--study", self.study]
        if depth >= 2:
            chosen += [] if self.profile is None else ["--profile", self.profile]
            chosen += [] if self.options is None else words(self.options)
        if depth >= 3:
            chosen += [] if self.tables is None else ["--tables", *self.tables]
            chosen += [] if self.seeds is None else ["--seeds", str(self.seeds)]
        return chosen


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
        if isinstance(selection.store_location, Path) and not selection.store_location.exists():
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
        study, workspace = studies.load_study(selection.study), Workspace.at(selection.workspace)
        profile = _profile(study, selection.profile)
        setting = _prepared(profile, workspace, selection.options or study.options())
        _results(study, setting, workspace)  # a name that makes no folder fails before anything trains
        for notice in setting.notices:
            print(f"note: {notice}", file=sys.stderr)
        resources, seeds = parse_overrides(selection.resources), range(selection.seeds or profile.seeds)
        store = opened()
        plan = make_plan(study, setting, seeds, selection.tables, store, resources)
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

    def command(self, *words: str, about: About = "workspace") -> str:
        """See `Locations.command`."""
        return self.selection.command(*words, about=about)


def open_store(locations: Locations, *, read_only: bool) -> Store | None:
    """The store that is there; None where a look finds nothing. Artifacts lie in the workspace."""
    location = locations.store_location
    if read_only and isinstance(location, Path) and not location.exists():
        return None
    try:
        return Store.open(location, root=Workspace.at(locations.workspace).root, read_only=read_only)
    except NoStoreError:
        return None


def existing_store(locations: Locations) -> Store:
    """The store that is there, to be written beside its drivers.

    Raises:
        UserError: there is none, or one of another version, which only a driver brings up to date.
    """
    there = open_store(locations, read_only=True)
    if there is None:
        raise nothing_has_run(locations)
    there.close()
    return Store.open(locations.store_location, root=Workspace.at(locations.workspace).root)


def database_url(text: str) -> URL:
    """The address of a PostgreSQL database; UserError, which does not repeat it, for anything else."""
    with suppress(ArgumentError, ValueError):
        if (url := make_url(text)).get_backend_name() == "postgresql":
            return url
    raise UserError(
        "--store must be a PostgreSQL address, postgresql+psycopg://USER@HOST/DATABASE (or ABLATION_STORE, "
        "where --store is not given). Without one the store is a file in the workspace."
    )


def nothing_has_run(locations: Locations) -> UserError:
    """Why there is no store to look at."""
    where = str(Workspace.at(locations.workspace).root)
    if locations.store is not None:
        where = without_password(database_url(locations.store))
    return UserError(f"Nothing has run in {where} yet: `{locations.command('run', about='part')}` does.")


def _profile(study: Study, name: str | None) -> Profile:
    name = name or study.default_profile
    if name not in study.profiles:
        known = "\n".join(f"  {p.name:<12} {p.summary}" for p in study.profiles.values())
        raise UserError(f"There is no profile {name!r}. --profile is one of\n{known}")
    return study.profiles[name]


def _prepared(profile: Profile, workspace: Workspace, options: Any) -> Setting:
    try:
        with _said_when_slow("Preparing the data set (drawn or decoded once) ..."):
            return profile.prepare(workspace.root, options)
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
