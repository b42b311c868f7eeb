"""Many projections at once, each computed only in the window of the image that its unit sees.

Going down, the deconvnet needs the filters and the switches and no other activation. So a unit of a chain needs the
switches inside its window: found by a forward pass on the crop alone, as far as the last pooling below it, or kept
from one pass over each whole image. `project`, the plain way, takes whole images; the pictures are the same.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from .chain import sliding
from .deconvnet import folded_scale, project
from .fields import receptive_field
from .files import read_tensors, write_tensors
from .forward import evaluating, hooked, run_to
from .geometry import needed, resolve
from .search import Strongest, clipped, kept_file

WAYS = ("auto", "crops", "kept", "project")
BYTES = 30e6  # of a batch's largest maps
IMAGES = 16  # whole images at once
POINTWISE = (nn.ReLU, nn.LocalResponseNorm, nn.Dropout, nn.Dropout2d, nn.Identity)


def projections(
    net: nn.Module, images, layer: str, units: Strongest, channel=None, *, normalize=None, overlap="sum", lrn="skip",
    way="auto", folder=None, progress=False,
) -> tuple[list[Tensor], np.ndarray]:  # fmt: skip
    """What each unit projects to, [(3, h, w), ...], signed, and its box int64 (units, 4), in the order of the fields.

    Source: ZF 2013, sec. 2.1.    images: uint8 (N, H, W, 3) with `normalize`, or float (N, 3, H, W), of any sides.
    units: all of a layer, as `strongest` gives them, fields (k, C); or any others, with the `channel` of each or of
    all: `best.of(7), 7`. A unit starts from its `value`.
    A box is (top, left, bottom, right), half-open, clipped at the border, as that of `crops`.
    overlap, lrn: as in `project`, whose pictures these are, to rounding, cut to the boxes.
    way: "crops" (forward pass on each unit's window), "kept" (one on each image, its switches kept) or "project"
    (no windows: the one way for networks that are no plain chain); "auto" takes the quickest that applies.
    folder: where the result is kept, as by `strongest`, one file for each call; pictures are then rounded to float16
    (after division by their maximum).    progress: show a bar.
    Raises ValueError for an unknown layer, channel, image, unit or option, and for a way that does not apply.
    """
    if way not in WAYS:
        raise ValueError(f"unknown way {way!r}; valid: {', '.join(WAYS)}")
    name = resolve(net, layer)
    channel, places = _flat(units, channel, len(images))
    if folder is not None:
        key = [name, overlap, lrn, *(part.tolist() for part in (channel, *places))]
        file = kept_file(folder, f"projections-{layer}", net, images, normalize, key)
        if (found := _read(file)) is not None:
            return found

    def load(numbers: Tensor) -> Tensor:
        some = images[numbers if isinstance(images, Tensor) else numbers.numpy()]
        return normalize(some) if normalize else some

    windowed = way != "project" and (overlap, lrn) == ("sum", "skip")
    chain = _chain(net, load(torch.tensor([0])), name) if windowed else None
    if chain is None and way in ("crops", "kept"):
        raise ValueError(f"way {way!r} needs a chain of plain layers below {layer!r}, overlap 'sum' and lrn 'skip'")
    with tqdm(total=len(channel), disable=not progress, unit="unit") as bar:
        if chain is None or (way == "auto" and chain.excess() > 2):
            found = _whole(net, load, layer, channel, places, dict(overlap=overlap, lrn=lrn), bar)
        else:
            _inside(layer, chain.layers[-1].above, channel, places)
            with evaluating(net), torch.no_grad():
                found = chain.project_all(load, channel, places, way, bar)
    if folder is None:
        return found
    _write(file, *found)
    return _read(file)


def _flat(units: Strongest, channel, count: int) -> tuple[Tensor, Strongest]:
    """Channels and units as flat tensors."""
    shape = units.value.shape
    if not shape.numel():
        raise ValueError(f"no units: their fields are {tuple(shape)}")
    if channel is None and len(shape) != 2:
        raise ValueError("channel is None: units that are not a whole layer, fields (k, C), need one for all or each")
    channel = torch.arange(shape[1]) if channel is None else torch.as_tensor(channel)
    try:
        channel = channel.expand(shape).flatten()
    except RuntimeError:
        raise ValueError(f"channel {tuple(channel.shape)} does not go with units {tuple(shape)}") from None
    units = Strongest(*(torch.as_tensor(part).flatten() for part in units))
    for image in units.image[(units.image < 0) | (units.image >= count)].tolist():
        raise ValueError(f"no image {image}; valid: 0 to {count - 1}")
    return channel, units


def _inside(layer: str, size, channel: Tensor, units: Strongest):
    for what, number, count in zip(("channel", "row", "column"), (channel, units.row, units.col), size[1:]):
        for wrong in number[(number < 0) | (number >= count)].tolist():
            raise ValueError(f"no {what} of {layer!r} is {wrong}; valid: 0 to {count - 1}")


# --- windows -------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """A layer of the chain with the sizes of the maps that it takes and gives."""

    module: nn.Module
    below: torch.Size
    above: torch.Size


def _chain(net: nn.Module, image: Tensor, name: str) -> "Chain | None":
    """The layers from the pixels to a layer, or None if they are no plain chain of layers with windows."""
    layers, top, plain = [], image, True

    def after(module, inputs, output):
        nonlocal top, plain
        lower = layers[-1].module if layers else None
        plain = plain and inputs[0] is top and output.dim() == 4 and _plain(module, lower)
        layers.append(Layer(module, inputs[0].shape, output.shape))
        top = output

    leaves = [module for module in net.modules() if not any(module.children())]
    with evaluating(net), torch.no_grad():
        with hooked(leaves, after):
            maps = run_to(net, image, {name})[name]
        if not plain or maps is not top:
            return None
        again = image.clone()
        for layer in layers:  # whoever works between the modules, in place, is found out
            again = layer.module(again)
    return Chain(layers) if torch.equal(again, maps) else None


def _plain(module: nn.Module, below: nn.Module | None) -> bool:
    match module:
        case nn.Conv2d():
            return module.padding_mode == "zeros" and sliding(module) is not None
        case nn.MaxPool2d():
            return not module.return_indices and np.prod([window[0] for window in sliding(module)]) < 256
        case nn.BatchNorm2d():  # its scale goes into the filters below it
            return module.track_running_stats and isinstance(below, nn.Conv2d)
    return isinstance(module, POINTWISE)


class Chain:
    """The layers below a unit, walked up and down inside windows; the windows of a layer's units are of one size."""

    def __init__(self, layers: list[Layer]):
        self.layers = layers
        pools = [j for j, layer in enumerate(layers) if isinstance(layer.module, nn.MaxPool2d)]
        self.climb = layers[: pools[-1] + 1] if pools else []  # as far as there are switches
        self.weights = {j: self._weight(j) for j in range(len(layers)) if isinstance(layers[j].module, nn.Conv2d)}
        self.fine = {j: _fine(layers[j].module, weight) for j, weight in self.weights.items()}

    def _weight(self, j: int) -> Tensor:
        """The filters, times the scale of the batch norm that follows them."""
        weight = self.layers[j].module.weight
        if j + 1 < len(self.layers) and isinstance(self.layers[j + 1].module, nn.BatchNorm2d):
            weight = weight * folded_scale(self.layers[j + 1].module).view(-1, 1, 1, 1)
        return weight.detach().contiguous(memory_format=torch.channels_last)

    def windows(self, row: Tensor, col: Tensor) -> list:
        """For each map from the pixels up the windows [first, end) of the units, along rows and columns."""
        found = [[(row, row + 1), (col, col + 1)]]
        for layer in reversed(self.layers):
            steps = sliding(layer.module)
            found.append([needed(span, *step) for span, step in zip(found[-1], steps)] if steps else found[-1])
        return found[::-1]

    def sides(self) -> list[tuple[int, int]]:
        """Height and width of the windows, for each map from the pixels up."""
        none = torch.zeros(1, dtype=torch.long)
        return [tuple(int(end - first) for first, end in spans) for spans in self.windows(none, none)]

    def excess(self) -> float:
        """Area of the window over that of the image."""
        return np.prod(self.sides()[0]) / np.prod(self.layers[0].below[2:])

    def project_all(self, load, channel: Tensor, units: Strongest, way: str, bar) -> tuple[list, np.ndarray]:
        """Pictures and boxes of the units, taken image by image, so that an image is normalised once."""
        sizes = [s[0] * s[1] * layer.above[1] for s, layer in zip(self.sides()[1:], self.layers)]
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
                switches = self.look_up(kept, whose, windows) if kept else self.climbed(normalized, whose, windows)
                signal = self.down(channel[some], units.value[some], windows, switches)
                self._cut_out(signal, windows[0], some.tolist(), pictures, boxes)
                bar.update(len(some))
        return pictures, boxes

    def _cut_out(self, signal, window, numbers, pictures, boxes):
        (top, bottom), (left, right) = window
        spans = torch.stack([top, left, bottom, right], 1).tolist()
        for number, picture, span in zip(numbers, signal, spans):
            boxes[number] = box = clipped(span, self.layers[0].below[2:])
            pictures[number] = picture[:, box[0] - span[0] : box[2] - span[0], box[1] - span[1] : box[3] - span[1]]

    def climbed(self, normalized: Tensor, image: Tensor, windows: list) -> dict[int, Tensor]:
        """The switches inside the windows, by a forward pass on the crops."""
        if not self.climb:
            return {}
        maps, switches = _cut(normalized.permute(0, 2, 3, 1), image, windows[0]), {}
        for j, (module, below, _) in enumerate(self.climb):
            if sliding(module):
                pool = isinstance(module, nn.MaxPool2d)
                maps = _fill_outside(maps, windows[j], below, -torch.inf if pool else 0.0)
            match module:
                case nn.Conv2d():
                    rest = module.stride, 0, module.dilation, module.groups
                    maps = F.conv2d(maps, module.weight, module.bias, *rest)
                case nn.MaxPool2d():
                    rest = module.kernel_size, module.stride, 0, module.dilation
                    maps, switches[j] = F.max_pool2d(maps, *rest, return_indices=True)
                case _:
                    maps = module(maps)
        return switches

    def keep(self, normalized: Tensor) -> dict[int, Tensor]:
        """The switches of whole images: uint8 (N, h, w, C), the place inside the pooling window."""
        maps, kept = normalized.clone(), {}
        for j, (module, below, _) in enumerate(self.climb):
            if not isinstance(module, nn.MaxPool2d):
                maps = module(maps)
                continue
            rest = module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
            maps, flat = F.max_pool2d(maps, *rest, return_indices=True)
            flat = flat.permute(0, 2, 3, 1).int()
            (_, sy, py, dy), (width, sx, px, dx) = sliding(module)
            down = (flat // below[3] + py - torch.arange(flat.shape[1], device=flat.device)[:, None, None] * sy) // dy
            right = (flat % below[3] + px - torch.arange(flat.shape[2], device=flat.device)[:, None] * sx) // dx
            kept[j] = (down * width + right).to(torch.uint8).contiguous()
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
        """The signal in the pixels' windows (units, 3, h, w), given one value of one channel on top."""
        value = value.to(next(iter(self.weights.values()), value)).view(-1, 1, 1, 1)
        channel, signal = channel.to(value.device), None
        for j in reversed(range(len(self.layers))):
            module, below, above = self.layers[j]
            match module:
                case nn.ReLU():
                    value = value.clamp(min=0)
                    signal = None if signal is None else signal.clamp_(min=0)
                case nn.Conv2d(dilation=(1, 1)) if signal is None:
                    signal = _one_filter(module, self.weights[j], channel) * value
                case nn.Conv2d():
                    signal = _one_hot(channel, value, above[1]) if signal is None else signal
                    signal = self._transposed_filter(j, signal)
                case nn.MaxPool2d():
                    signal = _one_hot(channel, value, above[1]) if signal is None else signal
                    signal = _unpooled(module, signal, switches[j], _side(windows[j]))
            if isinstance(module, nn.Conv2d) and j:
                signal = _fill_outside(signal, windows[j], below, 0.0)
        return signal if signal is not None else _one_hot(channel, value, self.layers[-1].above[1])

    def _transposed_filter(self, j: int, signal: Tensor) -> Tensor:
        module = self.layers[j].module
        if self.fine[j] is None:
            rest = module.stride, 0, 0, module.groups, module.dilation
            return F.conv_transpose2d(signal, self.weights[j], None, *rest)
        stride, tall = module.stride[0], self.fine[j].shape[2]
        high, wide = ((n - 1) * stride + k for n, k in zip(signal.shape[2:], module.kernel_size))
        return F.pixel_shuffle(F.conv2d(signal, self.fine[j], padding=tall - 1), stride)[:, :, :high, :wide]


def _fine(module: nn.Conv2d, weight: Tensor) -> Tensor | None:
    """Strided filters onto the few maps of the pixels, as ordinary filters onto stride x stride as many maps.

    The phases of the strided grid side by side, a fraction of the time of the transposed convolution.
    """
    (k, s, _, d), other = sliding(module)
    if (k, s, _, d) != other or s == 1 or d > 1 or module.groups > 1 or module.in_channels > 4:
        return None
    taps = -(-k // s)
    whole = F.pad(weight, (0, taps * s - k, 0, taps * s - k)).unflatten(3, (taps, s)).unflatten(2, (taps, s))
    phases = whole.permute(1, 3, 5, 0, 2, 4).flatten(0, 2).flip(2, 3)  # (3 * s * s, C, taps, taps)
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
    """Each value at its switch, equal places added up: `switches.unpool` in one step, whatever the layout."""
    sizes, strides, _, dilation = ([window[n] for window in sliding(module)] for n in range(4))
    below = signal.new_empty(len(signal), *side, signal.shape[1]).permute(0, 3, 1, 2)
    signal, places = (part.contiguous(memory_format=torch.channels_last) for part in (signal, switches))
    adjoint = torch.ops.aten.max_pool2d_with_indices_backward
    return adjoint(signal, below, sizes, strides, [0, 0], dilation, False, places)


def _side(window) -> tuple[int, int]:
    return tuple(int(end[0] - first[0]) for first, end in window)


def _numbers(window) -> list[Tensor]:
    """The rows and the columns (units, n) of the windows."""
    return [first[:, None] + torch.arange(n) for (first, _), n in zip(window, _side(window))]


def _cut(planes: Tensor, image: Tensor, window) -> Tensor:
    """The windows of planes (N, H, W, C) as maps (units, C, h, w); beyond the border whatever stands on it."""
    size = planes.shape
    rows, columns = (number.clamp(0, side - 1) for number, side in zip(_numbers(window), size[1:3]))
    flat = (image[:, None, None] * size[1] + rows[:, :, None]) * size[2] + columns[:, None, :]
    found = planes.reshape(-1, size[3]).index_select(0, flat.flatten().to(planes.device))
    return found.view(*flat.shape, size[3]).permute(0, 3, 1, 2)


def _fill_outside(maps: Tensor, window, size, value: float) -> Tensor:
    """The maps with `value` wherever their window leaves the plane: there is the padding of the layer above."""
    rows, columns = ((n < 0) | (n >= side) for n, side in zip(_numbers(window), size[2:]))
    if not (rows.any() or columns.any()):
        return maps
    return maps.masked_fill_((rows[:, None, :, None] | columns[:, None, None, :]).to(maps.device), value)


# --- the plain way, and what is kept in a folder -------------------------------------------------------------


def _whole(net, load, layer, channel, units, options, bar) -> tuple[list, np.ndarray]:
    """The same by whole images, cut to the receptive field where it is known."""
    try:
        field = receptive_field(net, layer)
    except ValueError:
        field = None
    pictures, boxes = [], []
    for some in torch.arange(len(channel)).split(IMAGES):
        place = torch.stack([units.row[some], units.col[some]], 1)
        signal = project(net, load(units.image[some]), layer, channel[some], place, start=units.value[some], **options)
        for picture, (row, col) in zip(signal, place.tolist()):
            whole = (0, 0, *picture.shape[1:])
            boxes.append(clipped(field.box(row, col), whole[2:]) if field else whole)
            top, left, bottom, right = boxes[-1]
            pictures.append(picture[:, top:bottom, left:right])
        bar.update(len(some))
    return pictures, np.array(boxes, np.int64).reshape(-1, 4)


def _write(file, pictures: list[Tensor], boxes: np.ndarray):
    peak = torch.stack([picture.abs().max() for picture in pictures]).clamp(min=1e-30).cpu()
    flat = torch.cat([(picture.cpu() / top).half().flatten() for picture, top in zip(pictures, peak)])
    write_tensors(file, {"flat": flat, "peak": peak, "boxes": torch.from_numpy(boxes)}, {"file": file.name})


def _read(file) -> tuple[list[Tensor], np.ndarray] | None:
    """Pictures and boxes as kept; None if the file is missing or damaged."""
    try:
        tensors, about = read_tensors(file)
    except ValueError:
        return None
    if about.get("file") != file.name:
        return None
    sides = (boxes := tensors["boxes"].numpy())[:, 2:] - boxes[:, :2]
    colours = len(tensors["flat"]) // sides.prod(1).sum()
    parts = tensors["flat"].to(tensors["peak"].dtype).split((sides.prod(1) * colours).tolist())
    pictures = [part.view(-1, *side).mul_(top) for part, side, top in zip(parts, sides.tolist(), tensors["peak"])]
    return pictures, boxes
