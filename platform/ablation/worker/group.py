"""Ray Train's part in a trial of several workers: what happens in its processes before the training begins.

The ranks meet at a key-value store of torch's, kept by the first of them. Ray would have it listen on every
device of the machine; here it listens at the address by which Ray knows the machine, and nowhere else: the
loopback device where Ray is this machine's alone, and in a cluster the network of its nodes.
"""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Any, ClassVar

from ablation.worker.watchdog import guarded


class Rank:
    """This process, where it is one of a group.

    Attributes:
        preempted: the machine wants it gone.
    """

    preempted: ClassVar[bool] = False
    _store: ClassVar[Any] = None


def torch_config(backend: str, directory: Path, hang_after: float) -> Any:
    """Ray Train's `TorchConfig`, with a store that listens at one address.

    Args:
        backend: of torch.distributed.
        directory, hang_after: see `watch.guarded`; of Train's controller, whose process starts the group.
    """
    from ray import get
    from ray.train.torch import config

    class Backend(config._TorchBackend):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            guarded(directory, hang_after)  # nothing else of ours runs in the controller's process
            worker_group.execute(_heed_sigterm)
            worker_group.execute(config._set_torch_distributed_env_vars)
            size = len(worker_group)
            url = worker_group.execute_single(0, _open_store, size)
            get(
                [
                    worker_group.execute_single_async(
                        rank,
                        config._setup_torch_process_group,
                        backend=backend,
                        world_rank=rank,
                        world_size=size,
                        init_method=url,
                        timeout_s=backend_config.timeout_s,
                    )
                    for rank in range(size)
                ]
            )

    class Config(config.TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type[Any]:
            return Backend

    return Config(backend=backend)


def _open_store(size: int) -> str:
    """Opens the store in the process of the first rank.

    Returns:
        Its address. The first rank meets there like the others: torch finds, by the port, that the store is
        open in this process already.
    """
    from ray.util import get_node_ip_address
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host = get_node_ip_address()
    v6 = ":" in host
    listener = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET)
    listener.bind((host, 0))
    port = listener.getsockname()[1]
    Rank._store = TCPStore(
        host,
        port,
        size,
        is_master=True,
        wait_for_workers=False,
        multi_tenant=True,
        master_listen_fd=listener.detach(),
    )
    return f"tcp://[{host}]:{port}" if v6 else f"tcp://{host}:{port}"


def _heed_sigterm() -> None:
    """Lets a rank that is asked to go stop at a checkpoint; runs in its main thread, the training in another.

    Without it Ray's own handler ends the process at once.
    """

    def note(*_: object) -> None:
        Rank.preempted = True

    signal.signal(signal.SIGTERM, note)
