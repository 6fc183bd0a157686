"""Imports point one way: from the studies to the platform and the detector, never back."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FORBIDDEN = {
    "detector": ("ablation", "experiments", "dashboards"),
    "platform/ablation": ("detector", "experiments", "dashboards"),
    "experiments/detection": (
        "experiments.atss",
        "experiments.refinedet",
        "experiments.detectors",
        "dashboards",
    ),
    "experiments/atss": ("experiments.refinedet", "experiments.detectors", "dashboards"),
    "experiments/refinedet": ("experiments.atss", "experiments.detectors", "dashboards"),
    "experiments/detectors": ("experiments.refinedet", "dashboards"),
    "dashboards": ("detector", "experiments"),
}


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f"{node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _under(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_a_package_imports_nothing_that_is_built_on_it(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    found = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in _imports(file)
        for package in FORBIDDEN[folder]
        if _under(name, package)
    }
    assert not found


def test_what_trains_a_trial_knows_nothing_of_the_platform_but_the_protocol() -> None:
    names = set(_imports(ROOT / "experiments" / "detection" / "train_trial.py"))
    assert "ablation.protocol" in names
    assert not {n for n in names if _under(n, "ablation") and not _under(n, "ablation.protocol")}
