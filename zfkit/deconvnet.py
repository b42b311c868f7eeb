"""The deconvnet of ZF 2013, sec. 2.1: a unit's activation sent back to the pixels, two ways.

The mirror walks down a chain of layers in explicit steps: unpool, rectify, transposed filter.
The gradient route is a backward pass in which every ReLU rectifies the signal; it also takes
networks with branches.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .chain import NotAChain, Step, kind, sliding, steps_to
from .forward import CHUNK, check_images, evaluating
from .geometry import needed, resolve
from .gradient import gradient_route
from .switches import OVERLAPS, unpool

CHOICES = {
    "overlap": OVERLAPS,
    "lrn": ("skip", "derivative"),
    "route": ("auto", "mirror", "gradient"),
    "rule": ("deconvnet", "guided", "gradient"),
}


def project(
    net: nn.Module, normalized: Tensor, layer: str, channel, position=None, *, overlap="sum",
    lrn="skip", route="auto", start=None, rule="deconvnet",
) -> Tensor:  # fmt: skip
    """The pictures (N, 3, H, W), signed, that one unit of `layer` in each image projects to.

    normalized: float (N, 3, H, W).    layer: a stage of our networks or any module's qualified
    name; of a module used more than once the first use.    channel: one for all or one per
    image.
    position: (row, col), for all or one per image; None takes each image's strongest, of equals
    the first.
    start: value at the unit, for all or one per image; None takes the activation itself.
    overlap: "sum" or "max", see `switches.unpool`.    lrn: "skip" passes contrast normalisation
    straight through, as the authors did; "derivative" differentiates it.
    route: "mirror" (explicit steps, chains only), "gradient" (autograd with the ReLU's backward
    replaced: where branches meet again their signals add up, unrectified) or "auto": the mirror
    wherever it applies.
    rule: what a ReLU does on the way down; "deconvnet" rectifies the signal, "gradient" masks
    it by the forward pass, "guided" does both. The last two always take the gradient route.
    The network is evaluated in eval mode and left as it was. Biases play no part; pixels are
    not rectified. Maxima that are equal up to rounding, as in a flat region, count as equal,
    and of equals the first in reading order has the switch (`switches.pool_with_switches`,
    which says where not): else batch, memory format, threads and processor would decide.
    Adaptive max pooling leaves ties to torch.
    Raises ValueError for an unknown layer or option, a unit outside the layer, or a network
    that neither route can take (functional ReLU, another activation); NotAChain where the
    mirror alone cannot.
    Source: ZF 2013, sec. 2.1.

    >>> import torch, zfkit
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(1, 1, (1, 2), bias=False), nn.ReLU(), nn.MaxPool2d(2))
    >>> net[0].weight.data = torch.tensor([[[[1.0, -2.0]]]])
    >>> image = torch.tensor([[[[0.0, 3.0, 0.0], [0.0, 5.0, 1.0]]]])
    >>> zfkit.project(net, image, "2", channel=0)  # the maximum, 3, goes to row 0, column 1
    tensor([[[[ 0.,  3., -6.],
              [ 0.,  0.,  0.]]]])
    """
    _check(normalized, overlap=overlap, lrn=lrn, route=route, rule=rule)
    if rule != "deconvnet" and route == "mirror":
        raise ValueError(
            f"rule {rule!r} needs the forward pass at every ReLU: use route='gradient'"
        )
    name, count, pictures = resolve(net, layer), len(normalized), []
    asked = ("channel", channel, ()), ("position", position, (2,)), ("start", start, ())
    unit = [_for_each(what, wish, count, shape) for what, wish, shape in asked]
    walk = {"mirror": _mirror, "gradient": gradient_route, "auto": _mirror_or_gradient}[route]
    walk = walk if rule == "deconvnet" else partial(gradient_route, rule=rule)
    with torch.inference_mode(False), evaluating(net):
        for some in (slice(first, first + CHUNK) for first in range(0, count, CHUNK)):
            wishes = (wish if wish is None else wish[some] for wish in unit)
            images, seed = normalized[some].detach().clone(), partial(_seed, layer, *wishes)
            pictures.append(walk(net, images, name, seed, overlap, lrn))
    return torch.cat(pictures)


# --- the mirror: one step per layer -----------------------------------------------------------


def _mirror(net, images, name, seed, overlap, lrn) -> Tensor:
    with torch.no_grad():
        steps, maps = steps_to(net, images, name)
        signal = seed(maps)
        for step in reversed(steps):
            signal = _down(step, signal, overlap, lrn)
    return signal


def _mirror_or_gradient(*walk) -> Tensor:
    try:
        return _mirror(*walk)
    except NotAChain:
        return gradient_route(*walk)


def _down(step: Step, signal: Tensor, overlap: str, lrn: str) -> Tensor:
    """The signal below a layer, given the signal above it."""
    module = step.module
    match kind(module).down:
        case "filter":
            return transposed_filter(signal, module, step.below)
        case "rectify":
            return rectify(signal)
        case "unpool":
            return unpool(signal, step.kept, step.below[2:], overlap)
        case "contrast":
            return signal if lrn == "skip" else _adjoint(module, step.kept, signal)
        case "scale":
            return signal * folded_scale(module).view(-1, *[1] * (signal.dim() - 2))
        case "mean":
            return _adjoint(module, signal.new_zeros(step.below), signal)
        case "linear":
            return signal @ module.weight
        case "reshape":
            return signal.reshape(step.below)
    raise NotAChain(f"the mirror has no step for module {step.name!r}, {module}")


def rectify(signal: Tensor) -> Tensor:
    """The positive part of the signal itself; the forward pass has no say here."""
    return signal.clamp(min=0)


def transposed_filter(signal: Tensor, conv: nn.Conv2d, size: torch.Size) -> Tensor:
    """The signal through the transposed filters of `conv`, without bias, to maps of `size`."""
    axes, rest, sides = sliding(conv), [], tuple(size[2:])
    for units, side, (taps, stride, padding, dilation) in zip(signal.shape[2:], sides, axes):
        first, end = needed((0, units), taps, stride, padding, dilation)
        rest.append(max(0, side - (end - first - 2 * padding)))  # rows that no filter read
    padding = [axis[2] for axis in axes]
    whole = F.conv_transpose2d(
        signal, conv.weight, None, conv.stride, padding, rest, conv.groups, conv.dilation
    )
    return whole[
        :, :, : sides[0], : sides[1]
    ]  # padding="same" may add a row more behind than in front


def folded_scale(norm: nn.BatchNorm2d) -> Tensor:
    """Factor per channel that batch normalisation puts on its filters, sign included."""
    scale = (norm.running_var + norm.eps).rsqrt()
    return scale if norm.weight is None else scale * norm.weight


def _adjoint(function, below: Tensor, signal: Tensor) -> Tensor:
    """The signal times the transposed derivative of `function` at the maps `below`."""
    with torch.enable_grad():
        below = below.detach().requires_grad_()
        return torch.autograd.grad(function(below), below, signal)[0]


# --- the unit to start from, and bad input ----------------------------------------------------


def _seed(layer, channel, position, start, maps) -> Tensor:
    """Zero maps but for the chosen unit of each image, which holds its start value."""
    if maps.dim() not in (2, 4):
        raise ValueError(
            f"layer {layer!r} gives {tuple(maps.shape)}, not (N, C, h, w) or (N, units)"
        )
    planes = maps.detach().reshape(*maps.shape, *[1] * (4 - maps.dim()))
    images, (channels, height, width) = torch.arange(len(planes)), planes.shape[1:]
    _within(channel, channels, f"channel of {layer!r}")
    own = planes[images, channel].flatten(1)
    if position is None:
        place = own.argmax(1)  # of equals the first
    else:
        _within(position[:, 0], height, f"row of {layer!r}")
        _within(position[:, 1], width, f"column of {layer!r}")
        place = (position[:, 0] * width + position[:, 1]).to(own.device)
    seed = torch.zeros_like(planes)
    seed[images, channel, place // width, place % width] = (
        own[images, place] if start is None else start.to(own)
    )
    return seed.reshape(maps.shape)


def _within(numbers, count, what):
    if len(wrong := numbers[(numbers < 0) | (numbers >= count)]):
        raise ValueError(f"no {what} is {wrong[0]}; valid: 0 to {count - 1}")


def _for_each(what, wish, count, shape=()) -> Tensor | None:
    """One value for all, or one per image, as a tensor of `count` of them; None stays None."""
    if wish is None and what != "channel":
        return None
    kind = {"channel": "an integer", "position": "a pair (row, col)", "start": "a number"}[what]
    try:
        values = torch.as_tensor(wish).cpu()
        values = values.expand(count, *shape) if values.shape == shape else values
        good = values.shape == (count, *shape) and values.dtype not in (
            torch.bool,
            torch.complex64,
        )
    except (TypeError, ValueError, RuntimeError):
        good = False
    if not good or (what != "start" and values.is_floating_point()):
        raise ValueError(
            f"{what} must be {kind} for all or for each of {count} images, not {wish!r}"
        )
    return values


def _check(normalized, **options):
    for option, value in options.items():
        if value not in CHOICES[option]:
            raise ValueError(f"unknown {option} {value!r}; valid: {', '.join(CHOICES[option])}")
    check_images(normalized)
