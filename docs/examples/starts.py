"""Does a deep network learn or not by how its weights start? A study of one's own, in one file.

    ablation run --study docs/examples/starts.py

The question is that of Glorot and Bengio ("Understanding the difficulty of training deep feedforward neural
networks", AISTATS 2010), on drawings that are smaller than theirs; so there are no numbers of theirs here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ablation.claim import Better, CellRef, Claim, Equivalent
from ablation.metric import Metric
from ablation.options import option
from ablation.protocol import Checkpointed, Evaluated, Progress, Report, Request
from ablation.setting import PlainSetting
from ablation.study import Cell, Profile, Row, Study, Table, Variant

if TYPE_CHECKING:  # functions import torch when they are called: status and plan do without
    from torch import Tensor, nn

# --- what is trained and tested --------------------------------------------------------------------------

SIDE = 16
ACTIVATIONS = {"sigmoid": "Sigmoid", "tanh": "Tanh", "softsign": "Softsign"}
"""Names of torch's modules."""


@dataclass(frozen=True)
class Training:
    """Whatever changes the result; equal trainings are trained once, whatever rows cite them.

    Attributes:
        normalised: start from weights scaled by the inputs and outputs of a layer, else by its inputs alone.
    """

    activation: str
    normalised: bool
    seed: int = 0
    layers: int = 6
    units: int = 100
    steps: int = 1000
    batch: int = 32
    learning_rate: float = 0.03


@dataclass(frozen=True)
class Options:
    """What a user may change: fields of `Training` that replace those of every row."""

    steps: int | None = option("train every row for N steps", metavar="N", least=1, label="{}steps")
    layers: int | None = option("hidden layers of the networks", metavar="N", least=1, label="{}layers")


@dataclass(frozen=True)
class Test:
    """Accuracy on drawings that were not trained on."""

    drawings: int = 2000


def draw(seed: tuple[int, ...], count: int) -> tuple[Tensor, Tensor]:
    """Noisy discs, squares and triangles: (count, SIDE * SIDE) float32, and their classes 0, 1, 2."""
    import torch

    chance = np.random.default_rng(seed)
    classes = chance.integers(3, size=count)
    middle, radius = chance.uniform(5, 11, (2, count, 1, 1)), chance.uniform(3, 5, (count, 1, 1))
    y, x = np.mgrid[:SIDE, :SIDE][:, None] - middle
    disc, square = x**2 + y**2 < radius**2, np.maximum(abs(x), abs(y)) < 0.9 * radius
    triangle = (y > -radius) & (2 * abs(x) < radius - y)
    inside = np.choose(classes[:, None, None], [disc, square, triangle])
    pictures = inside + chance.normal(0, 0.5, inside.shape)
    return torch.from_numpy(pictures.reshape(count, -1)).float(), torch.from_numpy(classes)


def network(config: Training) -> nn.Sequential:
    """Linear layers of the same size with the activation between them."""
    import torch
    from torch import nn

    torch.manual_seed(config.seed)
    sizes = [SIDE * SIDE, *[config.units] * config.layers, 3]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        limit = (6 / (inputs + outputs)) ** 0.5 if config.normalised else inputs**-0.5
        nn.init.uniform_(linear.weight, -limit, limit)
        nn.init.zeros_(linear.bias)
        layers += [linear, getattr(nn, ACTIVATIONS[config.activation])()]
    return nn.Sequential(*layers[:-1])


def train(request: Request) -> Generator[Report, None, None]:
    """Train from the last checkpoint on, if there is one, and test; every report may be the last."""
    import torch
    from torch import nn

    config: Training = request.config
    if request.workers > 1:
        raise ValueError("this study trains with one worker")
    model, file = network(config), request.directory / "model.pt"
    optimizer, first = torch.optim.SGD(model.parameters(), config.learning_rate), 0
    if file.exists():
        saved = torch.load(file, weights_only=True)
        model.load_state_dict(saved["model"])
        first = saved["step"]
    for step in range(first + 1, config.steps + 1):
        pictures, classes = draw((config.seed, step), config.batch)  # the same whenever it goes on
        loss = nn.functional.cross_entropy(model(pictures), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            yield Progress(step, config.steps, {"loss": float(loss)})
            yield save(file, model, step)
    for wanted in request.evaluations:
        yield Evaluated(wanted.key, {"accuracy": accuracy(model, wanted.config)})


def save(file: Path, model: nn.Module, step: int) -> Checkpointed:
    """Write a checkpoint beside the last and rename it: whoever is killed leaves one of them whole."""
    import torch

    new = file.with_suffix(".new")
    torch.save({"model": model.state_dict(), "step": step}, new)
    digest = hashlib.sha256(new.read_bytes()).hexdigest()
    new.rename(file)
    return Checkpointed(step, str(file), digest)


def accuracy(model: nn.Module, test: Test) -> float:
    """In percent."""
    import torch

    pictures, classes = draw((1_000_000,), test.drawings)
    with torch.inference_mode():
        return 100 * (model(pictures).argmax(dim=1) == classes).float().mean().item()


# --- the table and what is claimed of it ------------------------------------------------------------------


def row(activation: str, normalised: bool) -> Row:
    """A row: its name, its heading cells, its number (`Cell(..., paper=37.0)` has a paper's)."""
    name = f"{activation}, normalised" if normalised else activation
    variant = Variant(Training(activation, normalised), Test())
    return Row(name, (activation, normalised), (Cell(variant, "accuracy"),))


def number(name: str) -> CellRef:
    """The number of a row, for claims."""
    return CellRef("table1", name, "Accuracy")


NETWORKS = (("sigmoid", False), ("tanh", False), ("tanh", True), ("softsign", False), ("softsign", True))
ROWS = tuple(row(*network) for network in NETWORKS)
TABLE = Table("table1", "How the weights start", ("Activation", "Normalised"), ("Accuracy",), ROWS)
CLAIMS: tuple[Claim, ...] = (
    Better("sigmoid", "tanh learns where sigmoid does not", number("tanh"), number("sigmoid")),
    Better("tanh", "Normalised weights help tanh", number("tanh, normalised"), number("tanh")),
    Equivalent(
        "softsign",
        "softsign does as well without",
        number("softsign, normalised"),
        number("softsign"),
        margin=2.0,
    ),
)


def study() -> Study:
    """What `--study` asks this file for."""
    setting = PlainSetting("quick", "16x16 drawings of three shapes, six hidden layers.", "drawings")
    return Study(
        name="starts",
        title="How the weights of a deep network start",
        metrics=(Metric("accuracy"),),
        tables=(TABLE,),
        claims=CLAIMS,
        profiles={"quick": Profile.plain(setting, "every row in seconds, three seeds", seeds=3)},
        default_profile="quick",
        train=train,
        progress=(Metric("loss", unit="", better="lower", digits=3),),
        options=Options,
        sources=("starts",),
    )
