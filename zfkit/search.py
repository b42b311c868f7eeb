"""One pass over a data set: the k strongest images of every channel, and where in them."""

import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .chain import Climb, kind, sliding
from .fields import ReceptiveField
from .files import kept_file, read_tensors, write_tensors
from .forward import evaluating, run_to
from .geometry import resolve

BATCH = 32  # images at once, which bounds the memory
SAVE_S = 20  # of work between two checkpoints


class Strongest(NamedTuple):
    """A layer's strongest units by channel, one per image; fields (k, C), strongest first."""

    value: Tensor  # activation
    image: Tensor  # index into the data set
    row: Tensor
    col: Tensor

    def of(self, channels) -> "Strongest":
        """The same of one channel, fields (k,), or several, (k, channels); else ValueError."""
        count = self.value.shape[1]
        if wrong := [c for c in np.atleast_1d(channels).tolist() if c not in range(count)]:
            raise ValueError(f"no channel {wrong[0]!r}; valid: 0 to {count - 1}")
        return Strongest(*(field[:, channels] for field in self))


def strongest(
    net: nn.Module, images, layers, k=9, normalize=None, *, folder=None, progress=False
) -> dict[str, Strongest]:
    """For each layer the k images with the largest activation of every channel, and its place.

    images: uint8 (N, H, W, 3) with `normalize` (such as a card's) to make them float (N, 3, H,
    W), or already so; any sequence that slices. Taken in batches, so N may be large.
    An image counts once per channel, by its strongest unit (of equals the first in reading
    order); of equal images the earlier comes first. Source: ZF 2013, sec. 4, Fig. 2.
    folder: where the result is kept, under a fingerprint of all that it depends on: a finished
    pass is only read, a broken one goes on where it last saved, to the same bits.    progress:
    show a bar.
    Raises ValueError for an unknown layer, k above N, an empty set, images too small for a
    layer (one smaller than the receptive field is none), activations that are not finite and
    layers that give tokens, (N, tokens, features).

    >>> import torch, zfkit
    >>> maps = torch.tensor([[[[1.0, 5.0]]], [[[7.0, 0.0]]], [[[2.0, 2.0]]]])  # three images
    >>> best = zfkit.strongest(torch.nn.Sequential(torch.nn.Identity()), maps, ["0"], k=2)["0"]
    >>> best.value[:, 0].tolist(), best.image[:, 0].tolist(), best.col[:, 0].tolist()
    ([7.0, 5.0], [1, 0], [0, 1])
    """
    names, count = {layer: resolve(net, layer) for layer in layers}, len(images)
    if not 1 <= k <= count:
        raise ValueError(f"k is {k!r}; valid: 1 to {count}, the number of images")
    file = (
        None
        if folder is None
        else kept_file(folder, "strongest", net, images, normalize, sorted(names.items()), k)
    )
    tables = _passed(net, images, set(names.values()), k, normalize, file, progress)
    return {layer: tables[name].ranked() for layer, name in names.items()}


def _passed(net, images, names: set, k, normalize, file, progress) -> dict:
    """The table of each module; of a pass that was broken off, what is left of it."""
    first = _checked(images[:1], normalize)
    many = BATCH * (1 + (first.numel() < 3 * 100 * 100))  # small images, more at once
    (done, tables), count = _read(file), len(images)
    if done == count:
        return tables
    bar, saved = (
        tqdm(total=count, initial=done, disable=not progress, unit="image"),
        time.monotonic(),
    )
    with evaluating(net), torch.no_grad(), bar:
        running = Pass(names, k, tables, _pools(net, first, names))
        for start in range(done, count, many):
            batch, running.first = _checked(images[start : start + many], normalize), start
            run_to(net, batch, names | set(running.pools), running)
            bar.update(len(batch))
            done = start + len(batch)
            if file and (done == count or time.monotonic() - saved > SAVE_S):
                _write(file, done, tables)
                saved = time.monotonic()
    return tables


