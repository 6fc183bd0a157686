"""A GPU that was given up by one process, asked by another."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from detector import device_check
from detector.device_check import check, fault


def test_a_device_that_computes_passes_after_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    product, products = Tensor.__matmul__, 0

    def counted(left: Tensor, right: Tensor) -> Tensor:
        nonlocal products
        products += 1
        return product(left, right)

    monkeypatch.setattr(Tensor, "__matmul__", counted)
    check(torch.device("cpu"))
    assert products == 1 + device_check.ROUNDS


def test_a_device_with_wrong_products_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    product = Tensor.__matmul__
    rounds = iter([False] * 5 + [True] + [False] * 99)

    def one_bit_off(left: Tensor, right: Tensor) -> Tensor:
        result = product(left, right)
        if next(rounds):
            result[17, 4] += 1
        return result

    monkeypatch.setattr(Tensor, "__matmul__", one_bit_off)
    with pytest.raises(RuntimeError, match="wrong products"):
        check(torch.device("cpu"))


@pytest.mark.parametrize(
    ("said", "passes"),
    [
        ("CUDA out of memory.", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: uncorrectable ECC error", False),
    ],
)
def test_a_device_whose_memory_others_have_filled_is_not_at_fault(
    said: str, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> Tensor:
        raise RuntimeError(said)

    monkeypatch.setattr(Tensor, "to", refuses)
    if passes:
        check(torch.device("cpu"))
    else:
        with pytest.raises(RuntimeError, match="ECC"):
            check(torch.device("cpu"))


@pytest.mark.process
def test_a_new_process_says_that_it_is_given_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert fault(0) == "PyTorch finds no GPU"


@pytest.mark.gpu
def test_a_gpu_that_works_passes_in_a_new_process() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    assert fault(0) == ""


@pytest.mark.process
@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("import os; os.kill(os.getpid(), 9)", ""),
        ("import nothing_like_that", ""),
        ("import sys; print('a warning\\nECC error', file=sys.stderr); sys.exit(3)", "ECC error"),
    ],
)
def test_a_process_that_ends_for_another_reason_says_nothing_of_the_gpu(
    program: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "child.py").write_text(program)
    monkeypatch.setattr(device_check, "__file__", str(tmp_path / "child.py"))
    assert fault(0) == found


@pytest.mark.process
def test_a_device_that_does_not_answer_is_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_check, "LIMIT_S", 0.01)
    assert fault(0) == "no answer within 0 s"
