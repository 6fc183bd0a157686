"""Which source is shipped to a cluster, and that no other is imported."""

import sysconfig
from pathlib import Path

import pytest

from ablation.cluster.code import Code, folder_of
from ablation.store import Store
from tests.support.driver import Driver, states


def _package(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x = 1\n")
    return folder


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_packages_of_a_checkout_are_shipped_and_installed_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _package(
        tmp_path / "src", "mine/__init__.py", "mine/deep/part.py", "mine/__pycache__/x.pyc", "other/x.py"
    )
    monkeypatch.syspath_prepend(tmp_path / "src")
    code = Code(("mine", "numpy", "absent"))
    assert set(code.checkouts()) - {"ablation"} == {"mine"}
    assert tmp_path / "src" in code.search_path()
    (target := tmp_path / "copy").mkdir()
    assert code.copy_to(target)
    assert [name for name in _files(target) if not name.startswith("ablation/")] == [
        "mine/__init__.py",
        "mine/deep/part.py",
    ]


def test_an_installed_platform_ships_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of("ablation")
    assert folder
    monkeypatch.setattr(sysconfig, "get_path", lambda kind: str(folder.parent))
    (target := tmp_path / "copy").mkdir()
    assert not Code().copy_to(target)
    assert Code().search_path() == []


def test_of_a_studys_folder_its_modules_and_packages_are_shipped_and_the_platforms_names_stay_its_own(
    tmp_path: Path,
) -> None:
    study = _package(
        tmp_path / "study",
        "mine.py",
        "help/__init__.py",
        "help/a.py",
        "ablation.py",
        "data/big.bin",
        "notes.txt",
    )
    (study / "ablation").mkdir()
    (study / "ablation" / "__init__.py").write_text("raise RuntimeError")
    (target := tmp_path / "copy").mkdir()
    assert Code((), study).copy_to(target)
    shipped = [name for name in _files(target) if not name.startswith("ablation/")]
    assert shipped == ["ablation.py", "help/__init__.py", "help/a.py", "mine.py"]
    assert "RuntimeError" not in (target / "ablation" / "__init__.py").read_text(), (
        "a package goes before a module"
    )


@pytest.mark.slow
def test_no_module_in_the_drivers_working_folder_takes_the_place_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (beside := tmp_path / "cwd").mkdir()
    for name in ("ablation.py", "detector.py", "torch.py"):
        (beside / name).write_text("raise ImportError('taken from the working folder')")
    _package(beside, "experiments/__init__.py")
    (folder := tmp_path / "w").mkdir()
    monkeypatch.chdir(beside)
    with Driver(folder, [{"name": "one"}], concurrency=1) as driver:
        assert len(driver.summary()["finished"]) == 1
    store = Store.open(folder / "store.db", read_only=True)
    assert states(store) == {"one": ["COMPLETE"]}
    store.close()
