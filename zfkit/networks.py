"""ZFNet, the AlexNet replica and their scaled forms: one builder, stages by name."""

from collections import OrderedDict

from torch import nn

from .geometry import out_size
from .geometry import resolve as resolve  # offered here too: which module a layer name means
from .normalization import ContrastNormalization

NORMS = ("lrn", "batch", "none")


class Chain(nn.Sequential):
    """Modules one after another, with the paper's layer names.

    `stages`: layer name -> module whose output it is; "conv1" -> "relu1", the rectified map
    before pooling. `config`: the builder's name and arguments, as JSON can hold them;
    `build(net.config)` makes its like.
    """

    def __init__(self, modules, stages=None, config=None):
        super().__init__(modules)
        self.stages, self.config = dict(stages or {}), dict(config or {})


def zfnet(
    num_classes=1000,
    *,
    size=224,
    channels=(96, 256, 384, 384, 256),
    filters=(7, 5, 3, 3, 3),
    strides=(2, 2, 1, 1, 1),
    padding=(1, 0, 1, 1, 1),
    pools=(1, 2, 5),
    fc=(4096, 4096),
    norm="lrn",
    dropout=0.5,
    without=(),
    blurred=(),
) -> Chain:
    """The network of ZF 2013, Fig. 3: 62,357,608 parameters, maps 110-55-26-13-13-13-6.

    Order in a layer: convolution, ReLU, 3x3 max pooling at stride 2 (ceil), contrast
    normalisation.
    num_classes: None builds the convolutions only.    size: side of the input in pixels.
    channels, filters, strides, padding: one for each of the convolutions 1 to 5; fc: units of
    layers 6 and 7.
    norm: "lrn" (layers 1 and 2), "batch" (after every convolution, before its ReLU) or "none".
    without: layers left out, as in Table 3, e.g. (3, 4) or (6, 7).
    blurred: layers that are smoothed before they are sampled (Zhang 2019): an even stride of
    the convolution is halved and every second value of its rectified map, blurred by a triangle
    of 3x3, goes on; so is the pooled map.
    Raises ValueError for arguments that make no network.
    """
    return _chain("zfnet", dict(locals()), norm_after_pool=True)


def alexnet(
    num_classes=1000,
    groups=1,
    *,
    size=227,
    channels=(96, 256, 384, 384, 256),
    filters=(11, 5, 3, 3, 3),
    strides=(4, 1, 1, 1, 1),
    padding=(0, 2, 1, 1, 1),
    pools=(1, 2, 5),
    fc=(4096, 4096),
    norm="lrn",
    lrn_k=2.0,
    dropout=0.5,
    without=(),
    blurred=(),
) -> Chain:
    """The replica of Krizhevsky et al. 2012 that ZF 2013 compares with; `zfnet`'s arguments.

    Order in a layer: convolution, ReLU, contrast normalisation, pooling.
    groups: 1 is dense (62,378,344 parameters); 2 splits layers 2, 4 and 5 between two halves as
    the original did (60,965,224).    lrn_k: 2 in the article; Caffe's published AlexNet was
    trained with 1.
    """
    return _chain("alexnet", dict(locals()), norm_after_pool=False)


