"""Pretrained weights: both layouts give what their own framework computes, and nothing loads by halves."""

import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import get_model, get_model_weights
from torchvision.models.resnet import Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet

from detector.config import Detector, ResNet, Weights
from detector.errors import WeightsError
from detector.model import weights as subject
from detector.model.dcn import DeformConv2d
from detector.model.pretrained import (
    BACKBONES,
    DETECTRON_MEAN,
    DETECTRON_STD,
    PUBLISHED,
    TORCHVISION,
    Layout,
    Published,
    as_pretrained,
    backbone_name,
    layout_of,
    sha256_of,
)
from detector.model.resnet import Backbone
from detector.model.weights import backbone_of, download, find_all, load_backbone, read_weights

SHALLOW = ResNet(depths=(1, 1, 1, 1))
TINY = ResNet(depths=(1, 2, 1, 1), widths=(8, 8, 16, 16), stem_channels=8, stride_in_1x1=True)


def identity(path: Path) -> Weights:
    return Weights(layout_of(path), sha256_of(path))


def load(backbone: Backbone, path: Path) -> None:
    load_backbone(backbone, path, identity(path))


# --- torchvision's layout --------------------------------------------------------------------------------


def with_statistics(model: TorchvisionResNet) -> TorchvisionResNet:
    """In eval mode, with statistics and affines as after a training; small variances show a missing eps."""
    for module in model.eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 1e-3, 1e-2)
            nn.init.uniform_(module.weight, 0.02, 0.05)
            nn.init.normal_(module.bias, std=0.1)
    return model


def torchvision_features(model: TorchvisionResNet, images: Tensor) -> list[Tensor]:
    c2 = model.layer1(model.maxpool(model.relu(model.bn1(model.conv1(images)))))
    c3 = model.layer2(c2)
    c4 = model.layer3(c3)
    return [c3, c4, model.layer4(c4)]


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    codes = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        raw = bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
        ends = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": ends}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_pth(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save(tensors, path)


@torch.no_grad()
@pytest.mark.parametrize(
    ("write", "ending"), [(write_pth, "pth"), (write_pth, "pt"), (write_safetensors, "safetensors")]
)
@pytest.mark.parametrize(("groups", "width"), [(1, 64), (32, 8), (64, 4)])
def test_a_backbone_computes_what_torchvisions_does_with_its_weights(
    tmp_path: Path, write: Callable[..., None], ending: str, groups: int, width: int
) -> None:
    torch.manual_seed(0)
    theirs = TorchvisionResNet(Bottleneck, [1, 1, 1, 1], groups=groups, width_per_group=width)
    with_statistics(theirs)
    write(tmp_path / f"weights.{ending}", theirs.state_dict())
    ours = Backbone(replace(SHALLOW, groups=groups, width_per_group=width))
    load(ours, tmp_path / f"weights.{ending}")
    images = torch.randn(1, 3, 64, 96)
    for actual, expected in zip(ours(images), torchvision_features(theirs, images), strict=True):
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_whole_resnet50_computes_what_torchvisions_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = with_statistics(get_model("resnet50"))
    path = tmp_path / "resnet50.pth"
    torch.save(theirs.state_dict(), path)
    ours = Backbone(BACKBONES["resnet50"])
    load(ours, path)
    images = torch.randn(1, 3, 64, 64)
    for actual, expected in zip(ours(images), torchvision_features(theirs, images), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_published_backbone_has_torchvisions_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = Backbone(BACKBONES[name]).state_dict(), get_model(name).state_dict()
    found = subject._from_torchvision(theirs)
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in found.items()}


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_training_checkpoint_is_read_as_the_state_in_it(tmp_path: Path, wrapper: str) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({wrapper: {"a": torch.ones(2)}, "epoch": 90}, path)
    assert read_weights(path)["a"].tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_safetensors_keep_every_value_shape_and_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    expected = {"a": torch.arange(6).view(2, 3).to(dtype), "scalar": torch.tensor(7).to(dtype)}
    write_safetensors(tmp_path / "a.safetensors", expected)
    torch.testing.assert_close(read_weights(tmp_path / "a.safetensors"), expected)


