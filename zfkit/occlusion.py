"""The occlusion sweep of ZF 2013, sec. 4.2 and Fig. 7: a grey square moved over the image.

What the square changes in a map is a window, not the map. So the clean image goes through the network once and
leaves behind the map below every layer; then, for each place of the square, the windows alone are computed, and
what they read outside the window below them comes from the clean maps. The result is exact.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from math import inf, isqrt
from operator import index
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from .deconvnet import NotAChain, feature_maps, steps_to
from .forward import evaluating, hooked, last_call, probabilities, run_to
from .geometry import needed, resolve, touched
from .normalization import contrast_normalization

CHOICES = {"precision": ("exact", "bfloat16"), "method": ("auto", "windows", "plain")}
BATCH = 16  # whole images at once
HEAD_BATCH = 256  # places at once in the fully connected layers, whose weights are then read once
ROOM = 2**24  # numbers that the largest map of a batch of places may hold
SAMPLES = 8  # places at which an approximate sweep is measured


class OcclusionMaps(NamedTuple):
    """What the network says at each place of the occluder; tensors (rows, cols) of places, row-major."""

    probability: Tensor  # of the target class, in the type of the image
    label: Tensor  # the most probable class, int64
    activity: Tensor | None  # sum over the chosen feature map, in the type of the image
    method: str  # "windows", or "plain": a whole forward pass for each place
    error: float | None = None  # largest error in `probability` at eight places; None: exact


class Occluded(NamedTuple):
    """What the network says with the occluder at each of N places."""

    probabilities: Tensor  # (N, classes)
    activity: Tensor | None  # (N,), sum over the chosen feature map
    method: str  # as in OcclusionMaps


def occlusion_maps(
    net: nn.Module, normalized: Tensor, target: int, size, stride, fill=0.0, layer=None, channel=None,
    *, precision="exact", method="auto", progress=False,
) -> OcclusionMaps:  # fmt: skip
    """P(target), the most probable label and a feature map's activity for every place of the occluder.

    normalized: one image, float (1, 3, H, W), of any sides and as many colours as the network takes.    target: class.
    size, stride: of the occluder in pixels, a number or (rows, columns) from 1; it starts at row and column 0 and stays
    inside the image, so it is no larger. Source: ZF 2013, sec. 4.2.
    fill: what it shows, after normalisation: one number, one per colour, or an image (3, H, W) such as a blurred one.
    layer, channel: the map whose sum is the activity; channel None takes the one with the strongest unit.
    precision: "exact" (to rounding) or "bfloat16": the windows above the first layer in that type, faster on
    devices with units for it; `error` says what it cost.
    method: "windows" (chains only, as `project`'s mirror), "plain" (the reference) or "auto": windows wherever
    they apply. The result says which it was. Memory does not grow with the number of places.
    What the network gives is taken for the logits of a softmax, a single score for that of a sigmoid; for probabilities
    if it ends in a sigmoid or if over a batch of places no score is negative and each row's sum is 1 to rounding.
    Raises ValueError for an occluder that does not fit, and for an unknown class, layer, channel or option.
    """
    size, stride = _pair("size", size), _pair("stride", stride)
    _check(net, normalized, size, stride, precision=precision, method=method)
    places = grid(normalized.shape[2:], size, stride)
    rows, cols = (len(axis.unique()) for axis in places.T)
    with evaluating(net), torch.no_grad():
        sweep = _sweep(net, normalized, size, fill, _chosen(net, normalized, layer, channel), method, precision)
        target = _within("class", target, sweep.classes)
        tiles = _tiles(rows, cols, max(3, min(sweep.side, 1 + 32 // max(stride))))
        shown = tqdm(tiles, "occluder", unit="tile", disable=not progress)
        found = _collected(sweep, places, tiles, shown, lambda scores: (scores[:, target], scores.argmax(1)))
    maps = OcclusionMaps(*(f if f is None else f.view(rows, -1) for f in found), sweep.method)
    if precision == "exact":
        return maps
    some = torch.linspace(0, len(places) - 1, SAMPLES).long()
    exact = occluded(net, normalized, places[some], size, fill).probabilities[:, target]
    return maps._replace(error=(maps.probability.flatten()[some] - exact).abs().max().item())


def occluded(
    net: nn.Module, normalized: Tensor, places, size, fill=0.0, layer=None, channel=None, *, method="auto"
) -> Occluded:
    """The probabilities of all classes, and a feature map's activity, at chosen places of the occluder.

    places: integers (N, 2), N > 0, the occluder's first row and column; ValueError if it leaves the image there. The
    rest as in `occlusion_maps`, always exact. ZF 2013, sec. 4.2.
    """
    return occluder(net, normalized, size, fill, layer, channel, method=method)(places)


def occluder(
    net: nn.Module, normalized: Tensor, size, fill=0.0, layer=None, channel=None, *, method="auto"
) -> Callable[..., Occluded]:
    """A function of places that gives what `occluded` gives: the clean image is run here, once for all its calls.

    It keeps the clean maps; network and image must stay as they are. Arguments and errors as in `occluded`.
    """
    size = _pair("size", size)
    _check(net, normalized, size, (1, 1), method=method)
    with evaluating(net), torch.no_grad():
        sweep = _sweep(net, normalized, size, fill, _chosen(net, normalized, layer, channel), method, "exact")

    def look(places) -> Occluded:
        places = _check_places(places, torch.tensor(normalized.shape[2:]) - torch.tensor(size))
        with evaluating(net), torch.no_grad():
            tiles = torch.arange(len(places)).split(min(sweep.side, 8) ** 2)
            return Occluded(*_collected(sweep, places, tiles, tiles, lambda scores: (scores,)), sweep.method)

    return look


def grid(shape, size, stride) -> Tensor:
    """The places of the occluder that fit, int64 (N, 2): its first row and column, a row of places after the other.

    shape: of the image, (H, W) or one side.    size, stride: of the occluder, a number or (rows, columns).
    Raises ValueError for an occluder larger than the image and for numbers below 1.
    """
    sides = _pair("shape", shape)
    axes = list(zip(sides, _pair("size", size), _pair("stride", stride), strict=True))
    if any(side < length or min(length, step) < 1 for side, length, step in axes):
        raise ValueError(f"no occluder of {size!r} px at stride {stride!r} on an image of {sides} px")
    return torch.cartesian_prod(*(torch.arange(0, side - length + 1, step) for side, length, step in axes))


class CoarseToFine:
    """A sweep that is coarse at once and becomes fine in steps, for a slider that must not wait: `live(refine=...)`.

    look: a function of places, as `occluder` gives it.    coarse, fine: places (N, 2).    batch: of them in a step.
    `fine` is what `look` says at the fine places, `Occluded`; None until the last step.
    """

    def __init__(self, look: Callable[..., Occluded], coarse: Tensor, fine: Tensor, batch: int):
        self.look, self.places, self.batches, self.parts, self.fine = look, coarse, fine.split(batch), [], None

    @cached_property
    def coarse(self) -> Occluded:
        """What `look` says at the coarse places, asked once."""
        return self.look(self.places)

    def steps(self) -> Iterator[None]:
        """Does what is left for `fine`; one that is broken off between two steps is gone on with by the next."""
        for places in self.batches[len(self.parts) :]:
            self.parts.append(self.look(places))
            if len(self.parts) == len(self.batches):
                said, sums, methods = zip(*self.parts, strict=True)
                self.fine = Occluded(torch.cat(said), None if sums[0] is None else torch.cat(sums), methods[0])
            yield


class _Sweep(NamedTuple):
    """One of the methods, ready to run."""

    method: str
    classes: int
    side: int  # of the largest tile of places, such that its maps find room
    run: Callable[[Iterable[Tensor]], Iterator[tuple]]  # batches of places -> scores and activity, in their order
    last: str = ""  # call of the network, for `probabilities`


def _sweep(net, image, *arguments) -> _Sweep:
    return _by_method(net, image, *arguments)._replace(last=last_call(net, image))


def _by_method(net, image, size, fill, watch, method, precision) -> _Sweep:
    picture = _picture(image, fill)
    if method != "plain":
        try:
            low = torch.bfloat16 if precision == "bfloat16" else image.dtype
            return _Windows(net, image, picture, size, watch, low).sweep()
        except NotAChain as reason:
            if method == "windows" or precision != "exact":
                raise NotAChain(f"no sweep by windows: {reason}") from reason
    classes = _classes(run_to(net, image, {""})[""])
    return _Sweep("plain", classes, isqrt(BATCH), partial(_plainly, net, image, picture, size, watch))


def _collected(sweep, places, tiles, shown, keep) -> list:
    """What `keep` takes from the probabilities, and the activity, for all places in their order."""
    said = ((probabilities(scores, sweep.last), sums) for scores, sums in sweep.run(places[tile] for tile in shown))
    parts = [(*keep(each), sums) for each, sums in said]
    order = torch.cat(list(tiles)).argsort()
    return [None if field[0] is None else torch.cat(field)[order] for field in zip(*parts, strict=True)]


def _tiles(rows: int, cols: int, side: int) -> list[Tensor]:
    """Numbers of the places of a grid, a tile of side x side neighbours at a time: their windows are alike."""
    grid = torch.arange(rows * cols).view(rows, cols)
    return [tile.flatten() for band in grid.split(side) for tile in band.split(side, dim=1)]


# --- plainly: a forward pass for each place -----------------------------------------------------------------


def _plainly(net, image, picture, size, watch, batches) -> Iterator[tuple]:
    for places in (some for batch in batches for some in batch.split(BATCH)):
        covered, sums = image.repeat(len(places), 1, 1, 1), []
        for one, (y, x) in zip(covered, places.tolist(), strict=True):
            one[:, y : y + size[0], x : x + size[1]] = picture[:, y : y + size[0], x : x + size[1]]
        watched = [net.get_submodule(watch[0])] if watch else []
        with hooked(watched, lambda _, __, maps, sums=sums: sums.append(_sum(maps, watch[1]))):
            logits = run_to(net, covered, {""})[""]
        yield logits, sums[0] if sums else None


def _sum(maps: Tensor, channel: int) -> Tensor:
    return maps[:, channel].reshape(len(maps), -1).sum(1, dtype=torch.float64).to(maps.dtype)


# --- by windows ---------------------------------------------------------------------------------------------


class _Layer(NamedTuple):
    """A layer of the chain as a function of windows, with the clean map below it."""

    run: Callable[[Tensor], Tensor]
    axes: tuple | None = None  # (kernel, stride, padding, dilation) of rows and columns; None: point by point
    units: tuple = ()  # (h, w) of the map above
    width: int = 0  # of the map below with its padding
    rows: Tensor | None = None  # that map, a row (C) for each position


class _Window(NamedTuple):
    """A part of a map for each place of the occluder, all of one size."""

    maps: Tensor  # (B, C, h, w)
    corners: list  # the first row of each, the first column of each


class _Windows:
    """The sweep of a chain: windows as far up as its layers are known, then whole maps through the `head`."""

    def __init__(self, net, image, picture, size, watch, low):
        steps, logits = steps_to(net, image, "")
        self.picture, self.size, self.classes = picture, size, _classes(logits)
        self.channel, self.depth = None, None
        if watch:
            name, self.channel = watch
            found = [number for number, step in enumerate(steps, 1) if step.name == name]
            self.depth = found[0] if found else len(steps_to(net, image, name)[0])  # or a container's end
        self.layers, maps, self.largest = [], image.clone(memory_format=torch.channels_last), image.numel()
        while found := _layer(steps[0].module, maps, low if self.layers else image.dtype):
            layer, maps = found
            self.layers.append(layer)
            self.largest = max(self.largest, maps.numel())
            if len(self.layers) == self.depth:
                self.integral = F.pad(maps[0, self.channel].double().cumsum(0).cumsum(1), (1, 0, 1, 0))
            del steps[0]
        _check_head(steps, maps, logits)
        self.whole = _Layer(nn.Identity(), ((1, 1, 0, 1),) * 2, maps.shape[2:], maps.shape[3], _rows(maps))
        self.head = [step.module for step in steps]
        self.batch = max(1, min(HEAD_BATCH, ROOM // max(step.size.numel() for step in steps)))

    def sweep(self) -> _Sweep:
        """Tiles such that the largest map's windows find room, if they grow by 32 pixels on their way."""
        share = [min(1.0, (s + 32) / n) for s, n in zip(self.size, self.picture.shape[1:], strict=True)]
        side = isqrt(int(ROOM / (self.largest * share[0] * share[1])))
        return _Sweep("windows", self.classes, max(1, side), self.run)

    def run(self, batches) -> Iterator[tuple]:
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
        window = _Window(torch.stack(shown), corners)
        for number, layer in enumerate(self.layers, 1):
            window = _climb(layer, window)
            if number == self.depth:
                sums = self.activity(window)
        everything = [torch.arange(count).expand(len(places), -1) for count in self.whole.units]
        return _patches(self.whole, window, everything), sums

    def activity(self, window) -> Tensor:
        """The clean map's sum, with its part under the window exchanged for the window."""
        (h, w), (y, x), table = window.maps.shape[2:], map(torch.tensor, window.corners), self.integral
        old = table[y + h, x + w] - table[y, x + w] - table[y + h, x] + table[y, x]
        new = window.maps[:, self.channel].sum((1, 2), dtype=torch.float64)
        return (table[-1, -1] - old + new).to(self.picture.dtype)

    def through_the_head(self, waiting) -> tuple:
        """The logits, and the activity wherever its layer lies."""
        maps, sums = (None if field[0] is None else torch.cat(field) for field in zip(*waiting, strict=True))
        for number, module in enumerate(self.head, len(self.layers) + 1):
            maps = module(maps)
            if number == self.depth:
                sums = _sum(maps, self.channel)
        return maps, sums


def _layer(module, maps, dtype) -> tuple[_Layer, Tensor] | None:
    """The module as a layer, and the clean map above it; None where it has no form for windows."""
    if run := _pointwise(module):
        return _Layer(run), run(maps)
    run, outside = _spatial(module, dtype)
    if run is None:
        return None
    shape = [module.kernel_size, module.stride, module.padding, getattr(module, "dilation", 1)]
    axes = tuple(zip(*(_pair("shape", value) for value in shape), strict=True))
    above, (height, width) = module(maps), maps.shape[2:]
    ends = zip(above.shape[2:], axes, strict=True)
    (top, bottom), (left, right) = (needed((0, count), *axis) for count, axis in ends)
    padded = F.pad(maps, (-left, right - width, -top, bottom - height), value=outside)  # less than 0: never read
    return _Layer(run, axes, above.shape[2:], padded.shape[3], _rows(padded).to(dtype)), above


def _pointwise(module) -> Callable | None:
    match module:
        case nn.ReLU():
            return torch.relu_
        case nn.LocalResponseNorm(size=size, alpha=alpha, beta=beta, k=k):
            return partial(contrast_normalization, size=size, alpha=alpha, beta=beta, k=k)
        case nn.BatchNorm2d() | nn.Dropout() | nn.Dropout2d() | nn.Identity():
            return module


def _spatial(module, dtype) -> tuple:
    """The module as a function of maps that hold their padding, and the value of padding."""
    match module:
        case nn.Conv2d(padding_mode="zeros", padding=tuple(), stride=stride, dilation=dilation, groups=groups):
            weight = module.weight.to(dtype).contiguous(memory_format=torch.channels_last)
            bias = None if module.bias is None else module.bias.to(dtype)
            call = dict(weight=weight, bias=bias, stride=stride, dilation=dilation, groups=groups)
            return partial(F.conv2d, **call), 0.0
        case nn.MaxPool2d(kernel_size=size, stride=stride, dilation=dilation):
            return partial(F.max_pool2d, kernel_size=size, stride=stride, dilation=dilation), -inf
        case nn.AvgPool2d(kernel_size=size, stride=stride, divisor_override=divisor):
            if divisor or not (module.ceil_mode or module.padding):  # else windows at the border divide by less
                return partial(F.avg_pool2d, kernel_size=size, stride=stride, divisor_override=divisor), 0.0
    return None, None


def _climb(layer: _Layer, window: _Window) -> _Window:
    """The window of the map above that holds all that `window` changes there."""
    if layer.axes is None:
        return window._replace(maps=layer.run(window.maps))
    along = zip(window.corners, window.maps.shape[2:], layer.units, layer.axes, strict=True)
    corners, inputs = zip(*(_reads(*one) for one in along), strict=True)
    return _Window(layer.run(_patches(layer, window, inputs)), corners)


def _reads(firsts, extent, units, axis) -> tuple[list, Tensor]:
    """Along one axis: the first unit of each window above, and the inputs (B, n) that it reads.

    Windows get the size of the largest and stay inside the map; what they hold too much comes out as it was.
    """
    spans = [touched((first, first + extent), units, *axis) for first in firsts]
    count = max(1, *(end - first for first, end in spans))
    starts = [min(first, units - count) for first, _ in spans]
    return starts, torch.tensor(starts)[:, None] * axis[1] + torch.arange(*needed((0, count), *axis))


def _patches(layer: _Layer, window: _Window, inputs) -> Tensor:
    """The inputs (rows, columns) of each window, (B, C, h, w): from the window below, else from the clean map."""
    (y, x), (h, w), batch = inputs, window.maps.shape[2:], torch.arange(len(window.maps))
    row, col = (i - torch.tensor(first)[:, None] for i, first in zip(inputs, window.corners, strict=True))
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


# --- what to follow, and bad input --------------------------------------------------------------------------


def _chosen(net, image, layer, channel) -> tuple[str, int] | None:
    """The module and the channel whose activity is followed."""
    if layer is None:
        return None
    clean = feature_maps(net, image, [layer])[layer][0]
    if channel is None:
        channel = clean.reshape(len(clean), -1).amax(1).argmax().item()
    return resolve(net, layer), _within(f"channel of {layer!r} is", channel, len(clean))


def _within(what, number, count) -> int:
    try:
        found = index(number)
    except TypeError:
        found = -1
    if not 0 <= found < count:
        raise ValueError(f"no {what} {number!r}; valid: 0 to {count - 1}")
    return found


def _classes(logits: Tensor) -> int:
    shape = tuple(getattr(logits, "shape", ()))
    if len(shape) != 2:
        raise ValueError(f"the network gives {shape or type(logits).__name__}, not scores of classes (N, classes)")
    return shape[1]


def _check_head(steps, maps, logits):
    """The steps hold what the network does, unless a view or reshape among them is no Flatten."""
    maps = maps.clone()  # a layer may work in place
    for step in steps:
        if maps.shape != step.size:
            raise NotAChain(f"below {step.name!r} the maps are {tuple(maps.shape)}, not {tuple(step.size)}")
        maps = step.module(maps)
    if maps.shape != logits.shape:
        raise NotAChain(f"the last module gives {tuple(maps.shape)}, the network {tuple(logits.shape)}")


def _picture(image, fill) -> Tensor:
    """What the occluder shows, (C, H, W)."""
    shown, shape = torch.as_tensor(fill).to(image), image.shape[1:]
    if shown.shape[-3:] == shape and shown.numel() == shape.numel():
        return shown.reshape(shape)
    if shown.numel() not in (1, shape[0]):
        raise ValueError(f"fill must hold 1 number, {shape[0]} or an image {tuple(shape)}, not {tuple(shown.shape)}")
    return shown.reshape(-1, 1, 1).expand(shape)


def _pair(what, value) -> tuple[int, int]:
    try:
        rows, cols = value if isinstance(value, (tuple, list)) else (value, value)
        return index(rows), index(cols)
    except (TypeError, ValueError):
        raise ValueError(f"{what} must be a whole number or a pair (rows, columns), not {value!r}") from None


def _check(net, normalized, size, stride, **options):
    for option, value in options.items():
        if value not in CHOICES[option]:
            raise ValueError(f"unknown {option} {value!r}; valid: {', '.join(CHOICES[option])}")
    if (options["method"], options.get("precision")) == ("plain", "bfloat16"):
        raise ValueError("precision 'bfloat16' is for method 'windows', not 'plain'")
    if not isinstance(normalized, Tensor) or normalized.dim() != 4 or len(normalized) != 1:
        raise ValueError(f"one image (1, 3, H, W) is needed, not {tuple(getattr(normalized, 'shape', ()))}")
    sides = tuple(normalized.shape[2:])
    if not all(1 <= s <= n for s, n in zip(size, sides, strict=True)) or min(stride) < 1:
        size, stride = (pair[0] if pair[0] == pair[1] else pair for pair in (size, stride))
        ask = f"no place for a square of {size} at stride {stride} on {sides[0]}x{sides[1]} pixels"
        raise ValueError(f"{ask}; valid: sizes 1 to the image's, strides from 1")
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(f"{name!r} normalises over its batch: the places would change each other")


def _check_places(places, last) -> Tensor:
    places = torch.as_tensor(places)
    if places.dim() != 2 or not len(places) or places.shape[1] != 2 or places.is_floating_point():
        raise ValueError(f"places must be integers (N, 2), N > 0, not {tuple(places.shape)} {places.dtype}")
    if len(wrong := places[((places < 0) | (places > last)).any(1)]):
        raise ValueError(f"no place for the occluder at {wrong[0].tolist()}; valid: [0, 0] to {last.tolist()}")
    return places
