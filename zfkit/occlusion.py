"""The occlusion sweep of ZF 2013, sec. 4.2 and Fig. 7: a grey square moved over the image.

By windows, wherever the network is a chain: what the square changes in a map is a window, not
the map (`windows`). Else plainly, a whole forward pass for each place. Both give the same.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from math import isqrt
from operator import index
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .chain import NotAChain
from .forward import evaluating, hooked, last_call, probabilities, run_to
from .geometry import resolve
from .places import CoarseToFine as CoarseToFine  # offered here too
from .places import Occluded, checked_places, grid, pair_of, tiles_of
from .windows import Windows, total

CHOICES = {"precision": ("exact", "bfloat16"), "method": ("auto", "windows", "plain")}
BATCH = 16  # whole images at once
SAMPLES = 8  # places at which an approximate sweep is measured


class OcclusionMaps(NamedTuple):
    """What the network says at each place of the occluder; tensors (rows, cols) of places."""

    probability: Tensor  # of the target class, in the type of the image
    label: Tensor  # the most probable class, int64
    activity: Tensor | None  # sum over the chosen feature map, in the type of the image
    method: str  # "windows", or "plain": a whole forward pass for each place
    error: float | None = None  # largest error in `probability` at eight places; None: exact


def occlusion_maps(
    net: nn.Module, normalized: Tensor, target: int, size, stride, fill=0.0, layer=None,
    channel=None, *, precision="exact", method="auto", progress=False,
) -> OcclusionMaps:  # fmt: skip
    """P(target), the most probable label and a map's activity for every place of the occluder.

    normalized: one image, float (1, 3, H, W), of any sides and as many colours as the network
    takes.    target: class.
    size, stride: of the occluder in pixels, a number or (rows, columns) from 1; it starts at
    row and column 0 and stays inside the image, so it is no larger. Source: ZF 2013, sec. 4.2.
    fill: what it shows, after normalisation: one number, one per colour, or an image (3, H, W)
    such as a blurred one.
    layer, channel: the map whose sum is the activity; channel None takes the one with the
    strongest unit.
    precision: "exact" (to rounding) or "bfloat16": the windows above the first layer in that
    type, faster on devices with units for it; `error` says what it cost.
    method: "windows" (chains only, as `project`'s mirror), "plain" (the reference) or "auto":
    windows wherever they apply. The result says which it was. Memory does not grow with the
    number of places.
    What the network gives is taken for the logits of a softmax, a single score for that of a
    sigmoid; for probabilities if it ends in a sigmoid or if over a batch of places no score is
    negative and each row's sum is 1 to rounding.
    Raises ValueError for an occluder that does not fit, and for an unknown class, layer,
    channel or option.

    >>> import torch, zfkit
    >>> net = zfkit.zfnet(10, size=80, fc=(16, 16))
    >>> image = torch.rand(1, 3, 80, 80)
    >>> maps = zfkit.occlusion_maps(net, image, target=3, size=20, stride=20, layer="conv5")
    >>> maps.probability.shape, maps.label.dtype, maps.activity.shape, maps.method
    (torch.Size([4, 4]), torch.int64, torch.Size([4, 4]), 'windows')
    """
    size, stride = pair_of("size", size), pair_of("stride", stride)
    _check(normalized, size, stride, precision=precision, method=method)
    places = grid(normalized.shape[2:], size, stride)
    rows, cols = (len(axis.unique()) for axis in places.T)
    with evaluating(net), torch.no_grad():
        sweep = _sweep(net, normalized, size, fill, layer, channel, method, precision)
        target = _within("class", target, sweep.classes)
        tiles = tiles_of(rows, cols, max(3, min(sweep.side, 1 + 32 // max(stride))))
        shown = tqdm(tiles, "occluder", unit="tile", disable=not progress)
        found = _collected(
            sweep, places, tiles, shown, lambda scores: (scores[:, target], scores.argmax(1))
        )
    maps = OcclusionMaps(*(f if f is None else f.view(rows, -1) for f in found), sweep.method)
    if precision == "exact":
        return maps
    some = torch.linspace(0, len(places) - 1, SAMPLES).long()
    exact = occluded(net, normalized, places[some], size, fill).probabilities[:, target]
    return maps._replace(error=(maps.probability.flatten()[some] - exact).abs().max().item())


def occluded(
    net: nn.Module,
    normalized: Tensor,
    places,
    size,
    fill=0.0,
    layer=None,
    channel=None,
    *,
    method="auto",
) -> Occluded:
    """The probabilities of all classes, and a map's activity, at chosen places of the occluder.

    places: integers (N, 2), N > 0, the occluder's first row and column; ValueError if it leaves
    the image there. The rest as in `occlusion_maps`, always exact. ZF 2013, sec. 4.2.

    >>> import torch, zfkit
    >>> net = zfkit.zfnet(10, size=80, fc=(16, 16))
    >>> occluded(net, torch.rand(1, 3, 80, 80), [(0, 0), (7, 60)], size=20).probabilities.shape
    torch.Size([2, 10])
    """
    return occluder(net, normalized, size, fill, layer, channel, method=method)(places)


def occluder(
    net: nn.Module,
    normalized: Tensor,
    size,
    fill=0.0,
    layer=None,
    channel=None,
    *,
    method="auto",
) -> Callable[..., Occluded]:
    """A function of places that gives what `occluded` gives; the clean image is run here, once.

    It keeps the clean maps; network and image must stay as they are. Arguments and errors as in
    `occluded`.
    """
    size = pair_of("size", size)
    _check(normalized, size, (1, 1), method=method)
    with evaluating(net), torch.no_grad():
        sweep = _sweep(net, normalized, size, fill, layer, channel, method, "exact")

    def look(places) -> Occluded:
        places = checked_places(places, torch.tensor(normalized.shape[2:]) - torch.tensor(size))
        with evaluating(net), torch.no_grad():
            tiles = torch.arange(len(places)).split(min(sweep.side, 8) ** 2)
            return Occluded(
                *_collected(sweep, places, tiles, tiles, lambda scores: (scores,)), sweep.method
            )

    return look


class _Sweep(NamedTuple):
    """One of the methods, ready to run."""

    method: str
    classes: int
    side: int  # of the largest tile of places, such that its maps find room
    run: Callable[
        [Iterable[Tensor]], Iterator[tuple]
    ]  # batches of places -> scores and activity, in their order
    last: Callable[[], str] = (
        str  # call of the network, asked for where the scores may be a sigmoid's
    )


def _sweep(net, image, *arguments) -> _Sweep:
    return _by_method(net, image, *arguments)._replace(
        last=cache(partial(last_call, net, image))
    )


def _by_method(net, image, size, fill, layer, channel, method, precision) -> _Sweep:
    picture, name = _picture(image, fill), None if layer is None else resolve(net, layer)
    choose = partial(_chosen, layer, channel)
    if method != "plain":
        try:
            low = torch.bfloat16 if precision == "bfloat16" else image.dtype
            windows = Windows(net, image, picture, size, name, choose, low)
            return _Sweep("windows", _classes(windows.logits), windows.side(), windows.run)
        except NotAChain as reason:
            if method == "windows" or precision != "exact":
                raise NotAChain(f"no sweep by windows: {reason}") from reason
    clean = run_to(net, image.clone(), {"", name} - {None})
    watch = None if layer is None else (name, choose(clean[name]))
    run = partial(_plainly, net, image, picture, size, watch)
    return _Sweep("plain", _classes(clean[""]), isqrt(BATCH), run)


def _collected(sweep, places, tiles, shown, keep) -> list:
    """What `keep` takes from the probabilities, and the activity, in the places' order."""
    said = sweep.run(places[tile] for tile in shown)
    parts = [(*keep(_probabilities(sweep, scores)), sums) for scores, sums in said]
    order = torch.cat(list(tiles)).argsort()
    return [
        None if field[0] is None else torch.cat(field)[order]
        for field in zip(*parts, strict=True)
    ]


def _probabilities(sweep, scores) -> Tensor:
    inside = bool(((scores >= 0) & (scores <= 1)).all())
    return probabilities(scores, sweep.last() if inside else "")


# --- plainly: a forward pass for each place ---------------------------------------------------


def _plainly(net, image, picture, size, watch, batches) -> Iterator[tuple]:
    for places in (some for batch in batches for some in batch.split(BATCH)):
        covered, sums = image.repeat(len(places), 1, 1, 1), []
        for one, (y, x) in zip(covered, places.tolist(), strict=True):
            one[:, y : y + size[0], x : x + size[1]] = picture[
                :, y : y + size[0], x : x + size[1]
            ]
        watched = [net.get_submodule(watch[0])] if watch else []
        with hooked(watched, lambda _, __, maps, sums=sums: sums.append(total(maps, watch[1]))):
            logits = run_to(net, covered, {""})[""]
        yield logits, sums[0] if sums else None


# --- what to follow, and bad input ------------------------------------------------------------


def _chosen(layer, channel, clean: Tensor) -> int:
    """The channel whose activity is followed, by the clean maps of its layer."""
    maps = clean[0]
    if channel is None:
        channel = maps.reshape(len(maps), -1).amax(1).argmax().item()
    return _within(f"channel of {layer!r} is", channel, len(maps))


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
        raise ValueError(
            f"the network gives {shape or type(logits).__name__}, not class scores (N, classes)"
        )
    return shape[1]


def _picture(image, fill) -> Tensor:
    """What the occluder shows, (C, H, W)."""
    shown, shape = torch.as_tensor(fill).to(image), image.shape[1:]
    if shown.shape[-3:] == shape and shown.numel() == shape.numel():
        return shown.reshape(shape)
    if shown.numel() not in (1, shape[0]):
        raise ValueError(
            f"fill must hold 1 number, {shape[0]} or an image {tuple(shape)},"
            f" not {tuple(shown.shape)}"
        )
    return shown.reshape(-1, 1, 1).expand(shape)


def _check(normalized, size, stride, **options):
    for option, value in options.items():
        if value not in CHOICES[option]:
            raise ValueError(f"unknown {option} {value!r}; valid: {', '.join(CHOICES[option])}")
    if (options["method"], options.get("precision")) == ("plain", "bfloat16"):
        raise ValueError("precision 'bfloat16' is for method 'windows', not 'plain'")
    if not isinstance(normalized, Tensor) or normalized.dim() != 4 or len(normalized) != 1:
        raise ValueError(
            f"one image (1, 3, H, W) is needed, not {tuple(getattr(normalized, 'shape', ()))}"
        )
    sides = tuple(normalized.shape[2:])
    if not all(1 <= s <= n for s, n in zip(size, sides, strict=True)) or min(stride) < 1:
        size, stride = (pair[0] if pair[0] == pair[1] else pair for pair in (size, stride))
        ask = f"no place for a square of {size} at stride {stride}"
        ask += f" on {sides[0]}x{sides[1]} pixels"
        raise ValueError(f"{ask}; valid: sizes 1 to the image's, strides from 1")