def vgg(
    num_classes=1000,
    *,
    size=224,
    blocks=((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    fc=(4096, 4096),
    norm="none",
    dropout=0.5,
) -> Chain:
    """The networks of Simonyan & Zisserman 2014: blocks of 3x3 convolutions, 2x2 pooling.

    The defaults are VGG16, 138,357,544 parameters. Layers are conv1_1, conv1_2, pool1, ...; the
    classifier's go on from the number after the last block's: fc6, fc7, fc8 behind five blocks.
    num_classes: None builds the convolutions only.    size: side of the input in pixels.
    blocks: channels of each convolution, a tuple a block; fc: units of the hidden layers.
    norm: "batch" (after every convolution, before its ReLU) or "none".
    Raises ValueError for arguments that make no network.

    >>> list(vgg(16, size=80, blocks=((16, 16), (32, 32)), fc=(64,)).stages)
    ['conv1_1', 'conv1_2', 'pool1', 'conv2_1', 'conv2_2', 'pool2', 'fc3', 'fc4']
    """
    config = dict(builder="vgg", **_as_lists(locals()))
    _check_vgg(config)
    modules, stages, maps = OrderedDict(), {}, 3
    for n, channels in enumerate(blocks, 1):
        for k, count in enumerate(channels, 1):
            modules[f"conv{n}_{k}"], maps = nn.Conv2d(maps, count, 3, padding=1), count
            if norm == "batch":
                modules[f"bn{n}_{k}"] = nn.BatchNorm2d(count)
            modules[f"relu{n}_{k}"], stages[f"conv{n}_{k}"] = nn.ReLU(), f"relu{n}_{k}"
        modules[f"pool{n}"], stages[f"pool{n}"] = nn.MaxPool2d(2), f"pool{n}"
    if num_classes is not None:
        units = dict(enumerate(fc, len(blocks) + 1))
        side = size >> len(blocks)
        _add_classifier(modules, stages, maps * side * side, units, num_classes, dropout)
    return Chain(modules, stages, config)


def _check_vgg(a: dict):
    if not a["blocks"] or any(
        not isinstance(block, list) or not block for block in a["blocks"]
    ):
        raise ValueError(
            f"blocks must hold the channels of each block's convolutions, not {a['blocks']!r}"
        )
    if a["size"] >> len(a["blocks"]) < 1:
        raise ValueError(
            f"size {a['size']} is too small for {len(a['blocks'])} blocks:"
            " the last map would be empty"
        )
    if a["norm"] not in ("batch", "none"):
        raise ValueError(f"unknown norm {a['norm']!r}; valid: batch, none")
    _check_dropout(a["dropout"])


def _check_dropout(dropout):
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), not {dropout!r}")


def _as_lists(value):
    """Tuples as lists, at any depth, as JSON would give them back."""
    if isinstance(value, dict):
        return {name: _as_lists(inner) for name, inner in value.items()}
    return [_as_lists(inner) for inner in value] if isinstance(value, tuple | list) else value


BUILDERS = {"zfnet": zfnet, "alexnet": alexnet, "vgg": vgg}


def build(config: dict) -> Chain:
    """The untrained network that a `Chain.config` describes; ValueError if there is none."""
    arguments = dict(config)
    builder = arguments.pop("builder", None)
    if builder not in BUILDERS:
        raise ValueError(f"unknown builder {builder!r}; valid: {', '.join(BUILDERS)}")
    valid = {
        "num_classes",
        *BUILDERS[builder].__kwdefaults__,
        *(["groups"] if builder == "alexnet" else []),
    }
    if unknown := sorted(set(arguments) - valid):
        raise ValueError(
            f"{builder} has no argument {unknown[0]!r}; valid: {', '.join(sorted(valid))}"
        )
    return BUILDERS[builder](**arguments)


def _chain(builder: str, a: dict, norm_after_pool: bool) -> Chain:
    a = _as_lists(a)
    _check(a)
    modules, stages = OrderedDict(), {}
    maps, side = 3, a["size"]
    for n in (n for n in range(1, 6) if n not in a["without"]):
        side = _add_convolution(modules, stages, a, n, maps, side, norm_after_pool)
        maps = a["channels"][n - 1]
    if a["num_classes"] is not None:
        units = {
            n: count for n, count in zip((6, 7), a["fc"], strict=True) if n not in a["without"]
        }
        _add_classifier(
            modules, stages, maps * side * side, units, a["num_classes"], a["dropout"], last=8
        )
    return Chain(modules, stages, {"builder": builder, **a})


def _add_convolution(modules, stages, a, n, maps, side, norm_after_pool) -> int:
    """Append layer n; returns the side of the map that it hands on."""
    blurred = n in a["blurred"]
    size, stride, padding = (a[name][n - 1] for name in ("filters", "strides", "padding"))
    halved = blurred and stride % 2 == 0
    geometry = size, stride // 2 if halved else stride, padding
    groups = a.get("groups", 1) if n in (2, 4, 5) else 1  # layer 3 saw both halves
    modules[f"conv{n}"] = nn.Conv2d(maps, a["channels"][n - 1], *geometry, groups=groups)
    side = out_size(side, *geometry)
    if a["norm"] == "batch":
        modules[f"bn{n}"] = nn.BatchNorm2d(a["channels"][n - 1])
    modules[f"relu{n}"] = nn.ReLU()
    side = _add_blur(modules, f"relu{n}", side) if halved else side
    stages[f"conv{n}"] = next(reversed(modules))
    pool, norm = n in a["pools"], a["norm"] == "lrn" and n in (1, 2)
    if norm and not norm_after_pool:
        modules[f"norm{n}"] = _contrast_normalization(a)
    if pool:
        side = _add_pool(modules, f"pool{n}", side, blurred)
    if norm and norm_after_pool:
        modules[f"norm{n}"] = _contrast_normalization(a)
    if pool:
        stages[f"pool{n}"] = next(reversed(modules))
    if side < 1:
        raise ValueError(f"size {a['size']} is too small: the map of layer {n} would be empty")
    return side


def _add_pool(modules, name, side, blurred: bool) -> int:
    """Append 3x3 max pooling at stride 2, 110 -> 55 as in the paper's figure; the new side."""
    stride, padding = (1, 1) if blurred else (2, 0)
    modules[name] = nn.MaxPool2d(3, stride, padding, ceil_mode=True)
    side = out_size(side, 3, stride, padding, ceil=True)
    return _add_blur(modules, name, side) if blurred else side


def _add_blur(modules, name, side) -> int:
    """Append the triangle 1-2-1 (twice a mean of two) and sample by two; the new side."""
    modules[f"{name}_blur"] = nn.AvgPool2d(2, 1)
    modules[f"{name}_sample"] = nn.AvgPool2d(2, 2, ceil_mode=True)
    return out_size(out_size(side, 2, 1), 2, 2, ceil=True)


def _contrast_normalization(a) -> ContrastNormalization:
    return ContrastNormalization(5, alpha=1e-4, beta=0.75, k=a.get("lrn_k", 2.0))


def _add_classifier(modules, stages, width, units: dict, num_classes, dropout, last=None):
    """Append hidden layers (number -> units) and class scores, `last` (default: the next)."""
    modules["flatten"] = nn.Flatten()
    for n, count in units.items():
        modules[f"fc{n}"], modules[f"relu{n}"] = nn.Linear(width, count), nn.ReLU()
        stages[f"fc{n}"] = f"relu{n}"
        if dropout:
            modules[f"drop{n}"] = nn.Dropout(dropout)
        width = count
    top = f"fc{last or max(units) + 1}"
    modules[top] = nn.Linear(width, num_classes)
    stages[top] = top


def _check(a: dict):
    for name, length in (
        ("channels", 5),
        ("filters", 5),
        ("strides", 5),
        ("padding", 5),
        ("fc", 2),
    ):
        if not isinstance(a[name], list) or len(a[name]) != length:
            raise ValueError(f"{name} must hold {length} numbers, not {a[name]!r}")
    if a["norm"] not in NORMS:
        raise ValueError(f"unknown norm {a['norm']!r}; valid: {', '.join(NORMS)}")
    for name in ("pools", "blurred"):
        if wrong := set(a[name]) - set(range(1, 6)):
            raise ValueError(f"{name} names layer {min(wrong)!r}; valid: 1 to 5")
    if wrong := set(a["without"]) - {2, 3, 4, 5, 6, 7}:
        raise ValueError(f"without names layer {min(wrong)!r}; valid: 2 to 7")
    _check_dropout(a["dropout"])
    groups = a.get("groups", 1)
    if groups < 1 or any(count % groups for count in a["channels"]):
        raise ValueError(
            f"groups {groups} must divide every number of channels {a['channels']}"
        )
