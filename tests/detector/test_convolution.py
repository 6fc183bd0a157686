"""A convolution gives the same whichever way it is computed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from detector.model import convolution
from detector.model.convolution import Conv2d
from detector.model.norms import FrozenBatchNorm2d

CASES = [
    pytest.param(kernel, stride, bias, size, id=f"{kernel}x{kernel}, stride {stride}, bias {bias}, {size}")
    for kernel, size in [(1, (6, 8)), (1, (5, 7)), (3, (6, 8)), (3, (5, 7)), (3, (1, 1)), (3, (40, 40))]
    for stride in (1, 2)
    for bias in (True, False)
]


def gradients(out: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    """Of a sum with weights of its own for each number, as float32."""
    weights = torch.linspace(-1.0, 1.0, out.numel()).view(out.shape)
    return tuple(g.float() for g in torch.autograd.grad((out.float() * weights).sum(), of))


def rounded(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers that bfloat16 holds exactly."""
    return torch.randn(shape, generator=generator).bfloat16().float()


@pytest.mark.parametrize(("kernel", "stride", "bias", "size"), CASES)
def test_in_bf16_results_and_gradients_are_those_of_float32_to_its_precision(
    kernel: int, stride: int, bias: bool, size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    conv = Conv2d(16, 32, kernel, stride, bias=bias).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(rounded(tuple(parameter.shape), generator))
    x = rounded((2, 16, *size), generator).to(memory_format=torch.channels_last).requires_grad_()
    of = (x, *conv.parameters())
    wanted = conv(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(x)
    assert (out.dtype, out.shape) == (torch.bfloat16, wanted.shape)
    assert out.is_contiguous(memory_format=torch.channels_last)
    for found, known in zip(
        (out.float(), *gradients(out, *of)), (wanted, *gradients(wanted, *of)), strict=True
    ):
        assert (found - known).abs().max() <= 0.02 * known.abs().max()


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_frozen_norm_is_folded_in_bf16_as_in_float32(kernel: int) -> None:
    conv, norm = Conv2d(8, 16, kernel), FrozenBatchNorm2d(16)
    norm.running_var.uniform_(0.5, 2.0)
    norm.running_mean.normal_()
    x = torch.randn(1, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = conv(x, norm).float()
    torch.testing.assert_close(found, norm(conv(x)), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kernel", [1, 3])
def test_products_take_the_place_of_convolutions_only_in_bf16_on_a_cpu(
    kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def noting(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *arguments: called.append(name) or function(*arguments)

    monkeypatch.setattr(convolution, "_by_products", noting("products", convolution._by_products))
    monkeypatch.setattr(F, "conv2d", noting("conv2d", F.conv2d))
    conv, grouped, x = Conv2d(8, 8, kernel), Conv2d(8, 8, kernel, groups=2), torch.randn(1, 8, 4, 4)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            conv(x)
            grouped(x)
    conv(x)
    assert called[0] == "products"
    assert called.count("products") == 1
