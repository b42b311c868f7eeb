"""What lies below a layer: one table of the known layers, and one pass that follows them.

Whoever walks through a network asks here: the deconvnet on its way down, the windows of the
projections and of the occlusion sweep, the receptive fields, the search for the strongest
units.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .forward import Calls, Reached, module_at_work, place, run_to
from .normalization import ContrastNormalization, contrast_normalization
from .switches import pool_with_switches


class NotAChain(ValueError):
    """No plain chain: layers branch, one is used twice, or maps change between them."""


# --- the table --------------------------------------------------------------------------------


class Kind(NamedTuple):
    """What a layer is to all who walk past it."""

    down: str | None = None  # the mirror's step (`deconvnet`); None: it has none
    field: str | None = (
        None  # a unit reads a "point" of the maps below, a "window", the "image",
    )
    # all "numbers" behind a flatten, or is one that a "flatten" makes of maps; None: not known
    beyond: float | None = (
        None  # what a window that leaves the maps finds there; None: it cannot be said
    )
    up: Callable | None = (
        None  # (module, type of numbers) -> the layer on maps that hold their padding
    )
    keeps: Callable | None = (
        None  # (module, maps below) -> what the way down needs of the way up
    )


def _filter(module, dtype):
    weight = module.weight.to(dtype).contiguous(memory_format=torch.channels_last)
    bias = None if module.bias is None else module.bias.to(dtype)
    rest = dict(stride=module.stride, dilation=module.dilation, groups=module.groups)
    return partial(F.conv2d, weight=weight, bias=bias, **rest)


def _largest(module, dtype):
    shape = module.kernel_size, module.stride, 0, module.dilation
    return lambda maps: F.max_pool2d(maps, *shape)


def _mean(module, dtype):
    shape = dict(kernel_size=module.kernel_size, stride=module.stride)
    return partial(F.avg_pool2d, divisor_override=module.divisor_override, **shape)


def _contrast(module, dtype):
    constants = dict(size=module.size, alpha=module.alpha, beta=module.beta, k=module.k)
    return partial(contrast_normalization, **constants)


def pool_shape(module: nn.MaxPool2d) -> tuple:
    """The arguments of `pool_with_switches` behind the maps."""
    return module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode


def _switches(module, below):
    return pool_with_switches(below, *pool_shape(module))[1]


CONTRAST = Kind("contrast", "point", up=_contrast, keeps=lambda module, below: below)
KINDS = {
    nn.Conv2d: Kind("filter", "window", 0.0, _filter),
    nn.MaxPool2d: Kind("unpool", "window", -inf, _largest, _switches),
    nn.AvgPool2d: Kind("mean", "window", 0.0, _mean),
    nn.AdaptiveAvgPool2d: Kind("mean", "image"),
    nn.AdaptiveMaxPool2d: Kind(None, "image"),
    nn.Linear: Kind("linear", "numbers"),
    nn.Flatten: Kind("reshape", "flatten"),
    nn.ReLU: Kind("rectify", "point", up=lambda module, dtype: torch.relu_),
    nn.LocalResponseNorm: CONTRAST,
    ContrastNormalization: CONTRAST,
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), Kind("scale", "point")),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout2d), Kind("reshape", "point")),
    nn.ChannelShuffle: Kind(None, "point"),
    **dict.fromkeys(
        (nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.ReLU6, nn.LeakyReLU), Kind(None, "point")
    ),
    **dict.fromkeys(
        (nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus), Kind(None, "point")
    ),
}


def kind(module: nn.Module) -> Kind:
    """What the table says of a layer; of a user's class only with a known forward pass."""
    found = Kind()
    for ancestor in type(module).__mro__:
        found = KINDS.get(ancestor, found)
        if found.field or "forward" in vars(ancestor):
            break
    if found.down == "filter" and module.padding_mode != "zeros":
        return found._replace(down=None, beyond=None)
    if found.down == "mean" and found.beyond == 0.0 and not module.divisor_override:
        hangs = module.ceil_mode or module.padding  # there the mean is over fewer numbers
        return found._replace(beyond=None) if hangs else found
    if (
        found.down == "scale" and module.running_mean is None
    ):  # it takes its scale from the batch
        return Kind()
    return found


def sliding(module: nn.Module) -> list[tuple[int, int, int, int]] | None:
    """(kernel, stride, padding in front, dilation) by rows, columns; None without windows."""
    if kind(module).field != "window":
        return None
    each = module.kernel_size, module.stride, module.padding, getattr(module, "dilation", 1)
    axes = [
        [value[axis] if isinstance(value, tuple) else value for value in each]
        for axis in (0, 1)
    ]
    for axis in axes:
        size, _, padding, dilation = axis
        if isinstance(padding, str):  # of an even number the smaller half stands in front
            axis[2] = dilation * (size - 1) // 2 if padding == "same" else 0
    return [tuple(axis) for axis in axes]


def unpadded(module: nn.Module, dtype=None) -> Callable[[Tensor], Tensor] | None:
    """The layer as a function of maps that hold their padding; None if it has no such form."""
    what = kind(module)
    if what.field not in ("point", "window") or (
        what.field == "window" and what.beyond is None
    ):
        return None
    return what.up(module, dtype) if what.up else module


# --- a pass that follows a chain --------------------------------------------------------------


