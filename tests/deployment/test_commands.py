"""Every `ablation` command that docker/ and the pages about clusters and security name can be typed."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

FILES = (
    "docs/cluster.md",
    "SECURITY.md",
    "docker/compose.yaml",
    "docker/kuberay/raycluster.yaml",
    "docker/kuberay/rayjob.yaml",
    "docker/slurm/ablation.sbatch",
)
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
    assert found or name == "docker/compose.yaml"
    for command, options in found:
        assert set(options) <= options_of("ablation", command), command


def test_the_page_about_clusters_names_the_options_that_clusters_need(root: Path) -> None:
    text = (root / "docs/cluster.md").read_text()
    for option in ("--cluster", "--store", "--mlflow-uri", "--storage", "--resources", "--budget-gpu-hours"):
        assert option in text


@pytest.mark.parametrize("name", ["docs/cluster.md", "SECURITY.md"])
def test_its_links_and_the_files_it_names_exist(root: Path, name: str) -> None:
    text = (root / name).read_text()
    links = [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if link != "reliability.md"]
    files = re.findall(r"\b(?:docker|tests|docs)/[\w./-]*\w", text)
    for link in links:
        assert ((root / name).parent / link).exists(), link
    for file in files:
        assert (root / file).exists() or file == "docker/.env", file


def test_ports_in_the_page_are_those_that_compose_publishes(root: Path) -> None:
    pytest.importorskip("yaml")
    published = set(re.findall(r'"127\.0\.0\.1:(\d+):', (root / "docker/compose.yaml").read_text()))
    assert (
        set(re.findall(r"^\| :(\d+) \|", (root / "docs/cluster.md").read_text(), re.MULTILINE)) == published
    )
