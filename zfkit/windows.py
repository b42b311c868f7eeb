"""What a square on the image changes in a chain of layers: windows of its maps, and not more.

The clean image goes through the network once and leaves behind the map below every layer. Then,
for each place of the square, the windows alone are computed; what they read outside the window
below them comes from the clean maps. The result is exact.
"""

from collections.abc import Callable, Iterator
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .chain import Climb, NotAChain, kind, sliding, unpadded
from .geometry import needed, touched

HEAD_BATCH = (
    256  # places at once in the fully connected layers, whose weights are then read once
)
ROOM = 2**24  # numbers that the largest map of a batch of places may hold


def total(maps: Tensor, channel: int) -> Tensor:
    """The sum over one channel of each image, (N,): its activity, summed in float64."""
    return maps[:, channel].reshape(len(maps), -1).sum(1, dtype=torch.float64).to(maps.dtype)


class Layer(NamedTuple):
    """A layer of the chain as a function of windows, with the clean map below it."""

    run: Callable[[Tensor], Tensor]
    axes: list | None = (
        None  # (kernel, stride, padding, dilation) of rows and columns; None: point by point
    )
    units: tuple = ()  # (h, w) of the map above
    width: int = 0  # of the map below with its padding
    rows: Tensor | None = None  # that map, a row (C) for each position


class Window(NamedTuple):
    """A part of a map for each place of the occluder, all of one size."""

    maps: Tensor  # (B, C, h, w)
    corners: list  # the first row of each, the first column of each


class Windows:
    """The chain under a square: windows as far as layers have that form, then the `head`.

    picture: what the square of `size` (rows, columns) shows, (C, H, W).    watch: the layer to
    follow, or None; of its maps `channel(clean maps)` says which, and their sum is the
    activity.    low: type of the windows above the first layer. Raises NotAChain where windows
    do not apply.
    """

    def __init__(self, net, image, picture, size, watch, channel, low):
        self.picture, self.size, self.low = picture, size, low
        self.layers, self.clean, self.largest, self.open = [], image, image.numel(), True
        passed = Climb(net, image, {"", watch} - {None}, self._layer)
        self.logits, head = passed.maps[""], passed.steps[len(self.layers) :]
        self.depth = self.channel = None
        if watch is not None:
            self.channel, self.depth = channel(passed.maps[watch]), passed.depth[watch]
            if self.depth <= len(self.layers):
                sums = passed.maps[watch][0, self.channel].double().cumsum(0).cumsum(1)
                self.integral = F.pad(sums, (1, 0, 1, 0))
        _check_reshapes(head)
        self.whole = Layer(
            nn.Identity(),
            [(1, 1, 0, 1)] * 2,
            self.clean.shape[2:],
            self.clean.shape[3],
            _rows(self.clean),
        )
        self.head = [step.module for step in head]
        room = ROOM // max((step.below.numel() for step in head), default=1)
        self.batch = max(1, min(HEAD_BATCH, room))

    def _layer(self, module, below, above):
        """Takes on a layer of the clean pass; the first without windows begins the head."""
        dtype = self.low if self.layers else self.picture.dtype
        run = unpadded(module, dtype) if self.open and below.dim() == 4 else None
        self.open = run is not None
        if self.open:
            self.layers.append(_on_windows(module, run, below, above, dtype))
            self.clean = above.clone()  # the next may work in place
            self.largest = max(self.largest, above.numel())

    def side(self) -> int:
        """Of a tile of places whose windows, grown by 32 px on their way, find room."""
        sides = zip(self.size, self.picture.shape[1:], strict=True)
        share = [min(1.0, (length + 32) / side) for length, side in sides]
        return max(1, isqrt(int(ROOM / (self.largest * share[0] * share[1]))))

    def run(self, batches) -> Iterator[tuple]:
        """The logits and the activity of batches of places, in their order."""
        waiting = []
        for places in batches:
            waiting.append(self.up_to_the_head(places))
            if sum(len(maps) for maps, _ in waiting) >= self.batch:
                yield self.through_the_head(waiting)
                waiting = []
        if waiting:
            yield self.through_the_head(waiting)

    def up_to_the_head(self, places) -> tuple:
        """Whole maps, and the activity if its layer lies here."""
        (h, w), corners, sums = self.size, places.T.tolist(), None
        shown = [self.picture[:, y : y + h, x : x + w] for y, x in zip(*corners, strict=True)]
        window = Window(torch.stack(shown), corners)
        for number, layer in enumerate(self.layers, 1):
            window = _climb(layer, window)
            if number == self.depth:
                sums = self.activity(window)
        everything = [torch.arange(count).expand(len(places), -1) for count in self.whole.units]
        return _patches(self.whole, window, everything), sums

    def activity(self, window) -> Tensor:
        """The clean map's sum, with its part under the window exchanged for the window."""
        (h, w), (y, x), table = (
            window.maps.shape[2:],
            map(torch.tensor, window.corners),
            self.integral,
        )
        old = table[y + h, x + w] - table[y, x + w] - table[y + h, x] + table[y, x]
        new = window.maps[:, self.channel].sum((1, 2), dtype=torch.float64)
        return (table[-1, -1] - old + new).to(self.picture.dtype)

    def through_the_head(self, waiting) -> tuple:
        """The logits, and the activity wherever its layer lies."""
        maps, sums = (
            None if field[0] is None else torch.cat(field)
            for field in zip(*waiting, strict=True)
        )
        for number, module in enumerate(self.head, len(self.layers) + 1):
            maps = module(maps)
            if number == self.depth:
                sums = total(maps, self.channel)
        return maps, sums


