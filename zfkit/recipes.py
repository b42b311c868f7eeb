"""Recipes as data: what decides the weights that a training ends in, by name."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import nn

from .networks import Chain, build

RECIPE_VERSION = 1  # raised whenever the same Config would train to other weights
SCHEDULES, PRECISIONS = ("one-cycle", "plateau"), ("bfloat16", "float32")


@dataclass(frozen=True)
class Config:
    """All that decides what a training ends in; every field is JSON.

    network: arguments of `networks.build`.    size: side of the images in pixels.
    schedule: "one-cycle" (cosine up over `warm_up` of all steps, then down) or "plateau" (a
    tenth of the rate once the validation error has not fallen for `patience` epochs).
    rms_clip: after each step, convolution filters of larger RMS weight are scaled back to it
    (ZF 2013, sec. 3).
    init_std, fc_init_std: weights from N(0, std^2) and biases 0; "he": std^2 = 2 / inputs;
    None: torch's start. init_std may be a tuple, one start for each convolution.
    mean: of the input, in 0..1; None: that of the training images, per channel.    shift:
    pixels.
    images: how many of the training images are taken, the first ones; None: all.
    precision: "float32", or "bfloat16": autocast where the device has units for it; elsewhere
    float32, as recorded.
    snapshots: epochs whose convolutions (and batch norms) are kept.
    """

    name: str
    network: dict
    dataset: str
    size: int = 80
    seed: int = 0
    epochs: int = 64
    batch_size: int = 64
    recipe: str = "modern"
    lr: float = 0.04
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: str = "one-cycle"
    warm_up: float = 0.2
    patience: int = 5
    rms_clip: float | None = None
    init_std: float | str | tuple | None = 0.01
    fc_init_std: float | str | None = None
    mean: tuple | None = (0.5, 0.5, 0.5)
    std: tuple = (0.25, 0.25, 0.25)
    shift: int = 4
    flip: bool = True
    label_smoothing: float = 0.0
    shuffled_labels: bool = False
    images: int | None = None
    precision: str = "bfloat16"
    snapshots: tuple = ()


# ZF 2013, sec. 3: SGD at batch 128, rate 1e-2 lowered on plateau, N(0, 0.01^2), filters
# clipped, inputs in [-128, 128]. Not the paper's: the start of the narrow layers 6 to 8 (from
# N(0, 0.01^2) the loss stood at chance for 8 epochs).
PAPER = dict(
    recipe="paper", batch_size=128, lr=0.01, nesterov=False, weight_decay=0.0,
    schedule="plateau", rms_clip=0.1, fc_init_std="he", mean=None,
    std=(1 / 255,) * 3, patience=10,
)  # fmt: skip
# ZFNet for 80 px: conv2 at stride 1, or two of the maps would shrink to a few units
SMALL = dict(
    builder="zfnet", num_classes=16, size=80, channels=(48, 96, 128, 128, 96),
    filters=(7, 5, 3, 3, 3), strides=(2, 1, 1, 1, 1), padding=(3, 2, 1, 1, 1), fc=(256, 256),
    norm="batch", dropout=0.25,
)  # fmt: skip
# a VGG of five blocks for the same drawings
_VGG = dict(
    builder="vgg", num_classes=16, size=80, blocks=((16, 16), (32, 32), (64, 64), (96, 96),
    (128, 128)), fc=(256,), norm="batch", dropout=0.25,
)  # fmt: skip
_BASE = Config(
    "zfnet-menagerie",
    SMALL,
    "menagerie",
    epochs=24,
    batch_size=128,
    snapshots=(1, 2, 4, 8, 12, 16, 20),
)
_PLAIN = replace(_BASE, snapshots=())
_LRN = {**SMALL, "norm": "lrn"}
# For Tiny ImageNet's 64 px: the same filters and strides, more channels, wider layers 6 and 7
_SMALL_64 = SMALL | dict(
    num_classes=200, size=64, channels=(64, 128, 224, 224, 192), fc=(448, 448), dropout=0.25
)
_PHOTOS = Config(
    "zfnet-photos", _SMALL_64, "tiny-imagenet", size=64, epochs=24, batch_size=128, lr=0.06,
    init_std="he", label_smoothing=0.1, snapshots=(1, 2, 3, 4, 8, 11, 15),
)  # fmt: skip
CONFIGS = {
    config.name: config
    for config in (
        _BASE,
        replace(_BASE, name="zfnet-menagerie-s1", seed=1),
        replace(_BASE, name="zfnet-menagerie-s2", seed=2),
        # without batch norm the modern recipe stays at chance from N(0, 0.01^2)
        replace(
            _PLAIN, name="zfnet-menagerie-lrn", epochs=20, batch_size=32, network=_LRN,
            lr=0.015, init_std="he", fc_init_std="he",
        ),
        replace(_PLAIN, name="vgg-menagerie", network=_VGG, epochs=14, init_std="he"),
        # with shifts, mirroring, dropout and decay it learns nothing
        replace(
            _PLAIN, name="shuffled-labels", shuffled_labels=True, images=1600, epochs=48,
            network=SMALL | dict(dropout=0.0), shift=0, flip=False, weight_decay=0.0,
        ),
        replace(_PLAIN, name="zfnet-menagerie-hard", dataset="menagerie-hard"),
        replace(_PLAIN, name="zfnet-menagerie-paper", network=_LRN, epochs=70, **PAPER),
        _PHOTOS,
        replace(  # made in minutes where it is first asked for
            _PHOTOS, name="zfnet-photos-small", dataset="tiny-imagenet-100", snapshots=(),
            epochs=3, network=SMALL | dict(num_classes=100, size=64, dropout=0.5),
        ),
        replace(  # for a comparison at equal data; a third of the images, so twice the epochs
            _PHOTOS, name="zfnet-photos-100", dataset="tiny-imagenet-100", snapshots=(),
            epochs=48, network=_SMALL_64 | dict(num_classes=100, dropout=0.3),
        ),
    )
}  # fmt: skip


def as_json(config) -> dict:
    """The fields as JSON holds them: what a record says and `Config(**...)` takes."""
    return json.loads(json.dumps(asdict(config)))


def resolved(config, net) -> dict:
    """The config with all that the network's builder and `init_std` leave to defaults; JSON."""
    starts = starts_of(config, sum(isinstance(module, nn.Conv2d) for module in net))
    return as_json(config) | dict(network=net.config, init_std=list(starts))


