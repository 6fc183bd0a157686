"""The services of docker/compose.yaml, run here without containers, and the smoke grid through them.

PostgreSQL is made by docker/postgres/init.sh, MLflow keeps its runs in it, and Ray has two nodes that ask
for a token. Where the packages for MLflow's login are installed, it asks for one.
"""

import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ablation.cluster.connection import free_port

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PASSWORDS = {"POSTGRES_PASSWORD": "one", "ABLATION_DB_PASSWORD": "two", "MLFLOW_DB_PASSWORD": "three"}
ADMIN_PASSWORD = "a-long-password"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def _wait(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, limit: float) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.3)


@contextmanager
def _service(
    log: Path, command: list[str], environment: dict[str, str], **options: str | None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process and, at the end, the end of it and of what it started."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def home() -> Iterator[Path]:
    """The server's folder, in a place that the account which it runs as can reach, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        yield Path(folder)


@pytest.fixture
def postgres(tmp_path: Path, home: Path) -> Iterator[int]:
    """A server made as the container of compose.yaml makes it; yields its port."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    program = shutil.which("initdb") or (f"{places[-1]}/initdb" if places else None)
    if program is None:
        pytest.skip("needs PostgreSQL's server programs (Debian: postgresql)")
    account = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
    if account:
        shutil.chown(home, account, account)
    secret = home / "password"
    secret.write_text(PASSWORDS["POSTGRES_PASSWORD"])
    secret.chmod(0o644)
    data, port, bin_ = home / "data", free_port(), Path(program).resolve().parent
    words = [f"--pgdata={data}", "--username=postgres", "--auth=scram-sha-256", f"--pwfile={secret}"]
    made = subprocess.run([program, *words], capture_output=True, text=True, user=account, cwd="/")
    assert made.returncode == 0, made.stderr
    settings = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={home}", "fsync=off"]
    command = [str(bin_ / "postgres"), "-D", str(data), *(word for s in settings for word in ("-c", s))]
    log = tmp_path / "postgres.log"
    with _service(log, command, {}, user=account, cwd="/") as process:
        ready = [str(bin_ / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-q"]
        _wait(lambda: subprocess.run(ready).returncode == 0, process, log, 60)
        account_of = {
            "POSTGRES_USER": "postgres",
            "PGPASSWORD": "one",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(port),
        }
        script = ROOT / "docker/postgres/init.sh"
        done = subprocess.run(
            [script], env={**os.environ, **PASSWORDS, **account_of}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        yield port


@pytest.fixture
def mlflow(tmp_path: Path, postgres: int) -> Iterator[str]:
    """MLflow's server on that database; yields its address."""
    port = free_port()
    command = [
        str(BIN / "mlflow"), "server", "--host=127.0.0.1", f"--port={port}", "--workers=1",
        f"--backend-store-uri=postgresql+psycopg://mlflow@127.0.0.1:{postgres}/mlflow",
        f"--artifacts-destination={tmp_path / 'mlflow-artifacts'}",
    ]  # fmt: skip
    environment = {
        "PGPASSWORD": PASSWORDS["MLFLOW_DB_PASSWORD"],
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    if importlib.util.find_spec("flask_wtf"):
        command += ["--app-name=basic-auth"]
        config = tmp_path / "auth.ini"
        config.write_text(
            (ROOT / "docker/mlflow/auth.ini").read_text().replace("@postgres:5432", f"@127.0.0.1:{postgres}")
        )
        environment |= {
            "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN_PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        }
    address, log = f"http://127.0.0.1:{port}", tmp_path / "mlflow.log"
    with _service(log, command, environment, cwd=str(tmp_path)) as process:
        _wait(lambda: _answers(f"{address}/health"), process, log, 180)
        yield address


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture
def ray_cluster(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, dict[str, str]]]:
    """Two nodes on this machine's loopback device; yields the head's address and a client's environment."""
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    # In the place of 127.0.0.1 Ray would take the machine's address on its network.
    address = f"127.0.0.2:{free_port()}"
    # Ray's socket names must be short.
    folders = [Path(f"/tmp/ray-{secrets.token_hex(3)}") for _ in range(2)]
    shared = ["--num-cpus=1", "--object-store-memory=134217728", "--block"]
    head = [
        str(BIN / "ray"), "start", "--head", "--node-ip-address=127.0.0.2",
        f"--port={address.rpartition(':')[2]}",
        f"--dashboard-port={free_port()}", f"--metrics-export-port={free_port()}",
        f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}",
        f"--temp-dir={folders[0]}", *shared,
    ]  # fmt: skip
    worker = [
        str(BIN / "ray"), "start", "--node-ip-address=127.0.0.3", f"--address={address}",
        f"--metrics-export-port={free_port()}",
        f"--dashboard-agent-listen-port={free_port()}", *shared,
    ]  # fmt: skip
    logs = tmp_path / "head.log", tmp_path / "worker.log"
    try:
        with _service(logs[0], head, environment) as first:
            _wait(lambda: "Ray runtime started" in logs[0].read_text(), first, logs[0], 300)
            with _service(logs[1], worker, environment) as second:
                _wait(lambda: "Ray runtime started" in logs[1].read_text(), second, logs[1], 300)
                yield address, environment
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def test_a_part_of_the_grid_runs_through_all_services(
    tmp_path: Path, postgres: int, mlflow: str, ray_cluster: tuple[str, dict[str, str]]
) -> None:
    address, environment = ray_cluster
    store = f"postgresql+psycopg://ablation@127.0.0.1:{postgres}/ablation"
    environment = {
        **os.environ,
        **environment,
        "PGPASSWORD": PASSWORDS["ABLATION_DB_PASSWORD"],
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": ADMIN_PASSWORD,
    }
    where = ["--workspace", str(tmp_path / "w"), "--store", store, "--mlflow-uri", mlflow]
    what = ["--profile", "smoke", "--tables", "3", "--max-iterations", "4"]

    def ablation(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "ablation"), *words, *where]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    ran = ablation("run", *what, "--cluster", address)
    assert "Table 3" in ran.stdout
    for password in (*PASSWORDS.values(), ADMIN_PASSWORD):
        assert f":{password}@" not in ran.stdout + ran.stderr
    status = json.loads(ablation("status", *what, "--json").stdout)
    assert status["counts"]["complete"] == len(status["trials"]) > 0
    assert not (tmp_path / "w/store.db").exists() and not (tmp_path / "w/mlflow.db").exists()
    results = next((tmp_path / "w/results").iterdir())
    assert (results / "tables.html").is_file()
    ablation("sync")  # what MLflow did not take before the run ended
    assert _runs_in_mlflow(mlflow) >= len(status["trials"])


def _runs_in_mlflow(address: str) -> int:
    script = (
        "import sys, mlflow; client = mlflow.MlflowClient(sys.argv[1]); "
        "names = [e.experiment_id for e in client.search_experiments()]; "
        "print(len(client.search_runs(names, \"attributes.status = 'FINISHED'\")))"
    )
    login = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": ADMIN_PASSWORD}
    done = subprocess.run(
        [sys.executable, "-c", script, address], env={**os.environ, **login}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)
