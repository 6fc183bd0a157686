"""docker/Dockerfile and what it installs."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def lines(docker: Path) -> list[list[str]]:
    """The instructions as words, continuations joined."""
    text = (docker / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def stages(lines: list[list[str]]) -> dict[str, list[list[str]]]:
    found: dict[str, list[list[str]]] = {}
    for words in lines:
        if words[0] == "FROM":
            found[words[3]] = []
        found[next(reversed(found))].append(words)
    return found


def test_hadolint_has_nothing_to_say(docker: Path, validate: Callable[..., None]) -> None:
    validate("hadolint", docker / "Dockerfile")


def test_there_is_a_target_for_each_purpose(stages: dict[str, list[list[str]]]) -> None:
    assert {"cpu", "cuda", "mlflow"} <= stages.keys()


def test_every_base_image_is_named_with_its_full_version(stages: dict[str, list[list[str]]]) -> None:
    bases = {words[0][1] for words in stages.values()} - stages.keys()
    assert bases
    for base in bases:
        assert re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+[a-z0-9-]*", base), base


@pytest.mark.parametrize("target", ["cpu", "cuda", "mlflow"])
def test_no_target_runs_as_root(stages: dict[str, list[list[str]]], target: str) -> None:
    user, name = None, target
    while name in stages and user is None:
        users = [words[1] for words in stages[name] if words[0] == "USER"]
        user, name = (users[-1] if users else None), stages[name][0][1]
    assert user is not None and re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_what_is_copied_exists_and_reaches_the_build(
    root: Path, docker: Path, lines: list[list[str]]
) -> None:
    allowed = (docker / "Dockerfile.dockerignore").read_text().split()
    for words in lines:
        if words[0] == "COPY" and not words[1].startswith("--from"):
            for source in words[1:-1]:
                assert (root / source).exists(), source
                assert any(f"!{part}" in allowed for part in (source, str(Path(source).parent))), source


def test_the_wheel_is_built_from_all_packages(root: Path, lines: list[list[str]]) -> None:
    packages = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]["packages"]
    copied = {words[1] for words in lines if words[0] == "COPY"}
    assert {package.partition("/")[0] for package in packages} <= copied


def test_whatever_pip_installs_is_pinned_by_hashes_or_was_built_here(lines: list[list[str]]) -> None:
    commands = [part for words in lines if words[0] == "RUN" for part in " ".join(words[1:]).split("&&")]
    installs = [command for command in commands if "pip install" in command]
    assert len(installs) == 4
    for command in installs:
        assert "--require-hashes" in command or ("--no-deps" in command and "dist/" in command), command


@pytest.mark.parametrize(
    "lock", ["requirements.lock", "docker/build.lock", "docker/mlflow/requirements.lock"]
)
def test_every_line_of_a_lock_is_a_version_with_hashes(root: Path, lock: str) -> None:
    text = "".join(line for line in (root / lock).open() if not line.startswith("#"))
    assert "://" not in text
    for entry in text.replace("\\\n", " ").splitlines():
        assert re.match(r"\S+==\S+ .*--hash=sha256:[0-9a-f]{64}", entry), entry


def test_versions_agree_between_locks_images_and_manifests(root: Path, docker: Path) -> None:
    lock = (root / "requirements.lock").read_text()
    [ray] = re.findall(r"^ray==(\S+)", lock, re.MULTILINE)
    for name in ("raycluster.yaml", "rayjob.yaml"):
        assert f"rayVersion: {ray}\n" in (docker / "kuberay" / name).read_text()
    [mlflow] = re.findall(r"^mlflow==(\S+)", lock, re.MULTILINE)
    assert f"mlflow=={mlflow} " in (docker / "mlflow/requirements.lock").read_text()
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    for path in [*docker.glob("*.yaml"), *docker.glob("kuberay/*.yaml"), docker / "Dockerfile"]:
        assert set(re.findall(r"ablation(?:-mlflow)?:([\d.]+)", path.read_text())) <= {version}, path


def test_no_file_names_a_package_index(docker: Path) -> None:
    for path in docker.rglob("*"):
        if path.is_file():
            assert "index-url" not in path.read_text(), path
