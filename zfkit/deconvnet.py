"""The deconvnet of ZF 2013, sec. 2.1: one unit's activation sent back to the pixels, by two routes.

The mirror walks down a chain of layers in explicit steps: unpool, rectify, transposed filter. The gradient
route is a backward pass in which every ReLU rectifies the signal; it also takes networks with branches.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .forward import Calls, evaluating, hooked, module_at_work, place, run_to
from .geometry import resolve
from .gradient import gradient_route
from .normalization import ContrastNormalization
from .switches import OVERLAPS, pool_with_switches, unpool

CHUNK = 32  # images at once, which bounds the memory
CHOICES = {
    "overlap": OVERLAPS,
    "lrn": ("skip", "derivative"),
    "route": ("auto", "mirror", "gradient"),
    "rule": ("deconvnet", "guided", "gradient"),
}


class NotAChain(ValueError):
    """The mirror cannot walk down this network: it branches, reuses a module or holds an unknown one."""


def project(
    net: nn.Module,
    normalized: Tensor,
    layer: str,
    channel,
    position=None,
    *,
    overlap="sum",
    lrn="skip",
    route="auto",
    start=None,
    rule="deconvnet",
) -> Tensor:
    """The pictures (N, 3, H, W), signed, that one unit of `layer` in each image projects to.

    normalized: float (N, 3, H, W).    layer: a stage of our networks or any module's qualified name; of a
    module used more than once the first use.    channel: one for all or one per image.
    position: (row, col), for all or one per image; None takes each image's strongest, of equals the first.
    start: value at the unit, for all or one per image; None takes the activation itself.
    overlap: "sum" or "max", see `switches.unpool`.    lrn: "skip" passes contrast normalisation straight
    through, as the authors did; "derivative" differentiates it.
    route: "mirror" (explicit steps, chains only), "gradient" (autograd with the ReLU's backward replaced: where
    branches meet again their signals add up, unrectified) or "auto": the mirror wherever it applies.
    rule: what a ReLU does on the way down; "deconvnet" rectifies the signal, "gradient" masks it by the
    forward pass, "guided" does both. The last two always take the gradient route.
    The network is evaluated in eval mode and left as it was. Biases play no part; pixels are not rectified.
    Raises ValueError for an unknown layer or option, a unit outside the layer, or a network that neither
    route can take (functional ReLU, another activation); NotAChain where the mirror alone cannot.
    """
    _check(normalized, overlap=overlap, lrn=lrn, route=route, rule=rule)
    if rule != "deconvnet" and route == "mirror":
        raise ValueError(f"rule {rule!r} needs the forward pass at every ReLU: use route='gradient'")
    name, count, pictures = resolve(net, layer), len(normalized), []
    unit = [_for_each("channel", channel, count), _for_each("position", position, count, (2,))]
    unit.append(_for_each("start", start, count))
    walk = {"mirror": _mirror, "gradient": gradient_route, "auto": _mirror_or_gradient}[route]
    walk = walk if rule == "deconvnet" else partial(gradient_route, rule=rule)
    with torch.inference_mode(False), evaluating(net):
        for some in (slice(first, first + CHUNK) for first in range(0, count, CHUNK)):
            seed = partial(_seed, layer, *(wish if wish is None else wish[some] for wish in unit))
            pictures.append(walk(net, normalized[some].detach().clone(), name, seed, overlap, lrn))
    return torch.cat(pictures)


def feature_maps(net: nn.Module, normalized: Tensor, layers) -> dict[str, Tensor]:
    """The maps of each layer, {layer: (N, C, h, w)}, or (N, units) behind the Flatten; in eval mode.

    Of a module used more than once the first use. Raises ValueError for a layer that the network lacks.
    """
    _check(normalized)
    names = {layer: resolve(net, layer) for layer in layers}
    with evaluating(net), torch.no_grad():
        chunks = [run_to(net, images, set(names.values())) for images in normalized.split(CHUNK)]
    return {layer: torch.cat([found[name] for found in chunks]) for layer, name in names.items()}


# --- the mirror: one step per layer -------------------------------------------------------------------------


class Step(NamedTuple):
    """A layer of the way up, with what the way down needs to know of it."""

    name: str
    module: nn.Module
    size: torch.Size  # of the map below: the layer above does not determine it
    kept: Tensor | None  # a pool's switches, or the maps that entered a contrast normalisation


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
    match module := step.module:
        case nn.Conv2d(padding_mode="zeros", padding=tuple()):
            return transposed_filter(signal, module, step.size)
        case nn.ReLU():
            return rectify(signal)
        case nn.MaxPool2d():
            return unpool(signal, step.kept, step.size[2:], overlap)
        case nn.LocalResponseNorm():
            return signal if lrn == "skip" else _adjoint(module, step.kept, signal)
        case nn.BatchNorm1d() | nn.BatchNorm2d() if module.track_running_stats:
            return signal * folded_scale(module).view(-1, *[1] * (signal.dim() - 2))
        case nn.AvgPool2d() | nn.AdaptiveAvgPool2d():
            return _adjoint(module, signal.new_zeros(step.size), signal)
        case nn.Linear():
            return signal @ module.weight
        case nn.Flatten() | nn.Dropout() | nn.Dropout2d() | nn.Identity():
            return signal.reshape(step.size)
    raise NotAChain(f"the mirror has no step for module {step.name!r}, {module}")


def rectify(signal: Tensor) -> Tensor:
    """The positive part of the signal itself; the forward pass has no say here."""
    return signal.clamp(min=0)


def transposed_filter(signal: Tensor, conv: nn.Conv2d, size: torch.Size) -> Tensor:
    """The signal filtered with the transposed filters of `conv`, without bias, to maps of `size`."""
    taps = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    reached = [
        (n - 1) * s - 2 * p + t for n, s, p, t in zip(signal.shape[2:], conv.stride, conv.padding, taps, strict=True)
    ]
    rest = [below - most for below, most in zip(size[2:], reached, strict=True)]  # rows that no filter read
    return F.conv_transpose2d(signal, conv.weight, None, conv.stride, conv.padding, rest, conv.groups, conv.dilation)


def folded_scale(norm: nn.BatchNorm2d) -> Tensor:
    """Factor per channel that batch normalisation puts on its convolution's filters, sign included."""
    scale = (norm.running_var + norm.eps).rsqrt()
    return scale if norm.weight is None else scale * norm.weight