class Step(NamedTuple):
    """A layer of the way up, with what the way down needs to know of it."""

    name: str
    module: nn.Module
    below: torch.Size  # of the maps that it takes: the layer above does not determine it
    above: torch.Size  # of the maps that it gives
    kept: object = None  # a pool's switches, the maps that entered a contrast normalisation


def kept(module: nn.Module, below: Tensor, above: Tensor) -> Tensor | None:
    """What the way down needs of the maps below a layer."""
    keeps = kind(module).keeps
    return keeps(module, below) if keeps else None


def steps_to(net: nn.Module, images: Tensor, name: str) -> tuple[list[Step], Tensor]:
    """The layers from the pixels up to module `name` ("": the whole network), and its maps.

    Raises NotAChain unless each layer takes what the last gave, unchanged.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    >>> steps, maps = steps_to(net, torch.zeros(1, 3, 8, 8), "2")
    >>> [(step.name, kind(step.module).down, tuple(step.above[1:])) for step in steps]
    [('0', 'filter', (4, 6, 6)), ('1', 'rectify', (4, 6, 6)), ('2', 'unpool', (4, 3, 3))]
    """
    climb = Climb(net, images, {name})
    return climb.steps, climb.maps[name]


class Climb:
    """One clean pass through a chain: its `steps`, the named layers' `maps` and `depth` (step).

    names: modules; the pass ends at the last of them, or with `beyond` at the layer after it.
    keep: what a step keeps, a function of its module, the maps below and above. Raises
    NotAChain as `steps_to`, which it serves.
    """

    def __init__(
        self, net: nn.Module, images: Tensor, names: set[str], keep=kept, beyond=False
    ):
        self.names = {module: name for name, module in net.named_modules()}
        self.wanted, self.keep, self.beyond = names, keep, beyond
        self.steps, self.maps, self.depth = [], {}, {}
        self.given, self.ours = (
            None,
            False,
        )  # a layer's own output; is a torch function called by ourselves?
        self._rise(images.clone())  # the first layer may work in place
        with self._watching(), Calls(self._between):
            run_to(net, self.top, names | {""} if beyond else names, self._arrived)

    def _watching(self) -> ExitStack:
        hooks = ExitStack()
        for module in filter(_is_leaf, self.names):
            for handle in (
                module.register_forward_pre_hook(self._enter, with_kwargs=True),
                module.register_forward_hook(self._given, prepend=True),
                module.register_forward_hook(self._after),
            ):
                hooks.callback(handle.remove)
        return hooks

    def _rise(self, maps: Tensor):
        self.top, self.version = maps, _version(maps)

    def _takes_the_top(self, label, tensors, module=None):
        used = any(module is step.module for step in self.steps)
        if used or len(tensors) != 1 or tensors[0] is not self.top:
            earlier = "is used twice or takes an earlier layer's output"
            raise NotAChain(f"the mirror needs a chain: {label!r} {earlier}")
        if _version(self.top) != self.version:
            raise NotAChain(
                f"the mirror needs a chain: what {label!r} takes was changed in place"
            )

    def _enter(self, module, inputs, named):
        self._takes_the_top(self.names[module], _tensors((*inputs, *named.values())), module)

    def _given(self, module, inputs, output):
        self.given = maps = _tensors(output)[0] if _tensors(output) else None
        self.given_version = None if maps is None else _version(maps)

    def _after(self, module, inputs, output):
        name, maps = self.names[module], self.given
        if not type(module).__module__.startswith("torch.nn.") and kind(module) == Kind():
            raise NotAChain(
                f"the mirror has no step for module {name!r}, {type(module).__name__}"
            )
        found = _tensors(output)
        if not found or found[0] is not maps or _version(maps) != self.given_version:
            raise NotAChain(
                f"a forward hook changes what {name!r} gives, which the mirror would not see"
            )
        done = self.wanted <= set(self.depth)
        self._climb(name, module, maps)
        if self.beyond and done:
            raise Reached

    def _climb(self, name, module, above):
        below = self.top
        self.steps.append(
            Step(name, module, below.shape, above.shape, self.keep(module, below, above))
        )
        self._rise(above)

    def _between(self, function, arguments, named):
        """A torch function between the layers: the chain ends, unless it only flattens."""
        result = function(*arguments, **named)
        if self.ours or not _tensors(result) or _is_leaf(module_at_work()):
            return result
        if function.__name__ not in ("flatten", "view", "reshape"):
            raise NotAChain(
                f"the mirror knows modules only, not {function.__name__}() {place(self.names)}"
            )
        label = f"{function.__name__}()"
        self._takes_the_top(label, _tensors((*arguments, *named.values())))
        self._climb(label, nn.Flatten(), result)
        return result

    def _arrived(self, name, output):
        if name not in self.wanted:
            return
        if output is not self.top or _version(output) != self.version:
            raise NotAChain(
                f"{name or 'the network'!r} gives something else than its last layer"
            )
        self.ours = True
        self.maps[name] = (
            output.clone() if len(self.wanted) > 1 else output
        )  # later layers may work in place
        self.ours, self.depth[name] = False, len(self.steps)


def _is_leaf(module) -> bool:
    return not any(module.children())


def _tensors(values) -> list[Tensor]:
    return [
        value
        for value in (values if isinstance(values, tuple) else [values])
        if isinstance(value, Tensor)
    ]


def _version(maps: Tensor) -> int:
    return 0 if maps.is_inference() else maps._version