def starts_of(config, convolutions: int) -> tuple:
    """init_std for each convolution."""
    starts = config.init_std
    return starts if isinstance(starts, tuple | list) else (starts,) * convolutions


def start_network(config) -> Chain:
    """The network from which the config's training starts; its seed alone decides.

    It is also the control "untrained".
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(config.seed)
        net = build(config.network)
        starts = iter(starts_of(config, sum(isinstance(module, nn.Conv2d) for module in net)))
        for module in net:
            std = next(starts) if isinstance(module, nn.Conv2d) else config.fc_init_std
            if isinstance(module, nn.Conv2d | nn.Linear) and std is not None:
                inputs = module.weight[0].numel()
                module.weight.normal_(0, math.sqrt(2 / inputs) if std == "he" else std)
                module.bias.zero_()
    return net


def rate(config, step: int, steps: int, epochs: list) -> float:
    """The learning rate of a step (0, 1, ... over the whole run) where an epoch has `steps`.

    epochs: the rows of the history so far; "plateau" looks at their validation accuracies.
    """
    if config.schedule == "plateau":
        accuracies = [row["validation_accuracy"] for row in epochs]
        return config.lr * 0.1 ** plateaus(accuracies, config.patience)
    total = config.epochs * steps
    peak = max(1, round(config.warm_up * total))
    share = step / peak if step < peak else (step - peak) / max(1, total - peak)
    falling = 0.5 + 0.5 * math.cos(math.pi * share)  # 1 -> 0
    return config.lr * (1 - 0.96 * falling if step < peak else falling)  # from 1/25 of the peak


def plateaus(accuracies: list[float], patience: int) -> int:
    """How often, so far, the best accuracy had stood for `patience` epochs.

    Each time the count of epochs starts again.
    """
    best, since, count = -1.0, 0, 0
    for accuracy in accuracies:
        best, since = (accuracy, 0) if accuracy > best else (best, since + 1)
        if since == patience:
            since, count = 0, count + 1
    return count


def rms_clip(net: nn.Module, radius: float):
    """Scale each convolution filter whose RMS weight exceeds the radius back to it, in place.

    Source: ZF 2013, sec. 3.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.data
            rms = weight.square().mean((1, 2, 3), keepdim=True).sqrt()
            weight.mul_((radius / rms).clamp(max=1))


