import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from ablation.control import gc
from ablation.plan import make_plan
from ablation.protocol import Checkpointed, Evaluated
from ablation.storage import SharedFolder
from ablation.workspace import Workspace

BYTES = {5: b"five " * 100, 10: b"ten " * 100}


class Runs:
    """Stands in for MLflow: what was deleted."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    def delete(self, run_ids) -> None:
        self.deleted += run_ids


class Place:
    """A workspace whose trials have left checkpoints, and what is removed from it."""

    def __init__(self, made) -> None:
        self.made = made
        self.workspace = Workspace(made.root, made.root / "results")
        self.storage, self.runs = SharedFolder(self.workspace.artifacts), Runs()

    def train(self, method: str, seed: int = 0, end: str = "finish") -> Path:
        """A training writes two checkpoints and ends; returns its directory."""
        attempt = self.made.start(method, seed)
        trial = self.made.plan.trial(self.made.trial_key(method, seed))
        directory = (
            self.workspace.trial_directory(trial.key) / self.made.store.trial_states()[trial.key].folder
        )
        (directory / "checkpoints").mkdir(parents=True)
        for step, content in BYTES.items():
            path = directory / "checkpoints" / f"step_{step}.pt"
            path.write_bytes(content)
            report = Checkpointed(step, str(path), hashlib.sha256(content).hexdigest())
            self.made.store.record(attempt, [report])
        self.made.store.set_mlflow_run(attempt, f"run-{method}")
        if end == "finish":
            done = [Evaluated(e.key, {"AP": 40.0}) for e in trial.evaluations]
            self.made.store.record(attempt, done)
        if end:
            getattr(self.made.store, end)(attempt)
        return directory

    def forget_row(self) -> None:
        """The study loses table 4."""
        self.made.study = replace(self.made.study, tables=self.made.study.tables[:3], claims=())

    def unneeded(self, *plans):
        return gc.unneeded(plans or [self.made.plan], self.made.store, self.workspace)

    def remove(self, found):
        return gc.remove(found, self.made.store, self.workspace, self.storage, self.runs.delete)


@pytest.fixture
def place(make_workspace) -> Place:
    return Place(make_workspace())


def test_files_of_another_data_set_of_the_same_name_are_kept(place):
    place.train("k3")
    place.forget_row()
    setting = replace(place.made.setting, own_data="coco-1a2b3c")
    other = make_plan(place.made.study, setting, [0], store=place.made.store)
    assert place.unneeded(other) == []
    assert len(place.unneeded()) == 1


def test_a_training_that_no_cell_cites_is_listed_with_its_size_and_runs(place):
    place.train("k3")
    place.forget_row()
    (item,) = place.unneeded()
    assert item.files == ("checkpoints/step_5.pt", "checkpoints/step_10.pt")
    assert (item.bytes, item.why) == (sum(map(len, BYTES.values())), gc.UNWANTED)
    assert item.mlflow_run_ids == ("run-k3",)
    assert f"table4 k=3, seed 0: {gc.UNWANTED}, with 1 MLflow run\n" in gc.describe([item])


def test_listed_files_are_removed_and_not_listed_again(place):
    directory = place.train("k3")
    place.forget_row()
    assert len(place.remove(place.unneeded())) == 1
    assert [path for path in directory.rglob("*") if path.is_file()] == []
    assert place.runs.deleted == ["run-k3"]
    assert place.unneeded() == []
    assert gc.describe([]) == "Nothing can be removed: every file is needed by a cell."


def test_results_their_files_and_the_log_are_kept(place):
    directory = place.train("k3", end="release")
    place.made.measure("k3", 40.0)
    for name in ("log.txt", ".files.json"):
        (directory / name).write_text("kept")
    numbers = place.made.store.evaluations()
    place.forget_row()
    place.remove(place.unneeded())
    assert place.made.store.evaluations() == numbers
    assert {path.name for path in directory.rglob("*") if path.is_file()} == {
        "bootstrap.npz",
        "log.txt",
        ".files.json",
    }


def test_an_unreported_checkpoint_of_a_stopped_training_is_removed_too(place):
    directory = place.train("k3", end="release")
    for name in ("checkpoints/step_7.pt", "detections.npz.0123abcd.part", f".scores.txt.{'0' * 32}"):
        (directory / name).write_text("unreported")
    place.forget_row()
    (item,) = place.unneeded()
    assert len(item.files) == 5
    place.remove([item])
    assert [path for path in directory.rglob("*") if path.is_file()] == []


def test_an_unfinished_training_is_kept_while_a_cell_cites_it(place):
    place.train("k3", end="release")
    place.train("k5", end="")
    assert place.unneeded() == []


def test_the_last_checkpoint_of_a_finished_training_is_kept(place):
    directory = place.train("k3")
    (item,) = place.unneeded()
    assert (item.files, item.why, item.mlflow_run_ids) == (("checkpoints/step_5.pt",), gc.EARLIER, ())
    place.remove([item])
    assert (directory / "checkpoints" / "step_10.pt").is_file()
    assert place.runs.deleted == []
    assert place.unneeded() == []


def test_files_of_a_replaced_training_are_removed_and_no_others(place):
    before = place.train("k3")
    for name in ("log.txt", "checkpoints/step_7.pt"):
        (before / name).write_text("of before")
    key = place.made.trial_key("k3")
    place.made.store.renew({key: 1})
    assert place.unneeded() == [], "the new one is not there yet"
    now = place.train("k3")
    assert (now, now.parent) == (before / "attempt-2", before)
    found = {item.why: item.files for item in place.unneeded()}
    names = tuple(f"checkpoints/step_{step}.pt" for step in (10, 5, 7))
    assert found == {gc.REPLACED: names, gc.EARLIER: ("attempt-2/checkpoints/step_5.pt",)}
    place.remove(place.unneeded())
    left = {path.relative_to(before).as_posix() for path in before.rglob("*") if path.is_file()}
    assert left == {"log.txt", "attempt-2/checkpoints/step_10.pt"}
    assert place.unneeded() == []
    assert [file.step for file in place.made.store.artifacts(key)] == [5, 10]
    assert len(place.made.store.earlier_results(key)) == 1


def test_earlier_checkpoints_are_kept_where_the_last_one_is_damaged(place):
    directory = place.train("k3")
    (directory / "checkpoints" / "step_10.pt").write_bytes(b"cut")
    assert place.unneeded() == []


def test_a_running_training_is_kept_even_when_no_cell_cites_it(place):
    directory = place.train("k3", end="")
    (directory / "detections.npz.0123abcd.part").touch()
    place.forget_row()
    assert place.unneeded() == []


def test_a_training_that_was_started_after_the_list_is_kept(place):
    directory = place.train("k3", end="release")
    place.forget_row()
    found = place.unneeded()
    assert place.made.store.claim(found[0].trial_key, "test", {}) is not None
    assert place.remove(found) == []
    assert (directory / "checkpoints" / "step_10.pt").is_file()


def test_partly_written_files_of_dead_processes_are_listed(place):
    directory = place.train("k3", end="release")
    for name in ("detections.npz.0123abcd.part", f".scores.txt.{'0' * 32}"):
        (directory / name).write_text("half")
    (directory / ".keep").touch()
    (item,) = place.unneeded()
    assert len(item.files) == 2 and item.why == gc.UNFINISHED
    place.remove([item])
    assert (directory / ".keep").exists() and not list(directory.glob("*.part"))


def test_trainings_of_every_stored_seed_are_kept(make_workspace):
    place = Place(make_workspace((0, 1, 2)))
    place.train("k3", seed=2, end="release")
    first = make_plan(place.made.study, place.made.setting, (0,), ["table1"], place.made.store)
    assert place.unneeded(first) == []


def test_trainings_of_other_settings_and_studies_are_kept(place):
    place.train("k3")
    place.forget_row()
    plan = place.made.plan
    other_setting = replace(place.made.setting, profile="long")
    other_study = replace(place.made.study, name="another")
    for study, setting in ((place.made.study, other_setting), (other_study, place.made.setting)):
        assert place.unneeded(make_plan(study, setting, (0,))) == []
    assert len(place.unneeded(plan)) == 1


def test_trainings_that_cells_of_a_second_setting_cite_are_kept(place):
    place.train("k3", end="release")
    whole = make_plan(place.made.study, replace(place.made.setting, profile="long"), (0,))
    place.forget_row()
    assert len(place.unneeded(place.made.plan)) == 1
    assert place.unneeded(place.made.plan, whole) == []


def test_no_file_outside_the_trials_directory_is_removed(place, tmp_path):
    directory = place.train("k3")
    outside = tmp_path / "precious.pt"
    outside.write_text("precious")
    (directory / "checkpoints" / "step_10.pt").unlink()
    (directory / "checkpoints" / "step_10.pt").symlink_to(outside)
    place.forget_row()
    found = place.unneeded()
    assert found[0].files == ("checkpoints/step_5.pt",)
    place.remove([replace(found[0], files=("../../precious.pt", "checkpoints/step_10.pt"))])
    assert outside.read_text() == "precious"


def test_a_trial_directory_that_is_a_link_is_skipped(place, tmp_path):
    directory = place.train("k3")
    place.forget_row()
    assert [len(item.files) for item in place.unneeded()] == [2]
    directory.rename(tmp_path / "elsewhere")
    directory.symlink_to(tmp_path / "elsewhere")
    assert not any(item.files for item in place.unneeded())


def test_runs_of_an_unreachable_server_are_listed_again(place):
    place.train("k3")
    place.forget_row()

    def away(run_ids) -> None:
        raise ConnectionError("away")

    with pytest.raises(ConnectionError):
        gc.remove(place.unneeded(), place.made.store, place.workspace, place.storage, away)
    (item,) = place.unneeded()
    assert (item.files, item.mlflow_run_ids) == ((), ("run-k3",))


def test_sizes_have_a_readable_unit():
    sizes = [
        gc.Removable("0" * 12, "n", (), count, (), "w") for count in (7, 7_300, 7_300_000, 7_300_000_000)
    ]
    lines = gc.describe(sizes).splitlines()
    assert [line.split("  0")[0].strip() for line in lines[:4]] == ["7 B", "7.3 kB", "7.3 MB", "7.3 GB"]
    assert "are kept" in lines[-1]
