import json
import subprocess
import sys
from pathlib import Path

import pytest

from ablation.provenance import record as provenance

pytestmark = pytest.mark.process


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("a = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_a_clean_checkout_has_its_commit_and_no_diff(checkout: Path) -> None:
    found = provenance.collect("run", checkout)
    assert found["commit"] == git(checkout, "rev-parse", "HEAD").strip()
    assert (found["dirty"], found["diff"], found["diff_sha256"]) == (False, "", "")
    assert found["committed"] == git(checkout, "log", "-1", "--format=%cs").strip()


def test_a_change_is_kept_as_a_diff_with_its_hash(checkout: Path) -> None:
    (checkout / "code.py").write_text("a = 2\n")
    found = provenance.collect("run", checkout)
    assert found["dirty"]
    assert "+a = 2" in found["diff"]
    assert len(found["diff_sha256"]) == 64


def test_a_new_file_makes_a_checkout_dirty(checkout: Path) -> None:
    (checkout / "new.py").write_text("")
    found = provenance.collect("run", checkout)
    assert found["dirty"]
    assert found["untracked"] == ["new.py"]


@pytest.mark.parametrize("command", ["diff", "ls-files"])
def test_a_checkout_that_git_cannot_compare_counts_as_changed(
    command: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = provenance.git

    def fails(folder: Path, *arguments: str) -> str | None:
        return None if arguments[:1] == (command,) and arguments[1:] != (".",) else asks(folder, *arguments)

    monkeypatch.setattr(provenance, "git", fails)
    assert provenance.collect("run", checkout)["dirty"]


def test_of_many_new_files_twenty_are_named(checkout: Path) -> None:
    for number in range(30):
        (checkout / f"{number}.txt").write_text("")
    assert len(provenance.collect("run", checkout)["untracked"]) == provenance.MAX_UNTRACKED == 20


def test_a_huge_diff_is_cut(checkout: Path) -> None:
    (checkout / "code.py").write_text("a = 2\n" * 300_000)
    assert len(provenance.collect("run", checkout)["diff"]) == provenance.MAX_DIFF_CHARS


def test_outside_a_checkout_the_commit_is_unknown(tmp_path: Path) -> None:
    found = provenance.collect("run", tmp_path)
    assert (found["commit"], found["committed"]) == ("unknown", "")
    assert found["versions"]["ray"]


def test_a_copy_that_another_checkout_ignores_is_not_taken_for_it(checkout: Path) -> None:
    installed = checkout / "site-packages"
    installed.mkdir()
    (checkout / ".gitignore").write_text("site-packages\n")
    (installed / "code.py").write_text("")
    assert provenance.collect("run", installed)["commit"] == "unknown"


def test_without_git_the_commit_is_unknown(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.collect("run", checkout)["commit"] == "unknown"


def test_a_password_in_a_url_is_not_kept() -> None:
    found = provenance.collect("run --store postgresql://me:secret@host/db --tracking http://host:5000")
    assert found["command"] == "run --store postgresql://***@host/db --tracking http://host:5000"


def test_versions_are_those_of_the_study_and_the_platform_and_none_of_an_absent_package() -> None:
    versions = provenance.collect("run", packages=["numpy", "no-such-package"])["versions"]
    assert versions.keys() == {"numpy", "no-such-package", "ray", "mlflow"}
    assert versions["numpy"] and versions["no-such-package"] is None


def test_versions_are_found_without_importing_the_libraries() -> None:
    code = (
        "import sys; from ablation.provenance.record import collect; collect('x');"
        "print({'torch', 'ray', 'mlflow', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_data_and_weights_of_a_config_are_named_by_their_hashes() -> None:
    config = {"data": {"fingerprint": "3f", "short_side": 800}, "weights": {"sha256": "0a"}, "seed": 0}
    found = provenance.inputs(json.dumps(config | {"test_fingerprint": None}))
    assert found == {"data.fingerprint": "3f", "weights.sha256": "0a"}


def test_every_value_of_a_config_has_a_path() -> None:
    assert list(provenance.leaves({"a": [1, {"b": None}], "c": "x"})) == [
        ("a.0", 1),
        ("a.1.b", None),
        ("c", "x"),
    ]


def test_an_image_says_from_which_commit_it_was_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert provenance.collect("run", tmp_path)["commit"] == "unknown"
    monkeypatch.setenv("ABLATION_COMMIT", "abc123")
    assert provenance.collect("run", tmp_path)["commit"] == "abc123"
