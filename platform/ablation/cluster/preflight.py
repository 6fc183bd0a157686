"""Asks every node of a cluster, before anything starts, whether trials can run there.

One task pinned to each node says which code and versions it would import, whether it can read the data, and
whether what it writes in the storage is seen by the driver, and the other way round. A node may have another
version of this package, or none: the task's code travels with it (`_by_value`), and what it answers is plain
data. All problems are said at once, a line for each node and problem.
"""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import ablation
from ablation.cluster.connection import nodes
from ablation.credentials import hidden
from ablation.driver.scheduler import GangScheduler
from ablation.errors import UserError, last_line
from ablation.provenance.environment import source_hash, source_text, version
from ablation.provenance.record import UNKNOWN, collect
from ablation.resources import Node, Resources
from ablation.storage import Storage

NODE_TIMEOUT_S = 90.0
"""How long a node may take to answer, with the start of a process there."""
SEEN_WITHIN_S = 5.0
"""How long a file may take to be seen by another machine: network file systems remember what was."""
OURS = "ablation"
VERSIONS = (OURS, "torch", "torchvision")
"""Distributions that must be equal on all nodes, up to a local part (+cpu, +cu126)."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What every node must have.

    Attributes:
        packages: names of packages whose source must be the driver's, this one's included.
        paths: files and folders that must be readable; files as long as the driver's.
        place: of the storage, as fsspec opens it.
        mark: beginning of the names of the files that this check leaves there for a moment.
    """

    packages: tuple[str, ...]
    paths: tuple[str, ...]
    place: str
    mark: str


Facts = Mapping[str, Any]
"""What `_look` says of a machine."""


def check(
    storage: Storage,
    paths: Sequence[Path],
    sources: Sequence[str],
    needs: Mapping[str, Resources],
    *,
    timeout_s: float = NODE_TIMEOUT_S,
) -> None:
    """Returns when every node of the connected Ray cluster is ready for the trials.

    Args:
        storage: where their files will live.
        paths: what they read, as `paths_in` finds it.
        sources: packages that they import, as `Study.sources`.
        needs: what each trial will hold, by the name that people know it by.
        timeout_s: for each node; all are asked at the same time.

    Raises:
        UserError: a line for each node and problem.
    """
    storage.probe()
    names = node_names()
    wanted = Wanted(
        tuple(dict.fromkeys([OURS, *sources])),
        tuple(str(path) for path in dict.fromkeys(paths)),
        storage.url,
        f".preflight-{uuid.uuid4().hex}",
    )
    own, answers = _ask_all(wanted, list(names), timeout_s)
    lines = [f"the driver {problem}" for problem in _unreadable(own["paths"])]
    lines += [
        f"{names[id]} {problem}" for id in names for problem in problems(own, answers[id], wanted.place)
    ]
    lines += lacking(nodes(), names, needs)
    if lines:
        raise UserError("The cluster is not ready:\n" + "\n".join(f"  {line}" for line in lines))


def paths_in(value: Any) -> list[Path]:
    """Every path in a setting's context: dataclasses, mappings and sequences are looked through."""
    if isinstance(value, Path):
        return [value]
    if is_dataclass(value) and not isinstance(value, type):
        return paths_in([getattr(value, field.name) for field in fields(value)])
    if isinstance(value, Mapping):
        return paths_in(list(value.values()))
    if isinstance(value, list | tuple):
        return [path for item in value for path in paths_in(item)]
    return []


def node_names() -> dict[str, str]:
    """A name of each node for people, by its id: host and address, and of two that share these, the id."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    names = {
        node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in alive
    }
    common = {name for name in names.values() if list(names.values()).count(name) > 1}
    return {id: f"{name[:-1]}, node {id[:6]})" if name in common else name for id, name in names.items()}


# --- judging: no Ray from here on ------------------------------------------------------------------------


def problems(own: Facts, node: Facts | str, place: str) -> list[str]:
    """What is wrong with a node, each as the rest of a sentence that begins with its name.

    Args:
        own: the driver's facts.
        node: the node's, or why there are none.
        place: of the storage.
    """
    if isinstance(node, str):
        return [node]
    return [
        *_versions(own, node),
        *_code(own, node),
        *_unreadable(node["paths"]),
        *_other_files(own["paths"], node["paths"]),
        *_storage(node, hidden(place)),
    ]


def _versions(own: Facts, node: Facts) -> list[str]:
    pairs = {"Python": (own["python"], node["python"])}
    pairs |= {
        name: (own["versions"][name], node["versions"][name])
        for name in VERSIONS
        if name in node["installed"]
    }
    missing = [name for name in VERSIONS if name not in node["installed"] and name in own["installed"]]
    return [f"has no {name} package" for name in missing] + [
        f"has {name} {theirs or 'of unknown version'}, the driver has {ours or 'one of unknown version'}"
        for name, (ours, theirs) in pairs.items()
        if _public(ours) != _public(theirs)
    ]


def _public(version: str | None) -> str:
    return (version or "").partition("+")[0]


def _code(own: Facts, node: Facts) -> list[str]:
    """Of nodes with this package's version: where else the source differs."""
    if OURS not in node["installed"] or own["versions"][OURS] != node["versions"][OURS]:
        return []
    commits = own["commit"], node["commit"]
    if UNKNOWN not in commits and commits[0] != commits[1]:
        return [f"is at commit {commits[1][:9]}, the driver at {commits[0][:9]}"]
    missing = [name for name, digest in node["code"].items() if digest is None and own["code"][name]]
    other = [name for name in own["code"] if own["code"][name] != node["code"][name] and name not in missing]
    lines = [f"has no {name} package" for name in missing]
    if other:
        lines.append(
            f"has other source files of {', '.join(other)} than the driver: changed, or installed earlier"
        )
    return lines


