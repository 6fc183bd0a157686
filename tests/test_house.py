"""Rules about the tree that no other tool checks."""

import ast
import multiprocessing
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _imports(file: Path) -> Iterator[str]:
    """Modules that a file names in its import statements, wherever they stand in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_a_test_imports_other_tests_only_from_support() -> None:
    found = {
        f"{file.relative_to(ROOT)} imports {module}"
        for file in (ROOT / "tests").rglob("*.py")
        for module in _imports(file)
        if module.split(".")[0] in ("tests", "conftest")
        and module != "tests"
        and not module.startswith("tests.support")
    }
    assert not found


def test_a_fixture_of_several_files_stands_in_a_conftest() -> None:
    found = [
        str(file.relative_to(ROOT))
        for file in (ROOT / "tests" / "support").glob("*.py")
        if "pytest.fixture" in file.read_text()
    ]
    assert not found


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
