from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablation.fingerprint import canonical_json, evaluation_key, key
from detector.config import ATSS, Data, Detector, MaxIoU, MultiScale, ScalePass, Schedule, SpatialScale, Trial


@dataclass(frozen=True, slots=True)
class Inner:
    radius: float | None = None


@dataclass(frozen=True, slots=True)
class Other:
    radius: float | None = None


@dataclass(frozen=True, slots=True)
class Config:
    number: float = 8.0
    count: int = 3
    flag: bool = False
    name: str = "a"
    mode: Literal["x", "y", 1] = "x"
    sizes: tuple[float, ...] = (1.0,)
    pair: tuple[int, bool] = (1, True)
    choice: Inner | Other = Inner()
    either: int | float = 1
    maybe: str | None = None


@dataclass(frozen=True)
class Loose:
    anything: Any = None
    call: Callable[[], int] | None = None
    path: Path | None = None


@dataclass(frozen=True)
class Unresolvable:
    field: NoSuchName = 1  # type: ignore[name-defined]  # noqa: F821


def test_the_canonical_json_of_a_small_config_is_known() -> None:
    assert canonical_json(Inner(1.5)) == '{"__type__":"Inner","radius":1.5}'
    assert key(Inner(1.5)) == "79e437c2be9f"  # sha256sum of that text


def test_an_integer_in_a_float_field_is_the_same_config() -> None:
    assert key(Config(number=8)) == key(Config(number=8.0))
    assert key(Config(sizes=(1, 2))) == key(Config(sizes=(1.0, 2.0)))
    assert key(Config(choice=Inner(1))) == key(Config(choice=Inner(1.0)))
    assert key(Config(either=8)) == key(Config(either=8.0))
    assert key(Config(number=-0.0)) == key(Config(number=0.0))


def test_an_integral_float_in_an_integer_field_is_that_integer() -> None:
    assert canonical_json(Config(count=3.0)) == canonical_json(Config(count=3))  # type: ignore[arg-type]


def test_types_with_equal_fields_have_different_keys() -> None:
    assert key(Config(choice=Inner(1.0))) != key(Config(choice=Other(1.0)))
    assert key(Inner(1.0)) != key(Other(1.0))


def test_none_differs_from_a_number() -> None:
    assert key(Inner(None)) != key(Inner(0.0))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"count": 2.5}, "Config.count"),
        ({"count": True}, "Config.count"),
        ({"flag": 1}, "Config.flag"),
        ({"number": True}, "Config.number"),
        ({"number": float("nan")}, "Config.number"),
        ({"number": float("inf")}, "Config.number"),
        ({"number": "8"}, "Config.number"),
        ({"number": None}, "Config.number"),
        ({"name": 3}, "Config.name"),
        ({"name": Path("x")}, "Config.name"),
        ({"mode": "z"}, "Config.mode"),
        ({"mode": True}, "Config.mode"),
        ({"sizes": [1.0]}, "Config.sizes"),
        ({"sizes": (1.0, "a")}, "Config.sizes[1]"),
        ({"pair": (1,)}, "Config.pair"),
        ({"pair": (1, 1)}, "Config.pair[1]"),
        ({"choice": Config()}, "Config.choice"),
        ({"choice": Inner(float("nan"))}, "Config.choice.radius"),
        ({"choice": Inner}, "Config.choice"),
        ({"maybe": {"a": 1}}, "Config.maybe"),
        ({"maybe": {1}}, "Config.maybe"),
    ],
)
def test_unstable_or_wrong_values_are_refused_with_their_path(change: dict[str, Any], place: str) -> None:
    with pytest.raises(TypeError) as caught:
        canonical_json(replace(Config(), **change))
    assert str(caught.value).startswith(place + ":")


@pytest.mark.parametrize("config", [Loose(), Loose(anything=3), Loose(call=lambda: 1), Unresolvable()])
def test_fields_without_a_plain_annotation_are_refused(config: Any) -> None:
    with pytest.raises(TypeError):
        canonical_json(config)


@pytest.mark.parametrize("value", [Config, {"a": 1}, 3, None, (Inner(),)])
def test_only_a_dataclass_is_a_config(value: Any) -> None:
    with pytest.raises(TypeError, match="must be a dataclass"):
        canonical_json(value)


def test_an_evaluation_key_depends_on_the_trial_and_on_the_evaluation() -> None:
    keys = {
        evaluation_key(trial, canonical_json(config))
        for trial in ("a" * 12, "b" * 12)
        for config in (Inner(), Other())
    }
    assert len(keys) == 4


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_survives_exactly(number: float) -> None:
    assert json.loads(canonical_json(Inner(number)))["radius"] == number


@given(st.integers(-(2**53), 2**53), st.text(max_size=20), st.lists(st.floats(-1e9, 1e9), max_size=4))
def test_equal_configs_have_equal_keys_and_others_differ(n: int, text: str, sizes: list[float]) -> None:
    one = Config(count=n, name=text, sizes=tuple(sizes))
    assert key(one) == key(Config(count=n, name=text, sizes=tuple(sizes)))
    assert key(one) != key(replace(one, count=n + 1))
    assert key(one) != key(replace(one, name=text + "x"))


def test_the_detectors_config_has_a_key_and_every_choice_changes_it() -> None:
    data = Data("0" * 12)
    base = Trial(Detector(), Schedule(), data, seed=0)
    others = [
        replace(base, seed=1),
        replace(base, recipe_version=base.recipe_version + 1),
        replace(base, data=replace(data, fingerprint="1" * 12)),
        *(
            replace(base, detector=Detector(assigner=a))
            for a in (ATSS(), ATSS(7), SpatialScale(), MaxIoU(0.6))
        ),
    ]
    assert len({key(config) for config in [base, *others]}) == len(others) + 1
    canonical_json(MultiScale(passes=(ScalePass(), ScalePass(0.5, min_side=0.1))))


def test_every_field_is_hashed() -> None:
    written = json.loads(canonical_json(Config()))
    assert set(written) == {"__type__", *(f.name for f in fields(Config))}
    with pytest.raises(FrozenInstanceError):
        Config().count = 4  # type: ignore[misc]
