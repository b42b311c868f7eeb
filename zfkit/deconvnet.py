"""The deconvnet of ZF 2013, sec. 2.1: one unit's activation sent back to the pixels, by two routes.

The mirror walks down a chain of layers in explicit steps: unpool, rectify, transposed filter. The gradient
route is a backward pass in which every ReLU rectifies the signal; it also takes networks with branches.
"""

import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .geometry import resolve
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
    name = resolve(net, layer)
    walk = {"mirror": _mirror, "gradient": _gradient_route, "auto": _mirror_or_gradient}[route]
    if rule != "deconvnet":
        walk = partial(_gradient_route, rule=rule)
    wishes = [("channel", channel, 0), ("position", position, 1), ("start", start, 0)]
    wishes = {what: _per_image(what, wish, len(normalized), dim) for what, wish, dim in wishes}
    pictures = []
    with torch.inference_mode(False), _evaluating(net):
        for first in range(0, len(normalized), CHUNK):
            some = slice(first, first + CHUNK)
            pick = partial(
                _seed, layer=layer, **{k: None if v is None else v[some] for k, v in wishes.items()}
            )
            pictures.append(
                walk(net, normalized[some].detach().clone(), name, pick, overlap=overlap, lrn=lrn)
            )
    return torch.cat(pictures)


def feature_maps(net: nn.Module, normalized: Tensor, layers) -> dict[str, Tensor]:
    """The maps of each layer, {layer: (N, C, h, w)}, or (N, units) behind the Flatten; in eval mode.

    Of a module used more than once the first use. Raises ValueError for a layer that the network lacks.
    """
    _check(normalized)
    names = {layer: resolve(net, layer) for layer in layers}
    batches = []
    with _evaluating(net), torch.no_grad():
        for images in normalized.split(CHUNK):
            found = _forward(net, images, set(names.values()))
            batches.append([found[name] for name in names.values()])
    return dict(zip(names, map(torch.cat, zip(*batches, strict=True)), strict=True))


# --- the mirror: one step per layer -------------------------------------------------------------------------


class Step(NamedTuple):
    """A layer of the way up, with what the way down needs to know of it."""

    module: nn.Module
    size: torch.Size  # of the map below: the layer above does not determine it
    kept: Tensor | None  # a pool's switches, or the maps that entered a contrast normalisation


def _down(step: Step, signal: Tensor, overlap: str, lrn: str) -> Tensor:
    """The signal below a layer, given the signal above it."""
    match module := step.module:
        case nn.Conv2d():
            return transposed_filter(signal, module, step.size)
        case nn.ReLU():
            return rectify(signal)
        case nn.MaxPool2d():
            return unpool(signal, step.kept, step.size[2:], overlap)
        case nn.LocalResponseNorm():
            return signal if lrn == "skip" else _adjoint(module, step.kept, signal)
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return signal * _folded_scale(module).view(-1, *[1] * (signal.dim() - 2))
        case nn.AvgPool2d() | nn.AdaptiveAvgPool2d():
            return _adjoint(module, signal.new_zeros(step.size), signal)
        case nn.Linear():
            return signal @ module.weight
        case _:  # Flatten, Dropout and Identity do nothing but change the shape
            return signal.reshape(step.size)


def rectify(signal: Tensor) -> Tensor:
    """The positive part of the signal itself; the forward pass has no say here."""
    return signal.clamp(min=0)


def transposed_filter(signal: Tensor, conv: nn.Conv2d, size: torch.Size) -> Tensor:
    """The signal filtered with the transposed filters of `conv`, without bias, to maps of `size`."""
    taps = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    reached = [
        (n - 1) * s - 2 * p + t
        for n, s, p, t in zip(signal.shape[2:], conv.stride, conv.padding, taps, strict=True)
    ]
    rest = [below - most for below, most in zip(size[2:], reached, strict=True)]  # rows that no filter read
    return F.conv_transpose2d(
        signal, conv.weight, None, conv.stride, conv.padding, rest, conv.groups, conv.dilation
    )


