"""What is said of nodes that are not ready: the judging alone, and a real cluster of nodes that differ."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ablation.cluster.preflight import Facts, check, paths_in, problems
from ablation.errors import UserError
from ablation.storage import SharedFolder, Storage, storage_at

# --- without Ray -----------------------------------------------------------------------------------------

OWN: Facts = {
    "versions": {"Python": "3.11.7", "torch": "2.15.0+cpu", "torchvision": "0.30.0", "ray": "2.60.0"},
    "paths": {"/data/train.json": 100, "/data/train": 0},
}
NODE = {**OWN, "storage": "", "sees_driver": True, "seen": True}


def _problems(**changes: Any) -> list[str]:
    node: Any = {**NODE, **changes}
    return problems(OWN, node, "s3://bucket/prefix")


def test_a_node_like_the_driver_has_no_problems() -> None:
    assert _problems() == []


def test_a_node_that_gave_no_facts_has_one_problem() -> None:
    assert problems(OWN, "did not answer", "url") == ["did not answer"]


def test_versions_are_compared_up_to_their_local_part() -> None:
    versions = {**OWN["versions"], "torch": "2.15.0+cu126", "torchvision": "0.29.0"}
    assert _problems(versions=versions) == ["has torchvision 0.29.0, the driver has 0.30.0"]
    assert _problems(versions={**versions, "torchvision": "0.30.0", "Python": "3.12.1"}) == [
        "has Python 3.12.1, the driver has 3.11.7"
    ]


def test_a_missing_package_is_named() -> None:
    assert _problems(versions={**OWN["versions"], "torch": None}) == ["has no torch package"]


def test_data_that_cannot_be_read_or_is_other_data_is_named() -> None:
    paths = {"/data/train.json": 99, "/data/train": "No such file or directory"}
    assert _problems(paths=paths) == [
        "cannot read /data/train: No such file or directory",
        "has another /data/train.json: 99 bytes, the driver's has 100",
    ]


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"storage": "PermissionError: Access Denied"}, "cannot use the storage s3://bucket/prefix: Perm"),
        ({"sees_driver": False}, "does not see what the driver writes in s3://bucket/prefix: it must"),
        ({"seen": False}, "writes what the driver does not see in s3://bucket/prefix: it must be the same"),
        ({"seen": False, "sees_driver": False}, "does not see what the driver writes and writes what the"),
    ],
)
def test_a_storage_that_is_not_shared_is_said_with_what_to_do(facts: dict[str, Any], line: str) -> None:
    (found,) = _problems(**facts)
    assert found.startswith(line)


def test_no_password_of_a_storage_is_said() -> None:
    node: Any = {**NODE, "storage": "OSError: ftp://me:secret@host"}
    found = problems(OWN, node, "ftp://me:secret@host/x")
    assert "secret" not in found[0]


@dataclass
class Context:
    cache: Path
    report_every: int
    splits: tuple[Path, ...]
    weights: dict[str, Path | str] = field(default_factory=dict)


def test_the_paths_of_a_context_are_found_wherever_they_stand() -> None:
    context = Context(Path("/c"), 10, (Path("/a"), Path("/b")), {"x": Path("/w"), "y": "a name"})
    assert paths_in(context) == [Path("/c"), Path("/a"), Path("/b"), Path("/w")]
    assert paths_in(None) == []


# --- a cluster on this machine -----------------------------------------------------------------------------


@dataclass
class Machines:
    """A cluster, the workspace and the data of its driver; more nodes can join for a test."""

    cluster: Any
    root: Path
    joined: list[Any] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def storage(self) -> Storage:
        return storage_at(self.root / "artifacts")

    @property
    def data(self) -> Path:
        return self.root / "data"

    def join(self, path: Path | None = None) -> Any:
        """A node, whose Python looks for packages in the folder first."""
        before = os.environ.get("PYTHONPATH")
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, (str(path), before)))} if path else {}
        self.joined.append(self.cluster.add_node(num_cpus=1, env_vars=environment))
        return self.joined[-1]

    def join_without(self, *folders: Path) -> None:
        """A node on which the folders are empty ones of its own."""
        mounts = " && ".join(f"mount -t tmpfs none '{folder}'" for folder in folders)
        ray = Path(sys.executable).with_name("ray")
        start = f"exec {ray} start --address={self.cluster.address} --num-cpus=1 --block"
        command = ["unshare", "-m", "sh", "-c", f"{mounts} && {start}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        before = _alive()
        self.processes.append(subprocess.Popen(command, start_new_session=True, **quiet))
        _wait_for_nodes(before + 1)

    def part(self) -> None:
        """All nodes that joined leave."""
        for process in self.processes:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)
        for node in self.joined:
            self.cluster.remove_node(node)
        _wait_for_nodes(1)

    def check(self, paths: list[Path] | None = None, timeout_s: float = 90.0) -> None:
        check(
            self.storage,
            [self.data] if paths is None else paths,
            ("torch", "torchvision"),
            timeout_s=timeout_s,
        )

    def complaints(self, **arguments: Any) -> list[str]:
        """The lines, without the names of the nodes, which all are this machine."""
        with pytest.raises(UserError) as caught:
            self.check(**arguments)
        first, *lines = str(caught.value).splitlines()
        assert first == "The cluster is not ready:"
        return sorted(re.sub(r"^  \S+ \([^)]*\) ", "", line).strip() for line in lines)


def _alive() -> int:
    import ray

    return sum(node["Alive"] for node in ray.nodes())


def _wait_for_nodes(number: int) -> None:
    deadline = time.monotonic() + 90
    while _alive() != number:
        assert time.monotonic() < deadline, f"{_alive()} nodes, not {number}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head with one CPU that is in order, and this process connected to it."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            ray.init(address=cluster.address, log_to_driver=False)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture
def machines(cluster: Any, tmp_path: Path) -> Iterator[Machines]:
    """The cluster with the head alone, and folders of this test's own."""
    for name in ("artifacts", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "train.json").write_text("{}")
    made = Machines(cluster, tmp_path)
    yield made
    made.part()


