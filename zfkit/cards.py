"""A network's card, and weights in and out of files: strict, and nothing is executed."""

import hashlib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import loaders
from .files import read_json, read_tensors, write_json, write_tensors
from .training import half


@dataclass(frozen=True)
class Card:
    """What a network is: `size`, `mean`, `std` (0..1) of its input, `layers` for the figures.

    classes is empty where the network gives no class scores.    record: its sidecar.
    resize: pixels of the short side before the square of `size` is cut out; None: `size`.
    """

    name: str
    classes: tuple[str, ...]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layers: tuple[str, ...]
    record: dict
    resize: int | None = None
    interpolation: str = "bilinear"

    def normalize(self, images, device="cpu") -> Tensor:
        """The images as the network takes them: float32 (N, 3, size, size), channels_last.

        images: uint8 (N, H, W, 3); those of size x size are taken as they are, others resized
        (short side to `resize`, with antialiasing) and cut to the central square.
        Raises ValueError for another type or shape.

        >>> net, card = load_network("zfnet-menagerie")
        >>> card.normalize(np.zeros((2, 120, 90, 3), np.uint8)).shape
        torch.Size([2, 3, 80, 80])
        """
        count, *sides, colours = tuple(images.shape) if len(images.shape) == 4 else (0, 0)
        if colours == 3 and count and all(sides) and sides != [self.size, self.size]:
            images = self._squared(torch.as_tensor(images)).numpy()
        return loaders.normalize(images, self.mean, self.std, device)

    def _squared(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            given = f"{images.dtype} {tuple(images.shape)}"
            raise ValueError(f"images are {given}: needed are uint8 (N, H, W, 3)")
        planes = images.permute(0, 3, 1, 2)
        if self.resize is None:
            square = _square(planes, self.size)
        else:  # a network of torchvision: its own arithmetic, to the pixel
            vision = import_module("torchvision.transforms.functional")
            how = vision.InterpolationMode(self.interpolation)
            planes = vision.resize(planes, [self.resize], how, antialias=True)
            square = vision.center_crop(planes, [self.size])
        return square.permute(0, 2, 3, 1).contiguous()


def _square(planes: Tensor, size: int) -> Tensor:
    """uint8 (N, 3, H, W) -> (N, 3, size, size): short side resized, centre cut out."""
    height, width = planes.shape[2:]
    sides = [max(size, round(side * size / min(height, width))) for side in (height, width)]
    planes = F.interpolate(planes.float(), size=sides, mode="bilinear", antialias=True)
    top, left = ((side - size) // 2 for side in sides)
    square = planes[:, :, top : top + size, left : left + size]
    return square.round().clamp(0, 255).to(torch.uint8)


def card_of(record: dict) -> Card:
    """The card that a sidecar describes; KeyError or TypeError if it describes none."""
    lists = {key: tuple(record[key]) for key in ("classes", "mean", "std", "layers")}
    sides = {key: record["config"].get(key) for key in ("size", "resize")}
    how = record["config"].get("interpolation", "bilinear")
    return Card(name=record["name"], record=record, interpolation=how, **sides, **lists)


def save_weights(path: Path, state: dict, sidecar: dict):
    """Write a weight file, float16 for two or more dimensions, and its sidecar.

    The sidecar gets the file's sha256.
    """
    write_tensors(path, {name: half(tensor) for name, tensor in state.items()})
    record = dict(sidecar, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    write_json(path.with_suffix(".json"), record)


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file.

    Raises ValueError if it is none, or not the one that its sidecar, if it has one, names.
    """
    path = Path(path)
    expected = read_sidecar(path).get("sha256") if path.with_suffix(".json").exists() else None
    return read_checked(path, expected)


def apply_state(net: nn.Module, state: dict, source) -> nn.Module:
    """The same net with these weights; ValueError, before any is set, lists what is wrong."""
    compare_states(net.state_dict(), state, source)
    net.load_state_dict(state)
    return net


def compare_states(wanted: dict, state: dict, source):
    """ValueError that lists what lacks, what is too much, what has another shape or kind."""
    faults = [f"lacks {key}" for key in wanted if key not in state]
    faults += [f"has unexpected {key}" for key in state if key not in wanted]
    for key in wanted.keys() & state.keys():
        want, got = wanted[key], state[key]
        if want.shape != got.shape or want.is_floating_point() != got.is_floating_point():
            kinds = [f"{t.dtype} {tuple(t.shape)}" for t in (got, want)]
            faults.append(f"{key} is {', not '.join(kinds)}")
    if faults:
        more = f" and {len(faults) - 6} more" if len(faults) > 6 else ""
        listed = "; ".join(sorted(faults)[:6])
        raise ValueError(f"{source}: not this network's weights: {listed}{more}")


def read_checked(path: Path, sha256: str | None) -> dict[str, Tensor]:
    """The tensors of a file; ValueError if it is none, or another than that of the sha256."""
    tensors, _ = read_tensors(path)
    if sha256 and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ValueError(f"{path}: not the file that its sidecar names (sha256 differs)")
    return tensors


def read_sidecar(path: Path) -> dict:
    """The JSON beside a weight file; ValueError, in one line, if there is none."""
    try:
        return read_json(path.with_suffix(".json"))
    except ValueError as error:
        raise ValueError(f"the sidecar {error}") from None