def _folded_scale(norm: nn.BatchNorm2d) -> Tensor:
    """Factor per channel that batch normalisation puts on its convolution's filters, sign included."""
    scale = (norm.running_var + norm.eps).rsqrt()
    return scale if norm.weight is None else scale * norm.weight


def _adjoint(function, below: Tensor, signal: Tensor) -> Tensor:
    """The signal times the transposed derivative of `function` at the maps `below`."""
    with torch.enable_grad():
        below = below.detach().requires_grad_()
        return torch.autograd.grad(function(below), below, signal)[0]


SHAPES_ONLY = (nn.Flatten, nn.Dropout, nn.Dropout2d, nn.Identity)
KNOWN = (nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.LocalResponseNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.AvgPool2d)
KNOWN += (nn.AdaptiveAvgPool2d, nn.Linear, *SHAPES_ONLY)
RESHAPES = ("flatten", "view", "reshape")


def _mirror(net, images, name, pick, *, overlap, lrn) -> Tensor:
    with torch.no_grad():
        steps, maps = _steps(net, images, name)
        signal = pick(maps)
        for step in reversed(steps):
            signal = _down(step, signal, overlap, lrn)
    return signal


def _mirror_or_gradient(net, images, name, pick, **options) -> Tensor:
    try:
        return _mirror(net, images, name, pick, **options)
    except NotAChain:
        return _gradient_route(net, images, name, pick, **options)


def _steps(net, images, name) -> tuple[list[Step], Tensor]:
    """The layers from the pixels up to `name`, and its maps; NotAChain unless each takes what the last gave."""
    steps, top = [], images
    names = {module: key for key, module in net.named_modules()}

    def climb(module, below, above, label):
        nonlocal top
        if below is not top:
            raise NotAChain(f"the mirror needs a chain, but {label} takes an earlier layer's output")
        steps.append(Step(module, below.shape, _kept(module, below)))
        top = above

    def after(module, inputs, output):
        label = f"module {names[module]!r}"
        if reason := _no_mirror(module, output):
            raise NotAChain(f"the mirror cannot pass {label}: {reason}")
        if any(module is step.module for step in steps):
            raise NotAChain(f"the mirror needs a chain, but {label} is used more than once")
        climb(module, inputs[0], output, label)

    def between(function, arguments, result):
        if _is_leaf(_module_at_work()) or not _holds_tensor(result):
            return
        if function not in ("flatten", "view", "reshape"):
            raise NotAChain(
                f"the mirror knows modules only, but {function}() stands between them, {_place()}"
            )
        climb(nn.Flatten(), arguments[0], result, f"{function}()")

    with _hooked(filter(_is_leaf, net.modules()), after), _Watch(between):
        maps = _forward(net, images, {name})[name]
    return steps, maps


def _kept(module, below) -> Tensor | None:
    if isinstance(module, nn.MaxPool2d):
        geometry = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
        return pool_with_switches(below, *geometry)[1]
    return below if isinstance(module, nn.LocalResponseNorm) else None


def _no_mirror(module, output) -> str | None:
    """Why the mirror has no step for a module; None if it has."""
    if type(module) not in KNOWN:
        return f"{type(module).__name__} is not one of {', '.join(known.__name__ for known in KNOWN)}"
    if isinstance(module, nn.Conv2d) and (isinstance(module.padding, str) or module.padding_mode != "zeros"):
        return f"padding {module.padding!r} of mode {module.padding_mode!r}"
    if getattr(module, "running_var", 0) is None:
        return "it normalises by the batch at hand"
    return None if isinstance(output, Tensor) else "it returns more than one tensor"


# --- the gradient route: autograd with another backward pass ------------------------------------------------

ACTIVATIONS = set(
    "relu relu_ relu6 rrelu leaky_relu prelu elu elu_ selu celu gelu silu mish softplus softsign softmax tanh"
    " log_softmax hardtanh hardtanh_ hardsigmoid hardswish hardshrink softshrink tanhshrink threshold threshold_"
    " sigmoid sigmoid_ tanh_ logsigmoid glu clamp clamp_ clamp_min clamp_min_ clip clip_ maximum minimum where"
    " exp scaled_dot_product_attention multi_head_attention_forward".split()
)


