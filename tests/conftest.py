"""Fixtures that every test may use."""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from benchmarks.postgres import PostgresServer, running_server
from tests.support import golden, processes

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

ROOT = Path(__file__).resolve().parents[1]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        processes.mark(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    allowed_again = processes.watch(item)
    try:
        return (yield)
    finally:
        allowed_again()


@pytest.fixture(scope="session")
def authors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the numbers that the authors' code gives; `tests/support/golden.py` says which."""
    folder = tmp_path_factory.mktemp("authors")
    golden.unpack(folder)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real images and whole outputs of the authors' code beside the checkout, where they are present."""
    path = ROOT.parent / "shared"
    if not (path / "golden" / "MANIFEST.json").is_file():
        pytest.skip("needs the reference data beside the checkout (../shared)")
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server that runs as long as the tests."""
    with running_server() as server:
        if server is None:
            pytest.skip("needs the programs of a PostgreSQL server (Debian: apt-get install postgresql)")
        yield server


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> str:
    """URL, password included, of an empty database on a real PostgreSQL server."""
    return postgres.new_database()