def most_excited(maps: Tensor) -> Tensor:
    """The channel (N,) that each image excites most compared with the other images.

    maps: (N, C, h, w) or (N, units). Compared are the standard scores of a channel's peaks over
    the images, of equals the first channel counts. Raises ValueError for fewer than two images.

    >>> most_excited(torch.tensor([[1.0, 80.0], [3.0, 90.0], [1.0, 99.0]])).tolist()
    [0, 0, 1]
    """
    if len(maps) < 2:
        raise ValueError(
            f"nothing to compare with: maps of {len(maps)} image, 2 or more are needed"
        )
    peak = maps.flatten(2).amax(2) if maps.dim() > 2 else maps
    return ((peak - peak.mean(0)) / (peak.std(0) + 1e-6)).argmax(1)


def crops(images, field: ReceptiveField, units: Strongest) -> tuple[list, np.ndarray]:
    """The pixels that each unit reads, [(h, w, 3), ...], and their boxes, int64 (units, 4).

    images: (N, H, W, 3) at the size at which the network took them.    field: of the layer.
    units: such as `best.of(channel)`.    A box is (top, left, bottom, right), half-open,
    clipped at the image's border: where the field exceeds the image, the whole image comes
    back. Raises ValueError for an image or unit that is not there.

    >>> units = Strongest(*(torch.tensor([value]) for value in (1.0, 0, 0, 4)))
    >>> patches, boxes = crops(np.zeros((1, 20, 20, 3)), ReceptiveField(7, 2, 2), units)
    >>> boxes.tolist(), patches[0].shape
    ([[0, 7, 6, 14]], (6, 7, 3))
    """
    patches, boxes = [], []
    for place in zip(*(part.flatten().tolist() for part in units[1:]), strict=True):
        if not 0 <= place[0] < len(images):
            raise ValueError(f"no image {place[0]}; valid: 0 to {len(images) - 1}")
        image = images[place[0]]
        boxes.append(clipped(field.box(*place[1:]), image.shape[:2]))
        top, left, bottom, right = boxes[-1]
        patches.append(image[top:bottom, left:right])
    return patches, np.array(boxes, np.int64).reshape(-1, 4)


def clipped(box, size) -> tuple[int, int, int, int]:
    """The part of a box inside an image of `size` (height, width); ValueError if none."""
    top, left, bottom, right = (
        max(0, box[0]),
        max(0, box[1]),
        min(size[0], box[2]),
        min(size[1], box[3]),
    )
    if top >= bottom or left >= right:
        raise ValueError(f"box {tuple(box)} lies outside an image of {tuple(size)}")
    return top, left, bottom, right


# --- the running table ------------------------------------------------------------------------


class Table(NamedTuple):
    """A layer's strongest units so far, a row per channel; -1 where no image has come yet."""

    value: Tensor  # (C, k)
    place: Tensor  # (3, C, k): image, row, col

    @classmethod
    def empty(cls, channels: int, k: int, dtype) -> "Table":
        return cls(
            torch.full((channels, k), -torch.inf, dtype=dtype), torch.full((3, channels, k), -1)
        )

    def ranked(self) -> Strongest:
        return Strongest(*(part.T.contiguous() for part in (self.value, *self.place)))


