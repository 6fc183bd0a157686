"""mmdet's ATSS on ResNet-50, and its assigner alone.

mmdet is made for mmcv's compiled operators, which ATSS calls in no training step. So it runs beside
mmcv-lite, with a stand-in for the compiled module that fails as soon as it is called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

from benchmarks.common import Batch, Stopwatch


class _NoCompiledOperators(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*arguments: object, **options: object) -> NoReturn:
            raise NotImplementedError(f"mmcv's compiled {name} is not there")

        return missing


sys.modules["mmcv._ext"] = _NoCompiledOperators("mmcv._ext")

from mmdet.models.task_modules import AnchorGenerator, ATSSAssigner  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

ANCHORS = {"ratios": [1.0], "octave_base_scale": 8, "scales_per_octave": 1, "strides": [8, 16, 32, 64, 128]}

# configs/atss/atss_r50_fpn_1x_coco.py of mmdet 3.3.0, with the affine of batch norm frozen as well.
MODEL = {
    "type": "ATSS",
    "backbone": {
        "type": "ResNet",
        "depth": 50,
        "frozen_stages": 1,
        "norm_cfg": {"type": "BN", "requires_grad": False},
        "norm_eval": True,
        "style": "pytorch",
    },
    "neck": {
        "type": "FPN",
        "in_channels": [256, 512, 1024, 2048],
        "out_channels": 256,
        "start_level": 1,
        "add_extra_convs": "on_output",
        "num_outs": 5,
    },
    "bbox_head": {
        "type": "ATSSHead",
        "num_classes": 80,
        "in_channels": 256,
        "stacked_convs": 4,
        "feat_channels": 256,
        "anchor_generator": {"type": "AnchorGenerator", **ANCHORS},
        "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_stds": [0.1, 0.1, 0.2, 0.2]},
        "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25},
        "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
        "loss_centerness": {"type": "CrossEntropyLoss", "use_sigmoid": True},
    },
    "train_cfg": {"assigner": {"type": "ATSSAssigner", "topk": 9}, "allowed_border": -1, "pos_weight": -1},
}


class MmdetPeer:
    """ATSS in training, given normalised images.

    Attributes:
        parameters: those that learn.

    Args:
        batch: what it trains on.
    """

    def __init__(self, batch: Batch) -> None:
        register_all_modules(init_default_scope=True)
        self._model = MODELS.build(MODEL).train()
        self._images_N3HW = batch.normalised
        self._samples = [
            _sample(*boxes_and_labels, (batch.images_N3HW.shape[2], batch.images_N3HW.shape[3]))
            for boxes_and_labels in zip(batch.boxes_NG4, batch.labels_NG, strict=True)
        ]
        self.parameters = [p for p in self._model.parameters() if p.requires_grad]

    def loss(self, watch: Stopwatch) -> Tensor:
        """Sum of the batch's losses; marks its parts."""
        features = self._model.extract_feat(self._images_N3HW)
        watch.mark("backbone + FPN")
        head = self._model.bbox_head
        outputs = head(features)
        watch.mark("head")
        losses = head.loss_by_feat(
            *outputs,
            [sample.gt_instances for sample in self._samples],
            [sample.metainfo for sample in self._samples],
        )
        watch.mark("losses")
        return torch.stack([loss for levels in losses.values() for loss in levels]).sum()


def _sample(boxes_G4: Tensor, labels_G: Tensor, size: tuple[int, int]) -> Any:
    sample = DetDataSample(metainfo={"img_shape": size, "pad_shape": size, "batch_input_shape": size})
    sample.gt_instances = InstanceData(bboxes=boxes_G4, labels=labels_G)
    return sample


class MmdetAssigner:
    """ATSSAssigner on the anchors of one input size."""

    def __init__(self, feature_sizes: list[tuple[int, int]], topk: int = 9) -> None:
        # mmdet centres anchors on the corner of a cell unless told; the paper and we on its middle.
        levels = AnchorGenerator(**ANCHORS, center_offset=0.5).grid_priors(feature_sizes, device="cpu")
        self._per_level = [len(level) for level in levels]
        self._anchors = InstanceData(priors=torch.cat(levels))
        self._assigner = ATSSAssigner(topk=topk)

    def __call__(self, boxes_G4: Tensor, labels_G: Tensor) -> Tensor:
        """Index of each anchor's ground truth, (A,) int64, -1 for none."""
        instances = InstanceData(bboxes=boxes_G4, labels=labels_G)
        result = self._assigner.assign(self._anchors, self._per_level, instances)
        indices: Tensor = result.gt_inds - 1
        return indices
