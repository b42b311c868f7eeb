"""Down a chain inside windows: from many units of a layer to the pixels that each of them sees.

Going down, the deconvnet needs the filters and the switches and no other activation. So a unit
needs the
switches inside its window: found by a forward pass on the crop alone, as far as the last
pooling below it, or kept from one pass over each whole image.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .chain import Climb, NotAChain, Step, kind, pool_shape, sliding, unpadded
from .deconvnet import folded_scale
from .forward import evaluating
from .geometry import needed
from .search import Strongest, clipped
from .switches import pool_with_switches

BYTES = 30e6  # of a batch's largest maps
IMAGES = 16  # whole images at once
DOWN = (
    "filter",
    "rectify",
    "unpool",
    "contrast",
    "scale",
    "reshape",
)  # the steps that have a form for windows


def chain_to(net: nn.Module, image: Tensor, name: str) -> "Chain | None":
    """The layers from the pixels to a layer; None if they are no chain with windows."""
    try:
        with evaluating(net), torch.no_grad():
            steps = Climb(net, image, {name}, keep=lambda *_: None).steps
    except NotAChain:
        return None
    modules = [step.module for step in steps]
    plain = all(_plain(step, lower) for step, lower in zip(steps, [None, *modules]))
    return Chain(steps) if plain else None


def _plain(step: Step, lower: nn.Module | None) -> bool:
    what = kind(step.module)
    if len(step.above) != 4 or unpadded(step.module) is None or what.down not in DOWN:
        return False
    if what.down == "unpool":  # a place in its window is kept as one byte
        return np.prod([window[0] for window in sliding(step.module)]) < 256
    return what.down != "scale" or isinstance(
        lower, nn.Conv2d
    )  # the scale goes into the filters below it


class Chain:
    """The layers below a unit, walked up and down inside windows, of one size in each layer."""

    def __init__(self, layers: list[Step]):
        self.layers = layers
        steps = [kind(layer.module).down for layer in layers]
        pools = [j for j, step in enumerate(steps) if step == "unpool"]
        self.climb = layers[: pools[-1] + 1] if pools else []  # as far as there are switches
        self.weights = {j: self._weight(j) for j, step in enumerate(steps) if step == "filter"}
        self.fine = {j: _fine(layers[j].module, weight) for j, weight in self.weights.items()}

    def _weight(self, j: int) -> Tensor:
        """The filters, times the scale of the batch norm that follows them."""
        weight, above = self.layers[j].module.weight, self.layers[j + 1 : j + 2]
        if above and kind(above[0].module).down == "scale":
            weight = weight * folded_scale(above[0].module).view(-1, 1, 1, 1)
        return weight.detach().contiguous(memory_format=torch.channels_last)

    def windows(self, row: Tensor, col: Tensor) -> list:
        """For each map, pixels first, the units' windows [first, end) by rows and columns."""
        found = [[(row, row + 1), (col, col + 1)]]
        for layer in reversed(self.layers):
            steps = sliding(layer.module)
            found.append(
                [needed(span, *step) for span, step in zip(found[-1], steps)]
                if steps
                else found[-1]
            )
        return found[::-1]

    def sides(self) -> list[tuple[int, int]]:
        """Height and width of the windows, for each map from the pixels up."""
        none = torch.zeros(1, dtype=torch.long)
        return [
            tuple(int(end - first) for first, end in spans)
            for spans in self.windows(none, none)
        ]

    def excess(self) -> float:
        """Area of the window over that of the image."""
        return np.prod(self.sides()[0]) / np.prod(self.layers[0].below[2:])

    def project_all(
        self, load, channel: Tensor, units: Strongest, way: str, bar
    ) -> tuple[list, np.ndarray]:
        """Pictures and boxes of the units, image by image, so that each is normalised once."""
        sizes = [
            s[0] * s[1] * layer.above[1] for s, layer in zip(self.sides()[1:], self.layers)
        ]
        many = int(np.clip(BYTES / (max(sizes) * 4), 8, 256))
        numbers, image = units.image.unique(return_inverse=True)
        if way == "auto":  # a forward pass on crops, or on whole images?
            way = "crops" if len(channel) * self.excess() < 1.4 * len(numbers) else "kept"
        pictures, boxes = [None] * len(channel), np.zeros((len(channel), 4), np.int64)
        for first in range(0, len(numbers), IMAGES):
            mine = ((image >= first) & (image < first + IMAGES)).nonzero()[:, 0]
            normalized = load(numbers[first : first + IMAGES]) if self.climb else None
            kept = self.keep(normalized) if self.climb and way == "kept" else None
            for some in mine.split(many):
                windows = self.windows(units.row[some], units.col[some])
                whose = image[some] - first
                found = (self.look_up, kept) if kept else (self.climbed, normalized)
                switches = found[0](found[1], whose, windows)
                signal = self.down(channel[some], units.value[some], windows, switches)
                self._cut_out(signal, windows[0], some.tolist(), pictures, boxes)
                bar.update(len(some))
        return pictures, boxes

    def _cut_out(self, signal, window, numbers, pictures, boxes):
        (top, bottom), (left, right) = window
        spans = torch.stack([top, left, bottom, right], 1).tolist()
        for number, picture, span in zip(numbers, signal, spans):
            boxes[number] = box = clipped(span, self.layers[0].below[2:])
            pictures[number] = picture[
                :, box[0] - span[0] : box[2] - span[0], box[1] - span[1] : box[3] - span[1]
            ]

    def climbed(self, normalized: Tensor, image: Tensor, windows: list) -> dict[int, Tensor]:
        """The switches inside the windows, by a forward pass on the crops."""
        if not self.climb:
            return {}
        maps, switches = _cut(normalized.permute(0, 2, 3, 1), image, windows[0]), {}
        for j, layer in enumerate(self.climb):
            what, run = kind(layer.module), unpadded(layer.module, maps.dtype)
            if what.field == "window":
                maps = _fill_outside(maps, windows[j], layer.below, what.beyond)
            if what.down == "unpool":
                size, stride, _, dilation, _ = pool_shape(layer.module)
                maps, switches[j] = pool_with_switches(maps, size, stride, 0, dilation)
            else:
                maps = run(maps)
        return switches

    def keep(self, normalized: Tensor) -> dict[int, Tensor]:
        """The switches of whole images: uint8 (N, h, w, C), places in the pools' windows."""
        maps, kept = normalized.clone(), {}
        for j, layer in enumerate(self.climb):
            if kind(layer.module).down == "unpool":
                maps, kept[j] = _places_in_windows(layer.module, maps)
            else:
                maps = layer.module(maps)
        return kept

    def look_up(self, kept: dict, image: Tensor, windows: list) -> dict[int, Tensor]:
        """The switches inside the windows, from those of whole images."""
        switches = {}
        for j, offsets in kept.items():
            (height, sy, _, dy), (width, sx, _, dx) = sliding(self.layers[j].module)
            across = int(windows[j][1][1][0] - windows[j][1][0][0])
            places = _cut(offsets, image, windows[j + 1]).long()
            inside = torch.arange(height)[:, None] * dy * across + torch.arange(width) * dx
            rows, columns = (torch.arange(side) for side in places.shape[2:])
            corner = rows[:, None] * sy * across + columns * sx
            switches[j] = inside.flatten().to(places.device)[places] + corner.to(places.device)
        return switches

    def down(self, channel: Tensor, value: Tensor, windows: list, switches: dict) -> Tensor:
        """The signal in the pixels' windows (units, 3, h, w), from one value of one channel."""
        value = value.to(next(iter(self.weights.values()), value)).view(-1, 1, 1, 1)
        channel, signal = channel.to(value.device), None
        for j in reversed(range(len(self.layers))):
            module, size, step = (
                self.layers[j].module,
                self.layers[j].below,
                kind(self.layers[j].module).down,
            )
            if step == "rectify":
                value = value.clamp(min=0)
                signal = None if signal is None else signal.clamp_(min=0)
            elif step == "filter" and signal is None and module.dilation == (1, 1):
                signal = _one_filter(module, self.weights[j], channel) * value
            elif step in ("filter", "unpool"):
                if signal is None:
                    signal = _one_hot(channel, value, self.layers[j].above[1])
                signal = self._one_down(j, signal, switches.get(j), windows[j])
            if step == "filter" and j:
                signal = _fill_outside(signal, windows[j], size, 0.0)
        return _one_hot(channel, value, self.layers[-1].above[1]) if signal is None else signal

    def _one_down(self, j: int, signal: Tensor, switches: Tensor | None, window) -> Tensor:
        if switches is not None:
            return _unpooled(self.layers[j].module, signal, switches, _side(window))
        return self._transposed_filter(j, signal)

    def _transposed_filter(self, j: int, signal: Tensor) -> Tensor:
        module = self.layers[j].module
        if self.fine[j] is None:
            rest = module.stride, 0, 0, module.groups, module.dilation
            return F.conv_transpose2d(signal, self.weights[j], None, *rest)
        stride, tall = module.stride[0], self.fine[j].shape[2]
        high, wide = (
            (n - 1) * stride + k for n, k in zip(signal.shape[2:], module.kernel_size)
        )
        return F.pixel_shuffle(F.conv2d(signal, self.fine[j], padding=tall - 1), stride)[
            :, :, :high, :wide
        ]


