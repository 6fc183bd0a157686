"""Pretrained backbones: files are read without executing code, and loaded completely or not at all.

ResNets have two layouts. "torchvision" files (`.pth`, `.pt`, `.safetensors`) have this project's tensor names
and batch norms with an eps. "detectron" files (`.pkl`, which the paper used) have Caffe2's blob names, batch
norms folded to scale and shift, and BGR input. `detector.model.vgg_weights` has VGG's.
`detector.model.pretrained` lists the published files.
"""

from __future__ import annotations

import codecs
import collections
import io
import json
import math
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detector import config as cfg
from detector.errors import WeightsError
from detector.model.detector import AnyModel
from detector.model.faster_rcnn import FasterRCNNDetector
from detector.model.pretrained import (
    BACKBONES,
    DETECTRON_FILES,
    PUBLISHED,
    TORCHVISION,
    Layout,
    layout_of,
    sha256_of,
)
from detector.model.resnet import Backbone, Bottleneck
from detector.model.vgg import VGG
from detector.model.vgg_weights import load_classifier, vgg_layout, vgg_tensors

BATCH_NORM_EPS = 1e-5
"""Eps of the batch norms of torchvision's weights."""

# --- which file, for which backbone ------------------------------------------------------------------


def find_all(path: Path) -> dict[str, Path]:
    """Files of weights by the name of their backbone.

    Args:
        path: a file, whose backbone is found by its tensors; or a folder of files named after their
        backbones.

    Raises:
        WeightsError: the path does not exist, fits no backbone, or a folder has several files for one.
    """
    if path.is_file():
        return {backbone_of(path): path}
    if not path.is_dir():
        raise WeightsError(f"{path}: no such file or folder")
    found = {name: file for name in BACKBONES if (file := _find(path, name))}
    if not found:
        allowed = [f"{TORCHVISION[n].filename}, {n}.safetensors or {DETECTRON_FILES[n]}" for n in BACKBONES]
        raise WeightsError(f"{path} has no weights of a backbone; files must be called {'; '.join(allowed)}")
    return found


def backbone_of(path: Path) -> str:
    """The name of the backbone that a file's tensors fit.

    Raises:
        WeightsError: the file cannot be read, or fits no backbone.
    """
    found = _renamed(read_weights(path), layout_of(path))
    misfits = {}
    for name, config in BACKBONES.items():
        with torch.device("meta"):
            own = Backbone(config).state_dict()
        misfits[name] = _misfits(own, found)
        if not misfits[name]:
            return name
    name = min(misfits, key=lambda n: len(str(misfits[n])))
    raise WeightsError(f"{path.name} fits no backbone; nearest is {name}: {'; '.join(misfits[name])}")


def _find(path: Path, name: str) -> Path | None:
    """The file in a folder that is named after a backbone."""
    fits = re.compile(rf"{re.escape(name)}([-_.].*)?({'|'.join(re.escape(s) for s in _TORCHVISION_READERS)})")
    names = sorted(file.name for file in path.iterdir() if file.is_file())
    found = [file for file in names if fits.fullmatch(file) or file == DETECTRON_FILES[name]]
    if len(found) > 1:
        raise WeightsError(f"{path} has several weights of {name}: {_some(found)}; name one of the files")
    return path / found[0] if found else None


def download(name: str, cache: Path) -> Path:
    """The file of a network of `PUBLISHED` in the folder `cache`, downloaded unless an intact one exists.

    Raises:
        WeightsError: there is no network or no space, or the checksum is not the published one.
    """
    published = PUBLISHED[name]
    path = cache / published.filename
    if path.is_file() and sha256_of(path).startswith(published.sha256):
        return path
    try:
        cache.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(published.url, str(path), hash_prefix=published.sha256)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"cannot download {path.name} ({_first_sentence(error)}); without a network, download it "
            f"elsewhere from {published.url} and give the file or its folder"
        ) from error
    return path


# --- into a backbone -----------------------------------------------------------------------------------


