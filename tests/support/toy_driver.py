"""A study of trials that only count, and the driver that runs it: `python toy_driver.py WORKSPACE`.

Run as a script, so that tests can kill it. Prints the plain display's lines and then the summary as JSON.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ablation.driver.display import Board, PlainDisplay
from ablation.driver.launch import Summary, run
from ablation.errors import UserError
from ablation.metric import Metric
from ablation.plan import Plan, make_plan, register
from ablation.protocol import (
    Checkpointed,
    DeviceError,
    Evaluated,
    Noticed,
    OutOfMemoryError,
    Progress,
    Report,
    Request,
)
from ablation.resources import Resources
from ablation.run_options import Options
from ablation.setting import PlainSetting
from ablation.storage import storage_at
from ablation.store import Store
from ablation.study import Cell, Profile, Row, Study, Table, Variant
from ablation.workspace import Workspace


@dataclass(frozen=True)
class Toy:
    """A training that counts to `steps`; `fault` happens in the middle.

    Attributes:
        workers: that it asks for; 0 asks for nothing in particular.
        cpus, memory: of each worker, where it asks for workers.
        gpus: of each worker, where it asks for workers.
        broken: the address of a machine, or a GPU's number on it, that fails under every trial; the others
            fail under this trial alone where it is "all".
        batch: that takes memory; more than 2 at a time is too much where the fault is "memory".
        checkpoint_every: steps between two checkpoints; one that is asked to stop writes one at once.
    """

    name: str
    steps: int = 4
    step_seconds: float = 0.0
    fault: str = ""
    seed: int = 0
    workers: int = 0
    cpus: int = 1
    memory: int = 0
    gpus: float = 0.0
    broken: str = ""
    batch: int = 16
    checkpoint_every: int = 1


@dataclass(frozen=True)
class Count:
    """An evaluation that gives the number of steps as AP."""

    scale: float = 1.0


def train(request: Request) -> Generator[Report, None, None]:
    """Counts from its checkpoint on, writes where each attempt began, and has accidents if told to."""
    toy, rank, peers = request.config, *_group()
    step, starts = _resumed(request.directory), request.directory / "starts.txt"
    if rank == 0:
        with starts.open("a") as file:
            threads = " ".join(os.environ.get(name, "-") for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT"))
            file.write(f"{step} {os.getpid()} {threads} {os.nice(0)}\n")
    _sum(0.0)  # the other ranks count the attempts when the first has written this one down
    while step < toy.steps:
        step += 1
        time.sleep(toy.step_seconds)
        if step == toy.steps // 2 + 1:
            _let_down(toy.broken)
            _accident(toy, request.micro_batch, len(starts.read_text().splitlines()), rank == peers - 1)
        try:
            yield Progress(step, toy.steps, {"loss": _sum(rank + 1.0) / step, "images_per_second": 100.0})
        except GeneratorExit:
            _checkpoint(request.directory, step, write=rank == 0)
            raise
        if step % toy.checkpoint_every == 0 or step == toy.steps:
            yield _checkpoint(request.directory, step, write=rank == 0)
    for wanted in request.evaluations:
        yield Evaluated(wanted.key, {"AP": step * wanted.config.scale})
    yield Noticed(f"counted among {peers}")


def _group() -> tuple[int, int]:
    if "torch" not in sys.modules:
        return 0, 1
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _sum(value: float) -> float:
    """Over all ranks."""
    if _group()[1] == 1:
        return value
    import torch

    tensor = torch.tensor(value)
    torch.distributed.all_reduce(tensor)
    return float(tensor)


def _resumed(directory: Path) -> int:
    """The step of the last checkpoint; 0 where there is none, or a damaged one."""
    try:
        return int(json.loads((directory / "checkpoint.json").read_text())["step"])
    except (FileNotFoundError, ValueError):
        return 0


def _checkpoint(directory: Path, step: int, *, write: bool) -> Checkpointed:
    path, text = directory / "checkpoint.json", json.dumps({"step": step})
    if write:
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").rename(path)
    return Checkpointed(step, str(path), hashlib.sha256(text.encode()).hexdigest())


def _let_down(broken: str) -> None:
    import ray

    address, gpus = ray.util.get_node_ip_address(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if broken in ("all", address, gpus):
        raise DeviceError("CUDA error: uncorrectable ECC error", usable=broken == "all")


def _accident(toy: Toy, micro_batch: int | None, attempt: int, last_rank: bool) -> None:
    first = attempt == 1 and last_rank
    if toy.fault == "raise" and last_rank:
        raise ValueError("the loss is not a number")
    if toy.fault == "die" or (toy.fault == "die once" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if toy.fault == "hang once" and first:
        time.sleep(3600)
    if toy.fault == "freeze once" and first:
        os.kill(os.getpid(), signal.SIGSTOP)
    if toy.fault == "preempted once" and first:
        os.kill(os.getpid(), signal.SIGTERM)
    if toy.fault == "memory" and (now := micro_batch or toy.batch) > 2:
        raise OutOfMemoryError(f"{now} at a time are too many", now // 2)


@dataclass(frozen=True)
class ToySetting(PlainSetting):
    """Runs trials as they are declared."""

    profile: str = "toy"
    caption: str = "counting"
    data_name: str = "none"

    def resources(self, trial: Toy) -> Resources | None:
        return Resources(trial.workers, trial.cpus, trial.gpus, trial.memory) if trial.workers else None

    def cost(self, trial: Toy, evaluations: Sequence[Count]) -> float:
        return trial.steps * max(trial.step_seconds, 0.01)


PROGRESS = (
    Metric("loss", unit="", better="lower", digits=3),
    Metric("images_per_second", unit="images/s", digits=0, label="speed"),
)


def toy_study(toys: list[Toy]) -> Study:
    """One table, a row for each."""
    rows = tuple(Row(toy.name, (toy.name,), (Cell(Variant(toy, Count()), "AP"),)) for toy in toys)
    table = Table("table1", "Counting", ("method",), ("AP",), rows)
    profile = Profile("toy", "counts", 1, lambda workspace, options: ToySetting())
    return Study("toy", "Counting", (Metric("AP"),), (table,), (), {"toy": profile}, "toy", train, PROGRESS)


def planned(toys: list[Toy], store: Store, seeds: Sequence[int] = (0,)) -> Plan:
    """The plan, known to the store."""
    study = toy_study(toys)
    register(make_plan(study, ToySetting(), seeds, store=store), store)
    return make_plan(study, ToySetting(), seeds, store=store)


def drive(workspace: Workspace, toys: list[Toy], options: Options, store: str, storage: str) -> Summary:
    """What a `run` command does."""
    workspace.create()
    opened = Store.open(store or workspace.store_path, root=workspace.root)
    with nullcontext() if opened.shared else workspace.driver_lock("toy"):
        opened.reclaim_silent() if opened.shared else opened.reclaim_all()
        plan = planned(toys, opened)
        files = storage_at(storage or workspace.artifacts)
        with PlainDisplay(Board(plan), lambda line: print(line, flush=True)) as listener:
            seconds = {trial.key: trial.cost for trial in plan.trials}
            return run(plan, options, opened, files, workspace, listener, seconds, facts={})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--toys", type=json.loads, required=True)
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--store", default="")
    parser.add_argument("--storage", default="")
    arguments: Any = parser.parse_args()
    toys = [Toy(**values) for values in arguments.toys]
    try:
        workspace, options = Workspace.at(arguments.workspace), Options(**arguments.options)
        summary = drive(workspace, toys, options, arguments.store, arguments.storage)
    except UserError as error:
        sys.exit(str(error))
    print(json.dumps(asdict(summary)))


if __name__ == "__main__":
    main()