def _on_windows(module, run, below, above, dtype) -> Layer:
    axes = sliding(module)
    if axes is None:
        return Layer(run)
    height, width = below.shape[2:]
    ends = zip(above.shape[2:], axes, strict=True)
    (top, bottom), (left, right) = (needed((0, count), *axis) for count, axis in ends)
    edges = (-left, right - width, -top, bottom - height)  # less than 0: never read
    padded = F.pad(below, edges, value=kind(module).beyond)
    return Layer(run, axes, above.shape[2:], padded.shape[3], _rows(padded).to(dtype))


def _check_reshapes(steps):
    """A view or reshape stands among the steps as a flatten, and must be one."""
    for step in steps:
        if step.name.endswith("()") and tuple(step.above) != (
            step.below[0],
            step.below[1:].numel(),
        ):
            raise NotAChain(
                f"{step.name} makes {tuple(step.above)} of {tuple(step.below)}: no flatten"
            )


def _climb(layer: Layer, window: Window) -> Window:
    """The window of the map above that holds all that `window` changes there."""
    if layer.axes is None:
        return window._replace(maps=layer.run(window.maps))
    along = zip(window.corners, window.maps.shape[2:], layer.units, layer.axes, strict=True)
    corners, inputs = zip(*(_reads(*one) for one in along), strict=True)
    return Window(layer.run(_patches(layer, window, inputs)), corners)


def _reads(firsts, extent, units, axis) -> tuple[list, Tensor]:
    """Along one axis: the first unit of each window above, and the inputs (B, n) that it reads.

    Windows get the size of the largest and stay inside the map; what they hold too much comes
    out as it was.
    """
    spans = [touched((first, first + extent), units, *axis) for first in firsts]
    count = max(1, *(end - first for first, end in spans))
    starts = [min(first, units - count) for first, _ in spans]
    return starts, torch.tensor(starts)[:, None] * axis[1] + torch.arange(
        *needed((0, count), *axis)
    )


def _patches(layer: Layer, window: Window, inputs) -> Tensor:
    """The inputs of each window, (B, C, h, w): of the window below, else of the clean map."""
    (y, x), (h, w), batch = inputs, window.maps.shape[2:], torch.arange(len(window.maps))
    row, col = (
        i - torch.tensor(first)[:, None]
        for i, first in zip(inputs, window.corners, strict=True)
    )
    inside = ((row >= 0) & (row < h))[:, :, None] & ((col >= 0) & (col < w))[:, None, :]
    changed = len(layer.rows) + (batch[:, None] * h + row)[:, :, None] * w + col[:, None, :]
    (_, _, top, _), (_, _, left, _) = layer.axes
    clean = (y + top)[:, :, None] * layer.width + (x + left)[:, None, :]
    source = torch.cat([layer.rows, _rows(window.maps).to(layer.rows.dtype)])
    chosen = torch.where(inside, changed, clean)
    patches = source.index_select(0, chosen.flatten().to(source.device))
    return patches.view(*chosen.shape, -1).permute(0, 3, 1, 2)


def _rows(maps: Tensor) -> Tensor:
    return maps.movedim(1, -1).reshape(-1, maps.shape[1])
