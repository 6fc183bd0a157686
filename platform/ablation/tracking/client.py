"""MLflow's client: the server's address, how the client is made, and what its errors mean.

MLflow is imported where it is used: the import takes a second and a hundred megabytes.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from ablation.credentials import hidden
from ablation.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

REQUEST_SECONDS = 30
"""Time limit of one request."""

PARAMS_BATCH = 100
"""Parameters in one request, MLflow's limit."""

PARAM_LENGTH = 6000
"""Characters of a parameter's value, MLflow's limit."""

_ENVIRONMENT = {
    # MLflow does not retry: it would repeat a request whose reply was lost.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(REQUEST_SECONDS),
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_FORBIDDEN = re.compile(r"[^\w\-. :/]")
T = TypeVar("T")


def server_address(uri: str | None) -> str | None:
    """The address, without credentials, of the server that is configured; None for the workspace's file.

    Args:
        uri: the address that a person gave; MLFLOW_TRACKING_URI when None.

    Raises:
        UserError: the URI is not one of a server.
    """
    server = uri or os.environ.get("MLFLOW_TRACKING_URI")
    return split_credentials(server)[0] if server else None


def split_credentials(uri: str) -> tuple[str, tuple[str, str] | None]:
    """A server's address without credentials, and its (name, password) if it has both.

    Raises:
        UserError: the URI is not one of a server.
    """
    try:
        parts = urlsplit(uri)
        is_server = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_server = False
    if not is_server:
        raise UserError(
            f"An MLflow server's address is http://HOST:PORT or https://..., got {hidden(uri)!r}. "
            "Change --mlflow-uri or MLFLOW_TRACKING_URI; without both, the mirror is a file of the workspace."
        )
    address = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
    login = (unquote(parts.username), unquote(parts.password)) if parts.username and parts.password else None
    return address, login


def connect(uri: str, login: tuple[str, str] | None) -> MlflowClient:
    """A client of a tracking store; its settings go to MLflow through environment variables."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if login is not None:
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = login
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # importing MLflow sets its own levels
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri)


def or_none(get: Callable[[], T]) -> T | None:
    """The result of a request; None for what does not exist, or is hidden from this account."""
    try:
        return get()
    except Exception as error:
        if getattr(error, "error_code", None) not in ("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"):
            raise
        return None


def is_active(client: MlflowClient, run_id: str) -> bool:
    """Whether a run exists and has not been deleted."""
    run: Run | None = or_none(partial(client.get_run, run_id))
    return run is not None and run.info.lifecycle_stage == "active"


def metric(name: str, value: float, time: datetime | None, step: int) -> Metric:
    """An MLflow metric."""
    from mlflow.entities import Metric

    return Metric(metric_name(name), value, milliseconds(time), step)


def metric_name(name: str) -> str:
    """The name with each character that MLflow refuses replaced by an underscore."""
    return _FORBIDDEN.sub("_", name)


def log_params(client: MlflowClient, run_id: str, config: Mapping[str, Any]) -> None:
    """Logs a config's settings as parameters; long values are cut."""
    from mlflow.entities import Param

    params = [Param(name, value[:PARAM_LENGTH]) for name, value in flatten(config)]
    for start in range(0, len(params), PARAMS_BATCH):
        client.log_batch(run_id, params=params[start : start + PARAMS_BATCH])


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as ("detector.head.group_norm", "True") pairs; a nested class yields its name too."""
    for name, value in config.items():
        path = f"{prefix}.{name}" if prefix else name
        if name == "__type__":
            if prefix:
                yield prefix, str(value)
        elif isinstance(value, Mapping):
            yield from flatten(value, path)
        else:
            yield path, str(value)


def milliseconds(time: datetime | None) -> int:
    """A time as MLflow takes it: milliseconds since 1970; 0 for None."""
    return int(time.timestamp() * 1000) if time is not None else 0
