"""Options of a study as data: declared, read from text, named and written as words."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from ablation.metric import Metric
from ablation.options import NoOptions, Option, declared, given, named, option, without, words
from ablation.setting import PlainSetting
from ablation.study import Cell, Profile, Row, Study, Table, Variant


@dataclass(frozen=True)
class Options:
    images: Path | None = option("folder of images", metavar="DIR", names_data=True)
    max_steps: int | None = option("train at most N steps", metavar="N", least=1, label="{}steps")
    rate: float | None = option("learning rate", least=0)
    activation: Literal["tanh", "sigmoid"] | None = option("between layers")
    loud: bool | None = option("print more")


def _option(name: str) -> Option:
    return next(one for one in declared(Options) if one.name == name)


def test_a_field_says_how_its_flag_is_read() -> None:
    steps = _option("max_steps")
    assert (steps.flag, steps.kind, steps.metavar, steps.help) == (
        "--max-steps",
        int,
        "N",
        "train at most N steps",
    )
    assert _option("activation").choices == ("tanh", "sigmoid")
    assert [one.name for one in declared(Options) if one.names_data] == ["images"]
    assert declared(NoOptions) == ()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("images", "a b", Path.cwd() / "a b"),
        ("images", "/data/cells", Path("/data/cells")),
        ("max_steps", "1", 1),
        ("rate", "0.5", 0.5),
        ("activation", "tanh", "tanh"),
    ],
)
def test_a_text_becomes_a_value_of_the_fields_type(name: str, text: str, value: object) -> None:
    assert _option(name).parsed(text) == value


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("max_steps", "0", "must be a whole number >= 1, got '0'"),
        ("max_steps", "1.5", "must be a whole number >= 1"),
        ("rate", "nan", "must be a number >= 0, got 'nan'"),
        ("rate", "fast", "must be a number >= 0, got 'fast'"),
        ("activation", "relu", "must be one of tanh, sigmoid, got 'relu'"),
    ],
)
def test_a_text_that_is_no_value_is_refused_with_what_is_allowed(name: str, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _option(name).parsed(text)


def test_a_name_holds_what_was_given_but_for_the_data_set() -> None:
    assert named("quick", Options()) == "quick"
    assert named("quick", Options(images=Path("cells"))) == "quick"
    assert named("quick", Options(max_steps=90, rate=0.1)) == "quick-90steps-rate-0.1"


def test_what_the_profile_does_anyway_is_no_change() -> None:
    assert without(Options(max_steps=90, rate=0.1), max_steps=90, rate=0.2) == Options(rate=0.1)


def test_options_given_are_words_that_give_them_again() -> None:
    chosen = Options(Path("a b"), 90, 0.5, "tanh", loud=False)
    assert given(chosen) == {
        "images": Path("a b"),
        "max_steps": 90,
        "rate": 0.5,
        "activation": "tanh",
        "loud": False,
    }
    assert words(chosen) == [
        *("--images", "a b", "--max-steps", "90", "--rate", "0.5", "--activation", "tanh"),
        "--no-loud",
    ]


def test_a_field_that_the_command_line_cannot_read_is_refused_with_its_name() -> None:
    def refused(annotation: Any, default: Any) -> type:
        return dataclass(type("Wrong", (), {"__annotations__": {"it": annotation}, "it": default}))

    for annotation, default, said in (
        (int | None, 3, "Wrong.it must be declared as"),
        (int, option("x"), "Wrong.it must be of a type"),
        (int | str | None, option("x"), "Wrong.it must be of a type"),
        (list[int] | None, option("x"), "Wrong.it must be one of bool, int, float, str, Path"),
    ):
        with pytest.raises(TypeError, match=said):
            declared(refused(annotation, default))
    with pytest.raises(TypeError, match="must be a dataclass"):
        declared(int)


@dataclass(frozen=True)
class Training:
    max_steps: int = 1000
    rate: float = 0.1
    seed: int = 0


def test_options_of_a_plain_profile_replace_fields_of_its_trainings(tmp_path: Path) -> None:
    profile = Profile.plain(PlainSetting("quick"), "rows as written", seeds=1)
    as_written, shorter = (profile.prepare(tmp_path, o) for o in (Options(), Options(max_steps=90)))
    assert (as_written.profile, as_written.trial(Training(), 3)) == ("quick", Training(seed=3))
    assert (shorter.profile, shorter.trial(Training(), 3)) == ("quick-90steps", Training(90, seed=3))


@dataclass(frozen=True)
class Steps:
    max_steps: int | None = option("train at most N steps")


@dataclass(frozen=True)
class Depth:
    depth: int | None = option("layers")


@dataclass(frozen=True)
class Images:
    images: Path | None = option("folder of images", names_data=True)


@dataclass(frozen=True)
class Code:
    code: Path | None = option("a file that decides nothing of the data")


def test_a_plain_profile_takes_only_options_that_are_fields_of_every_training() -> None:
    cell = Cell(Variant(Training(), Training()), "AP")
    study = Study(
        name="paper",
        title="Paper",
        metrics=(Metric("AP"),),
        tables=(Table("table1", "Rows", (), ("AP",), (Row("row", (), (cell,)),)),),
        claims=(),
        profiles={"quick": Profile.plain(PlainSetting("quick"), "rows as written", seeds=1)},
        default_profile="quick",
        train=lambda request: iter(()),  # type: ignore[arg-type,return-value]
        options=Steps,
    )
    with pytest.raises(ValueError, match=r"'depth' .* table1, row 'row', has no such field.* own prepare"):
        replace(study, options=Depth)
    for options in (Images, Code):
        with pytest.raises(ValueError, match="names a path or data, so the profile needs its own prepare"):
            replace(study, options=options)


@dataclass(frozen=True)
class Places:
    where: Path | Literal["nowhere"] | None = option("where to start")


def test_a_path_may_be_a_word_instead_and_is_absolute_because_workers_have_another_folder() -> None:
    (one,) = declared(Places)
    assert one.parsed("nowhere") == "nowhere"
    assert one.parsed("a/b") == Path("a/b").absolute()
    with pytest.raises(ValueError, match="must be a path, got an empty text"):
        one.parsed("")
