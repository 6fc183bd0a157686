"""Pretrained weights of VGG-16 for its reduced form.

Layout "torchvision" is VGG-16 with its classifier, whose fc6 and fc7 become convolutions: of each fourth
channel and, for fc6, each third row and column of the 7x7 (Chen et al., ICLR 2015; the factors are those of
Liu et al.). Layout "vgg_reduced" is a file that has been reduced so already, with the numbers of layers as
names ("31.weight" is fc6), RGB order and no division by a deviation, as the field's files have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from detector import config as cfg
from detector.errors import WeightsError

_FC6, _FC7 = "classifier.0", "classifier.3"
_KERNEL, _REDUCED_KERNEL = 7, 3


def vgg_layout(tensors: Mapping[str, Tensor]) -> Literal["torchvision", "vgg_reduced"] | None:
    """The layout of a file's tensors; None for another network's."""
    if {"features.0.weight", f"{_FC6}.weight", f"{_FC7}.weight"} <= tensors.keys():
        return "torchvision"
    return "vgg_reduced" if {"0.weight", "31.weight", "33.weight"} <= tensors.keys() else None


def vgg_tensors(
    tensors: Mapping[str, Tensor], names: list[str], config: cfg.VGG, layout: str
) -> dict[str, Tensor]:
    """Tensors by this project's names.

    Args:
        tensors: of the file.
        names: of the backbone's convolutions, from the input to fc7.
        config: of the backbone.
        layout: "torchvision" or "vgg_reduced".

    Returns:
        float32 tensors; those that the backbone does not have keep their names in the file.

    Raises:
        WeightsError: values are not finite, as in files that have no classifier, or fc6 cannot be reduced.
    """
    numbers = list(_layers(config))
    if layout == "torchvision":
        theirs = [*(f"features.{number}" for number in numbers[:-2]), _FC6, _FC7]
        tensors = {name: t for name, t in tensors.items() if not name.startswith("classifier.6.")}
    else:
        theirs = [str(number) for number in numbers]
    if not config.fc_channels:
        tensors = {name: t for name, t in tensors.items() if name.rpartition(".")[0] not in theirs[-2:]}
        theirs = theirs[:-2]
    ours = {
        f"{their}.{kind}": f"{our}.{kind}"
        for their, our in zip(theirs, names, strict=True)
        for kind in _KINDS
    }
    found = {ours.get(name, name): t.float() for name, t in tensors.items()}
    if layout == "torchvision" and config.fc_channels:
        _reduce(found, names[-2:], config)
    wrong = [name for name, t in found.items() if not t.isfinite().all()]
    if wrong:
        raise WeightsError(f"values of {', '.join(wrong)} are not finite: give a file that has fc6 and fc7")
    return found


_KINDS = ("weight", "bias")


def _layers(config: cfg.VGG) -> Iterator[int]:
    """Numbers of the convolutions among all layers; a ReLU follows each, and a pooling each block."""
    number = 0
    for depth in config.depths:
        for _ in range(depth):
            yield number
            number += 2
        number += 1
    yield number
    yield number + 2


def _reduce(found: dict[str, Tensor], names: list[str], config: cfg.VGG) -> None:
    """Makes convolutions of the matrices of fc6 and fc7."""
    fc6, fc7 = names
    if f"{fc6}.weight" not in found or f"{fc7}.weight" not in found:
        return  # the caller names what is missing
    full = len(found[f"{fc7}.weight"])
    if full % config.fc_channels:
        raise WeightsError(f"fc6 of {full} channels cannot be reduced to {config.fc_channels}")
    step = full // config.fc_channels
    spread = (_KERNEL - 1) // (_REDUCED_KERNEL - 1)
    matrix = found[f"{fc6}.weight"]
    found[f"{fc6}.weight"] = matrix.view(full, -1, _KERNEL, _KERNEL)[::step, :, ::spread, ::spread]
    found[f"{fc7}.weight"] = found[f"{fc7}.weight"][::step, ::step, None, None]
    for name in names:
        found[f"{name}.bias"] = found[f"{name}.bias"][::step]


@torch.no_grad()
def load_classifier(head: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Loads fc6 and fc7 of torchvision's VGG-16 into layers "fc6" and "fc7" that see 7x7 cells of conv5.

    This is the box head of Faster R-CNN's paper. A head of another width keeps its values.
    """
    wanted = {"fc6": _FC6, "fc7": _FC7}
    found = {f"{o}.{k}": tensors[f"{their}.{k}"].float() for o, their in wanted.items() for k in _KINDS}
    own = head.state_dict()
    if all(found[name].shape == tensor.shape for name, tensor in own.items()):
        head.load_state_dict(found)
