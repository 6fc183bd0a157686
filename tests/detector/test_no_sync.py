"""A training step on a GPU never waits for it, shown without one: on tensors that have no values.

A fake tensor knows its shape, type and device alone. Whatever needs a value on the host (`item`, `nonzero`, a
boolean index, an `if`) raises an error on one, and is what would make a GPU and its host wait for each other.
Autograd's engine asks the driver even for a fake GPU, so the backward pass runs on a fake CPU's tensors,
which refuse the same. With a GPU at hand `benchmarks/gpu.py` has CUDA itself refuse a whole step that waits.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.func import functional_call

from detector.config import FPN, ResNet
from detector.geometry import anchors
from detector.model.build import build_detector
from detector.model.detector import AnyModel
from detector.objectives import assigners
from detector.presets import REFINEDET320, SSD300, shrunk
from experiments.atss import presets

BACKBONE = ResNet(depths=(1, 1, 1, 1), widths=(8, 8, 8, 8), stem_channels=8)
DETECTORS = {
    "RetinaNet with nine anchors": presets.retinanet(presets.NINE_ANCHORS),
    "improved RetinaNet": presets.improved(),
    "FCOS with center sampling": presets.fcos(center_radius=1.5),
    "ATSS": presets.atss(),
    "FCOS with ATSS": presets.fcos_atss(),
}

SINGLE_SHOT = {"SSD300": SSD300, "RefineDet320": REFINEDET320}


@pytest.fixture(autouse=True)
def empty_caches() -> Iterator[None]:
    """No grid of another test in this one, and none of this one, which has no values, in another."""
    caches = (anchors._cached_grid, assigners._level_table, assigners._slots)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("name", DETECTORS)
def test_a_training_step_asks_for_no_value_of_the_device(name: str, device: str) -> None:
    _assert_a_step_asks_for_nothing(
        build_detector(replace(DETECTORS[name], backbone=BACKBONE, fpn=FPN(32), num_classes=3)),
        (64, 96),
        device,
    )


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("name", SINGLE_SHOT)
def test_a_step_of_ssd_and_of_refinedet_asks_for_none_either(name: str, device: str) -> None:
    model = build_detector(shrunk(SINGLE_SHOT[name], 2, 16))
    side = model.config.input_size
    _assert_a_step_asks_for_nothing(model, (side, side), device)


def _assert_a_step_asks_for_nothing(model: AnyModel, canvas: tuple[int, int], device: str) -> None:
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    learning = [key for key, value in state.items() if value.requires_grad]
    with FakeTensorMode(), torch.device(device):
        fake = {key: torch.empty(value.shape, dtype=value.dtype) for key, value in state.items()}
        weights = [fake[key].requires_grad_() for key in learning]
        for name, _ in model.named_buffers(recurse=False):
            setattr(model, name, fake[name])  # targets read them outside of the functional call
        total = _loss(model, fake, canvas)
        if device == "cpu":
            torch.autograd.grad(total, weights, allow_unused=True)
    assert total.device.type == device
    assert total.requires_grad


def _loss(model: AnyModel, state: dict[str, Tensor], canvas: tuple[int, int]) -> Tensor:
    """Sum of the losses of two images with three boxes, on the default device."""
    images_N3HW, valid_NG = torch.empty(2, 3, *canvas, dtype=torch.uint8), torch.empty(2, 3, dtype=torch.bool)
    sizes_N2 = torch.empty(2, 2, dtype=torch.int64)
    outputs = functional_call(model, state, (images_N3HW, sizes_N2))
    boxes_NG4, labels_NG = torch.empty(2, 3, 4), torch.empty(2, 3, dtype=torch.int64)
    targets = model.targets(canvas, boxes_NG4, labels_NG, valid_NG, outputs)
    losses = model.losses(outputs, targets, targets.counts())
    return torch.stack(list(losses.values())).sum()


def test_a_value_asked_for_would_be_noticed() -> None:
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.empty((), device="cuda").item()