def load_pretrained(model: AnyModel, path: Path, weights: cfg.Weights) -> None:
    """Loads the backbone of a detector; and the head of Faster R-CNN, if it is as wide as VGG's classifier.

    Raises:
        WeightsError: see `load_backbone`.
    """
    load_backbone(model.backbone, path, weights)
    if isinstance(model, FasterRCNNDetector) and weights.layout == "torchvision":
        load_classifier(model.roi.box_head, read_weights(path))


def load_backbone(backbone: nn.Module, path: Path, weights: cfg.Weights) -> None:
    """Loads all weights of `backbone` from the file, except those of deformable offsets.

    Every tensor of the backbone, a ResNet or a VGG, is set, and every tensor of the file is used except those
    of the classifier. Offset convolutions, which pretrained classifiers lack, keep their values.

    Raises:
        WeightsError: the file is not the one that `weights` describes, cannot be read, or does not fit; the
            backbone is unchanged then.
    """
    digest = sha256_of(path)
    if not digest.startswith(weights.sha256):
        raise WeightsError(f"{path.name} has SHA-256 {digest}, but {weights.sha256} is needed")
    found = _found(backbone, path, weights.layout)
    own: dict[str, Tensor] = backbone.state_dict()
    problems = _misfits({name: t for name, t in own.items() if ".offset." not in name}, found)
    if problems:
        raise WeightsError(f"{path.name} ({weights.layout}) does not fit the backbone: {'; '.join(problems)}")
    if weights.layout == "detectron":
        found["conv1.weight"] = found["conv1.weight"].flip(1)  # its input was BGR, ours is RGB
    backbone.load_state_dict({**own, **found})


def _found(backbone: nn.Module, path: Path, layout: Layout) -> dict[str, Tensor]:
    """The file's tensors by the backbone's names."""
    match backbone:
        case VGG(config=config):
            if config.norm != "none":
                raise WeightsError(
                    "a VGG with group_norm cannot take weights that were trained without norms"
                )
            names = [name for name, _ in backbone.convolutions()]
            return vgg_tensors(read_weights(path), names, config, layout)
        case Backbone():
            _require_kind(backbone, layout)
            return _renamed(read_weights(path), layout)
        case _:
            raise TypeError(f"no pretrained weights are known for a {type(backbone).__name__}")


def describe_vgg(path: Path) -> cfg.Weights:
    """What a trial says of a file of VGG-16: its layout, found by its tensors, and its hash.

    Raises:
        WeightsError: the file cannot be read, or is of another network.
    """
    layout = vgg_layout(read_weights(path))
    if layout is None:
        raise WeightsError(
            f"{path.name} is no VGG-16: it must have the tensors of torchvision's vgg16, or of a reduced VGG "
            "(0.weight to 33.bias)"
        )
    return cfg.Weights(layout, sha256_of(path))


def _require_kind(backbone: Backbone, layout: Layout) -> None:
    """Refuses a wrong norm or stride position, which names and shapes of tensors do not show."""
    if any(isinstance(module, nn.GroupNorm) for module in backbone.modules()):
        raise WeightsError("a group_norm backbone cannot take weights that were trained with batch norm")
    block = backbone.layer2[0]
    if not isinstance(block, Bottleneck):
        return
    in_1x1 = layout == "detectron" and block.conv2.groups == 1
    if (block.conv1.stride != (1, 1)) != in_1x1:
        raise WeightsError(
            f"weights of layout {layout} need a backbone with stride_in_1x1={in_1x1}, "
            f"got {not in_1x1}; as_pretrained() gives a config that fits"
        )