def _gradient_route(net, images, name, pick, *, overlap, lrn, rule="deconvnet") -> Tensor:
    refused = set() if rule == "gradient" else set(ACTIVATIONS)
    refused |= {"local_response_norm"} if lrn == "skip" else set()
    refused |= {"max_pool2d", "max_pool2d_with_indices"} if overlap == "max" else set()
    with _backward_rules(net, rule, overlap, lrn) as ruled, torch.enable_grad():

        def notice(function, arguments, result):
            if function in refused and _module_at_work() not in ruled:
                raise ValueError(
                    f"no deconvnet rule for {function}() {_place(net)}; known: the module nn.ReLU"
                )

        images.requires_grad_()
        with _Watch(notice):
            maps = _forward(net, images.clone(), {name})[name]  # a clone: the first layer may work in place
        return torch.autograd.grad(maps, images, pick(maps))[0]


class _OwnBackward(torch.autograd.Function):
    """A layer's own forward pass with a backward pass of our choice."""

    @staticmethod
    def forward(ctx, maps, layer):
        above, ctx.down = layer(maps)
        if above is maps:
            ctx.mark_dirty(maps)
        return above

    @staticmethod
    def backward(ctx, signal):
        return ctx.down(signal), None


def _relu(module, rule, maps):
    above = F.relu(maps, module.inplace)
    if rule == "deconvnet":
        return above, lambda signal: signal.clamp(min=0)
    active = above > 0
    return above, lambda signal: signal.clamp(min=0) * active


def _lrn(forward, maps):
    return forward(maps), lambda signal: signal


def _max_pool(module, maps):
    geometry = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
    pooled, switches = pool_with_switches(maps, *geometry)
    return pooled, lambda signal: unpool(signal, switches, maps.shape[2:], "max")


@contextmanager
def _backward_rules(net, rule, overlap, lrn):
    """While it lasts, the network's modules walk down by our rules; gives the set of those changed."""
    layers = {}
    for module in net.modules():
        if type(module).forward is nn.ReLU.forward and rule != "gradient":
            layers[module] = partial(_relu, module, rule)
        elif isinstance(module, nn.LocalResponseNorm) and lrn == "skip":
            layers[module] = partial(_lrn, module.forward)
        elif isinstance(module, nn.MaxPool2d) and overlap == "max":
            layers[module] = partial(_max_pool, module)
    before = {module: vars(module).get("forward") for module in layers}
    try:
        for module, layer in layers.items():
            module.forward = partial(_own_backward, layer)
        yield layers.keys()
    finally:
        for module, forward in before.items():
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward


def _own_backward(layer, maps):
    return _OwnBackward.apply(maps, layer)


# --- what both routes need ----------------------------------------------------------------------------------


def _seed(maps, layer, channel, position, start) -> Tensor:
    """Zero maps but for the chosen unit of each image, which holds its start value."""
    if maps.dim() not in (2, 4):
        raise ValueError(f"layer {layer!r} gives {tuple(maps.shape)}, not (N, C, h, w) or (N, units)")
    planes = maps.detach().view(*maps.shape, 1, 1) if maps.dim() == 2 else maps.detach()
    _, channels, height, width = planes.shape
    _within(channel, channels, f"channel of {layer!r}")
    images, channel = torch.arange(len(planes)), channel.to(planes.device)
    plane = planes[images, channel].flatten(1)
    if position is None:
        place = plane.argmax(1)  # of equals the first
    else:
        _within(position[:, 0], height, f"row of {layer!r}")
        _within(position[:, 1], width, f"column of {layer!r}")
        place = (position[:, 0] * width + position[:, 1]).to(planes.device)
    seed = torch.zeros_like(planes)
    seed[images, channel, place // width, place % width] = (
        plane[images, place] if start is None else start.to(plane)
    )
    return seed.view(maps.shape)


