"""Machines of a cluster, played by network namespaces: each has an address, its own ports and processes."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from tests.support.driver import command_line

INTERFACE = "eth0"
HEAD, HEAD_PORT = 1, 6379


@dataclass
class Machines:
    """Namespaces on one bridge, and the Ray that runs in them.

    Attributes:
        name: that all of its network devices begin with.
        scratch: folder for what Ray writes, its path short enough for sockets.
        there: number of each machine that is on, by its name.
    """

    name: str
    scratch: Path
    there: dict[str, int] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: count(HEAD + 1))

    @property
    def address(self) -> str:
        """Of the head, as `--cluster` takes it."""
        return f"{self._ip(HEAD)}:{HEAD_PORT}"

    def on(self, machine: str) -> list[str]:
        """Words before a command that runs on a machine."""
        own = [f"{name}={value}" for name, value in {**ENVIRONMENT, "RAY_ADDRESS": self.address}.items()]
        return ["ip", "netns", "exec", f"{self.name}-{machine}", "env", *own]

    def start_head(self, cpus: int, gpus: int = 0) -> str:
        """Switches the head on; its name. Its GPUs are in Ray's books alone.

        Every machine must reach its dashboard: what gives back the places of a group whose controller died
        asks there, from whatever machine it runs on.
        """
        own = ("--head", f"--port={HEAD_PORT}", f"--dashboard-host={self._ip(HEAD)}", f"--num-gpus={gpus}")
        return self._start("head", HEAD, cpus, *own)

    def join(self, machine: str, cpus: int, without: Sequence[Path] = ()) -> None:
        """Switches another machine on, on which some folders are empty."""
        self._start(machine, next(self._numbers), cpus, f"--address={self.address}", without=without)

    def switch_off(self, machine: str) -> None:
        """Kills every process there at once, and takes the machine from the network."""
        namespace = f"{self.name}-{machine}"
        _ip("link", "delete", f"{self.name}{self.there.pop(machine)}")
        while pids := _pids(namespace):  # some start others meanwhile
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        _ip("netns", "delete", namespace)

    def processes(self, machine: str, mark: str) -> list[int]:
        """Process ids on a machine that have the mark in their command line."""
        return [pid for pid in _pids(f"{self.name}-{machine}") if mark in command_line(pid)]

    def _start(
        self, machine: str, number: int, cpus: int, *arguments: str, without: Sequence[Path] = ()
    ) -> str:
        namespace, wire = f"{self.name}-{machine}", f"{self.name}{number}"
        _ip("netns", "add", namespace)
        self.there[machine] = number
        _ip("link", "add", wire, "type", "veth", "peer", "name", INTERFACE, "netns", namespace)
        _ip("link", "set", wire, "master", self.name, "up")
        _ip("-n", namespace, "address", "add", f"{self._ip(number)}/24", "dev", INTERFACE)
        for device in ("lo", INTERFACE):
            _ip("-n", namespace, "link", "set", device, "up")
        # Nothing answers there, but Ray takes the device of the way out for its own.
        _ip("-n", namespace, "route", "add", "default", "dev", INTERFACE)
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", f"--node-ip-address={self._ip(number)}"),
            *(f"--num-cpus={cpus}", "--object-store-memory=100000000", "--disable-usage-stats"),
            f"--temp-dir={self.scratch / machine}",
        ]
        # Each command that `ip` starts in a network namespace has mounts of its own.
        mounts = "".join(f"mount -t tmpfs none '{folder}' && " for folder in without)
        words = [*self.on(machine), "sh", "-c", f'{mounts}exec "$@"', "sh", *command, *arguments]
        started = subprocess.run(words, capture_output=True, text=True)
        assert started.returncode == 0, started.stdout + started.stderr
        return machine

    def _ip(self, number: int) -> str:
        return f"10.213.77.{number}"


ENVIRONMENT = {
    "RAY_worker_niceness": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "GLOO_SOCKET_IFNAME": INTERFACE,  # or gloo takes the host's name for the address of every machine
    # A machine that is gone counts as gone after seconds rather than half a minute.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
}


@contextmanager
def machines() -> Iterator[Machines]:
    """A network without machines; those that are switched on in the block are off after it."""
    scratch = Path(tempfile.mkdtemp(prefix="r"))
    network = Machines(f"abl{os.getpid() % 10_000}", scratch)
    _ip("link", "add", network.name, "type", "bridge")
    try:
        _ip("link", "set", network.name, "up")
        yield network
    finally:
        for machine in list(network.there):
            network.switch_off(machine)
        _ip("link", "delete", network.name)
        shutil.rmtree(scratch, ignore_errors=True)


def lacking() -> str:
    """Why there can be no such machines here; nothing where there can."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need Linux, root and the program ip"
    name = f"abl{os.getpid() % 10_000}t"
    tried = subprocess.run(["ip", "link", "add", name, "type", "bridge"], capture_output=True, text=True)
    if tried.returncode:
        return f"no network devices may be made here: {tried.stderr.strip()}"
    _ip("link", "delete", name)
    return ""


def _pids(namespace: str) -> list[int]:
    found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=True)
    return [int(pid) for pid in found.stdout.split()]


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
