"""Rules about the tree that no other tool checks."""

import ast
import multiprocessing
import os
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
