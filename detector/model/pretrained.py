"""Published pretrained backbones, and the config of a detector that uses one. Imports no torch.

A plan names weights; only a training reads them (`detector.model.weights`).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from detector import config as cfg
from detector.errors import WeightsError

Layout = Literal["torchvision", "detectron", "vgg_reduced"]

TORCHVISION_MEAN, TORCHVISION_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""RGB on the 0-255 scale."""

DETECTRON_MEAN, DETECTRON_STD = (122.7717, 115.9465, 102.9801), (1.0, 1.0, 1.0)
"""RGB on the 0-255 scale. Caffe2's mean and images are BGR; loading reverses the input channels of the first
convolution, so that images are RGB here."""

VGG_REDUCED_MEAN, VGG_REDUCED_STD = (123.0, 117.0, 104.0), (1.0, 1.0, 1.0)
"""RGB on the 0-255 scale."""

BACKBONES = {
    "resnet50": cfg.ResNet(),
    "resnet101": cfg.ResNet(depths=(3, 4, 23, 3)),
    "resnext101_32x8d": cfg.ResNet(depths=(3, 4, 23, 3), groups=32, width_per_group=8),
    "resnext101_64x4d": cfg.ResNet(depths=(3, 4, 23, 3), groups=64, width_per_group=4),
}
"""The backbones that have published weights, by torchvision's name."""

DETECTRON_FILES = {
    "resnet50": "R-50.pkl",
    "resnet101": "R-101.pkl",
    "resnext101_32x8d": "X-101-32x8d.pkl",
    "resnext101_64x4d": "X-101-64x4d.pkl",
}
"""Detectron's own file names (its model zoo's ImageNet models)."""


class Published(NamedTuple):
    """URL of a published file, and the first 8 digits of its SHA-256."""

    url: str
    sha256: str

    @property
    def filename(self) -> str:
        """The last part of the URL, which contains the digits."""
        return self.url.rpartition("/")[2]


def _published(filename: str) -> Published:
    return Published(f"https://download.pytorch.org/models/{filename}", Path(filename).stem[-8:])


TORCHVISION = {
    "resnet50": _published("resnet50-0676ba61.pth"),
    "resnet101": _published("resnet101-63fe2227.pth"),
    "resnext101_32x8d": _published("resnext101_32x8d-8ba56ff5.pth"),
    "resnext101_64x4d": _published("resnext101_64x4d-173b62eb.pth"),
}
"""torchvision's first ImageNet weights (IMAGENET1K_V1) of each backbone."""


TORCHVISION_VGG16 = _published("vgg16-397923af.pth")
"""torchvision's ImageNet weights of VGG-16, with its classifier."""

PUBLISHED = {**TORCHVISION, "vgg16": TORCHVISION_VGG16}
"""All files that can be downloaded, by torchvision's name of the network."""


def backbone_name(config: cfg.ResNet) -> str | None:
    """torchvision's name of a backbone, deformable or not; None where no weights are published."""
    plain = cfg.ResNet()
    same_weights = replace(
        config,
        deformable=plain.deformable,
        stride_in_1x1=plain.stride_in_1x1,
        frozen_stages=plain.frozen_stages,
    )
    return next((name for name, known in BACKBONES.items() if known == same_weights), None)


OnVGG = TypeVar("OnVGG", bound=cfg.SingleShot | cfg.FasterRCNN)


def vgg_as_pretrained(detector: OnVGG, layout: Layout) -> OnVGG:
    """The detector with the normalisation of pretrained weights of this layout."""
    reduced = layout == "vgg_reduced"
    mean = VGG_REDUCED_MEAN if reduced else TORCHVISION_MEAN
    return replace(detector, pixel_mean=mean, pixel_std=VGG_REDUCED_STD if reduced else TORCHVISION_STD)


def as_pretrained(detector: cfg.Detector, layout: Layout) -> cfg.Detector:
    """The detector with the normalisation and strides of pretrained weights of this layout.

    Only Detectron's ResNets have the stride in the 1x1; its ResNeXts and all of torchvision's have it in
    the 3x3.
    """
    detectron = layout == "detectron"
    backbone = replace(detector.backbone, stride_in_1x1=detectron and detector.backbone.groups == 1)
    mean, std = (DETECTRON_MEAN, DETECTRON_STD) if detectron else (TORCHVISION_MEAN, TORCHVISION_STD)
    return replace(detector, backbone=backbone, pixel_mean=mean, pixel_std=std)


def layout_of(path: Path) -> Layout:
    """The layout of a file, by its ending."""
    return "detectron" if path.suffix == ".pkl" else "torchvision"


def sha256_of(path: Path) -> str:
    """The file's SHA-256, 64 lower-case hex digits.

    Raises:
        WeightsError: the file is absent or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}") from error
