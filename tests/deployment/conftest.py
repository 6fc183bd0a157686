"""What the tests of docker/ share: its folder, validators where there are any, and what commands take."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def _found(name: str) -> str | None:
    return shutil.which(name, path=f"{BIN}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def docker() -> Path:
    return ROOT / "docker"


@pytest.fixture(scope="session")
def validate() -> Callable[..., None]:
    """Runs a validator, which must have nothing to say; skips where it is not installed."""

    def run(name: str, *arguments: object) -> None:
        program = _found(name)
        if program is None:
            pytest.skip(f"needs the program {name}")
        done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    return run


@cache
def _help(*command: str) -> str:
    program = _found(command[0])
    assert program, f"{command[0]} is not installed"
    done = subprocess.run([program, *command[1:], "--help"], capture_output=True, text=True)
    assert done.returncode == 0, f"there is no command {' '.join(command)}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def options_of() -> Callable[..., set[str]]:
    """The long options of a command, as its own help names them: options_of("ray", "start")."""

    def options(*command: str) -> set[str]:
        words = _help(*command).replace(",", " ").replace("[", " ").replace("]", " ").split()
        return {word.partition("=")[0] for word in words if word.startswith("--")}

    return options