def _unreadable(paths: Mapping[str, int | str]) -> list[str]:
    return [f"cannot read {path}: {reason}" for path, reason in paths.items() if isinstance(reason, str)]


def _other_files(own: Mapping[str, int | str], node: Mapping[str, int | str]) -> list[str]:
    return [
        f"has another {path}: {size} bytes, the driver's has {own[path]}"
        for path, size in node.items()
        if isinstance(size, int) and isinstance(own[path], int) and size != own[path]
    ]


def _storage(node: Facts, place: str) -> list[str]:
    if node["storage"]:
        return [f"cannot use the storage {place}: {hidden(node['storage'])}"]
    if node["sees_driver"] and node["seen"]:
        return []
    blind = ["does not see what the driver writes"] * (not node["sees_driver"])
    blind += ["writes what the driver does not see"] * (not node["seen"])
    advice = "it must be the same place on every machine; --storage takes a URL where no folder is"
    return [f"{' and '.join(blind)} in {place}: {advice}"]


def lacking(there: Sequence[Node], names: Mapping[str, str], needs: Mapping[str, Resources]) -> list[str]:
    """A line for each kind of trial that has no place even on the empty cluster.

    Args:
        there: the nodes of the cluster.
        names: of the nodes, by id.
        needs: what each trial will hold, by its name.
    """
    scheduler = GangScheduler(there)
    kinds: dict[Resources, list[str]] = {}
    for trial, resources in needs.items():
        kinds.setdefault(resources, []).append(trial)
    return [
        f"{_several(trials)} needs {_amount(resources)}; {_rooms(there, names, resources)}"
        for resources, trials in kinds.items()
        if scheduler.never_fits(resources)
    ]


def _rooms(there: Sequence[Node], names: Mapping[str, str], resources: Resources) -> str:
    """How many of the workers find room on the empty nodes; equal nodes are said together."""
    kinds: dict[tuple[float, float, int], list[Node]] = {}
    for node in there:
        kinds.setdefault((node.cpus, node.gpus, node.memory), []).append(node)
    rooms = [
        f"{_several([names[node.id] for node in equal])} with {_size(*size)} has room for "
        f"{_workers_on(equal[0], resources)}"
        for size, equal in kinds.items()
    ]
    return "; ".join(rooms) or "the cluster has no nodes"


def _workers_on(node: Node, resources: Resources) -> int:
    """How many of a trial's workers the empty node takes."""
    alone = GangScheduler([node])
    fitting = (
        n for n in range(resources.workers, 0, -1) if not alone.never_fits(replace(resources, workers=n))
    )
    return next(fitting, 0)


def _amount(resources: Resources) -> str:
    size = _size(resources.cpus, resources.gpus, resources.memory)
    return f"{size} at once" if resources.workers == 1 else f"{resources.workers} workers of {size} at once"


def _size(cpus: float, gpus: float, memory: int) -> str:
    parts = [f"{cpus:g} CPUs" if cpus != 1 else "1 CPU"]
    parts += [f"{gpus:g} GPUs" if gpus != 1 else "1 GPU"] * bool(gpus)
    parts += [f"{memory / (1 << 30):.3g} GiB"] * bool(memory)
    return ", ".join(parts)


