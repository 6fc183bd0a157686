"""A real training that is stopped, runs out of memory or out of disk, and ends as if nothing had happened."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ablation.protocol import Checkpointed, DeviceError, Evaluated, EvaluationRequest, Progress, Request
from ablation.resources import Resources
from ablation.storage import storage_at
from ablation.worker.harness import messages
from ablation.worker.messages import Ended, Failed, Message, OutOfMemory, Stopped
from ablation.worker.training import WorkerConfig
from detector import device_check
from detector.model.dense_detector import DenseDetector
from experiments.atss.presets import SINGLE_SCALE, Recipe, atss
from experiments.detection import small
from experiments.detection.options import DetectionOptions
from experiments.detection.small import SMOKE, ScaledSetting
from experiments.detection.train_trial import _device, _is_of_device, _is_want_of_memory, train_trial

KEY = "0123456789ab"
EVALUATION = "ba9876543210"
TINY = replace(SMOKE, report_every=2, checkpoint_every=100)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of floats depend on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> ScaledSetting:
    return small.prepare(TINY, tmp_path_factory.mktemp("workspace"), DetectionOptions(precision="fp32"))


@dataclass(frozen=True)
class Job:
    """A trial, and where it trains."""

    config: WorkerConfig
    request: Request


def job_in(root: Path, setting: ScaledSetting) -> Job:
    trial, evaluation = setting.trial(Recipe(atss()), 0), setting.evaluation(SINGLE_SCALE)
    wanted = (EvaluationRequest(EVALUATION, evaluation),)
    request = Request(KEY, trial, wanted, root / KEY, setting.context, Resources())
    return Job(
        WorkerConfig(train_trial, storage_at(root), root, ("detector",), ("torch",), 0.0, root), request
    )


@pytest.fixture
def job(tmp_path: Path, setting: ScaledSetting) -> Job:
    return job_in(tmp_path / "artifacts", setting)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory, setting: ScaledSetting) -> list[Message]:
    """What a training tells that nothing happens to."""
    return attempt(job_in(tmp_path_factory.mktemp("quiet"), setting))


def attempt(
    job: Job, at_step: int = 0, then: Callable[[], Any] = lambda: None, micro_batch: int | None = None
) -> list[Message]:
    """All that one attempt tells; something is done when it has told of a step."""
    told = []
    for message in messages(job.config, replace(job.request, micro_batch=micro_batch)):
        told.append(message)
        if isinstance(message, Progress) and message.step == at_step:
            then()
    return told


def losses(told: list[Message]) -> dict[int, dict[str, float]]:
    """By step."""
    return {
        message.step: {n: v for n, v in message.metrics.items() if n.startswith("loss")}
        for message in told
        if isinstance(message, Progress)
    }


def scores(told: list[Message]) -> list[dict[str, float]]:
    return [message.metrics for message in told if isinstance(message, Evaluated)]


def checkpoints(told: list[Message]) -> list[int]:
    return [message.step for message in told if isinstance(message, Checkpointed)]


def test_a_trial_asked_to_stop_saves_the_step_and_ends_bit_for_bit_as_if_it_had_not_been(
    job: Job, quiet: list[Message]
) -> None:
    stopped = attempt(job, at_step=4, then=lambda: job.config.storage.ask_to_stop(KEY))
    assert stopped[-1] == Stopped()
    assert checkpoints(stopped) == [], "none was due"
    job.config.storage.clear_stop(KEY)

    resumed = attempt(job)
    assert resumed[-1] == Ended()
    assert list(losses(resumed)) == [6, 8, 10]
    assert losses(stopped) | losses(resumed) == losses(quiet)
    assert scores(resumed) == scores(quiet)


def test_a_training_out_of_memory_goes_on_with_smaller_parts_and_the_same_losses(
    job: Job, quiet: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = DenseDetector.forward

    def scarce(self: DenseDetector, images: torch.Tensor, *more: Any) -> Any:
        if self.training and len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, images, *more)

    monkeypatch.setattr(DenseDetector, "forward", scarce)
    sizes, told = [], attempt(job)
    while isinstance(told[-1], OutOfMemory):
        sizes.append(told[-1].smaller)
        told = attempt(job, micro_batch=sizes[-1])
    assert sizes == [2, 1]
    assert told[-1] == Ended()
    for step, expected in losses(quiet).items():
        assert losses(told)[step] == pytest.approx(expected, rel=1e-3)


@pytest.fixture
def little_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of four megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk can be mounted by root alone: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.process
def test_a_disk_that_fills_up_before_a_checkpoint_fails_the_trial_and_a_retry_ends_the_same(
    little_disk: Path, setting: ScaledSetting, quiet: list[Message]
) -> None:
    often = replace(setting, context=replace(setting.context, checkpoint_every=4))
    job, ballast = job_in(little_disk, often), little_disk / "ballast"

    def fill() -> None:
        ballast.write_bytes(bytes(shutil.disk_usage(little_disk).free))

    failed = attempt(job, at_step=6, then=fill)
    assert isinstance(failed[-1], Failed)
    assert "No space left on device" in failed[-1].error
    assert "step 8" in failed[-1].error
    ballast.unlink()

    resumed = attempt(job)
    assert resumed[-1] == Ended()
    assert list(losses(resumed)) == [6, 8, 10]
    assert losses(failed) | losses(resumed) == losses(quiet)
    assert scores(resumed) == scores(quiet)


# --- the device ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "there", "device"),
    [
        (None, False, "cpu"),
        (None, True, "cuda"),
        (0.0, True, "cpu"),
        (0.5, True, "cuda"),
        (0.0, False, "cpu"),
    ],
)
def test_a_trial_trains_on_what_it_holds(
    gpus: float | None, there: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert _device(gpus) == device


@pytest.mark.parametrize(("cuda", "why"), [("12.8", "newer driver"), (None, "built without CUDA")])
def test_a_trial_whose_gpu_pytorch_cannot_use_gives_it_up_and_does_not_train_on_the_cpu(
    cuda: str | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises((DeviceError, RuntimeError), match=f"{why}.*--resources all=gpus:0") as raised:
        _device(1.0)
    # PyTorch is the same for all GPUs, a driver may be that of one machine.
    assert isinstance(raised.value, DeviceError) == (cuda is not None)


@pytest.mark.parametrize("said", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling"])
def test_want_of_memory_is_known_by_what_cuda_says(said: str) -> None:
    assert _is_want_of_memory(RuntimeError(said))
    assert not _is_want_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


@pytest.mark.parametrize(("fault", "usable"), [("", True), ("it gives wrong products", False)])
def test_a_gpu_that_fails_under_a_training_is_asked_again_by_a_new_process(
    fault: str, usable: bool, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: DenseDetector, *_: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors")

    monkeypatch.setattr(DenseDetector, "forward", fails)
    monkeypatch.setattr(device_check, "fault", lambda index: fault)
    with pytest.raises(DeviceError) as raised:
        list(train_trial(job.request))
    assert raised.value.usable == usable
    said = f"; asked again by a new process: {fault}" if fault else ""
    assert str(raised.value) == f"CUDA error: uncorrectable ECC error encountered{said}"


@pytest.mark.parametrize(
    ("said", "of_device"),
    [
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", True),
        ("NCCL error in: ..., ncclUnhandledCudaError: Call to CUDA function failed.", True),
        ("CUDA error: device-side assert triggered", False),
        ("shape '[2, 3]' is invalid for input of size 5", False),
    ],
)
def test_what_the_code_itself_did_wrong_is_not_laid_to_the_gpu(said: str, of_device: bool) -> None:
    assert _is_of_device(RuntimeError(said)) == of_device
