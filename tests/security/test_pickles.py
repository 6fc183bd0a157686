"""A file that is a program: in every place where one is read, it is refused and does not run."""

import ast
import hashlib
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ablation.errors import UserError
from ablation.results.statistics import read_replicates
from detector.errors import CheckpointError, DataError, WeightsError
from detector.evaluation.coco_eval import load_arrays
from detector.model.weights import read_weights
from detector.predict import load_detector
from detector.training import checkpoint

ROOT = Path(__file__).resolve().parents[2]
OURS = ("platform", "detector", "experiments", "dashboards")


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[Bomb]:
    """Must not have gone off when the test is over."""
    mark = tmp_path / "it ran"
    yield Bomb(mark)
    assert not mark.exists()


def _zip(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _legacy(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


FORMATS = [_zip, _legacy, pickle.dumps]


def test_the_bomb_does_go_off_where_a_pickle_is_trusted(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "it ran")))
    assert (tmp_path / "it ran").exists()


@pytest.mark.parametrize("written", FORMATS)
def test_a_checkpoint_with_a_program_and_the_right_checksum_is_refused(
    tmp_path: Path, bomb: Bomb, written: Callable[[object], bytes]
) -> None:
    content = written({"model": bomb})
    sha256 = hashlib.sha256(content).hexdigest()
    (tmp_path / f"step_00000005-{sha256}.pt").write_bytes(content)
    [found] = checkpoint.found(tmp_path)
    with pytest.raises(CheckpointError, match="refused"):
        checkpoint.load(found)
    with pytest.raises(CheckpointError):
        load_detector(tmp_path)


@pytest.mark.parametrize("written", FORMATS)
def test_a_file_given_to_predict_is_refused(
    tmp_path: Path, bomb: Bomb, written: Callable[[object], bytes]
) -> None:
    path = tmp_path / "detector.pt"
    path.write_bytes(written({"model": bomb}))
    with pytest.raises(CheckpointError):
        load_detector(path)


@pytest.mark.parametrize("ending", [".pth", ".pt", ".pkl", ".safetensors"])
@pytest.mark.parametrize("written", FORMATS)
def test_weights_are_refused(
    tmp_path: Path, bomb: Bomb, written: Callable[[object], bytes], ending: str
) -> None:
    path = tmp_path / f"resnet50{ending}"
    path.write_bytes(written({"state_dict": bomb, "blobs": bomb}))
    with pytest.raises(WeightsError):
        read_weights(path)


def test_detections_and_matches_with_objects_are_refused(tmp_path: Path, bomb: Bomb) -> None:
    path = tmp_path / "detections.npz"
    np.savez(path, scores=np.array([bomb], dtype=object))
    with pytest.raises(DataError):
        load_arrays(path, ["scores"])


def test_an_archive_that_is_a_pickle_is_refused(tmp_path: Path, bomb: Bomb) -> None:
    path = tmp_path / "detections.npz"
    path.write_bytes(pickle.dumps({"scores": bomb}))
    with pytest.raises(DataError):
        load_arrays(path, ["scores"])


def test_bootstrap_replicates_with_objects_are_refused(tmp_path: Path, bomb: Bomb) -> None:
    path = tmp_path / "bootstrap.npz"
    for objects in ({"replicates": np.array([[bomb]], dtype=object), "metrics": ["AP"]},
                    {"replicates": np.zeros((1, 1)), "metrics": np.array([bomb], dtype=object)}):  # fmt: skip
        np.savez(path, **objects)
        with pytest.raises(UserError, match="pickle"):
            read_replicates(path, "AP")


# --- in the code ------------------------------------------------------------------------------------------

RUNS_CODE = {
    "eval", "exec", "pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads", "marshal.loads",
    "shelve.open", "joblib.load", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen", "runpy.run_path",
    "pandas.read_pickle", "pd.read_pickle",
}  # fmt: skip


def _calls() -> Iterator[tuple[str, ast.Call, Path]]:
    for folder in OURS:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield ast.unparse(node.func), node, path


def _given(call: ast.Call, name: str) -> object:
    values = [k.value for k in call.keywords if k.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else None


def test_nothing_of_ours_calls_what_runs_what_it_reads() -> None:
    assert [(name, path.name) for name, _, path in _calls() if name in RUNS_CODE] == []


def test_torch_and_numpy_are_always_told_to_read_without_pickle() -> None:
    loads = [(name, call, path) for name, call, path in _calls() if name in ("torch.load", "np.load")]
    assert len(loads) >= 3
    for name, call, path in loads:
        if name == "torch.load":
            assert _given(call, "weights_only") is True, path
        else:
            assert _given(call, "allow_pickle") in (None, False), path  # numpy's own default is False


def test_no_command_goes_through_a_shell() -> None:
    shells = [path for _, call, path in _calls() if any(k.arg == "shell" for k in call.keywords)]
    assert shells == []
