"""Rules about the tree that no other tool checks."""

import ast
import multiprocessing
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _sources(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    """Names of Python files below the root, and what they hold."""
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield file.relative_to(ROOT).as_posix(), ast.parse(file.read_text())


def _imports(tree: ast.Module) -> Iterator[str]:
    """What import statements name, wherever they stand in a file: modules, and names out of modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


# --- tests ---------------------------------------------------------------------------------------------


def test_a_test_imports_other_tests_only_from_support() -> None:
    found = {
        f"{name} imports {module}"
        for name, tree in _sources("tests")
        for module in _imports(tree)
        if module.split(".")[0] in ("tests", "conftest") and not module.startswith("tests.support")
    }
    assert found == set()


def test_fixtures_of_several_files_stand_in_a_conftest() -> None:
    found = [
        path.name for path in (ROOT / "tests/support").glob("*.py") if "@pytest.fixture" in path.read_text()
    ]
    assert found == []


def test_every_test_checks_something() -> None:
    found = [
        f"{name}:{node.lineno} {node.name}"
        for name, tree in _sources("tests")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not _checks(node)
    ]
    assert found == []


def _checks(test: ast.FunctionDef) -> bool:
    """Whether a test has an assertion, expects an error, or calls a function that by its name asserts."""
    calls = [ast.unparse(node.func) for node in ast.walk(test) if isinstance(node, ast.Call)]
    words = ("assert", "raises", "warns", "validate")
    return any(isinstance(node, ast.Assert) for node in ast.walk(test)) or any(
        word in call for call in calls for word in words
    )


@pytest.mark.parametrize(
    "start",
    [
        lambda: subprocess.run(["true"]),
        lambda: os.posix_spawn("/bin/true", ["true"], {}),
        lambda: multiprocessing.get_context("spawn").Process(target=print).start(),
        lambda: multiprocessing.get_context("fork").Process(target=print).start(),
    ],
)
def test_a_test_without_a_marker_starts_no_process(start: Callable[[], None]) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"starts a process \(.*\). Mark it @pytest.mark.process"):
        start()


# --- sizes ---------------------------------------------------------------------------------------------

OURS = ("platform", "detector", "experiments", "dashboards", "benchmarks", "tests")
DECLARATIONS = {"platform/ablation/study.py"}
"""Files that hold what others declare with, and may be long."""
TOO_LONG: set[str] = set()
"""Files of the platform with over 400 lines. Take one out when it has become shorter; add none."""


def test_no_function_has_more_than_60_lines() -> None:
    found = [
        f"{name}:{node.lineno} {node.name}"
        for name, tree in _sources(*OURS)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert found == []


def test_no_file_of_the_platform_has_more_than_400_lines() -> None:
    files = {name for name, _ in _sources("platform") if len((ROOT / name).read_text().splitlines()) > 400}
    assert files - DECLARATIONS == TOO_LONG


# --- who imports whom ----------------------------------------------------------------------------------

ROOMS: dict[str, set[frozenset[str]]] = {
    "platform/ablation": set(),
    "detector": set(),
    "experiments": set(),
}
"""By package, pairs of rooms that import each other. Take one out when its circle is gone; add none."""


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_do_not_import_each_other_in_a_circle(package: str) -> None:
    edges = _edges(package)
    reached = {room: _reached(room, edges) for room in edges}
    circles = {frozenset((a, b)) for a in edges for b in reached[a] - {a} if a in reached[b]}
    assert circles == ROOMS[package]


def test_the_page_of_the_architecture_lists_the_rooms_from_the_top_down() -> None:
    page, edges = (ROOT / "docs" / "architecture.md").read_text(), _edges("platform/ablation")
    lines = re.findall(r"^\| ((?:`\w+(?:/|\.py)`(?:, )?)+) \|", page, re.MULTILINE)
    rank = {room: number for number, line in enumerate(lines) for room in re.findall(r"`(\w+)", line)}
    assert rank.keys() == edges.keys() - {"__init__"}
    upwards = [
        (room, other) for room in rank for other in edges[room] & rank.keys() if rank[other] < rank[room]
    ]
    assert upwards == []


def _edges(package: str) -> dict[str, set[str]]:
    """By room, which is a folder or a file of the package itself, the rooms that it imports."""
    prefix = package.rpartition("/")[2]
    edges: dict[str, set[str]] = {}
    for name, tree in _sources(package):
        room = Path(name).relative_to(package).parts[0].removesuffix(".py")
        modules = (module.split(".") for module in _imports(tree))
        edges.setdefault(room, set()).update(
            parts[1] for parts in modules if parts[0] == prefix and parts[1:]
        )
    return edges


def _reached(start: str, edges: dict[str, set[str]]) -> set[str]:
    """The rooms that a room imports, and those that they import in turn."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        new = (edges[waiting.pop()] & edges.keys()) - reached
        reached |= new
        waiting += new
    return reached


@pytest.mark.parametrize(
    ("package", "others"),
    [
        ("platform", {"torch", "detector", "experiments", "dashboards", "benchmarks"}),
        ("detector", {"ablation", "experiments", "dashboards", "benchmarks", "ray", "mlflow", "sqlalchemy"}),
        ("experiments", {"dashboards", "benchmarks", "ray", "mlflow", "sqlalchemy"}),
    ],
)
def test_packages_import_in_one_direction(package: str, others: set[str]) -> None:
    found = {
        f"{name} imports {module}"
        for name, tree in _sources(package)
        for module in _imports(tree)
        if module.split(".")[0] in others
    }
    assert found == set()


def test_a_train_function_imports_the_platforms_protocol_and_errors_alone() -> None:
    ((_, tree),) = (
        source for source in _sources("experiments/detection") if source[0].endswith("/train_trial.py")
    )
    rooms = {module.split(".")[1] for module in _imports(tree) if module.startswith("ablation.")}
    assert rooms and rooms <= {"protocol", "errors"}
