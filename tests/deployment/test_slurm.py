"""docker/slurm: the script runs against stand-ins of SLURM's and Ray's commands, and is told to stop."""

import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# Each notes how it was called; srun runs what it is given, here.
STAND_INS = {
    "scontrol": 'if [ "$1" = show ]; then printf "%s\\n" node1 node2 node3; fi',
    "hostname": "echo 10.0.0.1 fe80::1",
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "ray": 'if [ "$1" = start ]; then exec sleep 60; fi',
    # As the real one, it waits for all nodes: $3 of them.
    "python": 'if [ "$1" = -c ]; then echo secret; exit; fi; cat >/dev/null; '
    'until [ "$(grep -cs "^start" "$CALLS/ray")" -ge "$3" ]; do sleep 0.01; done; '
    '[ -z "${NODES_WAIT:-}" ] || { touch "$CALLS/waits"; exec sleep 60; }',
    "ablation": "trap 'exit ${ABLATION_CODE:-130}' TERM; touch \"$CALLS/started\"; "
    '[ -n "${ABLATION_WAITS:-}" ] || exit 0; while :; do sleep 0.05; done',
}


@pytest.fixture
def job(root: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    calls, programs = tmp_path / "calls", tmp_path / "venv" / "bin"
    calls.mkdir()
    programs.mkdir(parents=True)
    for name, body in STAND_INS.items():
        note = f'printf "%s\\n" "$*" >>"$CALLS/{name}"\n'
        (programs / name).write_text(f"#!/bin/bash\n{note}{body}\n")
        (programs / name).chmod(0o755)

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        slurm = {
            "SLURM_JOB_ID": "12345",
            "SLURM_JOB_NODELIST": "node[1-3]",
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_CPUS_PER_TASK": "8",
            "SLURM_GPUS_ON_NODE": "4",
            "ABLATION_VENV": str(tmp_path / "venv"),
            "CALLS": str(calls),
        }
        script = root / "docker/slurm/ablation.sbatch"
        return subprocess.Popen(
            ["bash", str(script), *arguments],
            env={**os.environ, **slurm, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def _calls(folder: Path, name: str) -> list[str]:
    path = folder / "calls" / name
    return path.read_text().splitlines() if path.exists() else []


def _stop_when(reached: str, process: subprocess.Popen[str], folder: Path) -> int:
    deadline = time.monotonic() + 30
    while not (folder / "calls" / reached).exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    token = folder / ".ray-token-12345"
    assert token.read_text() == "secret\n" and stat.S_IMODE(token.stat().st_mode) == 0o600
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    return process.returncode


def test_shellcheck_has_nothing_to_say(docker: Path, validate: Callable[..., None]) -> None:
    validate("shellcheck", docker / "slurm/ablation.sbatch")


@pytest.mark.process
def test_ray_starts_on_every_node_and_the_run_gets_its_options(
    job: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = job("--profile", "coco", "--data", "a b")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    # All start in the background here, so their notes come in any order.
    starts = [call for call in _calls(tmp_path, "ray") if call.startswith("start")]
    head, *others = sorted(starts, key=lambda call: "--head" not in call)
    assert "--head --node-ip-address=10.0.0.1 --port=22345" in head
    assert len(others) == 2 and all("--address=10.0.0.1:22345" in call for call in others)
    assert all("--num-cpus=8 --num-gpus=4 --block" in call for call in (head, *others))
    steps = [call for call in _calls(tmp_path, "srun") if "ray start" in call]
    nodes = {re.findall(r"--nodelist=(\S+)", step)[0]: "--head" in step for step in steps}
    assert nodes == {"node1": True, "node2": False, "node3": False}
    assert _calls(tmp_path, "ablation") == ["run --cluster 10.0.0.1:22345 --profile coco --data a b"]


@pytest.mark.process
def test_the_token_is_in_no_command_line_and_gone_at_the_end(
    job: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    job().communicate(timeout=60)
    assert not (tmp_path / ".ray-token-12345").exists()
    assert not any(
        "secret" in call for name in ("srun", "ray", "ablation") for call in _calls(tmp_path, name)
    )


@pytest.mark.process
def test_sigterm_reaches_the_run_and_what_was_interrupted_queues_again(
    job: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    assert _stop_when("started", job(ABLATION_WAITS="1"), tmp_path) == 130
    assert _calls(tmp_path, "scontrol")[-1] == "requeue 12345"


@pytest.mark.process
def test_a_job_that_is_stopped_while_it_waits_for_its_nodes_queues_again(
    job: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    assert _stop_when("waits", job(NODES_WAIT="1"), tmp_path) == 143
    assert _calls(tmp_path, "scontrol")[-1] == "requeue 12345"
    assert _calls(tmp_path, "ablation") == []


@pytest.mark.process
def test_a_run_that_ends_well_in_its_last_minutes_does_not_queue_again(
    job: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    assert _stop_when("started", job(ABLATION_WAITS="1", ABLATION_CODE="0"), tmp_path) == 0
    assert not any(call.startswith("requeue") for call in _calls(tmp_path, "scontrol"))


def test_slurm_is_asked_for_a_warning_and_a_place_in_the_queue(docker: Path) -> None:
    lines = (docker / "slurm/ablation.sbatch").read_text().splitlines()
    assert {"#SBATCH --signal=B:TERM@120", "#SBATCH --requeue"} <= set(lines)


def test_its_commands_take_the_options_given(docker: Path, options_of: Callable[..., set[str]]) -> None:
    text = (docker / "slurm/ablation.sbatch").read_text()
    started = " ".join(re.findall(r"(?:ray start|start_ray) .*", text))
    assert set(re.findall(r"--[a-z-]+", started)) <= options_of("ray", "start")
    assert "--address" in options_of("ray", "health-check")
    assert "--cluster" in options_of("ablation", "run")