def _places_in_windows(pool: nn.MaxPool2d, maps: Tensor) -> tuple[Tensor, Tensor]:
    """The pooled maps, and each maximum's place inside its window, uint8 (N, h, w, C)."""
    pooled, flat = pool_with_switches(maps, *pool_shape(pool))
    flat = flat.permute(0, 2, 3, 1).int()
    rows, columns = (torch.arange(side, device=flat.device) for side in flat.shape[1:3])
    (_, sy, py, dy), (width, sx, px, dx) = sliding(pool)
    down = (flat // maps.shape[3] + py - rows[:, None, None] * sy) // dy
    right = (flat % maps.shape[3] + px - columns[:, None] * sx) // dx
    return pooled, (down * width + right).to(torch.uint8).contiguous()


def _fine(module: nn.Conv2d, weight: Tensor) -> Tensor | None:
    """Strided filters onto the pixels, as ordinary filters onto stride x stride as many maps.

    The phases of the strided grid side by side, a fraction of the time of the transposed
    convolution.
    """
    (k, s, _, d), other = sliding(module)
    if (k, s, _, d) != other or s == 1 or d > 1 or module.groups > 1 or module.in_channels > 4:
        return None
    taps = -(-k // s)
    whole = (
        F.pad(weight, (0, taps * s - k, 0, taps * s - k))
        .unflatten(3, (taps, s))
        .unflatten(2, (taps, s))
    )
    phases = (
        whole.permute(1, 3, 5, 0, 2, 4).flatten(0, 2).flip(2, 3)
    )  # (3 * s * s, C, taps, taps)
    return phases.contiguous(memory_format=torch.channels_last)


def _one_filter(module: nn.Conv2d, weight: Tensor, channel: Tensor) -> Tensor:
    """The filter of each channel, among zeros where the convolution is grouped."""
    own = weight[channel]
    if module.groups == 1:
        return own.contiguous(memory_format=torch.channels_last)
    group = channel // (module.out_channels // module.groups)
    full = own.new_zeros(len(own), module.groups, *own.shape[1:])
    full[torch.arange(len(own)), group] = own
    return full.flatten(1, 2).contiguous(memory_format=torch.channels_last)


def _one_hot(channel: Tensor, value: Tensor, channels: int) -> Tensor:
    return F.one_hot(channel, channels).to(value)[:, :, None, None] * value


def _unpooled(module: nn.MaxPool2d, signal: Tensor, switches: Tensor, side) -> Tensor:
    """Each value at its switch, equal places added up: `switches.unpool` for any layout."""
    sizes, strides, _, dilation = ([window[n] for window in sliding(module)] for n in range(4))
    below = signal.new_empty(len(signal), *side, signal.shape[1]).permute(0, 3, 1, 2)
    signal, places = (
        part.contiguous(memory_format=torch.channels_last) for part in (signal, switches)
    )
    adjoint = torch.ops.aten.max_pool2d_with_indices_backward
    return adjoint(signal, below, sizes, strides, [0, 0], dilation, False, places)


def _side(window) -> tuple[int, int]:
    return tuple(int(end[0] - first[0]) for first, end in window)


def _numbers(window) -> list[Tensor]:
    """The rows and the columns (units, n) of the windows."""
    return [first[:, None] + torch.arange(n) for (first, _), n in zip(window, _side(window))]


def _cut(planes: Tensor, image: Tensor, window) -> Tensor:
    """Windows of planes (N, H, W, C) as maps (units, C, h, w), the border's value outside."""
    size = planes.shape
    rows, columns = (
        number.clamp(0, side - 1) for number, side in zip(_numbers(window), size[1:3])
    )
    flat = (image[:, None, None] * size[1] + rows[:, :, None]) * size[2] + columns[:, None, :]
    found = planes.reshape(-1, size[3]).index_select(0, flat.flatten().to(planes.device))
    return found.view(*flat.shape, size[3]).permute(0, 3, 1, 2)


def _fill_outside(maps: Tensor, window, size, value: float) -> Tensor:
    """The maps with `value` wherever their window leaves the plane, as padding has it."""
    rows, columns = ((n < 0) | (n >= side) for n, side in zip(_numbers(window), size[2:]))
    if not (rows.any() or columns.any()):
        return maps
    return maps.masked_fill_(
        (rows[:, None, :, None] | columns[:, None, None, :]).to(maps.device), value
    )
