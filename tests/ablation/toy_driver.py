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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ablation.display import Board, PlainDisplay
from ablation.errors import UserError
from ablation.plan import Plan, make_plan, register
from ablation.protocol import Checkpointed, Evaluated, Noticed, Progress, Report, Request
from ablation.scheduler import Options, Summary, run
from ablation.store import Store
from ablation.study import Cell, Profile, Row, Study, Table, Variant
from ablation.workspace import Workspace


@dataclass(frozen=True)
class Toy:
    """A training that counts to `steps`; `fault` happens in the middle."""

    name: str
    steps: int = 4
    step_seconds: float = 0.0
    fault: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Count:
    """An evaluation that gives the number of steps as AP."""

    scale: float = 1.0


def train(request: Request) -> Iterator[Report]:
    """Counts from its checkpoint on, writes where each attempt began, and has accidents if told to."""
    toy, rank, peers = request.config, *_group()
    step, starts = _resumed(request.directory), request.directory / "starts.txt"
    if rank == 0:
        with starts.open("a") as file:
            file.write(f"{step} {os.getpid()} {os.environ.get('OMP_NUM_THREADS')}\n")
    while step < toy.steps:
        step += 1
        time.sleep(toy.step_seconds)
        if step == toy.steps // 2 + 1:
            _accident(toy.fault, len(starts.read_text().splitlines()), rank)
        yield Progress(step, toy.steps, {"loss": _sum(rank + 1.0) / step, "images_per_second": 100.0})
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
    path = directory / "checkpoint.json"
    return int(json.loads(path.read_text())["step"]) if path.exists() else 0


def _checkpoint(directory: Path, step: int, *, write: bool) -> Checkpointed:
    path, text = directory / "checkpoint.json", json.dumps({"step": step})
    if write:
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").rename(path)
    return Checkpointed(step, str(path), hashlib.sha256(text.encode()).hexdigest())


def _accident(fault: str, attempt: int, rank: int) -> None:
    if fault == "raise" and rank == 0:
        raise ValueError("the loss is not a number")
    if fault == "die" or (fault == "die once" and attempt == 1 and rank == 0):
        os.kill(os.getpid(), signal.SIGKILL)


class ToySetting:
    """Runs trials as they are declared."""

    profile, data_name, caption, notices, context = "toy", "none", "counting", (), None
    own_data = seed_noise = None
    at_paper_scale = whole_gpus = False

    def trial(self, training: Toy, seed: int) -> Toy:
        return Toy(training.name, training.steps, training.step_seconds, training.fault, seed)

    def evaluation(self, evaluation: Count) -> Count:
        return evaluation


def toy_study(toys: list[Toy]) -> Study:
    """One table, a row for each."""
    rows = tuple(Row(toy.name, (toy.name,), (Cell(Variant(toy, Count()), "AP"),)) for toy in toys)
    table = Table("table1", "Counting", ("method",), ("AP",), rows)
    profile = Profile("toy", "counts", 1, lambda workspace, data, overrides: ToySetting())
    return Study("toy", "Counting", (table,), (), {"toy": profile}, "toy", train)


def planned(toys: list[Toy], store: Store) -> Plan:
    """The plan, known to the store."""
    study = toy_study(toys)
    register(make_plan(study, ToySetting(), [0], store=store), store)
    return make_plan(study, ToySetting(), [0], store=store)


def drive(workspace: Workspace, toys: list[Toy], options: Options) -> Summary:
    """What a `run` command does."""
    workspace.create()
    with workspace.driver_lock("toy"):
        store = Store.open(workspace.store_path)
        store.reclaim_all()
        plan = planned(toys, store)
        with PlainDisplay(Board(plan), lambda line: print(line, flush=True)) as listener:
            return run(
                plan.work(),
                train,
                None,
                store,
                workspace,
                options,
                listener,
                whole_gpus=ToySetting.whole_gpus,
                provenance={},
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--toys", type=json.loads, required=True)
    parser.add_argument("--options", type=json.loads, default={})
    arguments: Any = parser.parse_args()
    toys = [Toy(**values) for values in arguments.toys]
    try:
        summary = drive(Workspace.at(arguments.workspace), toys, Options(**arguments.options))
    except UserError as error:
        sys.exit(str(error))
    print(json.dumps(asdict(summary)))


if __name__ == "__main__":
    main()
