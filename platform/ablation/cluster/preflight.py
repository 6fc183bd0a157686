"""Asks every node of a cluster, before anything starts, whether trials can run there.

One task on each node tells its versions, whether it can read the data, and whether node and driver see in the
storage what the other writes. All problems are reported at once, a line for each node and problem.
"""

from __future__ import annotations

import platform
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypedDict

from ablation.cluster.code import NO_CODE, OURS, Code
from ablation.credentials import hidden
from ablation.errors import UserError, last_line
from ablation.provenance.environment import version
from ablation.storage import Storage
from ablation.storage.filesystem import delete, opened, write

NODE_TIMEOUT_S = 90.0
"""How long a node may take to answer, with the start of a process there."""
VISIBLE_WITHIN_S = 5.0
"""How long a file may take until another machine sees it: network file systems cache what was."""
VERSIONS = ("ray",)
"""Distributions that must be equal on all nodes beside the study's, up to a local part (+cpu, +cu126)."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What every node must have.

    Attributes:
        versions: distributions whose versions must be the driver's.
        paths: files and folders that must be readable; files as long as the driver's.
        url: of the storage.
        mark: beginning of the names of the files that this check writes there and deletes.
    """

    versions: tuple[str, ...]
    paths: tuple[str, ...]
    url: str
    mark: str


class Facts(TypedDict):
    """What a machine is.

    Attributes:
        versions: of Python and of the distributions; None for one that is absent.
        paths: length in bytes of each path, 0 for a folder; or why it cannot be read.
    """

    versions: dict[str, str | None]
    paths: dict[str, int | str]


class NodeFacts(Facts):
    """What a node is.

    Attributes:
        storage: why the storage cannot be used; empty where it can.
        sees_driver: whether the node sees what the driver writes.
        seen: whether the driver sees what the node writes.
    """

    storage: str
    sees_driver: bool
    seen: bool


def check(
    storage: Storage,
    paths: Sequence[Path],
    packages: Sequence[str],
    code: Code = NO_CODE,
    *,
    timeout_s: float = NODE_TIMEOUT_S,
) -> None:
    """Returns when trials can run on every node of the connected Ray cluster.

    Args:
        storage: of the trials' files.
        paths: what the trials read, as `paths_in` finds it.
        packages: whose versions must be the driver's (`Study.packages`).
        code: what the trials import. A platform that is not shipped must be installed in the same version.
        timeout_s: for each node; all are asked at the same time.

    Raises:
        UserError: a line for each node and problem.
    """
    storage.probe()
    names = node_names()
    installed = () if OURS in code.checkouts() else (OURS,)
    wanted = Wanted(
        tuple(dict.fromkeys((*packages, *VERSIONS, *installed))),
        tuple(str(path) for path in dict.fromkeys(paths)),
        storage.url,
        f".preflight-{uuid.uuid4().hex}",
    )
    own, answers = _ask_all(wanted, list(names), timeout_s)
    lines = [f"the driver {problem}" for problem in _unreadable(own["paths"])]
    lines += [f"{names[id]} {problem}" for id in names for problem in problems(own, answers[id], wanted.url)]
    if lines:
        raise UserError("The cluster is not ready:\n" + "\n".join(f"  {line}" for line in lines))


def paths_in(value: Any) -> list[Path]:
    """Every path in a setting's context: dataclasses, mappings and sequences are searched."""
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


def problems(own: Facts, node: NodeFacts | str, url: str) -> list[str]:
    """What is wrong with a node, each as the rest of a sentence that begins with its name.

    Args:
        own: the driver's facts.
        node: the node's, or why there are none.
        url: of the storage.
    """
    if isinstance(node, str):
        return [node]
    return [
        *_versions(own["versions"], node["versions"]),
        *_unreadable(node["paths"]),
        *_other_files(own["paths"], node["paths"]),
        *_storage(node, hidden(url)),
    ]


def _versions(own: Mapping[str, str | None], node: Mapping[str, str | None]) -> list[str]:
    missing = [name for name, theirs in node.items() if theirs is None and own[name]]
    return [f"has no {name} package" for name in missing] + [
        f"has {name} {theirs}, the driver has {own[name] or 'none'}"
        for name, theirs in node.items()
        if theirs and _public(theirs) != _public(own[name] or "")
    ]


def _public(version: str) -> str:
    return version.partition("+")[0]


