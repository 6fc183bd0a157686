"""Who listens, and where: a run on this machine does on its loopback device, but for the ranks of a group."""

import ast
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ABLATION = Path(sys.executable).parent / "ablation"
LISTEN = "0A"


def _descendants(root: int) -> set[int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):  # it has ended meanwhile
            continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _sockets(pids: set[int]) -> set[str]:
    inodes = set()
    for pid in pids:
        try:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                inodes |= set(re.findall(r"socket:\[(\d+)\]", str(link.readlink())))
        except OSError:
            continue
    return inodes


def _listening(pids: set[int]) -> set[str]:
    """Local addresses, as the kernel writes them, at which the processes listen."""
    inodes = _sockets(pids)
    text = "".join(Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6"))
    rows = [line.split() for line in text.splitlines()]
    return {row[1] for row in rows if row[3] == LISTEN and row[9] in inodes}


def _is_loopback(address: str) -> bool:
    host = address.partition(":")[0]
    v6 = ("00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
    return host == "0100007F" or host in v6


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_listens_on_the_loopback_device_but_for_the_store_of_a_group(
    tmp_path: Path, workers: int
) -> None:
    options = ["--profile", "smoke", "--tables", "3", "--workers-per-trial", str(workers)]
    process = subprocess.Popen(
        [ABLATION, "run", *options, "--concurrency", "1", "--workspace", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    seen: set[str] = set()
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not any(tmp_path.glob("artifacts/*/checkpoints/step_*.pt")):
            assert process.poll() in (None, 0)
            seen |= _listening(_descendants(process.pid))
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(300)
    assert len(seen) > 5, "Ray's own processes listen, so there must be some"
    elsewhere = [address for address in seen if not _is_loopback(address)]
    assert len(elsewhere) == (0 if workers == 1 else 1), "the store of the one group that has trained by then"


@pytest.mark.process
def test_the_web_interface_listens_on_the_loopback_device_unless_told() -> None:
    shown = subprocess.run([ABLATION, "ui", "--help"], capture_output=True, text=True, check=True).stdout
    assert "(default: 127.0.0.1)" in " ".join(shown.split())


def test_no_code_of_ours_opens_a_port_on_every_device() -> None:
    """And none but what starts Ray and MLflow opens one at all."""
    for folder in ("platform", "detector", "experiments", "dashboards"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text())
            texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
            assert not texts & {"0.0.0.0", "[::]"}, path
            calls = {node.func.attr for node in ast.walk(tree) if _is_method_call(node)}  # type: ignore[attr-defined]
            assert not calls & {"listen", "serve_forever", "create_server", "start_server"}, path


def _is_method_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
