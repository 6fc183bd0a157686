"""Weights of VGG-16 become those of its reduced form, which computes what the field's does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detector import config as cfg
from detector.config import FasterRCNN, Weights
from detector.errors import WeightsError
from detector.model.build import build_detector
from detector.model.pretrained import PUBLISHED, sha256_of, vgg_as_pretrained
from detector.model.vgg import VGG
from detector.model.weights import describe_vgg, load_backbone, load_pretrained
from detector.presets import SSD300

TINY = cfg.VGG(widths=(4, 4, 8, 8, 8), fc_channels=16)
FULL = 64
"""Channels of the classifier of a tiny VGG-16."""


def features() -> nn.Sequential:
    """torchvision's VGG-16 (configuration D) with the channels of TINY."""
    layers: list[nn.Module] = []
    channels = 3
    for depth, width in zip(TINY.depths, TINY.widths, strict=True):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def torchvision_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    classifier = nn.ModuleDict(
        {"0": nn.Linear(8 * 49, FULL), "3": nn.Linear(FULL, FULL), "6": nn.Linear(FULL, 10)}
    )
    return {
        **{f"features.{name}": t for name, t in features().state_dict().items()},
        **{f"classifier.{name}": t for name, t in classifier.state_dict().items()},
    }


def reduced_state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    fcs = nn.ModuleDict({"31": nn.Conv2d(8, 16, 3), "33": nn.Conv2d(16, 16, 1)})
    return {**features().state_dict(), **fcs.state_dict()}


def saved(state: dict[str, Tensor], tmp_path: Path) -> Path:
    path = tmp_path / "vgg.pth"
    torch.save(state, path)
    return path


def loaded(state: dict[str, Tensor], tmp_path: Path, config: cfg.VGG = TINY) -> VGG:
    path = saved(state, tmp_path)
    backbone = VGG(config)
    load_backbone(backbone, path, describe_vgg(path))
    return backbone


@torch.no_grad()
def test_blocks_compute_what_torchvisions_do(tmp_path: Path) -> None:
    state = torchvision_state()
    theirs = features()
    theirs.load_state_dict({n.removeprefix("features."): t for n, t in state.items() if n.startswith("f")})
    image = torch.randn(1, 3, 64, 64)
    maps = loaded(state, tmp_path)(image)
    torch.testing.assert_close(maps["conv4"], theirs[:23](image))  # before the fourth pooling
    torch.testing.assert_close(maps["conv5"], theirs[:30](image))


@torch.no_grad()
def test_fc6_is_each_fourth_channel_and_third_row_and_column(tmp_path: Path) -> None:
    state = torchvision_state()
    backbone = loaded(state, tmp_path)
    fc6, fc7 = backbone.fc6[0], backbone.fc7[0]
    assert isinstance(fc6, nn.Conv2d) and isinstance(fc7, nn.Conv2d)
    matrix = state["classifier.0.weight"]
    for out, channel, row, column in ((0, 0, 0, 0), (5, 3, 1, 2), (15, 7, 2, 0)):
        expected = matrix[4 * out, channel * 49 + 3 * row * 7 + 3 * column]
        assert fc6.weight[out, channel, row, column] == expected
    assert torch.equal(fc6.bias, state["classifier.0.bias"][::4])  # type: ignore[arg-type]
    assert fc7.weight[2, 9, 0, 0] == state["classifier.3.weight"][8, 36]
    assert torch.equal(fc7.bias, state["classifier.3.bias"][::4])  # type: ignore[arg-type]


@torch.no_grad()
def test_a_reduced_file_is_loaded_as_it_is(tmp_path: Path) -> None:
    state = reduced_state()
    maps = loaded(state, tmp_path)(image := torch.randn(1, 3, 64, 64))
    x = F.max_pool2d(maps["conv5"], 3, 1, padding=1)
    x = F.relu(F.conv2d(x, state["31.weight"], state["31.bias"], padding=6, dilation=6))
    expected = F.relu(F.conv2d(x, state["33.weight"], state["33.bias"]))
    torch.testing.assert_close(maps["fc7"], expected)
    assert maps["fc7"].shape[-2:] == (image.shape[-2] // 16, image.shape[-1] // 16)


def test_a_file_is_described_by_its_tensors(tmp_path: Path) -> None:
    path = saved(torchvision_state(), tmp_path)
    assert describe_vgg(path) == Weights("torchvision", sha256_of(path))
    assert describe_vgg(saved(reduced_state(), tmp_path)).layout == "vgg_reduced"
    with pytest.raises(WeightsError, match="is no VGG-16"):
        describe_vgg(saved({"conv1.weight": torch.zeros(1)}, tmp_path))


def test_a_file_without_a_classifier_is_refused(tmp_path: Path) -> None:
    state = torchvision_state()
    state["classifier.0.weight"].fill_(torch.nan)
    with pytest.raises(WeightsError, match=r"fc6\.0\.weight are not finite: give a file that has fc6"):
        loaded(state, tmp_path)


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    state = reduced_state()
    del state["5.bias"]
    with pytest.raises(WeightsError, match=r"missing: blocks\.1\.0\.bias"):
        loaded(state, tmp_path)


def test_a_vgg_with_norms_takes_no_pretrained_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="group_norm"):
        loaded(reduced_state(), tmp_path, cfg.VGG(TINY.depths, TINY.widths, 16, norm="group_norm"))


def test_the_input_is_normalised_as_the_weights_were_trained() -> None:
    assert vgg_as_pretrained(SSD300, "vgg_reduced") == SSD300
    torchvisions = vgg_as_pretrained(SSD300, "torchvision")
    assert torchvisions.pixel_mean == (123.675, 116.28, 103.53)
    assert torchvisions.pixel_std == (58.395, 57.12, 57.375)


def test_the_published_file_is_torchvisions() -> None:
    from torchvision.models import VGG16_Weights

    assert PUBLISHED["vgg16"].url == VGG16_Weights.IMAGENET1K_V1.url


def test_faster_rcnns_head_starts_from_the_classifier_where_it_is_as_wide(tmp_path: Path) -> None:
    config = FasterRCNN(3, cfg.VGG(TINY.depths, TINY.widths, fc_channels=0), head_channels=FULL)
    state = torchvision_state()
    path = saved(state, tmp_path)
    model, other = build_detector(config), build_detector(replace(config, head_channels=32))
    before = other.roi.box_head.fc7.weight.clone()
    for one in (model, other):
        load_pretrained(one, path, describe_vgg(path))
        assert torch.equal(next(one.backbone.parameters()), state["features.0.weight"])
    assert torch.equal(model.roi.box_head.fc6.weight, state["classifier.0.weight"])
    assert torch.equal(model.roi.box_head.fc7.bias, state["classifier.3.bias"])
    assert torch.equal(other.roi.box_head.fc7.weight, before)


def test_a_backbone_without_fcs_takes_the_blocks_of_a_reduced_file(tmp_path: Path) -> None:
    backbone = loaded(reduced_state(), tmp_path, cfg.VGG(TINY.depths, TINY.widths, fc_channels=0))
    assert torch.equal(next(backbone.parameters()), reduced_state()["0.weight"])