# --- Detectron's layout ----------------------------------------------------------------------------------


def detectron_blobs(config: ResNet) -> dict[str, np.ndarray]:
    """Random weights by Caffe2's names, with the biases, classifier and momentum that such files carry."""
    generator = np.random.default_rng(0)
    blobs: dict[str, np.ndarray] = {"fc1000_w": np.ones((10, 4), "f4"), "fc1000_b": np.ones(10, "f4")}

    def add(blob: str, norm: str, outs: int, ins: int, kernel: int) -> None:
        scale = (2 / (ins * kernel**2)) ** 0.5
        blobs[f"{blob}_w"] = (generator.normal(size=(outs, ins, kernel, kernel)) * scale).astype("f4")
        blobs[f"{blob}_b"] = np.zeros(outs, "f4")
        blobs[f"{blob}_w_momentum"] = np.ones((outs, ins, kernel, kernel), "f4")
        blobs[f"{norm}_s"] = generator.uniform(0.5, 1, outs).astype("f4")
        blobs[f"{norm}_b"] = generator.normal(size=outs).astype("f4")

    add("conv1", "res_conv1_bn", config.stem_channels, 3, 7)
    ins = config.stem_channels
    for stage, (depth, planes) in enumerate(zip(config.depths, config.widths, strict=True), 2):
        width = planes * config.width_per_group // 64 * config.groups
        for block in range(depth):
            name = f"res{stage}_{block}_branch"
            if block == 0:
                add(f"{name}1", f"{name}1_bn", 4 * planes, ins, 1)
            add(f"{name}2a", f"{name}2a_bn", width, ins, 1)
            add(f"{name}2b", f"{name}2b_bn", width, width // config.groups, 3)
            add(f"{name}2c", f"{name}2c_bn", 4 * planes, width, 1)
            ins = 4 * planes
    return blobs


def detectron_features(config: ResNet, blobs: dict[str, np.ndarray], bgr: Tensor) -> list[Tensor]:
    """C3..C5 by the blobs' own names: the network as Detectron lays it out."""

    def conv(x: Tensor, blob: str, norm: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = torch.from_numpy(blobs[f"{blob}_w"])
        out = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        scale, shift = (torch.from_numpy(blobs[f"{norm}_{part}"]).view(-1, 1, 1) for part in "sb")
        return out * scale + shift

    x = F.max_pool2d(conv(bgr, "conv1", "res_conv1_bn", 2).relu(), 3, 2, padding=1)
    features = []
    for stage, depth in enumerate(config.depths, 2):
        for block in range(depth):
            name = f"res{stage}_{block}_branch"
            stride = 2 if stage > 2 and block == 0 else 1
            first, second = (stride, 1) if config.groups == 1 else (1, stride)
            out = conv(x, f"{name}2a", f"{name}2a_bn", first).relu()
            out = conv(out, f"{name}2b", f"{name}2b_bn", second, config.groups).relu()
            out = conv(out, f"{name}2c", f"{name}2c_bn")
            shortcut = conv(x, f"{name}1", f"{name}1_bn", stride) if block == 0 else x
            x = (out + shortcut).relu()
        features.append(x)
    return features[1:]


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined, misc]
    """Writes bytes and ASCII text as Python 2 wrote its `str`, which is how Detectron's files are."""

    dispatch = pickle._Pickler.dispatch.copy()  # type: ignore[attr-defined]

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)
        self.memoize(value)

    def save_str(self, value: str) -> None:
        self.write(pickle.SHORT_BINSTRING + bytes([len(value)]) + value.encode("ascii"))
        self.memoize(value)

    dispatch[bytes] = save_bytes
    dispatch[str] = save_str


def write_python2(path: Path, content: object) -> None:
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(content)
    # numpy 2 moved the module; protocol 2 names it in plain text.
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.", b"cnumpy.core."))


