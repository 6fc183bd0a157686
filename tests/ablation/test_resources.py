import pytest

from ablation.errors import UserError
from ablation.resources import ResourceOverride, Resources, overridden, parse_overrides, without_gpus

GB = 1 << 30


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"workers": 0}, "workers must be >= 1"),
        ({"cpus": -1}, "must be >= 0"),
        ({"cpus": 0}, "cpus or gpus > 0"),
        ({"memory": -1}, "must be >= 0"),
        ({"workers": 2, "gpus": 0.5}, "must be a whole number where workers > 1"),
        ({"gpus": 1.5}, "must be <= 1 or a whole number"),
    ],
)
def test_impossible_sizes_are_refused(values: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Resources(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "override"),
    [
        ("all=workers:8", ResourceOverride("all", {"workers": 8})),
        ("table8=gpus:0.5,cpus:4", ResourceOverride("table8", {"gpus": 0.5, "cpus": 4})),
        ("4/k=9=workers:2", ResourceOverride("4/k=9", {"workers": 2})),
        (
            "table7/+Imprs. (#sc=3, #ar=1) = gpus : 1",
            ResourceOverride("table7/+Imprs. (#sc=3, #ar=1)", {"gpus": 1}),
        ),
        ("012345678901=memory:1.5G", ResourceOverride("012345678901", {"memory": 3 * GB // 2})),
        ("all=memory:512MiB", ResourceOverride("all", {"memory": GB // 2})),
        ("all=memory:1000", ResourceOverride("all", {"memory": 1000})),
    ],
)
def test_an_override_is_read(text: str, override: ResourceOverride) -> None:
    assert parse_overrides([text]) == (override,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("workers:8", "must be WHERE=workers:N"),
        ("=workers:8", "must be WHERE=workers:N"),
        ("all=", "fields are workers, cpus, gpus and memory; got ''"),
        ("all=nodes:2", "got 'nodes'"),
        ("all=workers:two", "workers must be a number, got 'two'"),
        ("all=workers:1.5", "workers must be a number"),
        ("all=cpus:-1", "cpus must be >= 0, got '-1'"),
        ("all=cpus:nan", "cpus must be >= 0"),
        ("all=memory:16X", "memory must be a number, got '16X'"),
        ("all=memory:", "memory must be a number, got ''"),
    ],
)
def test_an_override_of_another_form_is_refused_with_what_is_allowed(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_overrides([text])


def test_the_most_specific_override_is_used_and_of_equal_ones_the_later() -> None:
    texts = [
        "aaaaaaaaaaaa=cpus:5",
        "table1/x=cpus:4",
        "table1=cpus:3,gpus:1",
        "table2=cpus:2,gpus:2",
        "all=cpus:1,gpus:0",
    ]
    overrides = parse_overrides(texts)
    for cpus, places in enumerate([{"table9"}, {"table2"}, {"table1"}, {"table1", "table1/x"}], start=1):
        found = overridden(None, places, overrides)
        assert found is not None and found.cpus == cpus
    everything = {"table1", "table2", "table1/x", "aaaaaaaaaaaa"}
    assert overridden(Resources(memory=7), everything, overrides) == Resources(1, 5, 2, 7)


def test_without_an_override_the_profiles_resources_are_kept() -> None:
    assert overridden(None, {"table1"}, parse_overrides(["table2=cpus:2"])) is None
    assert overridden(Resources(cpus=7), {"table1"}, ()) == Resources(cpus=7)


def test_an_override_must_set_gpus_where_the_profile_has_no_resources() -> None:
    with pytest.raises(UserError, match=r"add gpus:N \(gpus:0 for none\)"):
        overridden(None, {"table1"}, parse_overrides(["table1=memory:16G"]))


def test_contradictory_overrides_are_refused() -> None:
    with pytest.raises(UserError, match="--resources table1: gpus must be a whole number"):
        overridden(None, {"table1"}, parse_overrides(["all=gpus:0.5", "table1=workers:2"]))


def test_without_gpus_a_worker_keeps_a_cpu() -> None:
    assert without_gpus(Resources(8, 0, 1, GB)) == Resources(8, 1, 0, GB)
    assert without_gpus(Resources(1, 4, 1)) == Resources(1, 4, 0)
