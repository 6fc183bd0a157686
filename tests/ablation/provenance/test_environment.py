import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ablation.provenance import environment


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `toysource` that can be imported; what a test imports of it is forgotten afterwards."""
    folder = tmp_path / "toysource"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "used.py").write_text("a = 1\n")
    (folder / "unused.py").write_text("b = 1\n")
    (folder / "inner" / "deep.py").write_text("c = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("", ".used", ".unused", ".inner", ".inner.deep"):
        monkeypatch.delitem(sys.modules, f"toysource{name}", raising=False)
    return folder


def imported(name: str) -> None:
    __import__(name)


def test_every_imported_module_of_the_sources_is_named_with_the_hash_of_its_text(package: Path) -> None:
    imported("toysource.used")
    found = environment.describe(["toysource"], [])["modules"]
    assert set(found) == {"toysource", "toysource.used"}
    assert found["toysource.used"] == environment.source_hash("a = 1\n")


def test_modules_of_other_packages_and_of_longer_names_are_not_named(package: Path) -> None:
    (package.parent / "toysource_tests.py").write_text("")
    imported("toysource.used")
    imported("toysource_tests")
    found = environment.describe(["toysource"], [])["modules"]
    assert "toysource.used" in found
    assert all(name.split(".")[0] == "toysource" for name in found)
    del sys.modules["toysource_tests"]


def test_modules_without_a_python_file_are_skipped(package: Path) -> None:
    imported("toysource.inner.deep")  # `inner` has no __init__.py, so no file
    sys.modules["toysource.nothing"] = None  # type: ignore[assignment]
    found = environment.describe(["toysource", "sys", "numpy"], [])["modules"]
    del sys.modules["toysource.nothing"]
    assert {name for name in found if name.startswith("toysource")} == {"toysource", "toysource.inner.deep"}
    assert not any("_multiarray" in name for name in found)


def test_line_ends_do_not_matter() -> None:
    texts = [environment.source_text(content) for content in (b"a\r\nb\r\n", b"a\nb\n", b"a\rb\r")]
    assert len({environment.source_hash(text) for text in texts}) == 1


def test_a_module_edited_after_its_import_keeps_the_hash_of_what_is_in_memory(package: Path) -> None:
    imported("toysource.used")
    before = environment.describe(["toysource"], [])["modules"]
    (package / "used.py").write_text("a = 2\n")
    assert environment.describe(["toysource"], [])["modules"] == before


def test_a_description_is_plain_json_with_versions_host_and_python() -> None:
    found = environment.describe(["ablation"], ["numpy", "no-such-package"])
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {"host", "gpus", "python", "packages", "modules"}
    assert found["packages"]["numpy"]
    assert found["packages"]["no-such-package"] is None


def test_the_machines_gpus_are_named_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        folder = tmp_path / f"0000:0{number}:00.0"
        folder.mkdir()
        (folder / "information").write_text(f"Model: \t\t NVIDIA T{number}\nIRQ: 1\n")
    monkeypatch.setattr(environment, "_GPU_FILES", tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert environment.describe([], [])["gpus"] == ["NVIDIA T0", "NVIDIA T1"]


@pytest.mark.process
def test_nothing_heavy_is_imported_for_a_description() -> None:
    code = (
        "import sys; from ablation.provenance.environment import describe;"
        "describe(['detector', 'experiments'], ['torch', 'numpy']);"
        "print({'torch', 'ray', 'mlflow', 'numpy', 'sqlalchemy', 'detector'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_a_description_takes_less_than_a_fifth_of_a_second_of_processor_time() -> None:
    began = time.process_time()
    environment.describe(["ablation", "detector", "experiments"], ["torch", "numpy"])
    assert time.process_time() - began < 0.2


def test_a_modules_file_is_found_without_importing_it(package: Path) -> None:
    assert environment.source_file("toysource.unused") == package / "unused.py"
    assert environment.source_file("toysource.inner.deep") == package / "inner" / "deep.py"
    assert environment.source_file("toysource") == package / "__init__.py"
    assert not any(name.startswith("toysource") for name in sys.modules)


@pytest.mark.parametrize("name", ["toysource.gone", "toysource.used.below", "toysource.inner", "gone", "sys"])
def test_a_module_without_a_python_file_has_none(package: Path, name: str) -> None:
    assert environment.source_file(name) is None
