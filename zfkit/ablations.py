"""Tables 2 and 3 as data: every row's network, its training in two worlds, what is kept of it.

Widths are an eighth of the paper's and the maps from layer 2 on the same in both worlds.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .datasets import load_images
from .forward import evaluating, hooked
from .loaders import normalize
from .networks import build
from .recipes import Config
from .series import missing, record_run
from .training import train

CHAPTER = "09"


class Row(NamedTuple):
    """A row of the tables: whose block it stands in, its words, what its builder is told."""

    block: str  # "replica" or "new", a key of BUILDERS
    label: str
    changes: dict


# The paper's widths over eight (sec. 3, Fig. 3); dense layers in both, so that the two differ
# in layers 1 and 2 alone: the replica's 11x11 at stride 4, the new network's 7x7 at stride 2.
WIDTHS = dict(channels=(12, 32, 48, 48, 32), fc=(512, 512), norm="batch", dropout=0.25)
BUILDERS = {
    "replica": dict(
        builder="alexnet", filters=(11, 5, 3, 3, 3), strides=(4, 1, 1, 1, 1),
        padding=(4, 2, 1, 1, 1),
    ),
    "new": dict(
        builder="zfnet", filters=(7, 5, 3, 3, 3), strides=(2, 2, 1, 1, 1),
        padding=(3, 2, 1, 1, 1),
    ),
}  # fmt: skip
_WIDE, _SLIM = dict(channels=(12, 32, 64, 128, 64)), dict(channels=(12, 32, 13, 13, 32))
_HALF, _DOUBLE, _THIN = dict(fc=(256, 256)), dict(fc=(1024, 1024)), dict(fc=(13, 13))
ROWS = {
    "replica": Row("replica", "replica", {}),
    "replica-without-34": Row("replica", "without 3, 4", dict(without=(3, 4))),
    "replica-without-7": Row("replica", "without 7", dict(without=(7,))),
    "replica-without-67": Row("replica", "without 6, 7", dict(without=(6, 7))),
    "replica-without-3467": Row("replica", "without 3, 4, 6, 7", dict(without=(3, 4, 6, 7))),
    "replica-fc-half": Row("replica", "6, 7 half as wide", _HALF),
    "replica-fc-double": Row("replica", "6, 7 twice as wide", _DOUBLE),
    "new": Row("new", "new network", {}),
    "new-fc-half": Row("new", "6, 7 half as wide", _HALF),
    "new-fc-double": Row("new", "6, 7 twice as wide", _DOUBLE),
    "new-wide": Row("new", "wide 3, 4, 5", _WIDE),
    "new-wide-fc-double": Row("new", "wide 3, 4, 5 and 6, 7", _WIDE | _DOUBLE),
    # controls that the paper lacks: all layers, with the parameters of a row without some
    "replica-slim-34": Row("replica", "slim 3, 4", _SLIM),
    "replica-slim-67": Row("replica", "slim 6, 7", _THIN),
    "replica-slim-3467": Row("replica", "slim 3, 4, 6, 7", _SLIM | _THIN),
    # the wide network's parameters, spent on layers 6 and 7; then two more widths of 3, 4, 5
    "new-fc-budget": Row("new", "its budget in 6, 7", dict(fc=(652, 652))),
    "new-middle-64": Row("new", "3, 4, 5: 32-64-32", dict(channels=(12, 32, 32, 64, 32))),
    "new-middle-192": Row("new", "3, 4, 5: 96-192-96", dict(channels=(12, 32, 96, 192, 96))),
}
# World -> arguments of networks.build, and fields of Config. On 32 px the pooling behind layer
# 1 is left out: layers 2 to 5 then have maps of 8, 4, 4, 4 units as on 64 px.
WORLDS = {
    "menagerie-hard": (
        dict(size=64, num_classes=16, pools=(1, 2, 5)),
        dict(size=64, epochs=14),
    ),
    "cifar10": (
        dict(size=32, num_classes=10, pools=(2, 5)),
        dict(size=32, epochs=7, images=10_000),
    ),
}
SEEDS = 3  # of every row
AVERAGED = {"new": 6, "new-wide": SEEDS}  # row -> seeds of it
CORE = (  # rows that claims 28 to 31 are decided on
    "replica", "replica-without-34", "replica-without-67", "replica-without-3467", "new",
    "new-fc-double", "new-wide",
)  # fmt: skip
SEEN = dict(train=2000, validation=400, test=5000)  # images that are measured, at most


def network(row: str, world: str) -> dict:
    """The arguments with which `networks.build` makes a row's network for a world.

    Raises ValueError for a row or a world that is none.

    >>> network("replica-without-34", "cifar10")["without"]
    (3, 4)
    """
    for name, value, valid in (("row", row, ROWS), ("world", world, WORLDS)):
        if value not in valid:
            raise ValueError(f"{name} {value!r}: valid are {', '.join(valid)}")
    return WIDTHS | BUILDERS[ROWS[row].block] | WORLDS[world][0] | ROWS[row].changes


def config(row: str, world: str, seed: int = 0) -> Config:
    """The Config of one training: one recipe for all rows of a world."""
    recipe = dict(batch_size=64, init_std="he", warm_up=0.1, shift=0, **WORLDS[world][1])
    return Config(name_of(row, world, seed), network(row, world), world, seed=seed, **recipe)


def name_of(row: str, world: str, seed: int) -> str:
    """Under which name a training is recorded.

    >>> name_of("new", "cifar10", 0)
    'ablation-cifar10-new-s0'
    """
    return f"ablation-{world}-{row}-s{seed}"


def configs() -> list[Config]:
    """All trainings of the tables, in the order in which they run.

    Each row has one seed in every world before any has two; then what the claims rest on.
    """
    every = [(row, world, seed) for seed in range(SEEDS) for world in WORLDS for row in ROWS]
    more = [
        (row, world, seed)
        for world in WORLDS
        for row, count in AVERAGED.items()
        for seed in range(SEEDS, count)
    ]
    first = [run for run in every if run[2] == 0]
    core = [run for run in every if run[2] and run[0] in CORE]
    return [config(*run) for run in dict.fromkeys(first + core + more + every)]


class Layer(NamedTuple):
    """A convolution or fully connected layer of a network as it runs on one image.

    side: of its map, 1 for a fully connected layer.    parameters: with biases and batch norm.
    multiply_adds: one for each weight at each place; biases and norms are not counted.
    """

    name: str
    channels: int
    side: int
    parameters: int
    multiply_adds: int


def layers_of(net: nn.Module, size: int | None = None) -> list[Layer]:
    """The layers of a network in the order in which an image of `size` px meets them.

    size: None for a network of our builders, which knows its own.
    A network that was built under `torch.device("meta")` is measured without any arithmetic.

    >>> [layer.side for layer in layers_of(zfkit.zfnet())[:3]]
    [110, 26, 13]
    """
    found = []

    def keep(module, inputs, output):
        own = sum(p.numel() for p in module.parameters())
        if isinstance(module, nn.BatchNorm2d):
            found[-1] = found[-1]._replace(parameters=found[-1].parameters + own)
            return
        side = output.shape[-1] if output.ndim == 4 else 1
        work = module.weight.numel() * side**2
        found.append(Layer(names[module], output.shape[1], side, own, work))

    names = {module: name for name, module in net.named_modules()}
    weighted = [m for m in names if isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d)]
    side = size or net.config["size"]
    with evaluating(net), hooked(weighted, keep), torch.inference_mode():
        net(torch.zeros(1, 3, side, side, device=next(net.parameters()).device))
    return found


def costs(arguments: dict) -> tuple[int, int]:
    """Parameters, and multiply-adds for one image, of a network that `networks.build` makes.

    >>> costs(dict(builder="zfnet"))
    (62357608, 1168032896)
    """
    with torch.device("meta"):
        layers = layers_of(build(arguments))
    return sum(layer.parameters for layer in layers), sum(
        layer.multiply_adds for layer in layers
    )


def images_of(run: Config) -> dict:
    """Split -> images, labels, classes for a training: validation and test as far as SEEN."""
    limits = dict(train=run.images, validation=SEEN["validation"], test=SEEN["test"])
    return {s: load_images(run.dataset, s, run.size, limits[s]) for s in limits}


def probabilities(net: nn.Module, images: np.ndarray, history: dict) -> tuple[Tensor, Tensor]:
    """P(class) of each image, and the mean of that with its mirror image's: float (N, K) each.

    history: as `train` gives it, for the mean and std of the input.
    """
    plain, both = [], []
    with torch.inference_mode():
        for start in range(0, len(images), 256):
            some = normalize(images[start : start + 256], history["mean"], history["std"])
            once, mirrored = (net(view).softmax(1) for view in (some, some.flip(3)))
            plain.append(once)
            both.append((once + mirrored) / 2)
    return torch.cat(plain), torch.cat(both)


def kept(run: Config, net: nn.Module, history: dict, data: dict) -> tuple[dict, dict]:
    """What is kept of a training beside its history: (further history, tensors).

    History: `train_seen_accuracy`, of the first training images as they are, without shifts.
    Tensors, uint8: `predicted` (N,) of the test images; of seed 0 also their `labels`; of a row
    that is averaged `plain` and `mirrored` (N, K), probabilities times 255.
    """
    images, labels = (part[: SEEN["train"]] for part in data["train"][:2])
    seen = probabilities(net, images, history)[0].argmax(1).numpy()
    plain, mirrored = probabilities(net, data["test"][0], history)
    tensors = dict(predicted=plain.argmax(1).to(torch.uint8))
    if run.seed == 0:
        tensors["labels"] = torch.from_numpy(data["test"][1].astype(np.uint8))
    if run.name in [name_of(row, run.dataset, run.seed) for row in AVERAGED]:
        views = dict(plain=plain, mirrored=mirrored)
        tensors |= {name: (255 * p).round().to(torch.uint8) for name, p in views.items()}
    return dict(train_seen_accuracy=float((seen == labels).mean())), tensors


def train_rows(runs=None, device="cpu", progress=True, said=print) -> None:
    """Train and record what is missing of `runs` (default: `configs()`).

    Stopped, it goes on where it was.    said: called with a line after each training.
    """
    for run in missing(CHAPTER, configs() if runs is None else runs):
        data = images_of(run)
        net, history = train(run, device=device, progress=progress, data=data)
        more, tensors = kept(run, net.cpu(), history, data)
        first = ("conv1",) if run.seed == 0 else ()
        record_run(CHAPTER, run, net, history | more, keep=first, extra=tensors)
        shares = history["test_accuracy"], history["cpu_seconds"]
        said("{}: {:.1%} right, {:.0f} s of a core".format(run.name, *shares))
