"""The scales at which the RefineDet study runs."""

from __future__ import annotations

from dataclasses import replace

from ablation.resources import Resources
from detector.config import SGD, Schedule, StepDecay
from experiments.detection import small, square_scale

# Chosen on SSD300* alone, on drawings of seed 7 and with seed 101: rates of 1e-3 and 3e-3, and lengths
# of 300 and 1,000 iterations. The heads learn which class an anchor is only after about 300.
SHAPES = replace(
    small.SHAPES,
    summary="drawn shapes, both tables in 20 minutes on 2 cores (default)",
    schedule=replace(small.SHAPES.schedule, iterations=1000),
)

SMOKE = replace(small.SMOKE, summary=f"{small.SMOKE.summary}: half a minute on 2 cores")

SCALES = (SHAPES, SMOKE)

# Sec. 4 and the authors' script for VOC 2007. The learning rate is 1e-3 for the 32 images of a step, and
# `SGD.lr` that for 16. There is no warm-up.
VOC = square_scale.SquareScale(
    name="voc",
    summary="the paper's own: VOC 2007 and 2012 (--data), ImageNet weights, days on a GPU",
    schedule=Schedule(
        iterations=120_000,
        total_batch=32,
        optimizer=SGD(lr=5e-4, weight_decay=5e-4),
        decay=StepDecay(milestones=(80 / 120, 100 / 120), warmup=0),
    ),
    data_set="VOC 2007 and 2012 trainval and is tested on VOC 2007 test: name the folder with --data DIR.",
    train_images=5011 + 11540,
    worker=Resources(workers=1, cpus=4, gpus=1, memory=12 << 30),
)

PROFILES = (*map(small.profile, SCALES), square_scale.profile(VOC))
