"""A real MLflow server on loopback, and a proxy before it that makes it slow or silent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ablation.cluster.connection import free_port

PASSWORD = "a-long-password-1"
_METHODS = (b"GET ", b"POST ", b"PUT ", b"DELETE ", b"PATCH ")


@dataclass
class Server:
    """`mlflow server` with its files in a folder; the same again after `kill` and `start`.

    Attributes:
        login: ask for the name "admin" and `PASSWORD`.
    """

    folder: Path
    login: bool = False
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it answers."""
        extra = ["--app-name", "basic-auth"] if self.login else []
        with (self.folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command(), *extra],
                cwd=self.folder,
                env=self._environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError((self.folder / "log.txt").read_text()[-2000:])
            time.sleep(0.2)

    def _command(self) -> Sequence[str]:
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        files = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        return [
            *(sys.executable, "-m", "mlflow", "server", *where, *files),
            *("--artifacts-destination", str(self.folder / "artifacts")),
        ]

    def _environment(self) -> dict[str, str]:
        settings = self.folder / "auth.ini"
        settings.write_text(
            "[mlflow]\ndefault_permission = NO_PERMISSIONS\nadmin_username = admin\n"
            f"database_uri = sqlite:///{self.folder}/auth.db\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        return {
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "for tests",
        }

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """kill -9, with its worker."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class Proxy:
    """Passes connections on to a port.

    Attributes:
        delay: seconds by which each request is held back.
        silent: take what comes and answer nothing.
        away: end each connection at once.
    """

    def __init__(self, target: int) -> None:
        self.delay = 0.0
        self.silent = False
        self.away = False
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
                if self.away:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            for ends in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, requests: bool) -> None:
        try:
            while data := source.recv(65536):
                if requests and data.startswith(_METHODS):
                    time.sleep(self.delay)
                if not self.silent:
                    target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
