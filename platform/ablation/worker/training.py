"""Runs the train function in this process: its files, its log, the watchdog beside it, and a stop.

A trial of one worker runs here in the process of its Tune trial, a trial of several on every rank of its Ray
Train group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from ablation.protocol import Checkpointed, Described, Noticed, Report, Request, TrainFunction
from ablation.provenance.environment import describe
from ablation.storage import Storage
from ablation.storage.names import HANG, LOG
from ablation.storage.reports import files_of, moved
from ablation.worker.messages import Stopped
from ablation.worker.watchdog import Watch, guarded, hang_of, logged


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What the processes of all trials get, once.

    Attributes:
        artifacts: the driver's folder of trial directories.
        sources, packages: see `ablation.study.Study`.
        hang_after: see `ablation.worker.watchdog.Watch`.
        scratch: folder for what Ray Train leaves, which nobody reads.
    """

    train: TrainFunction
    storage: Storage
    artifacts: Path
    sources: tuple[str, ...]
    packages: tuple[str, ...]
    hang_after: float
    scratch: Path


def reports(
    config: WorkerConfig, request: Request, stop: Callable[[], bool], *, writes: bool = True
) -> Iterator[Report | Stopped]:
    """What the train function reports, and descriptions of the environment before and after.

    The first report comes before anything in the trial's directory is touched.

    Args:
        stop: asked after each report; the training then stops at a checkpoint, and `Stopped` is the last.
        writes: False for all ranks but the first, which writes the files for all.
    """
    yield Described(at_start := describe(config.sources, config.packages))
    storage, key = config.storage, request.trial_key
    here, driver_directory = storage.directory(key), config.artifacts / key
    folder = request.directory.relative_to(driver_directory)
    guarded(here, config.hang_after)
    notices = storage.fetch(key, here, folder.as_posix())
    (here / folder).mkdir(exist_ok=True)
    if writes and hang_of(here):  # before this attempt has a watch of its own there
        notices.append("the attempt before hung and was ended (the trial's log.txt says where)")
    with logged(here, writes=writes) as log, Watch(here, config.hang_after) as watch:
        yield from map(Noticed, notices)
        request = replace(request, directory=here / folder, heartbeat=watch.arm)
        with closing(config.train(request)) as training:
            for number, report in enumerate(watch.over(training)):
                if number == 0 and (now := describe(config.sources, config.packages)) != at_start:
                    yield Described(now)  # a train function may import its modules when it is called
                log(report)
                if writes:
                    _store(storage, key, here, report)
                yield moved(report, here, driver_directory)
                if stop():
                    with watch.armed():
                        training.close()  # writes a checkpoint of the step that was reported
                    if writes:
                        storage.upload(key, here, _files(here))
                    log("stopped")
                    yield Stopped()
                    return
        yield Described(describe(config.sources, config.packages))
        log("ended")
    if writes:
        storage.remove_copies(key, here)


def _store(storage: Storage, key: str, here: Path, report: Report) -> None:
    """Stores the files that a report names, for the driver and for later attempts."""
    if files := files_of(report):
        storage.upload(key, here, [*files, here / LOG])
    if isinstance(report, Checkpointed):
        storage.prune(key, here)


def _files(directory: Path) -> list[Path]:
    """The files of a trial's directory that a later attempt may need: all but those of this process alone."""
    own = (HANG, ".")
    return [path for path in directory.rglob("*") if path.is_file() and not path.name.startswith(own)]
