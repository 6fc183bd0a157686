"""The backbone: shapes, freezing, norms and deformable convolutions."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.ops import deform_conv2d

from detector.config import ResNet
from detector.model.dcn import DeformConv2d
from detector.model.norms import FrozenBatchNorm2d, num_groups
from detector.model.resnet import Backbone

TINY = ResNet(
    block="basic",
    depths=(1, 1, 1, 1),
    widths=(16, 32, 48, 64),
    stem="patch",
    stem_channels=16,
    stem_stride=2,
    stage_strides=(1, 1, 2, 2),
    norm="group_norm",
    frozen_stages=0,
)


def shapes(config: ResNet, height: int, width: int) -> list[tuple[int, ...]]:
    with torch.device("meta"):
        return [tuple(c.shape[1:]) for c in Backbone(config)(torch.empty(1, 3, height, width))]


def test_stages_of_a_resnet50_have_the_papers_sizes() -> None:
    assert shapes(ResNet(), 800, 1216) == [(512, 100, 152), (1024, 50, 76), (2048, 25, 38)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, [(32, 48, 64), (48, 24, 32), (64, 12, 16)]),
        ({"stem_stride": 4}, [(32, 24, 32), (48, 12, 16), (64, 6, 8)]),
        ({"stage_strides": (2, 1, 2, 2)}, [(32, 24, 32), (48, 12, 16), (64, 6, 8)]),
        ({"block": "bottleneck"}, [(128, 48, 64), (192, 24, 32), (256, 12, 16)]),
        ({"depths": (0, 2, 1, 1)}, [(32, 48, 64), (48, 24, 32), (64, 12, 16)]),
    ],
)
def test_strides_and_widths_of_small_networks_follow_the_config(
    change: dict[str, object], expected: list[tuple[int, ...]]
) -> None:
    assert shapes(replace(TINY, **change), 96, 128) == expected  # type: ignore[arg-type]


def test_an_absent_c2_leaves_its_stride_to_c3() -> None:
    absent = replace(TINY, depths=(0, 1, 1, 1), stage_strides=(2, 2, 2, 2))
    height = shapes(absent, 64, 64)[0][1]
    assert height == 64 // absent.c3_stride == 8


def test_parameters_and_buffers_carry_torchvisions_names_and_shapes() -> None:
    with torch.device("meta"):
        ours, theirs = Backbone(ResNet()).state_dict(), resnet50().state_dict()
    left_out = {name for name in theirs if name.startswith("fc.") or name.endswith("num_batches_tracked")}
    assert {n: t.shape for n, t in ours.items()} == {
        n: t.shape for n, t in theirs.items() if n not in left_out
    }


@torch.no_grad()
def test_a_resnet50_computes_what_torchvisions_does() -> None:
    torch.manual_seed(0)
    theirs = resnet50().eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(1, 2)  # type: ignore[union-attr]
    ours = Backbone(ResNet())
    state = {n: t for n, t in theirs.state_dict().items() if not n.startswith("fc.")}
    state = {n: t + 1e-5 if n.endswith("running_var") else t for n, t in state.items()}
    ours.load_state_dict({n: t for n, t in state.items() if not n.endswith("num_batches_tracked")})
    images = torch.randn(1, 3, 64, 96)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
    expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
    torch.testing.assert_close(ours(images)[2], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("in_1x1", "expected"), [(False, [(1, 1), (2, 2), (1, 1)]), (True, [(2, 2), (1, 1), (1, 1)])]
)
def test_the_stride_sits_in_the_convolution_the_config_names(
    in_1x1: bool, expected: list[tuple[int, int]]
) -> None:
    with torch.device("meta"):
        block = Backbone(ResNet(stride_in_1x1=in_1x1)).layer3[0]
    assert [conv.stride for conv in (block.conv1, block.conv2, block.conv3)] == expected


@pytest.mark.parametrize("frozen", [0, 1, 2, 3, 5])
def test_frozen_stages_get_no_gradient_and_all_others_do(frozen: int) -> None:
    model = Backbone(replace(TINY, frozen_stages=frozen))
    sum(c.square().mean() for c in model(torch.randn(2, 3, 32, 32))).requires_grad_().backward()
    names = ["stem", "layer1", "layer2", "layer3", "layer4"]
    learned = {
        name.split(".")[0] if name.startswith("layer") else "stem"
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    assert learned == set(names[frozen:])
    assert all(p.requires_grad == (p.grad is not None) for p in model.parameters())


def test_frozen_batch_norm_is_batch_norm_in_eval_mode_and_learns_nothing() -> None:
    torch.manual_seed(0)
    frozen, usual = FrozenBatchNorm2d(6), nn.BatchNorm2d(6, eps=0.0).eval()
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = torch.rand(6) + 0.5
        getattr(frozen, name).copy_(value)
        getattr(usual, name).data.copy_(value)
    x = torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(frozen(x), usual(x))
    assert not list(frozen.parameters())
    assert set(frozen.state_dict()) == {"weight", "bias", "running_mean", "running_var"}


@pytest.mark.parametrize(
    ("channels", "groups"), [(256, 32), (512, 32), (128, 8), (64, 4), (32, 2), (24, 1), (16, 1), (3, 1)]
)
def test_group_norm_is_the_papers_at_256_channels_and_groups_of_16_below(channels: int, groups: int) -> None:
    assert num_groups(channels) == groups


def test_a_group_norm_block_starts_as_its_shortcut() -> None:
    block = Backbone(replace(TINY, stem_channels=16)).layer1[0]
    x = torch.rand(1, 16, 8, 8)
    torch.testing.assert_close(block(x), x)


def test_deformable_stages_are_those_of_the_config() -> None:
    config = ResNet(deformable=(False, False, True, True))
    with torch.device("meta"):
        model = Backbone(config)
    for stage, deformable in zip(
        (model.layer1, model.layer2, model.layer3, model.layer4), config.deformable, strict=True
    ):
        assert all(isinstance(block.conv2, DeformConv2d) == deformable for block in stage)


def test_basic_blocks_can_be_deformable_too() -> None:
    model = Backbone(replace(TINY, deformable=(False, True, False, True)))
    c3, _, c5 = model(torch.randn(1, 3, 32, 32))
    (c3.mean() + c5.mean()).backward()
    offset = model.get_parameter("layer4.0.conv2.offset.weight")
    assert c5.shape == (1, 64, 4, 4)
    assert offset.grad is not None


def test_a_deformable_convolution_without_offsets_is_half_a_convolution() -> None:
    torch.manual_seed(0)
    conv = DeformConv2d(4, 6, stride=2, groups=2, bias=False)
    nn.init.zeros_(conv.offset.weight)
    x = torch.randn(2, 4, 9, 12)
    # sigmoid(0) = 1/2 masks every point.
    expected = 0.5 * nn.functional.conv2d(x, conv.weight, stride=2, padding=1, groups=2)
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("stride", "groups", "bias"), [(1, 1, True), (2, 1, False), (1, 2, False), (2, 4, True)]
)
def test_a_deformable_convolution_is_torchvisions_with_offsets_first_and_masks_last(
    stride: int, groups: int, bias: bool
) -> None:
    torch.manual_seed(0)
    conv = DeformConv2d(4, 8, stride=stride, groups=groups, bias=bias)
    nn.init.normal_(conv.offset.weight, std=0.5)  # so that points leave the image too
    x = torch.randn(2, 4, 7, 10, requires_grad=True)
    maps: Tensor = conv.offset(x)
    mask = maps[:, 18:].sigmoid()
    expected = deform_conv2d(x, maps[:, :18], conv.weight, conv.bias, stride, padding=1, mask=mask)
    actual = conv(x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    upstream = torch.randn_like(expected)
    inputs = (x, *conv.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(actual, inputs, upstream, retain_graph=True),
        torch.autograd.grad(expected, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_deformable_convolution_samples_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    conv = DeformConv2d(4, 4)
    nn.init.zeros_(conv.offset.weight)  # so that only the offsets, not the sampling, may lose precision
    x = torch.randn(1, 4, 8, 8).bfloat16()
    expected = conv(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x).dtype == torch.float32
        torch.testing.assert_close(conv(x), expected)


def test_resnext_widens_and_groups_its_3x3() -> None:
    with torch.device("meta"):
        model = Backbone(ResNet(depths=(3, 4, 23, 3), groups=32, width_per_group=8))
    conv = model.get_submodule("layer4.0.conv2")
    assert isinstance(conv, nn.Conv2d)
    assert (conv.in_channels, conv.out_channels, conv.groups) == (2048, 2048, 32)
    assert model.out_channels == (512, 1024, 2048)
