"""Commands about MLflow, which shows what the store has: ui, sync."""

from __future__ import annotations

import argparse
import os
import sys

from ablation.cli.arguments import Commands, add, locations_of, locations_parser, port
from ablation.credentials import hidden
from ablation.errors import UserError
from ablation.session import existing_store
from ablation.tracking.client import server_address
from ablation.tracking.mirror import Mirror
from ablation.workspace import Workspace

PATIENCE_S = 60.0
"""How long `sync` waits for a running driver that copies at the same moment."""


def ui_command(arguments: argparse.Namespace) -> int:
    """Show the runs in MLflow's web interface."""
    if server := server_address(arguments.mlflow_uri):
        print(f"The runs are on the MLflow server at {server}")
        return 0
    workspace = Workspace.at(arguments.workspace)
    if not workspace.mlflow_path.is_file():
        run = locations_of(arguments).command("run")
        raise UserError(f"{workspace.mlflow_path} is not there yet: `{run}` makes it.")
    address = f"http://{arguments.host}:{arguments.port}"
    print(f"MLflow UI on {address} (Ctrl-C ends it)", flush=True)
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", workspace.mlflow_uri]
    where = ["--host", arguments.host, "--port", str(arguments.port)]
    os.execv(sys.executable, [*command, *where, "--workers", "1"])


def sync_command(arguments: argparse.Namespace) -> int:
    """Copy to MLflow what it lacks, as after a time when its server was away."""
    locations = locations_of(arguments)
    mirror = Mirror.of(existing_store(locations), Workspace.at(locations.workspace), locations.mlflow_uri)
    try:
        number = mirror.sync(PATIENCE_S, rebuild=arguments.rebuild)
    except UserError:
        raise
    except Exception as error:  # MLflow and its transports raise anything
        reason = hidden(f"{type(error).__name__}: {error}").splitlines()[0]
        raise UserError(f"MLflow does not have everything yet: {reason}. Nothing is lost.") from error
    print(f"MLflow has everything; {number} attempts were copied or brought up to date.")
    return 0


# --- parsers ---------------------------------------------------------------------------------------------


def add_commands(commands: Commands) -> None:
    """The parsers of this module's commands."""
    sync = add(commands, "sync", sync_command, [locations_parser()], "--mlflow-uri http://mlflow:5000")
    rebuild = "copy everything anew, into the MLflow that is configured now"
    sync.add_argument("--rebuild", action="store_true", help=rebuild)
    ui = add(commands, "ui", ui_command, [locations_parser()], "--port 5001")
    ui.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    ui.add_argument("--port", type=port, default=5000, help="port to listen on (default: %(default)s)")
