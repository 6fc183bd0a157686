"""The Ray that trials run on: one started on this machine for one run, or a cluster's."""

from __future__ import annotations

import logging
import math
import os
import random
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ablation.cluster.code import NO_CODE, Code
from ablation.cluster.ray_private import memory_argument
from ablation.errors import UserError
from ablation.resources import Node, Resources, held
from ablation.run_options import Options

CGROUP_MEMORY_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""The memory limit of a container: cgroup version 2, version 1."""
OBJECT_STORE_BYTES = 128 << 20  # only reports and small configs pass through it
CONNECT_S = 2.0
PORTS = range(20_000, 32_000)
"""Below the ephemeral ports of the operating system."""

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to Ray's makers
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # Tune's folder of a trial is deleted with the run
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints tables even at verbosity 0
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # Ray prints nothing among the display's lines
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the store keeps what they would write
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `driver.shutdown` has its own
    "TUNE_MAX_PENDING_TRIALS_PG": "64",  # `GangScheduler` decides; Tune would start one by one
    "TUNE_WARN_THRESHOLD_S": "1000000",  # a slow store makes no warnings among the display's lines
}
OF_THREADS = {
    # Rounds that OpenMP's threads spin before they sleep. The default is 300,000: two threads of a trial that
    # share a core, because another program has the other one, then hardly let each other run.
    "GOMP_SPINCOUNT": "10000",
}
"""The environment of every process that trains."""
_WORKER_ENVIRONMENT = {
    **OF_THREADS,
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # a group ends 4 s sooner
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor less for each group, which heeds SIGTERM itself
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",  # or a GPU's error ends its process before it is told
}


@dataclass(frozen=True, slots=True)
class Layout:
    """The nodes, and what a trial holds that asks for nothing in particular.

    Attributes:
        nodes: all of them.
        limit: trials at a time; None for as many as fit.
        workers: of every trial, where the user gave a number.
    """

    nodes: tuple[Node, ...]
    default: Resources
    limit: int | None
    workers: int | None = None

    def resources(self, wanted: Resources | None) -> Resources:
        """What a trial holds; where there are no GPUs at all, it needs none."""
        if wanted is not None:
            wanted = replace(wanted, workers=self.workers or wanted.workers)
        return held(wanted, self.default, gpus=any(node.gpus for node in self.nodes))


def share(options: Options, cpus: int, gpus: int, *, exclusive_gpus: bool) -> tuple[int, Resources]:
    """Divides CPUs and GPUs among trials that ask for nothing in particular.

    The workers of one trial cannot share a GPU; several trials of one worker can, unless `exclusive_gpus`.
    On this machine each worker holds an equal part of the CPUs, at least one. In a cluster, whose nodes may
    differ, it holds one.

    Args:
        options: with the number of trials at a time and of workers.
        cpus, gpus: of the machine or the cluster.
        exclusive_gpus: see `ablation.setting.Setting`.

    Returns:
        Trials at a time, and what each holds.

    Raises:
        UserError: the workers of one trial, or so many trials at a time, would never fit.
    """
    workers = options.workers_per_trial or 1
    whole = gpus > 0 and (exclusive_gpus or workers > 1)
    room = gpus if whole or (options.cluster and gpus) else cpus
    if workers > room and (whole or options.cluster):
        raise UserError(
            f"--workers-per-trial {workers} needs {workers} {'GPUs' if gpus else 'CPUs'}; "
            f"{'the cluster' if options.cluster else 'this machine'} has {room}. Ask for at most that many."
        )
    concurrency = options.concurrency or max(1, room // workers)
    processes = concurrency * workers
    if whole and processes > gpus:
        raise UserError(
            f"--concurrency {concurrency} needs {processes} GPUs, one for each worker of each trial, and "
            f"there are {gpus}. Ask for at most {gpus // workers}, or omit the option."
        )
    cpus_each = 1 if options.cluster else max(1, cpus // processes)
    gpus_each = 0.0 if gpus == 0 else 1 / math.ceil(processes / gpus)
    return concurrency, Resources(workers, cpus_each, gpus_each)


@contextmanager
def ray_for(
    options: Options, wanted: Sequence[Resources | None], *, exclusive_gpus: bool, code: Code = NO_CODE
) -> Iterator[Layout]:
    """Starts Ray on this machine, or connects to a cluster; disconnects after the block.

    Args:
        options: whether it is a cluster's.
        wanted: by the trials that will run.
        exclusive_gpus: see `ablation.setting.Setting`.
        code: what trials import beside the platform.

    Raises:
        UserError: Ray does not start or answer, or a trial would never fit.
    """
    if (options.cluster or "").startswith("ray://"):  # Tune's loop would run there, away from the store
        raise UserError(
            f"--cluster {options.cluster} is an address of Ray Client, which cannot report trials back. On a "
            "machine of the cluster, give the address of its head (HOST:6379), or --cluster alone to find it."
        )
    local: dict[str, str | None] = {}
    if not options.cluster:
        local = _local_environment(options, _workers(options, wanted))
        local["PYTHONPATH"] = _joined(*code.search_path(), os.environ.get("PYTHONPATH"))
    with environment(_ENVIRONMENT | local):
        # After the environment: Ray reads some of it when it is imported.
        import ray

        try:
            if options.cluster:
                yield _connect(options, exclusive_gpus, code)
            else:
                yield _start(options, wanted, exclusive_gpus)
        finally:
            ray.shutdown()


def here(options: Options, wanted: Sequence[Resources | None], gpus: int, *, exclusive_gpus: bool) -> Layout:
    """The layout of this machine once Ray has been started for a run.

    Args:
        options: how to run.
        wanted: by the trials that will run. Ray is told of more CPUs than there are where a trial wants more:
            a laptop can show what a cluster does.
        gpus: of the machine.
        exclusive_gpus: see `ablation.setting.Setting`.

    Raises:
        UserError: see `share`.
    """
    cpus = len(os.sched_getaffinity(0))
    limit, default = share(options, cpus, gpus, exclusive_gpus=exclusive_gpus)
    sizes = [limit * default.workers * default.cpus, *(r.workers * r.cpus for r in wanted if r)]
    machine = Node("this machine", math.ceil(max([cpus, *sizes])), gpus, _memory() - OBJECT_STORE_BYTES)
    return Layout((machine,), default, limit, options.workers_per_trial)


def gpus_here() -> int:
    """NVIDIA GPUs of this machine that programs may see. Asks no library: `plan` must answer at once."""
    found = len(list(Path("/dev").glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return found if visible is None else min(found, len([one for one in visible.split(",") if one.strip()]))


def _memory() -> int:
    """Bytes of memory of this machine, or of the container that this process runs in."""
    limits = [path.read_text().strip() for path in CGROUP_MEMORY_FILES if path.is_file()]
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *(int(limit) for limit in limits if limit.isdecimal())])


def _start(options: Options, wanted: Sequence[Resources | None], exclusive_gpus: bool) -> Layout:
    """Starts Ray on this machine, for this run alone."""
    layout = here(options, wanted, gpus_here(), exclusive_gpus=exclusive_gpus)
    (machine,) = layout.nodes
    # Ray's workers import from the working folder first, where a module may have the name of one of ours.
    with environment(_address_ahead()), chdir("/"):
        _init(
            options,
            address="local",
            num_cpus=int(machine.cpus),
            num_gpus=int(machine.gpus),
            object_store_memory=OBJECT_STORE_BYTES,
            # Without it Ray does not release the resources of a group whose trial's process died.
            include_dashboard=_workers(options, wanted) > 1,
            dashboard_host="127.0.0.1",
            **memory_argument(machine.memory),
        )
    return replace(layout, nodes=nodes())


def _address_ahead() -> dict[str, str]:
    """The address at which Ray will listen, told to its processes before it starts.

    The process that releases the resources of a group whose trial died searches this machine for Ray, and
    ends itself when it finds two.
    """
    port = free_port()
    return {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"127.0.0.1:{port}"}


def free_port() -> int:
    """A free port of the loopback device, and not an ephemeral one, which other programs may get meanwhile.

    Raises:
        OSError: a hundred of them are in use.
    """
    for port in random.SystemRandom().sample(PORTS, 100):
        with suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no free port found from {PORTS.start} to {PORTS.stop}")


def _workers(options: Options, wanted: Sequence[Resources | None]) -> int:
    """The number of workers of the largest trial."""
    return max([options.workers_per_trial or 1, *(r.workers for r in wanted if r)])


def _joined(*folders: Path | str | None) -> str:
    return os.pathsep.join(str(folder) for folder in folders if folder)


def _connect(options: Options, exclusive_gpus: bool, code: Code) -> Layout:
    """Connects to a cluster, and ships the code to it."""
    address = str(options.cluster)
    if options.niceness is not None:
        raise UserError(
            f"--niceness {options.niceness} is for the Ray that a run starts by itself. In a cluster the "
            f"niceness of trials is set where a node starts: RAY_worker_niceness={options.niceness} ray start"
        )
    host, _, port = address.rpartition(":")
    # Ray itself would try for many minutes.
    if port.isdecimal() and not opens((host, int(port))):
        raise UserError(_no_ray(options, "nothing listens there"))
    known = {} if address == "auto" else {"RAY_ADDRESS": address}  # why: see `_address_ahead`
    runtime: dict[str, Any] = {"env_vars": _WORKER_ENVIRONMENT | known}
    with TemporaryDirectory(prefix="ablation-code-") as copy:
        if code.copy_to(Path(copy)):
            runtime["working_dir"] = copy
        _init(options, address=address, runtime_env=runtime)
    there = nodes()
    cpus, gpus = (int(sum(getattr(node, kind) for node in there)) for kind in ("cpus", "gpus"))
    _, default = share(options, cpus, gpus, exclusive_gpus=exclusive_gpus)
    return Layout(there, default, options.concurrency, options.workers_per_trial)


def nodes() -> tuple[Node, ...]:
    """The nodes that are alive in Ray now."""
    import ray

    return tuple(
        Node(
            node["NodeID"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
            int(node["Resources"].get("memory", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    )


def endpoints() -> list[tuple[str, int]]:
    """Addresses of Ray's central process and of this node's."""
    import ray

    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    own = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    return [(host, int(port)), (own["NodeManagerAddress"], own["NodeManagerPort"])]


def opens(address: tuple[str, int]) -> bool:
    """Whether something listens at a host and port."""
    try:
        socket.create_connection(address, timeout=CONNECT_S).close()
    except OSError:
        return False
    return True


def _init(options: Options, **arguments: Any) -> None:
    import ray

    try:
        ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **arguments)
    except Exception as error:
        raise UserError(_no_ray(options, error)) from error


def _local_environment(options: Options, workers: int) -> dict[str, str | None]:
    local: dict[str, str | None] = {
        **_WORKER_ENVIRONMENT,
        # Unset, Ray sets it in the process of each worker to the number of CPUs that the worker holds.
        "OMP_NUM_THREADS": None,
        "MKL_NUM_THREADS": None,
        # Ray's own default is 15. Beside one busy program a trial of two threads then gets 3 % of a core for
        # the second thread, for which the first waits at every step.
        "RAY_worker_niceness": str(options.niceness or 0),
        # Without them glibc returns large arrays to the system at every step, and maps them anew.
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
        "MALLOC_TOP_PAD_": str(64 << 20),
        # Ray listens on the loopback device alone, and answers only with the token.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _token(),
    }
    if sys.platform == "linux" and workers > 1:
        local["GLOO_SOCKET_IFNAME"] = "lo"
    return local


@cache
def _token() -> str:
    """The same for the life of this process: Ray keeps the first that it reads."""
    return secrets.token_hex(32)


@contextmanager
def environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Sets environment variables for the block; None unsets one."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _no_ray(options: Options, reason: object) -> str:
    if options.cluster is None:
        return f"Ray does not start on this machine: {reason}"
    return (
        f"No Ray cluster answers at {options.cluster!r}: {reason}. Start one with 'ray start --head'; one "
        "that asks for a token needs RAY_AUTH_MODE=token here too. Without --cluster it runs on this machine."
    )