def _adjoint(function, below: Tensor, signal: Tensor) -> Tensor:
    """The signal times the transposed derivative of `function` at the maps `below`."""
    with torch.enable_grad():
        below = below.detach().requires_grad_()
        return torch.autograd.grad(function(below), below, signal)[0]


def steps_to(net: nn.Module, images: Tensor, name: str) -> tuple[list[Step], Tensor]:
    """The layers from the pixels up to module `name` ("": the whole network), and its maps.

    Raises NotAChain unless each layer takes what the last gave.
    """
    steps, top = [], images
    names = {module: key for key, module in net.named_modules()}

    def climb(label, module, below, above):
        nonlocal top
        if below is not top or any(module is step.module for step in steps):
            raise NotAChain(f"the mirror needs a chain: {label!r} is used twice or takes an earlier layer's output")
        steps.append(Step(label, module, below.shape, _kept(module, below)))
        top = above

    def between(function, arguments, named):
        result = function(*arguments, **named)
        tensors = [one for one in (result if isinstance(result, tuple) else [result]) if isinstance(one, Tensor)]
        if not tensors or _is_leaf(module_at_work()):
            return result
        if function.__name__ not in ("flatten", "view", "reshape"):
            raise NotAChain(f"the mirror knows modules only, not {function.__name__}() {place(names)}")
        climb(f"{function.__name__}()", nn.Flatten(), arguments[0], result)
        return result

    def after(module, inputs, output):
        if not type(module).__module__.startswith("torch.nn.") and type(module) is not ContrastNormalization:
            raise NotAChain(f"the mirror has no step for module {names[module]!r}, {type(module).__name__}")
        climb(names[module], module, inputs[0], output)

    with hooked(filter(_is_leaf, names), after), Calls(between):
        maps = run_to(net, images, {name})[name]
    return steps, maps


def _is_leaf(module) -> bool:
    return not any(module.children())


def _kept(module, below) -> Tensor | None:
    if isinstance(module, nn.MaxPool2d):
        geometry = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
        return pool_with_switches(below, *geometry)[1]
    return below if isinstance(module, nn.LocalResponseNorm) else None


# --- the unit to start from, and bad input ------------------------------------------------------------------


def _seed(layer, channel, position, start, maps) -> Tensor:
    """Zero maps but for the chosen unit of each image, which holds its start value."""
    if maps.dim() not in (2, 4):
        raise ValueError(f"layer {layer!r} gives {tuple(maps.shape)}, not (N, C, h, w) or (N, units)")
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
    seed[images, channel, place // width, place % width] = own[images, place] if start is None else start.to(own)
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
        good = values.shape == (count, *shape) and values.dtype not in (torch.bool, torch.complex64)
    except (TypeError, ValueError, RuntimeError):
        good = False
    if not good or (what != "start" and values.is_floating_point()):
        raise ValueError(f"{what} must be {kind} for all or for each of {count} images, not {wish!r}")
    return values


def _check(normalized, **options):
    for option, value in options.items():
        if value not in CHOICES[option]:
            raise ValueError(f"unknown {option} {value!r}; valid: {', '.join(CHOICES[option])}")
    tensor = isinstance(normalized, Tensor)
    kind, size = (normalized.dtype, tuple(normalized.shape)) if tensor else (type(normalized).__name__, ())
    if not tensor or not kind.is_floating_point or len(size) != 4 or not size[0]:
        raise ValueError(f"normalized must be a float tensor (N, 3, H, W), N > 0, not {kind} {size or ''}")