class Pass:
    """The tables while the pass goes on; called with the maps of each watched layer."""

    def __init__(self, names: set, k: int, tables: dict, pools: dict):
        self.names, self.k, self.tables, self.pools, self.first = names, k, tables, pools, 0
        self.waiting = dict.fromkeys(below for below, _ in self.pools.values())

    def __call__(self, name: str, maps: Tensor):
        if maps.dim() not in (
            2,
            4,
        ):  # such as the tokens of a transformer, (N, tokens, features)
            raise ValueError(
                f"layer {name!r} gives {tuple(maps.shape)}, not (N, C, h, w) or (N, units)"
            )
        maps = maps.reshape(*maps.shape, *[1] * (4 - maps.dim()))
        if (
            name in self.pools
        ):  # the maxima of its maps are those of the layer below, at a quarter of the reads
            below, module = self.pools[name]
            self.enter(below, self.waiting[below], maps, sliding(module))
            self.waiting[below] = None
        if name in self.waiting:
            self.waiting[name] = maps
        elif name in self.names:
            self.enter(name, maps)

    def enter(self, name: str, maps: Tensor, pooled=None, windows=((1, 1, 0, 1), (1, 1, 0, 1))):
        """Enter a batch of images into the table of a layer."""
        if pooled is None or not _covers(windows, maps.shape[2:], pooled.shape[2:]):
            pooled, windows = maps, ((1, 1, 0, 1), (1, 1, 0, 1))
        rows = pooled.permute(0, 2, 3, 1).amax(2)  # (N, h, C)
        peaks = rows.amax(1).T.cpu()
        if not peaks.sum(dtype=torch.float64).isfinite():
            last = self.first + len(maps) - 1
            raise ValueError(
                f"layer {name!r} is not finite on the images {self.first} to {last}"
            )
        empty = Table.empty(len(peaks), self.k, peaks.dtype)
        value, place = self.tables.setdefault(name, empty)
        channels = (peaks > value[:, -1:]).any(1).nonzero()[:, 0]  # an equal one loses
        if not len(channels):
            return
        both, order = torch.cat([value[channels], peaks[channels]], 1).sort(
            dim=1, descending=True, stable=True
        )
        order, kept = order[:, : self.k], place[:, channels]
        kept = kept.gather(2, order.clamp(max=self.k - 1).expand_as(kept))
        new = (order >= self.k).nonzero(as_tuple=True)
        image, channel = order[new] - self.k, channels[new[0]]
        places = _position(maps, rows, image, channel, windows[0])
        kept[:, *new] = torch.stack([image + self.first, *places])
        value[channels], place[:, channels] = both[:, : self.k], kept


def _pools(net: nn.Module, image: Tensor, names: set) -> dict:
    """Name of a max pooling -> the layer directly below it and the pooling, of a chain."""
    try:
        steps = Climb(net, image, names, keep=lambda *_: None, beyond=True).steps
    except ValueError:  # no chain, or images too small to pool: all maps are read as they are
        return {}
    return {
        above.name: (below.name, above.module)
        for below, above in pairwise(steps)
        if below.name in names and kind(above.module).down == "unpool"
    }


def _covers(windows, size, count) -> bool:
    """Do `count` windows leave out none of `size` units, along both axes?"""
    reach = [
        s <= k and d == 1 and (n - 1) * s - p + k
        for (k, s, p, d), n in zip(windows, count, strict=True)
    ]
    return all(far >= side for far, side in zip(reach, size, strict=True))


def _position(
    maps: Tensor, rows: Tensor, image: Tensor, channel: Tensor, window
) -> tuple[Tensor, Tensor]:
    """Row and column of the largest unit, of equals the first, by rows (N, h, C) of maxima."""
    kernel, stride, padding, _ = window
    top = rows[image, :, channel].argmax(1).cpu() * stride - padding
    band = (top[:, None] + torch.arange(kernel)).clamp(0, maps.shape[2] - 1)
    place = maps[image[:, None], channel[:, None], band].flatten(1).argmax(1).cpu()
    return band.gather(1, place[:, None] // maps.shape[3])[:, 0], place % maps.shape[3]


def _checked(batch, normalize) -> Tensor:
    batch = normalize(batch) if normalize else batch
    if not isinstance(batch, Tensor) or not batch.is_floating_point() or batch.dim() != 4:
        kind = getattr(batch, "dtype", type(batch).__name__)
        kind = f"{kind} {tuple(getattr(batch, 'shape', ()))}"
        raise ValueError(f"normalized must be a float tensor (N, 3, H, W), not {kind}")
    return batch


# --- what is kept in a folder -----------------------------------------------------------------


def _read(file: Path | None) -> tuple[int, dict]:
    """How many images the kept tables hold, and these; none of a missing or damaged file."""
    try:
        tensors, about = read_tensors(file) if file else ({}, {})
        names = {key.rpartition("/")[0] for key in tensors}
        tables = {
            name: Table(*(tensors[f"{name}/{part}"] for part in Table._fields))
            for name in names
        }
        return (about["done"], tables) if about.get("file") == file.name else (0, {})
    except (ValueError, KeyError, AttributeError):
        return 0, {}


def _write(file: Path, done: int, tables: dict):
    tensors = {
        f"{name}/{part}": tensor
        for name, table in tables.items()
        for part, tensor in table._asdict().items()
    }
    write_tensors(file, tensors, {"done": done, "file": file.name})