@pytest.mark.slow
def test_a_cluster_in_order_passes_and_no_file_stays(machines: Machines) -> None:
    machines.join()
    machines.check()
    assert list((machines.root / "artifacts").iterdir()) == []


@pytest.mark.slow
def test_a_node_with_another_version_is_named(machines: Machines, tmp_path: Path) -> None:
    metadata = tmp_path / "old" / "torchvision-0.0.9.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.0.9\n")
    machines.join(tmp_path / "old")
    (line,) = machines.complaints()
    assert line.startswith("has torchvision 0.0.9, the driver has ")


@pytest.mark.slow
def test_a_node_that_sees_other_folders_is_named(machines: Machines) -> None:
    tried = subprocess.run(["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True)
    if not shutil.which("unshare") or tried.returncode:
        pytest.skip("needs the right to mount, in a namespace of its own")
    machines.join_without(machines.root / "artifacts", machines.data)
    file = machines.data / "train.json"
    lines = machines.complaints(paths=[machines.data, file])
    assert lines == [
        f"cannot read {file}: No such file or directory",
        f"does not see what the driver writes and writes what the driver does not see in "
        f"{machines.root / 'artifacts'}: it must be the same folder on every machine; "
        "--storage takes a URL where there is none",
    ]
    assert list((machines.root / "artifacts").iterdir()) == []


@pytest.mark.slow
def test_a_node_that_hangs_does_not_hang_the_check(machines: Machines) -> None:
    machines.check()  # where Python has not run yet, it takes long to start
    node = machines.join()
    raylet = node.all_processes["raylet"][0].process.pid
    os.kill(raylet, signal.SIGSTOP)
    try:
        began = time.monotonic()
        lines = machines.complaints(timeout_s=15.0)
        assert time.monotonic() - began < 30
    finally:
        os.kill(raylet, signal.SIGCONT)
    assert lines == ["did not answer within 15 s: a mount or a process hangs there"]


def test_a_driver_that_cannot_write_asks_no_node(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make the bucket or the folder first"):
        check(SharedFolder(tmp_path / "none"), [], [])