def write_python3(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


def loaded(config: ResNet, path: Path) -> Backbone:
    backbone = Backbone(config)
    load(backbone, path)
    return backbone


@torch.no_grad()
@pytest.mark.parametrize("write", [write_python2, write_python3])
@pytest.mark.parametrize("config", [TINY, replace(TINY, groups=4, width_per_group=32, stride_in_1x1=False)])
def test_a_backbone_computes_what_detectrons_does_with_its_weights(
    tmp_path: Path, write: Callable[..., None], config: ResNet
) -> None:
    blobs = detectron_blobs(config)
    write(tmp_path / "R-50.pkl", {"blobs": {**blobs, "lr": np.float32(0.1)}, "cfg": "MODEL: {}"})
    rgb = torch.randint(256, (1, 3, 64, 96)).float()
    ours = loaded(config, tmp_path / "R-50.pkl")(rgb - torch.tensor(DETECTRON_MEAN).view(3, 1, 1))
    bgr = rgb.flip(1) - torch.tensor([102.9801, 115.9465, 122.7717]).view(3, 1, 1)
    for actual, expected in zip(ours, detectron_features(config, blobs, bgr), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)


def test_a_python2_pickle_needs_latin1_and_gives_the_arrays_bit_for_bit(tmp_path: Path) -> None:
    arrays = {"a": np.linspace(-1e9, 1e9, 999, dtype="f4"), "b": np.asfortranarray(np.eye(3, 5))}
    path = tmp_path / "R-50.pkl"
    write_python2(path, arrays)
    with pytest.raises(UnicodeDecodeError), path.open("rb") as file:
        pickle.load(file)
    with path.open("rb") as file:
        assert np.array_equal(pickle.load(file, encoding="latin1")["a"], arrays["a"])
    tensors = read_weights(path)
    assert list(tensors) == ["a", "b"]
    for name, array in arrays.items():
        torch.testing.assert_close(tensors[name], torch.from_numpy(array.copy()), rtol=0, atol=0)


def test_a_flat_detectron_file_loads_like_one_with_blobs(tmp_path: Path) -> None:
    blobs = OrderedDict(detectron_blobs(TINY))
    write_python3(tmp_path / "flat.pkl", blobs)
    write_python3(tmp_path / "blobs.pkl", {"blobs": blobs})
    flat, nested = (loaded(TINY, tmp_path / f"{name}.pkl").state_dict() for name in ("flat", "blobs"))
    torch.testing.assert_close(flat, nested, rtol=0, atol=0)


def test_a_detectron2_file_is_refused_as_such(tmp_path: Path) -> None:
    # It shares its name with Detectron's.
    write_python3(tmp_path / "R-50.pkl", {"model": {"stem.conv1.weight": np.zeros(3, "f4")}})
    with pytest.raises(WeightsError, match=r"R-50\.pkl: is a file of detectron2"):
        read_weights(tmp_path / "R-50.pkl")


# --- refused files -----------------------------------------------------------------------------------------


class Malicious:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("ending", ["pkl", "pth"])
def test_a_pickle_that_runs_code_is_refused_by_name_and_not_run(tmp_path: Path, ending: str) -> None:
    path, trace = tmp_path / f"weights.{ending}", tmp_path / "trace"
    content = {"conv1_w": Malicious(f"touch {trace}")}
    if ending == "pkl":
        write_python3(path, content)
    else:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=rf"weights\.{ending}: refused, its pickle calls \w+\.system"):
        read_weights(path)
    assert not trace.exists()


@pytest.mark.parametrize("value", [np.array([{}]), np.array(["text"]), np.zeros(2, [("field", "f4")])])
def test_an_array_of_anything_but_numbers_is_refused(tmp_path: Path, value: np.ndarray) -> None:
    write_python3(tmp_path / "weights.pkl", {"conv1_w": value})
    with pytest.raises(WeightsError, match=r"weights\.pkl: refused, contains an array of dtype [OUV]"):
        read_weights(tmp_path / "weights.pkl")