def _within(numbers, count, what):
    wrong = numbers[(numbers < 0) | (numbers >= count)]
    if len(wrong):
        raise ValueError(f"no {what} is {wrong[0]}; valid: 0 to {count - 1}")


def _per_image(what, wish, count, dim) -> Tensor | None:
    """One value for all, or one per image, as a tensor of `count` of them."""
    if wish is None and what != "channel":
        return None
    try:
        values = torch.as_tensor(wish).cpu()
    except (TypeError, ValueError, RuntimeError):
        values = torch.empty(0, 0, 0)
    values = values.expand(count, *values.shape) if values.dim() == dim else values
    if values.shape != (count, *[2] * dim) or (
        what != "start" and values.dtype not in (torch.int64, torch.int32)
    ):
        kind = {"channel": "an integer", "position": "a pair (row, col)", "start": "a number"}[what]
        raise ValueError(f"{what} must be {kind} for all or for each of {count} images, not {wish!r}")
    return values


def _check(normalized, **options):
    if not isinstance(normalized, Tensor) or not normalized.is_floating_point() or normalized.dim() != 4:
        given = (
            (normalized.dtype, tuple(normalized.shape)) if hasattr(normalized, "shape") else type(normalized)
        )
        raise ValueError(f"normalized must be a float tensor (N, 3, H, W), not {given}")
    if not len(normalized):
        raise ValueError(f"no images: normalized is {tuple(normalized.shape)}")
    for option, value in options.items():
        if value not in CHOICES[option]:
            raise ValueError(f"unknown {option} {value!r}; valid: {', '.join(CHOICES[option])}")


@contextmanager
def _evaluating(net):
    """Eval mode while it lasts, then each module's own mode again."""
    modes = {module: module.training for module in net.modules()}
    for module in modes:
        if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
            raise ValueError(f"a compiled {type(module).__name__} hides its layers: give the plain network")
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class _Reached(Exception):
    """The forward pass has come as far as it is needed."""


def _forward(net, images, names) -> dict[str, Tensor]:
    """The outputs of the named modules at their first use; what lies behind the last of them is not run."""
    found = {}

    def keep(name, module, inputs, output):
        # of several, all but the last could still be changed by a layer that works in place
        found.setdefault(name, output.clone() if len(names) > 1 else output)
        if len(found) == len(names):
            raise _Reached

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(_hooked([net.get_submodule(name)], partial(keep, name)))
        try:
            net(images)
        except _Reached:
            return found
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"no forward pass with {images.dtype} {tuple(images.shape)}: {reason}"
            ) from error
    raise ValueError(f"a forward pass does not run layer {min(names - set(found))!r}")


@contextmanager
def _hooked(modules, hook):
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Watch(TorchFunctionMode):
    """Tells `notice` of every torch function that a forward pass calls."""

    def __init__(self, notice):
        super().__init__()
        self.notice = notice

    def __torch_function__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        self.notice(getattr(function, "__name__", str(function)), arguments, result)
        return result


def _frames():
    frame = sys._getframe(1)
    while frame := frame.f_back:
        yield frame


def _module_at_work() -> nn.Module | None:
    """The innermost module whose forward pass is running."""
    selves = (frame.f_locals.get("self") for frame in _frames())
    return next((module for module in selves if isinstance(module, nn.Module)), None)


def _place(net=None) -> str:
    """Where a function was called: the module, if it is one of torch's own, else function, file and line."""
    module = _module_at_work()
    if net is not None and type(module).__module__.startswith("torch.nn."):
        name = next(name for name, other in net.named_modules() if other is module)
        return f"of module {name!r} ({type(module).__name__})"
    ours = (str(Path(torch.__file__).parent), __file__)
    frame = next(frame for frame in _frames() if not frame.f_code.co_filename.startswith(ours))
    return f"in {frame.f_code.co_qualname}, {Path(frame.f_code.co_filename).name} line {frame.f_lineno}"


def _is_leaf(module) -> bool:
    return module is not None and not any(module.children())


def _holds_tensor(result) -> bool:
    return any(isinstance(one, Tensor) for one in (result if isinstance(result, (tuple, list)) else [result]))
