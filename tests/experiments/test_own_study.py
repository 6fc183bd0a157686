"""A study in a file of one's own, which nobody has installed."""

import subprocess
import sys
from pathlib import Path

import pytest

from ablation.errors import UserError
from ablation.options import declared
from ablation.plan import make_plan
from ablation.studies import load_study

FILE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "starts.py"


@pytest.fixture(autouse=True)
def imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study's file adds its folder to where Python looks."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_example_runs_to_its_table_and_verdicts(tmp_path: Path) -> None:
    def ablation(*words: str) -> str:
        command = [
            str(Path(sys.executable).with_name("ablation")),
            *words,
            "--study",
            str(FILE),
            "--seeds",
            "1",
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = ablation("run", "--help")
    assert "--steps N" in said
    assert "--max-iterations" not in said
    assert "5 complete, 0 running" not in ablation("plan")
    ran = ablation("run", "--format", "md")
    assert "3 claims: 3 undecided" in ran, "one seed decides nothing"
    assert "5 complete, 0 running" in ablation("plan")
    results = tmp_path / "results" / "starts-quick"
    table = (results / "tables.md").read_text()
    assert table.count("| tanh ") == 2
    assert "paper's number" not in table, "it reports none"
    assert (results / "figures" / "table1.png").is_file()
    assert "is stale." in ablation("status", "--stale")


def test_the_example_has_options_of_its_own(tmp_path: Path) -> None:
    study = load_study(str(FILE))
    assert [option.flag for option in declared(study.options)] == ["--steps", "--layers"]
    setting = study.profiles["quick"].prepare(tmp_path, study.options(steps=100))
    assert setting.profile == "quick-100steps"
    plan = make_plan(study, setting, [0])
    assert {trial.config.steps for trial in plan.trials} == {100}


def test_a_file_that_is_no_study_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        load_study(str(tmp_path / "nothing.py"))
    (tmp_path / "empty_study.py").write_text("")
    with pytest.raises(UserError, match="no function `study`"):
        load_study(str(tmp_path / "empty_study.py"))
    (tmp_path / "wrong_study.py").write_text("def study():\n    return 3\n")
    with pytest.raises(UserError, match="returns a Study"):
        load_study(str(tmp_path / "wrong_study.py"))
    (tmp_path / "study.v2.py").write_text("")
    with pytest.raises(UserError, match=r"cannot import a file named study\.v2\.py"):
        load_study(str(tmp_path / "study.v2.py"))
    (tmp_path / "json.py").write_text("")
    with pytest.raises(UserError, match="another module 'json'"):
        load_study(str(tmp_path / "json.py"))