def test_a_pickle_cannot_call_functions_of_numpy(tmp_path: Path) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(b"cnumpy\nload\n(S'other.npy'\ntR.")
    with pytest.raises(WeightsError, match=r"calls numpy\.load"):
        read_weights(path)


@pytest.mark.parametrize("ending", ["pkl", "pth", "safetensors"])
@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path, ending: str, kept: float) -> None:
    path = tmp_path / f"weights.{ending}"
    if ending == "pkl":
        write_python2(path, {"conv1_w": np.ones((64, 3, 7, 7), "f4")})
    else:
        write = write_pth if ending == "pth" else write_safetensors
        write(path, {"conv1.weight": torch.ones(64, 3, 7, 7)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if 0 < kept < 1 else int(kept)])
    with pytest.raises(WeightsError, match=rf"weights\.{ending}: truncated"):
        read_weights(path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}, "a has dtype I8, known are F64"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, r"a of shape \[2\] and F32 cannot have 4"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, r"a of shape \[-1\]"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}, "a is at bytes -4 to 0 of 8"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}, "a is at bytes 8 to 12 of 8"),
        ({"dtype": "F32", "shape": [1]}, "data_offsets"),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(
    tmp_path: Path, entry: dict[str, object], message: str
) -> None:
    text = json.dumps({"a": entry}).encode()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(WeightsError, match=message):
        read_weights(path)


def test_a_file_that_is_absent_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.onnx").touch()
    with pytest.raises(WeightsError, match=r"weights\.onnx: must end in \.pth, \.pt, \.safetensors, \.pkl"):
        read_weights(tmp_path / "weights.onnx")
    for use in (read_weights, sha256_of):
        with pytest.raises(WeightsError, match=r"absent\.pth: No such file"):
            use(tmp_path / "absent.pth")


def test_a_state_with_other_things_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.ones(1), "epoch": 3}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"weights\.pth: contains entries that are not tensors: epoch"):
        read_weights(tmp_path / "weights.pth")


# --- all or nothing ----------------------------------------------------------------------------------------


TINY_TORCHVISION = replace(TINY, stride_in_1x1=False)


def tiny_state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return Backbone(TINY_TORCHVISION).state_dict()


