"""The scales at which the ATSS study runs, with how long its grid takes and how far its seeds spread."""

from __future__ import annotations

from dataclasses import replace

from ablation.metric import SeedNoise
from ablation.resources import Resources
from experiments.detection import paper_scale, small

SHAPES = replace(
    small.SHAPES,
    summary="drawn shapes, the whole grid in 20 minutes on 2 cores (default)",
    seed_noise={"AP": SeedNoise(0.63, 7)},  # `experiments.atss.seed_noise`, with eight seeds
)

SHAPES_LONG = replace(
    small.SHAPES,
    name="shapes-long",
    summary="the same shapes, trained longer with three seeds: about 2 hours on 2 cores",
    seeds=3,
    schedule=replace(small.SHAPES.schedule, iterations=2000),
)

SMOKE = replace(small.SMOKE, summary=f"{small.SMOKE.summary}: a minute and a half on 2 cores")

SCALES = (SHAPES, SHAPES_LONG, SMOKE)

# Sec. 4.1 gives the numbers; what it leaves open follows the authors' released configs.
COCO = paper_scale.PaperScale(
    name="coco",
    summary="the paper's own: COCO 2017 (--data), ImageNet weights, days on 8 GPUs",
    short_side=800,
    max_long_side=1333,
    min_short_side=640,
    iterations={"1x": 90_000, "2x": 180_000},
    train_images=118_287,
    large_rows="Table 8",
    # One GPU computes what eight do, and more trainings at a time use a cluster better than more GPUs for
    # each. Four CPUs load its images, as many as a node of eight GPUs has for each; the annotations of COCO,
    # images on their way and the processes themselves are 12 GiB.
    worker=Resources(workers=1, cpus=4, gpus=1, memory=12 << 30),
    # Li et al. 2020 (Generalized Focal Loss) and others report trainings of one config with this spread;
    # counted as an estimate from six of them.
    seed_noise={"AP": SeedNoise(0.1, 5)},
)

PROFILES = (*map(small.profile, SCALES), paper_scale.profile(COCO))