def _misfits(needed: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    missing = [name for name in needed if name not in found]
    unexpected = [name for name in found if name not in needed]
    shapes = [
        f"{name} is {tuple(found[name].shape)} and must be {tuple(needed[name].shape)}"
        for name in needed
        if name in found and found[name].shape != needed[name].shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes}
    return [f"{kind}: {_some(names)}" for kind, names in kinds.items() if names]


def _renamed(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The backbone's tensors by this project's names."""
    return _from_detectron(tensors) if layout == "detectron" else _from_torchvision(tensors)


def _from_torchvision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without classifier and counters; the eps is added to the variance, because our batch norm has none."""
    backbone = {
        name: t.float()
        for name, t in tensors.items()
        if not name.startswith("fc.") and not name.endswith(".num_batches_tracked")
    }
    return {name: t + BATCH_NORM_EPS if name.endswith("running_var") else t for name, t in backbone.items()}


# A Detectron file may also have the classifier, the solver's state, and a bias for every convolution. These
# are zeros from its conversion from Caffe; Detectron and the authors ignore them, because a batch norm
# follows.
_DETECTRON_EXTRAS = re.compile(
    r"(fc1000|pred)_[wb]|.*_momentum|lr|weight_order|model_iter|(conv1|res\d_\d+_branch(1|2[abc]))_b"
)
_BLOB = re.compile(r"res([2-5])_(\d+)_branch(1|2a|2b|2c)(_w|_bn_s|_bn_b)")
_MODULES = {
    "2a": ("conv1", "bn1"),
    "2b": ("conv2", "bn2"),
    "2c": ("conv3", "bn3"),
    "1": ("downsample.0", "downsample.1"),
}
_PARTS = {"_w": (0, "weight"), "_bn_s": (1, "weight"), "_bn_b": (1, "bias")}
_STEM = {"conv1_w": "conv1.weight", "res_conv1_bn_s": "bn1.weight", "res_conv1_bn_b": "bn1.bias"}


def _from_detectron(blobs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By this project's names; folded batch norms have mean 0, variance 1. Unknown blobs keep their name."""
    kept = {blob: t.float() for blob, t in blobs.items() if not _DETECTRON_EXTRAS.fullmatch(blob)}
    tensors = {_our_name(blob): t for blob, t in kept.items()}
    norms = [_our_name(blob).removesuffix("weight") for blob in kept if blob.endswith("_bn_s")]
    for norm in norms:
        tensors[f"{norm}running_mean"] = torch.zeros_like(tensors[f"{norm}weight"])
        tensors[f"{norm}running_var"] = torch.ones_like(tensors[f"{norm}weight"])
    return tensors


def _our_name(blob: str) -> str:
    match = _BLOB.fullmatch(blob)
    if match is None:
        return _STEM.get(blob, blob)
    stage, block, branch, suffix = match.groups()
    module, tensor = _PARTS[suffix]
    return f"layer{int(stage) - 1}.{block}.{_MODULES[branch][module]}.{tensor}"


# --- files ----------------------------------------------------------------------------------------------


def read_weights(path: Path) -> dict[str, Tensor]:
    """Every tensor of a weights file by its name in the file, in its own dtype, on the CPU.

    Args:
        path: `.pth` or `.pt` as torch saves a state (also under "state_dict" or "model"),
            `.safetensors`, or a Detectron `.pkl` (also under "blobs"). No code in it is executed.

    Raises:
        WeightsError: the file is absent or truncated, has another ending, or contains more than weights.
    """
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise WeightsError(f"{path.name}: must end in {', '.join(_READERS)}")
    with _errors_naming(path):
        return reader(path.read_bytes())


@contextmanager
def _errors_naming(path: Path) -> Iterator[None]:
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{path.name}: {error}") from error
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}") from error
    # Unpickling broken bytes may raise any exception (pickle's documentation).
    except Exception as error:
        raise WeightsError(
            f"{path.name}: truncated, or no {path.suffix} file of weights "
            f"({type(error).__name__}: {_first_sentence(error)})"
        ) from error


def _read_torch(content: bytes) -> dict[str, Tensor]:
    try:
        state: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to load it nevertheless.
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"its pickle calls {asked[1]}" if asked else "it contains other values than weights"
        raise WeightsError(f"refused, {what}") from error
    wrapper = next((key for key in ("state_dict", "model") if key in state), None)
    return _only_tensors(state if wrapper is None else state[wrapper])


def _only_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise WeightsError(f"contains entries that are not tensors: {_some(others)}")
    return dict(state)


_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}


def _read_safetensors(content: bytes) -> dict[str, Tensor]:
    """The format: 8 bytes for the header's length, the header in JSON, then the raw tensors."""
    start = 8 + int.from_bytes(content[:8], "little")
    if len(content) < max(8, start):
        raise WeightsError(f"truncated, {len(content)} bytes where the header alone ends at {max(8, start)}")
    header: dict[str, Any] = json.loads(content[8:start])
    data = memoryview(content)[start:]
    return {name: _slice(name, entry, data) for name, entry in header.items() if name != "__metadata__"}


def _slice(name: str, entry: dict[str, Any], data: memoryview) -> Tensor:
    if entry["dtype"] not in _SAFETENSORS_DTYPES:
        raise WeightsError(f"{name} has dtype {entry['dtype']}, known are {', '.join(_SAFETENSORS_DTYPES)}")
    dtype, shape = _SAFETENSORS_DTYPES[entry["dtype"]], entry["shape"]
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= len(data):
        raise WeightsError(f"truncated, {name} is at bytes {begin} to {end} of {len(data)}")
    if min(shape, default=1) < 1 or end - begin != math.prod(shape) * dtype.itemsize:
        raise WeightsError(f"{name} of shape {shape} and {entry['dtype']} cannot have {end - begin} bytes")
    return torch.frombuffer(bytearray(data[begin:end]), dtype=dtype).reshape(shape)


# A pickle is a program. These are the only names that it may call, and each is replaced by a stand-in, which
# collects the parts of an array, so that numpy does not read untrusted state.


class _Dtype:
    """Stands in for `numpy.dtype`."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code
        self.byte_order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.byte_order = state[1]

    def to_numpy(self) -> np.dtype[Any]:
        """The numpy type; only numbers are allowed."""
        if not re.fullmatch(r"[<>=|][fi][248]", self.byte_order + self.code):
            raise WeightsError(f"refused, contains an array of dtype {self.code}, which is no number")
        return np.dtype(self.byte_order + self.code)


class _Array:
    """Stands in for `numpy.ndarray`, and for `_reconstruct`, which makes an empty one."""

    tensor: Tensor | None = None

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, str | bytes]) -> None:
        _, shape, dtype, fortran, raw = state
        # Bytes of Python 2 are text here, read with encoding="latin1".
        content = raw.encode("latin1") if isinstance(raw, str) else raw
        array = np.frombuffer(content, dtype.to_numpy()).reshape(shape, order="F" if fortran else "C")
        self.tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))


def _latin1(text: str, _encoding: str) -> bytes:
    """Stands in for `codecs.encode`, with which Python 3 writes bytes in protocol 2."""
    return codecs.latin_1_encode(text)[0]


_ARRAY_PARTS: dict[str, Callable[..., object]] = {
    "_reconstruct": _Array,
    "scalar": _Array,  # stays empty: a learning rate or a step
}
_ALLOWED: dict[tuple[str, str], Callable[..., object]] = {
    **{("numpy.core.multiarray", name): part for name, part in _ARRAY_PARTS.items()},
    **{("numpy._core.multiarray", name): part for name, part in _ARRAY_PARTS.items()},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): collections.OrderedDict,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., object]:
        """The stand-in of an allowed name."""
        if (module, name) not in _ALLOWED:
            raise WeightsError(f"refused, its pickle calls {module}.{name}, which is not allowed")
        return _ALLOWED[module, name]


def _read_detectron(content: bytes) -> dict[str, Tensor]:
    """The arrays; other values (a step, the training's config) are skipped."""
    top: Any = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    if isinstance(top.get("model"), dict):
        raise WeightsError(
            "is a file of detectron2, whose batch norms are not folded; use Detectron's file of this name"
        )
    blobs = top.get("blobs", top)
    arrays = {str(name): value.tensor for name, value in blobs.items() if isinstance(value, _Array)}
    return {name: tensor for name, tensor in arrays.items() if tensor is not None}


_TORCHVISION_READERS = {".pth": _read_torch, ".pt": _read_torch, ".safetensors": _read_safetensors}
_READERS = {**_TORCHVISION_READERS, ".pkl": _read_detectron}


# --- messages -------------------------------------------------------------------------------------------


def _some(names: list[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more


def _first_sentence(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". ")[0]