def refusal(state: dict[str, Tensor], tmp_path: Path, config: ResNet = TINY_TORCHVISION) -> str:
    """Why loading `state` fails, after checking that it changed nothing."""
    path = tmp_path / "resnet50.safetensors"
    write_safetensors(path, state)
    torch.manual_seed(2)
    backbone = Backbone(config)
    before = {name: t.clone() for name, t in backbone.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load(backbone, path)
    torch.testing.assert_close(dict(backbone.state_dict()), before, rtol=0, atol=0)
    return str(caught.value)


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    state = tiny_state()
    del state["layer2.1.bn2.bias"], state["layer4.0.downsample.0.weight"]
    message = refusal(state, tmp_path)
    assert message == (
        "resnet50.safetensors (torchvision) does not fit the backbone: "
        "missing: layer2.1.bn2.bias, layer4.0.downsample.0.weight"
    )


def test_tensors_that_nothing_takes_are_named(tmp_path: Path) -> None:
    extra = {
        "fpn.p6.weight": torch.ones(1),
        "fc.bias": torch.ones(1),
        "x.num_batches_tracked": torch.tensor(1),
    }
    assert refusal({**tiny_state(), **extra}, tmp_path).endswith("backbone: unexpected: fpn.p6.weight")


def test_a_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    state = {**tiny_state(), "layer1.0.conv2.weight": torch.ones(8, 2, 3, 3)}
    message = refusal(state, tmp_path)
    assert message.endswith("wrong shape: layer1.0.conv2.weight is (8, 2, 3, 3) and must be (8, 8, 3, 3)")


def test_a_deeper_backbone_is_refused_in_one_line(tmp_path: Path) -> None:
    message = refusal(tiny_state(), tmp_path, replace(TINY_TORCHVISION, depths=(1, 4, 1, 1)))
    assert "missing: layer2.2.conv1.weight" in message and "more" in message and len(message) < 300


def test_blobs_of_a_detectron_file_that_nothing_takes_are_named(tmp_path: Path) -> None:
    blobs = detectron_blobs(TINY)
    blobs["res2_0_branch2a_bn_rm"] = np.ones(8, "f4")
    del blobs["res5_0_branch1_w"]
    write_python3(tmp_path / "R-50.pkl", blobs)
    with pytest.raises(
        WeightsError, match=r"missing: layer4\.0\.downsample\.0\.weight; unexpected: res2_0_branch2a_bn_rm"
    ):
        loaded(TINY, tmp_path / "R-50.pkl")


def test_another_file_than_the_trial_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    write_safetensors(path, tiny_state())
    digest = sha256_of(path)
    load_backbone(Backbone(TINY_TORCHVISION), path, Weights("torchvision", digest[:8]))
    with pytest.raises(WeightsError, match=f"has SHA-256 {digest}, but 0123abcd is needed"):
        load_backbone(Backbone(TINY_TORCHVISION), path, Weights("torchvision", "0123abcd"))


def test_a_group_norm_backbone_takes_no_batch_norm_weights(tmp_path: Path) -> None:
    assert "group_norm" in refusal(tiny_state(), tmp_path, replace(TINY_TORCHVISION, norm="group_norm"))


def test_a_backbone_with_its_strides_elsewhere_is_refused(tmp_path: Path) -> None:
    message = refusal(tiny_state(), tmp_path, TINY)
    assert message.startswith(
        "weights of layout torchvision need a backbone with stride_in_1x1=False, got True"
    )
    write_python3(tmp_path / "R-50.pkl", detectron_blobs(TINY))
    with pytest.raises(WeightsError, match="stride_in_1x1=True, got False"):
        loaded(TINY_TORCHVISION, tmp_path / "R-50.pkl")


@pytest.mark.parametrize("layout", ["torchvision", "detectron"])
def test_a_deformable_backbone_takes_the_weights_and_keeps_its_offsets(tmp_path: Path, layout: str) -> None:
    config = replace(TINY, stride_in_1x1=layout == "detectron")
    if layout == "detectron":
        path = tmp_path / "R-50.pkl"
        write_python3(path, detectron_blobs(config))
    else:
        path = tmp_path / "resnet50.safetensors"
        write_safetensors(path, tiny_state())
    plain = loaded(config, path).state_dict()
    backbone = Backbone(replace(config, deformable=(False, True, True, True)))
    before = {name: t.clone() for name, t in backbone.state_dict().items() if ".offset." in name}
    load(backbone, path)
    after = backbone.state_dict()
    assert isinstance(backbone.layer2[1].conv2, DeformConv2d)
    assert len(before) == 2 * 4
    torch.testing.assert_close({n: after[n] for n in before}, before, rtol=0, atol=0)
    torch.testing.assert_close({n: after[n] for n in plain}, dict(plain), rtol=0, atol=0)


def test_loading_keeps_what_is_frozen_frozen(tmp_path: Path) -> None:
    path = tmp_path / "resnet50.safetensors"
    write_safetensors(path, tiny_state())
    backbone = loaded(TINY_TORCHVISION, path)
    learned = {n.split(".")[0] for n, p in backbone.named_parameters() if p.requires_grad}
    assert learned == {"layer2", "layer3", "layer4"}


# --- which file, for which backbone -------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_has_its_name_whatever_does_not_change_its_weights(name: str) -> None:
    variant = replace(
        BACKBONES[name], stride_in_1x1=True, deformable=(False, True, True, True), frozen_stages=0
    )
    assert backbone_name(variant) == name


@pytest.mark.parametrize(
    "config",
    [SHALLOW, ResNet(norm="group_norm"), ResNet(groups=32, width_per_group=4), ResNet(block="basic")],
)
def test_other_backbones_have_no_name(config: ResNet) -> None:
    assert backbone_name(config) is None


def test_published_files_are_those_that_torchvision_names() -> None:
    urls = {name: get_model_weights(name).IMAGENET1K_V1.url for name in BACKBONES}
    assert {name: published.url for name, published in TORCHVISION.items()} == urls
    assert all(published.sha256 in published.filename for published in TORCHVISION.values())


@pytest.mark.parametrize(
    ("layout", "groups", "in_1x1"),
    [("torchvision", 1, False), ("torchvision", 32, False), ("detectron", 1, True), ("detectron", 32, False)],
)
def test_a_pretrained_detector_gets_its_layouts_input_and_strides(
    layout: Layout, groups: int, in_1x1: bool
) -> None:
    plain = Detector(backbone=ResNet(groups=groups, stride_in_1x1=not in_1x1))
    detector = as_pretrained(plain, layout)
    assert detector.backbone.stride_in_1x1 is in_1x1
    if layout == "detectron":
        assert (detector.pixel_mean, detector.pixel_std) == (DETECTRON_MEAN, DETECTRON_STD)
    else:
        # ImageNet's 0.485 and 0.229, as torchvision normalises, times 255.
        assert detector.pixel_mean[0] == 0.485 * 255 and detector.pixel_std[0] == 0.229 * 255
    assert as_pretrained(detector, layout) == detector


def test_a_folder_gives_each_backbone_the_file_that_is_named_after_it(tmp_path: Path) -> None:
    files = {
        "resnet50": "resnet50-0676ba61.pth",
        "resnet101": "R-101.pkl",
        "resnext101_32x8d": "resnext101_32x8d.safetensors",
        "resnext101_64x4d": "X-101-64x4d.pkl",
    }
    for file in (*files.values(), "README.md", "resnet18.pth", "R-152.pkl"):
        (tmp_path / file).touch()
    assert find_all(tmp_path) == {name: tmp_path / file for name, file in files.items()}


def test_a_folder_without_weights_or_with_several_of_one_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights of a backbone; .*R-50\.pkl"):
        find_all(tmp_path)
    (tmp_path / "resnet101.pth").touch()
    assert find_all(tmp_path) == {"resnet101": tmp_path / "resnet101.pth"}
    (tmp_path / "R-101.pkl").touch()
    with pytest.raises(WeightsError, match=r"several weights of resnet101: R-101\.pkl, resnet101\.pth"):
        find_all(tmp_path)
    with pytest.raises(WeightsError, match="absent: no such file or folder"):
        find_all(tmp_path / "absent")


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_a_file_of_any_name_serves_the_backbone_that_its_tensors_fit(tmp_path: Path, name: str) -> None:
    path = tmp_path / "mine.pth"
    torch.save(get_model(name).state_dict(), path)
    assert find_all(path) == {name: path}


def test_a_file_that_fits_no_backbone_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    state = get_model("resnet50").state_dict()
    del state["layer4.2.conv3.weight"]
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"nearest is resnet50: missing: layer4\.2\.conv3\.weight"):
        backbone_of(path)


def test_a_download_asks_for_the_published_digits_and_happens_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"weights"
    digits = "9a129038"  # sha256 of the content
    monkeypatch.setitem(PUBLISHED, "resnet50", Published("https://host/resnet50-9a129038.pth", digits))
    asked: list[tuple[str, str]] = []

    def fetch(url: str, path: str, hash_prefix: str) -> None:
        asked.append((url, hash_prefix))
        Path(path).write_bytes(content)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    cache = tmp_path / "new" / "cache"
    assert download("resnet50", cache) == download("resnet50", cache) == cache / "resnet50-9a129038.pth"
    (cache / "resnet50-9a129038.pth").write_bytes(b"damaged")
    download("resnet50", cache)
    assert asked == 2 * [("https://host/resnet50-9a129038.pth", digits)]


def test_without_a_network_the_error_says_which_file_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(WeightsError, match=r"resnet50-0676ba61\.pth \(Name or .* give the file") as caught:
        download("resnet50", tmp_path)
    assert len(str(caught.value).splitlines()) == 1
