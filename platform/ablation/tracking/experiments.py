"""The MLflow experiment of each study and profile. The store notes which one has the copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import unquote

from ablation.errors import UserError
from ablation.store import Store, TrialRow
from ablation.tracking.client import or_none

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

PROXY = "mlflow-artifacts:"
"""Artifact root of a server that stores artifacts for its clients."""


@dataclass
class Experiments:
    """The experiments of one tracking store that mirror a store's studies.

    Attributes:
        uri: the tracking URI, for messages.
        artifact_root: where experiments keep their files.
    """

    store: Store
    client: MlflowClient
    uri: str
    artifact_root: str
    _found: dict[tuple[str, str], Experiment] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        """Ids of the experiments found so far."""
        return [experiment.experiment_id for experiment in self._found.values()]

    def forget(self) -> None:
        """Looks every experiment up again at its next use: one may have been deleted."""
        self._found.clear()

    def find(self, study: str, profile: str) -> None:
        """Finds the experiment of a study and profile; the first time takes the one of its name or makes it.

        Raises:
            UserError: the copy lies in another tracking store, or the experiment keeps its files elsewhere.
        """
        known = self.store.experiment(study, profile)
        found = self._found.get((study, profile))
        if found is not None and _identity(found) == known:
            return
        found = self._by_identity(known, f"{study} {profile}") if known else self._by_name(study, profile)
        if not self.owns(found.artifact_location):
            raise UserError(
                f"Experiment '{found.name}' of the MLflow at {self.uri} keeps its files in "
                f"{found.artifact_location}, not in {self.artifact_root}. Rename the experiment or use "
                "another MLflow, then let `sync --rebuild` copy everything."
            )
        if known is None:
            self.store.set_experiment(study, profile, _identity(found))
        self._found[study, profile] = found

    def active_id(self, trial: TrialRow) -> str:
        """Id of the trial's experiment, which is restored if a person deleted it."""
        experiment = self._found[trial.study, trial.profile]
        if experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment.experiment_id)
            experiment = self.client.get_experiment(experiment.experiment_id)
            self._found[trial.study, trial.profile] = experiment
        return str(experiment.experiment_id)

    def owns(self, location: str) -> bool:
        """Whether files at a location are this mirror's to write and delete."""
        return unquote(location).startswith(unquote(f"{self.artifact_root}/"))

    def _by_identity(self, identity: str, copied: str) -> Experiment:
        found = or_none(partial(self.client.get_experiment, identity.partition("@")[0]))
        if found is None or _identity(found) != identity:
            raise UserError(
                f"'{copied}' was copied to another MLflow than {self.uri}. "
                f"The command sync with --rebuild copies everything anew to {self.uri}."
            )
        return found

    def _by_name(self, study: str, profile: str) -> Experiment:
        name = f"{study} {profile}"
        get: Callable[[], Experiment | None] = partial(self.client.get_experiment_by_name, name)
        if found := get():
            return found
        location = None if self.artifact_root == PROXY else f"{self.artifact_root}/{study}-{profile}"
        made = self.client.get_experiment(self.client.create_experiment(name, artifact_location=location))
        if not self.owns(made.artifact_location):
            self.client.delete_experiment(made.experiment_id)
            raise UserError(
                f"The MLflow server {self.uri} does not store artifacts for its clients. Start it with "
                "--serve-artifacts and --artifacts-destination."
            )
        return made


def _identity(experiment: Experiment) -> str:
    """Distinguishes an experiment from those of every other tracking store: "id@creation time in ms"."""
    return f"{experiment.experiment_id}@{experiment.creation_time}"
