"""Every `ablation` command that docker/ and the pages name exists, with its options."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *sorted(page.relative_to(ROOT).as_posix() for page in ROOT.glob("docs/*.md")),
)
FILES = (
    *PAGES,
    "docker/compose.yaml",
    "docker/kuberay/raycluster.yaml",
    "docker/kuberay/rayjob.yaml",
    "docker/slurm/ablation.sbatch",
)
WITHOUT_COMMANDS = ("docker/compose.yaml", "docs/performance.md", "docs/shapes.md")
# A lower-case word after the program's name, where a command is typed: in code, or at a line's end.
_COMMAND = re.compile(r"(?<![\w/.-])ablation ([a-z][a-z-]+)([^`#\n]*)")


def _typed(root: Path, name: str) -> Iterator[tuple[str, list[str]]]:
    text = (root / name).read_text().replace("\\\n", " ")
    code = "\n".join([*re.findall(r"^(?:    |#).*$", text, re.MULTILINE), *re.findall("`[^`\n]+`", text)])
    for command, rest in _COMMAND.findall(code if name.endswith(".md") else text):
        yield command, re.findall(r"--[a-z][a-z-]+", rest)


@pytest.mark.parametrize("name", FILES)
def test_its_commands_and_their_options_exist(
    root: Path, options_of: Callable[..., set[str]], name: str
) -> None:
    found = [(c, o) for c, o in _typed(root, name) if not c.startswith("from-literal")]
    assert found or name in WITHOUT_COMMANDS
    for command, options in found:
        assert set(options) <= options_of("ablation", command), command


def test_the_page_about_clusters_names_the_options_that_clusters_need(root: Path) -> None:
    text = (root / "docs/cluster.md").read_text()
    for option in ("--cluster", "--store", "--mlflow-uri", "--storage", "--resources", "--budget-gpu-hours"):
        assert option in text


def test_ports_in_the_page_are_those_that_compose_publishes(root: Path) -> None:
    pytest.importorskip("yaml")
    published = set(re.findall(r'"127\.0\.0\.1:(\d+):', (root / "docker/compose.yaml").read_text()))
    assert (
        set(re.findall(r"^\| :(\d+) \|", (root / "docs/cluster.md").read_text(), re.MULTILINE)) == published
    )
