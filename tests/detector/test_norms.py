"""Group norm's own backward pass, against torch's in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detector.model.norms import GroupNorm

MAPS = [(1, 256, 30, 40), (2, 64, 64, 33), (3, 72, 31, 47)]
BF16_EPS = 2.0**-8


def case(shape: tuple[int, int, int, int], groups: int) -> tuple[GroupNorm, Tensor, Tensor]:
    """A norm with weights, an input that is far from its own mean, and a gradient."""
    torch.manual_seed(0)
    norm = GroupNorm(groups, shape[1])
    nn.init.uniform_(norm.weight, -1, 2)
    nn.init.normal_(norm.bias)
    x, grad = (torch.randn(shape).to(torch.bfloat16, memory_format=torch.channels_last) for _ in range(2))
    return norm, (3 * x + 2).requires_grad_(), grad


def backward_name(out: Tensor) -> str:
    return type(out.grad_fn).__name__


def gradients(norm: GroupNorm, x: Tensor, grad: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(norm(x), [x, norm.weight, norm.bias], grad))


def in_float64(norm: GroupNorm, x: Tensor, grad: Tensor) -> list[Tensor]:
    inputs = [t.detach().double().contiguous().requires_grad_() for t in (x, norm.weight, norm.bias)]
    out = F.group_norm(inputs[0], norm.num_groups, inputs[1], inputs[2], norm.eps)
    return list(torch.autograd.grad(out, inputs, grad.double()))


@pytest.mark.parametrize("shape", MAPS)
def test_gradients_of_narrow_groups_in_bfloat16_are_group_norms(shape: tuple[int, int, int, int]) -> None:
    norm, x, grad = case(shape, shape[1] // 8)
    assert backward_name(norm(x)) == "_GroupNormBackward"

    dx, dweight, dbias = gradients(norm, x, grad)
    exact_dx, exact_dweight, exact_dbias = in_float64(norm, x, grad)

    assert dx.dtype == torch.bfloat16 and dx.is_contiguous(memory_format=torch.channels_last)
    # Each of two terms is rounded, and their sum.
    scale = exact_dx.abs().amax()
    assert (dx.double() - exact_dx).abs().max() <= 1.5 * BF16_EPS * scale
    assert (dx.double() - exact_dx).norm() <= BF16_EPS * exact_dx.norm()
    torch.testing.assert_close(dweight.double(), exact_dweight, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(dbias.double(), exact_dbias, rtol=1e-4, atol=1e-3)


def test_a_gradient_in_another_memory_format_makes_no_difference() -> None:
    norm, x, grad = case(MAPS[1], 8)
    for ours, same in zip(gradients(norm, x, grad), gradients(norm, x, grad.contiguous()), strict=True):
        assert torch.equal(ours, same)


def test_the_result_is_torchs_bit_for_bit() -> None:
    norm, x, _ = case(MAPS[0], 32)
    assert torch.equal(norm(x), F.group_norm(x, 32, norm.weight, norm.bias, norm.eps))


@pytest.mark.parametrize(
    ("groups", "convert"),
    [
        (4, lambda x: x),
        (8, lambda x: x[..., :2]),
        (8, lambda x: x.contiguous()),
        (8, lambda x: x.float()),
    ],
    ids=["wide groups", "a small map", "channels first", "float32"],
)
def test_what_torch_does_well_is_left_to_it(groups: int, convert: object) -> None:
    norm, x, _ = case(MAPS[1], groups)
    assert callable(convert)
    assert backward_name(norm(convert(x))) == "NativeGroupNormBackward0"
