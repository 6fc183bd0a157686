"""The pyramid: sizes, what P6 is made from, and the top-down path."""

import pytest
import torch

from detector import config as cfg
from detector.model.fpn import FPN


def features(height: int, width: int) -> list[torch.Tensor]:
    return [torch.randn(2, c, height >> i, width >> i) for i, c in enumerate((8, 12, 16))]


@pytest.mark.parametrize(
    ("height", "width", "sizes"),
    [
        (16, 24, [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]),
        (100, 152, [(100, 152), (50, 76), (25, 38), (13, 19), (7, 10)]),
        (4, 4, [(4, 4), (2, 2), (1, 1), (1, 1), (1, 1)]),
    ],
)
def test_p6_and_p7_halve_and_round_up(height: int, width: int, sizes: list[tuple[int, int]]) -> None:
    outputs = FPN(cfg.FPN(channels=16), (8, 12, 16))(features(height, width))
    assert [tuple(p.shape[-2:]) for p in outputs] == sizes
    assert all(p.shape[:2] == (2, 16) for p in outputs)


@pytest.mark.parametrize(("source", "channels"), [("C5", 12), ("P5", 16)])
def test_p6_is_a_convolution_of_the_feature_the_config_names(source: str, channels: int) -> None:
    fpn = FPN(cfg.FPN(channels=16, p6_from=source), (8, 12, 12))  # type: ignore[arg-type]
    c3, c4, c5 = torch.randn(1, 8, 8, 8), torch.randn(1, 12, 4, 4), torch.randn(1, 12, 2, 2)
    _, _, p5, p6, p7 = fpn((c3, c4, c5))
    assert fpn.p6.in_channels == channels
    torch.testing.assert_close(p6, fpn.p6(c5 if source == "C5" else p5))
    torch.testing.assert_close(p7, fpn.p7(p6.relu()))


def test_p3_sees_c5_through_the_top_down_path_and_p5_does_not_see_c3() -> None:
    fpn = FPN(cfg.FPN(channels=16), (8, 12, 16))
    c3, c4, c5 = features(8, 8)
    p3, _, p5, _, _ = fpn((c3, c4, c5))
    changed_top = fpn((c3, c4, c5 + 1))
    changed_bottom = fpn((c3 + 1, c4, c5))
    assert not torch.equal(changed_top[0], p3)
    assert torch.equal(changed_bottom[2], p5)


def test_the_top_down_path_repeats_the_nearest_cell() -> None:
    fpn = FPN(cfg.FPN(channels=16), (8, 12, 16))
    c3, c4, c5 = features(8, 8)
    p5 = fpn.lateral[2](c5)
    p4 = fpn.lateral[1](c4) + p5.repeat_interleave(2, 2).repeat_interleave(2, 3)
    p3 = fpn.lateral[0](c3) + p4.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(fpn((c3, c4, c5))[0], fpn.output[0](p3))