def _unreadable(paths: Mapping[str, int | str]) -> list[str]:
    return [f"cannot read {path}: {reason}" for path, reason in paths.items() if isinstance(reason, str)]


def _other_files(own: Mapping[str, int | str], node: Mapping[str, int | str]) -> list[str]:
    return [
        f"has another {path}: {size} bytes, the driver's has {own[path]}"
        for path, size in node.items()
        if isinstance(size, int) and isinstance(own[path], int) and size != own[path]
    ]


def _storage(node: NodeFacts, shown_url: str) -> list[str]:
    if node["storage"]:
        return [f"cannot use the storage {shown_url}: {hidden(node['storage'])}"]
    if node["sees_driver"] and node["seen"]:
        return []
    blind = ["does not see what the driver writes"] * (not node["sees_driver"])
    blind += ["writes what the driver does not see"] * (not node["seen"])
    advice = "it must be the same folder on every machine; --storage takes a URL where there is none"
    return [f"{' and '.join(blind)} in {shown_url}: {advice}"]


# --- asking ----------------------------------------------------------------------------------------------


def _ask_all(
    wanted: Wanted, ids: Sequence[str], timeout_s: float
) -> tuple[Facts, dict[str, NodeFacts | str]]:
    """The driver's facts, and each node's or why there are none; leaves no file behind."""
    names = {id: f"{wanted.mark}-{id}" for id in ids}
    own_name = f"{wanted.mark}-driver"
    seen: Collection[str] = ()
    _leave(wanted.url, own_name)
    try:
        answers = _on_nodes(_inspect, {id: (wanted, own_name, names[id]) for id in ids}, timeout_s)
        seen = _seen(wanted.url, [names[id] for id in ids if isinstance(answers[id], dict)])
    finally:
        _remove(wanted.url, [own_name, *seen])
    left = {
        id: (wanted.url, [name])
        for id, name in names.items()
        if name not in seen and isinstance(answers[id], dict)
    }
    _on_nodes(_remove, left, timeout_s)
    facts: dict[str, Any] = {
        id: answer if isinstance(answer, str) else {**answer, "seen": names[id] in seen}
        for id, answer in answers.items()
    }
    return _machine(wanted), facts


def _on_nodes(
    task: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]], timeout_s: float
) -> dict[str, Any]:
    """What the task returns on each node, by node id; a text where it did not."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(task)

    def start(id: str) -> Any:
        pinned = NodeAffinitySchedulingStrategy(id, soft=False)
        return remote.options(scheduling_strategy=pinned).remote(*arguments[id])

    asked = {start(id): id for id in arguments}
    if not asked:
        return {}
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


def _seen(url: str, names: Collection[str]) -> set[str]:
    """Those of the files that this machine sees within `VISIBLE_WITHIN_S`."""
    deadline = time.monotonic() + VISIBLE_WITHIN_S
    return {name for name in names if _sees(url, name, deadline - time.monotonic())}


# --- what runs on the nodes ------------------------------------------------------------------------------


def _inspect(wanted: Wanted, theirs: str, own: str) -> dict[str, Any]:
    """`NodeFacts` without `seen`: writes the file `own`, and looks for the driver's file `theirs`."""
    facts = {**_machine(wanted), "storage": "", "sees_driver": False}
    try:
        _leave(wanted.url, own)
        facts["sees_driver"] = _sees(wanted.url, theirs, VISIBLE_WITHIN_S)
    except Exception as error:
        facts["storage"] = f"{type(error).__name__}: {error}"
    return facts


def _machine(wanted: Wanted) -> Facts:
    versions = {"Python": platform.python_version(), **{name: version(name) for name in wanted.versions}}
    return {"versions": versions, "paths": {path: _readable(Path(path)) for path in wanted.paths}}


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


def _leave(url: str, name: str) -> None:
    fs, root = opened(url)
    write(fs, root, f"{root}/{name}", name.encode())


def _sees(url: str, name: str, within_s: float) -> bool:
    fs, root = opened(url)
    deadline = time.monotonic() + within_s
    while not fs.exists(f"{root}/{name}"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return bool(fs.cat_file(f"{root}/{name}") == name.encode())


def _remove(url: str, names: Collection[str]) -> None:
    fs, root = opened(url)
    for name in names:
        with suppress(FileNotFoundError):
            delete(fs, f"{root}/{name}")
