"""Commands that train nothing import none of the libraries that training takes."""

import subprocess
import sys
from pathlib import Path

import pytest

from ablation.plan import register
from ablation.protocol import Evaluated, Progress
from ablation.session import Selection, Session
from detector.data.shapes import ShapesSpec, draw_dataset

pytestmark = pytest.mark.process

HEAVY = ("torch", "torchvision", "ray", "mlflow", "pandas", "matplotlib")

PROGRAM = f"""
import sys
from ablation.cli import main
code = 0
for words in sys.argv[1].split(";"):
    try:
        main(words.split(","))
    except SystemExit as ended:
        code = code or ended.code
found = [name for name in {HEAVY} if name in sys.modules]
sys.exit(f"{{found}} imported" if found else code)
"""

COMMANDS = (
    *("plan", "run", "status", "tables", "logs", "pause", "resume", "cancel", "retry", "prioritise", "gc"),
    *("check-data", "verify", "measure", "import-scores", "sync", "ui"),
)
STUDIES = {"atss": ("table3", "table3 FCOS"), "refinedet": ("table1", "table1 SSD300*")}
"""By name, a table of the study and a row of it."""


def run(*commands: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """All in one fresh interpreter; fails where one of them does, or imports what it should not."""
    typed = ";".join(",".join(words) for words in commands)
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, typed], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module", params=STUDIES)
def study(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def finished(study: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the smoke grid is complete, and has been looked at once."""
    root = tmp_path_factory.mktemp("finished")
    session = Session.open(Selection(study=study, profile="smoke", workspace=root), writes=True)
    store, numbers = session.store, {metric.name: 25.0 for metric in session.study.metrics}
    register(session.plan, store)
    for trial in session.plan.trials:
        attempt = store.claim(trial.key, "test", {})
        assert attempt is not None
        evaluated = [Evaluated(evaluation.key, numbers) for evaluation in trial.evaluations]
        store.record(attempt, [Progress(10, 10, {"loss": 1.0}), *evaluated])
        store.finish(attempt)
    store.close()
    run(("tables", "--study", study, "--profile", "smoke", "--workspace", str(root)))  # draws the figures
    return root


def test_the_help_of_every_command_imports_nothing_heavy() -> None:
    done = run(*((command, "--help") for command in COMMANDS))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("example: ablation") == len(COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        ("plan",),
        ("run", "--dry-run"),
        ("status",),
        ("status", "--json"),
        ("status", "--stale"),
        ("tables",),
        ("logs", "{row}"),
        ("pause",),
        ("resume",),
        ("cancel", "{table}"),
        ("retry",),
        ("retry", "--stale", "--yes", "{table}"),
        ("prioritise", "{table}"),
        ("gc", "--yes"),
    ],
    ids=" ".join,
)
def test_a_command_that_trains_nothing_imports_nothing_heavy(
    words: tuple[str, ...], study: str, finished: Path
) -> None:
    table, row = STUDIES[study]
    typed = [word.format(table=table, row=row) for word in words]
    done = run((*typed, "--study", study, "--profile", "smoke", "--workspace", str(finished)))
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_a_study_of_ones_own_and_a_known_data_set_are_looked_at_without_torch(
    tmp_path: Path,
) -> None:
    paths = draw_dataset(
        ShapesSpec(image_size=64, num_train=4, num_val=2, max_objects=3, min_size=8), tmp_path
    )
    example = Path(__file__).resolve().parents[2] / "docs" / "examples" / "starts.py"
    where = ("--workspace", str(tmp_path))
    own = ("status", "--profile", "smoke", "--data", str(paths.train.annotations.parent.parent), *where)
    run(own)  # reads it, and keeps what it is
    done = run(("plan", "--study", str(example), *where), own)
    assert done.returncode == 0, done.stderr