def _several(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"each of {names[0]} and {len(names) - 1} more"


# --- asking ----------------------------------------------------------------------------------------------


def _ask_all(
    wanted: Wanted, ids: Sequence[str], timeout_s: float
) -> tuple[dict[str, Any], dict[str, dict[str, Any] | str]]:
    """The driver's facts, and each node's or why there are none; leaves no file behind."""
    names = {id: f"{wanted.mark}-{id}" for id in ids}
    own_name = f"{wanted.mark}-driver"
    seen: Collection[str] = ()
    _leave(wanted.place, own_name)
    try:
        question = (wanted.packages, wanted.paths, wanted.place, own_name)
        answers = _on_nodes(_look, {id: (*question, names[id]) for id in ids}, timeout_s)
        seen = _seen(wanted.place, [names[id] for id in ids if isinstance(answers[id], dict)])
    finally:
        _remove(wanted.place, [own_name, *seen])
    hidden_files = {id: (wanted.place, [name]) for id, name in names.items() if name not in seen}
    _on_nodes(
        _remove, {id: hidden_files[id] for id in hidden_files if isinstance(answers[id], dict)}, timeout_s
    )
    facts = {
        id: answer if isinstance(answer, str) else {**answer, "seen": names[id] in seen}
        for id, answer in answers.items()
    }
    return _machine(wanted.packages, wanted.paths), facts


def _on_nodes(
    task: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]], timeout_s: float
) -> dict[str, Any]:
    """What the task returns on each node, by node id; a text where it did not."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def start(id: str) -> Any:
        pinned = NodeAffinitySchedulingStrategy(id, soft=False)
        return remote.options(scheduling_strategy=pinned).remote(*arguments[id])

    if not arguments:
        return {}
    with _by_value():
        remote = ray.remote(num_cpus=0, max_retries=0)(task)
        asked = {start(id): id for id in arguments}
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)
    for reference in late:
        ray.cancel(reference, force=True)
    silent = f"did not answer within {timeout_s:g} s: a mount or a process hangs there"
    return {asked[r]: _answer(r) for r in ready} | {asked[r]: silent for r in late}


def _answer(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except Exception as error:
        return f"runs no task: {last_line(str(error))}"


@contextmanager
def _by_value() -> Iterator[None]:
    """Functions of this package are pickled whole, with what they use, not as names to import there."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(ablation)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(ablation)


def _seen(place: str, names: Collection[str]) -> set[str]:
    """Those of the files that this machine sees, after some patience."""
    deadline = time.monotonic() + SEEN_WITHIN_S
    return {name for name in names if _sees(place, name, deadline - time.monotonic())}


# --- what runs on the nodes ------------------------------------------------------------------------------
# Functions that use the standard library, fsspec and each other, and import nothing of this package: a node
# may have another version of it, or none.


def _look(packages: Sequence[str], paths: Sequence[str], place: str, theirs: str, own: str) -> dict[str, Any]:
    """What `_machine` says of this node, and of the storage: what is wrong, and whether it sees `theirs`."""
    facts = {**_machine(packages, paths), "storage": None, "sees_driver": False}
    try:
        _leave(place, own)
        facts["sees_driver"] = _sees(place, theirs, SEEN_WITHIN_S)
    except Exception as error:
        facts["storage"] = f"{type(error).__name__}: {error}"
    return facts


def _machine(packages: Sequence[str], paths: Sequence[str]) -> dict[str, Any]:
    """Versions, the source that an import would run, and which of the paths can be read."""
    folders = {name: _folder(name) for name in {*packages, *VERSIONS}}
    ours = folders[OURS]
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONS},
        "installed": [name for name, folder in folders.items() if folder],
        "commit": collect("", ours)["commit"] if ours else UNKNOWN,
        "code": {name: _digest(folders[name]) for name in packages},
        "paths": {path: _readable(Path(path)) for path in paths},
    }


def _folder(package: str) -> Path | None:
    """Where an import of the package would find it; imports nothing."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


def _digest(folder: Path | None) -> str | None:
    """SHA-256 over the names and texts of a package's source files."""
    if folder is None:
        return None
    files = sorted(folder.rglob("*.py"))
    lines = [f"{f.relative_to(folder).as_posix()} {source_hash(source_text(f.read_bytes()))}" for f in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _readable(path: Path) -> int | str:
    """Bytes of a file, 0 for a folder; why not, when it cannot be read."""
    try:
        if path.is_dir():
            next(path.iterdir(), None)
            return 0
        with path.open("rb") as file:
            file.read(1)
        return path.stat().st_size
    except OSError as error:
        return error.strerror or str(error)


def _leave(place: str, name: str) -> None:
    fs, root = _file_system(place)
    fs.pipe_file(f"{root}/{name}", name.encode())


def _sees(place: str, name: str, patience_s: float) -> bool:
    fs, root = _file_system(place)
    deadline = time.monotonic() + patience_s
    while not fs.exists(f"{root}/{name}"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return bool(fs.cat_file(f"{root}/{name}") == name.encode())


def _remove(place: str, names: Collection[str]) -> None:
    fs, root = _file_system(place)
    for name in names:
        with suppress(FileNotFoundError):
            fs.rm_file(f"{root}/{name}")


def _file_system(place: str) -> tuple[Any, str]:
    import fsspec  # type: ignore[import-untyped]

    fs, root = fsspec.core.url_to_fs(place, use_listings_cache=False)
    return fs, str(root).rstrip("/")
