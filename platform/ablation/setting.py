"""A profile with a data set and options: how a row of a paper becomes a trial that runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ablation.metric import SeedNoise
from ablation.resources import Resources


def data_id(setting: Setting) -> str:
    """What tells a setting's data set from all others: two of a user's may have one name."""
    return setting.own_data or setting.data_name


class Setting(Protocol):
    """A profile bound to a workspace and a data set: how a paper's row becomes a trial that runs.

    Attributes:
        profile: names the profile and what the user changed of it ("coco-90its"), no other combination
            likewise: part of folder names, of the store and of MLflow's experiments.
        at_paper_scale: whether nothing is smaller than in the paper, so that a cell's tolerance applies.
        data_name: the data set's name, for people.
        own_data: names the user's data set in folder names, no other data set likewise; None when the
            data set is the profile's own. Tables of different data sets never mix.
        seed_noise: what is assumed where a comparison has one seed, by name of the metric; a metric that
            is not in it has an unknown spread.
        exclusive_gpus: whether each worker holds a GPU of its own, where there are GPUs; else trials share
            them.
        caption: one sentence for table captions: data, sizes, schedule, precision.
        notices: what a person should know before starting (counted repairs, precision fallback).
        context: handed to the train function unhashed (paths, intervals); picklable.
    """

    @property
    def profile(self) -> str:  # noqa: D102
        ...
    @property
    def at_paper_scale(self) -> bool:  # noqa: D102
        ...
    @property
    def data_name(self) -> str:  # noqa: D102
        ...
    @property
    def own_data(self) -> str | None:  # noqa: D102
        ...
    @property
    def seed_noise(self) -> Mapping[str, SeedNoise]:  # noqa: D102
        ...
    @property
    def exclusive_gpus(self) -> bool:  # noqa: D102
        ...
    @property
    def caption(self) -> str:  # noqa: D102
        ...
    @property
    def notices(self) -> Sequence[str]:  # noqa: D102
        ...
    @property
    def context(self) -> Any:  # noqa: D102
        ...

    def trial(self, training: Any, seed: int) -> Any:
        """The resolved trial config of a row's training at that seed."""
        ...

    def evaluation(self, evaluation: Any) -> Any:
        """The resolved evaluation config."""
        ...

    def resources(self, trial: Any) -> Resources | None:
        """What a resolved trial config needs; None leaves it to the machine (one worker, a fair share)."""
        ...

    def cost(self, trial: Any, evaluations: Sequence[Any]) -> float:
        """Work of a resolved trial and its evaluations, in units of one setting: the longest start first."""
        ...


@dataclass(frozen=True)
class PlainSetting:
    """A `Setting` for rows that are trained as they are written: a study of one's own starts with it.

    A training is a frozen dataclass with a field `seed`, and the evaluations are as they are.

    Attributes:
        changes: what a user changed, by the name of the training's field.
    """

    profile: str
    caption: str = ""
    data_name: str = "its own"
    notices: tuple[str, ...] = ()
    context: Any = None
    own_data: str | None = None
    seed_noise: Mapping[str, SeedNoise] = field(default_factory=dict)
    at_paper_scale: bool = False
    exclusive_gpus: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)

    def trial(self, training: Any, seed: int) -> Any:
        """The training with its seed and the user's changes."""
        return replace(training, seed=seed, **self.changes)

    def evaluation(self, evaluation: Any) -> Any:
        """As it is."""
        return evaluation

    def resources(self, trial: Any) -> Resources | None:
        """A fair share of the machine."""
        return None

    def cost(self, trial: Any, evaluations: Sequence[Any]) -> float:
        """All trainings take equally long; evaluations count for nothing."""
        return 1.0
