"""Workspaces of a small paper in which some of it has run."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ablation.protocol import Progress
from ablation.store import schema
from tests.support import workspaces


@pytest.fixture
def make_workspace(tmp_path: Path) -> Callable[..., workspaces.Workspace]:
    """Makes a workspace of this test's own, in which nothing has run."""
    return lambda seeds=(0,): workspaces.make(tmp_path, seeds)


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> workspaces.Workspace:
    """One seed, everything measured: ten points above the paper. Shared: only to be read."""
    workspace = workspaces.make(tmp_path_factory.mktemp("full"), (0,))
    for method, value in workspaces.PAPER_NUMBERS.items():
        workspace.measure(method, value)
    return workspace


@pytest.fixture(scope="session")
def partial(tmp_path_factory: pytest.TempPathFactory) -> workspaces.Workspace:
    """Two seeds: some cells complete, half complete, running, failed, waiting. Shared: only to be read."""
    workspace = workspaces.make(tmp_path_factory.mktemp("partial"), (0, 1))
    workspace.measure("base", 42.5)
    workspace.measure("base", 42.9, seed=1)
    workspace.measure("gn", 43.4)
    workspace.store.record(workspace.start("other"), [Progress(41, 100, {})])
    with workspace.store._transaction(writes=True) as connection:  # runs for as long as the tests do
        ahead = datetime.now(UTC) + timedelta(days=1)
        connection.execute(schema.attempts.update().values(heartbeat=ahead))
    workspace.store.fail(workspace.start("giou"), "loss is NaN <b>")
    return workspace
