"""A workspace, its store beside the driver, and machines."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ablation.store import Store
from tests.support import machines as network
from tests.support.machines import Machines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a workspace."""
    return tmp_path / "w"


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    """The file of the workspace's store, opened beside the driver."""
    folder.mkdir()
    opened = Store.open(folder / "store.db")
    yield opened
    opened.close()


@pytest.fixture
def machines() -> Iterator[Machines]:
    """A network to which machines can be added."""
    if why := network.lacking():
        pytest.skip(why)
    with network.machines() as made:
        yield made
