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

from ablation.cluster import preflight
from ablation.cluster.preflight import UNKNOWN, check, lacking, paths_in, problems
from ablation.errors import UserError
from ablation.resources import Node, Resources
from ablation.storage import SharedFolder, Storage, storage_at

GIB = 1 << 30

# --- without Ray -----------------------------------------------------------------------------------------

OWN: dict[str, Any] = {
    "python": "3.11.7",
    "versions": {"ablation": "0.1.0", "torch": "2.15.0+cpu", "torchvision": "0.30.0"},
    "installed": ["ablation", "detector", "torch", "torchvision"],
    "commit": "0123456789abcdef",
    "code": {"ablation": "aa", "detector": "bb"},
    "paths": {"/data/train.json": 100, "/data/train": 0},
}
NODE = {**OWN, "storage": None, "sees_driver": True, "seen": True}


def _problems(**changes: Any) -> list[str]:
    return problems(OWN, {**NODE, **changes}, "s3://bucket/prefix")


def test_a_node_like_the_driver_has_no_problems() -> None:
    assert _problems() == []


def test_a_node_that_gave_no_facts_has_one_problem() -> None:
    assert problems(OWN, "did not answer", "place") == ["did not answer"]


def test_versions_are_compared_up_to_their_local_part() -> None:
    versions = {"ablation": "0.1.0", "torch": "2.15.0+cu126", "torchvision": "0.29.0"}
    assert _problems(versions=versions) == ["has torchvision 0.29.0, the driver has 0.30.0"]
    assert _problems(python="3.12.1") == ["has Python 3.12.1, the driver has 3.11.7"]


def test_of_another_version_no_more_is_said() -> None:
    versions = {**OWN["versions"], "ablation": "0.0.9"}
    found = _problems(versions=versions, commit="f" * 40, code={"ablation": "xx", "detector": "yy"})
    assert found == ["has ablation 0.0.9, the driver has 0.1.0"]


def test_a_missing_package_is_said_once() -> None:
    none = {**OWN["versions"], "ablation": None, "torch": None}
    found = _problems(installed=["torchvision"], versions=none, code={"ablation": None, "detector": None})
    assert found == ["has no ablation package", "has no torch package"]


def test_another_commit_is_named() -> None:
    code = {"ablation": "xx", "detector": "bb"}
    found = _problems(commit="fedcba9876543210", code=code)
    assert found == ["is at commit fedcba987, the driver at 012345678"]


def test_other_source_of_the_same_version_is_found_without_git() -> None:
    found = _problems(commit=UNKNOWN, code={"ablation": "aa", "detector": "yy"})
    assert found == ["has other source files of detector than the driver: changed, or installed earlier"]
    assert _problems(commit=UNKNOWN) == []
    assert _problems(code={"ablation": "aa", "detector": None}) == ["has no detector package"]


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
    found = problems(OWN, {**NODE, "storage": "OSError: ftp://me:secret@host"}, "ftp://me:secret@host/x")
    assert "secret" not in found[0]


NODES = [Node("a", 96, 8, 500 * GIB), Node("b", 96, 8, 500 * GIB), Node("c", 4, 0, 15 * GIB)]
NAMES = {"a": "gpu-1", "b": "gpu-2", "c": "head"}


def test_trials_that_fit_lack_nothing() -> None:
    needs = {"small": Resources(), "large": Resources(16, 12, 1, 60 * GIB), "shared": Resources(1, 1, 0.25)}
    assert lacking(NODES, NAMES, needs) == []


def test_what_a_trial_lacks_is_said_by_node() -> None:
    needs = {"table8/ATSS": Resources(8, 4, 4), "table8/FCOS": Resources(8, 4, 4), "table3/k=9": Resources()}
    assert lacking(NODES, NAMES, needs) == [
        "each of table8/ATSS and 1 more needs 8 workers of 4 CPUs, 4 GPUs at once; each of gpu-1 and 1 more "
        "with 96 CPUs, 8 GPUs, 500 GiB has room for 2; head with 4 CPUs, 15 GiB has room for 0"
    ]
    (line,) = lacking(NODES[2:], NAMES, {"table1/a": Resources(1, 1, 0, 16 * GIB)})
    assert line == "table1/a needs 1 CPU, 16 GiB at once; head with 4 CPUs, 15 GiB has room for 0"
    assert lacking([], {}, {"x": Resources()}) == ["x needs 1 CPU at once; the cluster has no nodes"]


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


def test_every_source_file_counts_and_nothing_else(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "sub").mkdir(parents=True)
    (package / "sub" / "module.py").write_text("x = 1\n")
    before = preflight._digest(package)
    (package / "notes.txt").write_text("no code")
    (package / "sub" / "module.py").write_bytes(b"x = 1\r\n")
    assert preflight._digest(package) == before
    (package / "sub" / "module.py").write_text("x = 2\n")
    assert preflight._digest(package) != before


# --- a cluster on this machine -----------------------------------------------------------------------------

HIDES_THE_PACKAGE = """
import sys

class Hidden:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("ablation", "detector"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden)
"""


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
        """A node, whose Python looks for modules in the folder first."""
        environment = {"PYTHONPATH": str(path)} if path else {}
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

    def check(self, paths: list[Path] | None = None, timeout_s: float = 90.0, **needs: Resources) -> None:
        check(self.storage, [self.data] if paths is None else paths, ["detector"], needs, timeout_s=timeout_s)

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


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source files count as equal, so that a developer may edit them while the test runs."""
    monkeypatch.setattr(preflight, "_digest", lambda folder: folder and "equal")


@pytest.mark.slow
def test_a_cluster_in_order_passes_and_no_file_stays(machines: Machines) -> None:
    machines.join()
    machines.check(small=Resources(workers=2))
    assert list((machines.root / "artifacts").iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("settled")
def test_a_node_with_another_version_and_one_with_none_are_told_apart(
    machines: Machines, tmp_path: Path
) -> None:
    old, bare = tmp_path / "old", tmp_path / "bare"
    for folder in (old / "ablation", old / "ablation-0.0.9.dist-info", bare):
        folder.mkdir(parents=True)
    (old / "ablation" / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (old / "ablation-0.0.9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: ablation\nVersion: 0.0.9\n"
    )
    (bare / "sitecustomize.py").write_text(HIDES_THE_PACKAGE)
    machines.join(old)
    machines.join(bare)
    lines = machines.complaints(large=Resources(workers=9))
    assert lines[0].startswith("has ablation 0.0.9, the driver has ")
    assert lines[1] == "has no ablation package"
    assert "large needs 9 workers of 1 CPU at once" in lines[2]
    assert len(lines) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("settled")
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
        f"{machines.root / 'artifacts'}: it must be the same place on every machine; "
        "--storage takes a URL where no folder is",
    ]
    assert list((machines.root / "artifacts").iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("settled")
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
        check(SharedFolder(tmp_path / "none"), [], [], {})