def fingerprint(config, images) -> str:
    """Ten hex digits that name config, recipe version and training images.

    Of the images 256 and all labels.
    """
    pixels, labels = images[:2]
    some = np.linspace(0, len(pixels) - 1, min(256, len(pixels))).astype(int)
    fields = asdict(config)
    if config.images is None:  # a field that came later counts only where it says something
        del fields["images"]
    about = [RECIPE_VERSION, fields, list(pixels.shape)]
    digest = hashlib.sha256(json.dumps(about).encode())
    digest.update(np.ascontiguousarray(pixels[some]))
    digest.update(np.asarray(labels, np.int64).tobytes())
    return digest.hexdigest()[:10]


def check(config: Config):
    """ValueError, before anything is loaded, for a value that no run can have."""
    with torch.device("meta"):  # no memory, no random numbers
        count = sum(isinstance(module, nn.Conv2d) for module in build(config.network))
    for name, valid in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
        if (value := getattr(config, name)) not in valid:
            raise ValueError(f"unknown {name} {value!r}; valid: {', '.join(valid)}")
    starts = starts_of(config, count)
    if len(starts) != count:
        valid = f"one start, or one for each of {count} convolutions"
        raise ValueError(f"init_std {config.init_std!r}; valid: {valid}")
    words = [std for std in (*starts, config.fc_init_std) if isinstance(std, str)]
    if wrong := [word for word in words if word != "he"]:
        raise ValueError(f"unknown start {wrong[0]!r}; valid: a number, 'he' or None")
    for name in ("epochs", "batch_size", "patience"):
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number from 1 on, not {value!r}")
    if config.images is not None and (not isinstance(config.images, int) or config.images < 1):
        raise ValueError(
            f"images must be None or a whole number from 1 on, not {config.images!r}"
        )
    if wrong := [epoch for epoch in config.snapshots if not 1 <= epoch <= config.epochs]:
        raise ValueError(f"snapshot at epoch {wrong[0]!r}; valid: 1 to {config.epochs}")


def changed(name: str, settings: list[str] = ()) -> Config:
    """The config of that name, changed by settings "key=value".

    A value is JSON or else a string; "network.key" changes an argument of its network.
    Raises ValueError for a name or a key that is not there.

    >>> changed("zfnet-menagerie", ["epochs=3", "network.norm=lrn"]).epochs
    3
    """
    if name not in CONFIGS:
        raise ValueError(f"no config {name!r}; valid: {', '.join(CONFIGS)}")
    values = asdict(CONFIGS[name])
    for setting in settings:
        key, _, text = setting.partition("=")
        inner = key.startswith("network.")
        if not inner and key not in values:
            raise ValueError(f"Config has no field {key!r}; valid: {', '.join(values)}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        (values["network"] if inner else values)[key.removeprefix("network.")] = value
    return Config(**values)
