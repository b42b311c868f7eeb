"""Receptive fields, jumps and windows: arithmetic on intervals of pixels, no tensors."""

from math import isqrt
from typing import NamedTuple

from torch import fx, nn


def out_size(size: int, kernel: int, stride=1, padding=0, dilation=1, ceil=False) -> int:
    """Units along one axis when a filter of `kernel` taps slides over `size` inputs.

    With `ceil` a last window may hang over the far edge, but must begin inside (torch's rule).
    """
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    if not ceil:
        return room // stride + 1
    units = -(-room // stride) + 1
    return units - ((units - 1) * stride >= size + padding)


def resolve(net, layer: str) -> str:
    """The qualified name of the module whose output is `layer`.

    A stage name of our networks wins ("conv1" is the rectified map); else a module's own name.
    Raises ValueError naming the valid layers.
    """
    stages = getattr(net, "stages", {})
    if layer in stages:
        return stages[layer]
    modules = dict(net.named_modules())
    if layer and layer in modules:
        return layer
    names = list(stages) or [name for name, module in modules.items() if not any(module.children())]
    more = f" and {len(names) - 40} more" if len(names) > 40 else ""
    raise ValueError(f"unknown layer {layer!r}; valid: {', '.join(names[:40])}{more}")


class ReceptiveField(NamedTuple):
    """Field of a unit in pixels: an int where both axes agree, else a pair (rows, columns)."""

    size: int | tuple
    jump: int | tuple  # pixels from one unit to the next; 0 where a layer has one unit only
    start: float | tuple  # pixel at the centre of unit (0, 0); .5 where the size is even

    def box(self, row: int, col: int) -> tuple[int, int, int, int]:
        """The pixels (top, left, bottom, right) that unit (row, col) reads; half-open, not clipped."""
        sides = [value if isinstance(value, tuple) else (value, value) for value in self]
        near = [
            int(start - (size - 1) / 2 + jump * unit)
            for size, jump, start, unit in zip(*sides, (row, col), strict=True)
        ]
        return near[0], near[1], near[0] + sides[0][0], near[1] + sides[0][1]


def needed(units: tuple[int, int], kernel: int, stride=1, padding=0, dilation=1) -> tuple[int, int]:
    """The inputs [a, e) that the units [first, end) read; below 0 or past the map where they read padding."""
    first, end = units
    return first * stride - padding, (end - 1) * stride - padding + dilation * (kernel - 1) + 1


def touched(inputs: tuple[int, int], count: int, kernel: int, stride=1, padding=0, dilation=1) -> tuple[int, int]:
    """The units [first, end), of `count`, that read any of the inputs [a, e)."""
    a, e = inputs
    first = -(-(a + padding - dilation * (kernel - 1)) // stride)
    return max(0, first), min(count, (e - 1 + padding) // stride + 1)


def sliding(module) -> list[tuple[int, int, int, int]] | None:
    """(kernel, stride, padding, dilation) of a convolution or pooling along rows and columns; None of other modules."""
    if not isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)) or isinstance(module.padding, str):
        return None
    sizes = module.kernel_size, module.stride, module.padding, getattr(module, "dilation", 1)
    return [tuple(size if isinstance(size, int) else size[axis] for size in sizes) for axis in (0, 1)]


def receptive_field(net: nn.Module, layer: str) -> ReceptiveField:
    """Size, jump and first centre, in pixels, of the units of `layer`; fc6 of ZFNet reads 331 of them.

    Where branches meet, the union of what they read. Padding counts as pixels. Raises ValueError for an
    unknown layer, a module whose windows are not known and for layers behind a pooling to a fixed size,
    which read the whole image.
    """
    axes = []
    for (a, e), (b, _) in zip(*_windows(net, layer, [(0, 0), (1, 1)]), strict=True):
        axes.append((e - a, b - a, (a + e - 1) / 2))
    return ReceptiveField(*(_plain(rows, columns) for rows, columns in zip(*axes, strict=True)))


def window(net: nn.Module, layer: str, position, image_size) -> tuple[int, int, int, int]:
    """The pixel box (top, left, bottom, right) that the unit at `position` (row, col) reads.

    Half-open and not clipped: it may reach over the border of the image, of side or (height, width)
    `image_size`. Raises ValueError if it misses the image, or as `receptive_field`.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    [((top, bottom), (left, right))] = _windows(net, layer, [position])
    if not (top < size[0] and left < size[1] and bottom > 0 and right > 0):
        box = (top, left, bottom, right)
        raise ValueError(f"unit {tuple(position)} of {layer!r} reads {box}, outside an image of {size}")
    return top, left, bottom, right


def _plain(rows, columns):
    rows, columns = (int(value) if value == int(value) else value for value in (rows, columns))
    return rows if rows == columns else (rows, columns)


POINTWISE = set(
    "ReLU BatchNorm2d LocalResponseNorm ContrastNormalization Dropout Dropout2d Identity GELU SiLU ReLU6 LeakyReLU"
    " Sigmoid Hardswish relu dropout add iadd mul cat".split()
)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module, name):
        return not any(module.children())


def _windows(net, layer, positions) -> list:
    """For each unit (row, col) of `layer` the rows [a, e) and the columns [a, e) of pixels that it reads."""
    name = resolve(net, layer)
    try:
        nodes = list(_Tracer().trace(net).nodes)
    except Exception as error:  # whatever a forward pass does that cannot be followed
        raise ValueError(f"cannot follow the layers of {type(net).__name__}: {error}") from error
    top = [node for node in nodes if name in (node.meta.get("nn_module_stack") or {})]  # of its first use
    if not top:
        raise ValueError(f"a forward pass does not run layer {layer!r}")
    modules = dict(net.named_modules())
    return [
        [_walk_down(nodes, top[-1], modules, row_or_col, axis) for axis, row_or_col in enumerate(position)]
        for position in positions
    ]


def _walk_down(nodes, top, modules, unit, axis) -> tuple[int, int]:
    need = {top: (unit, unit + 1)}
    for node in reversed(nodes):
        if node in need and node.op != "placeholder":
            a, e = _below(node, modules, need[node], axis)
            for source in node.all_input_nodes:
                first, end = need.get(source, (a, e))
                need[source] = min(a, first), max(e, end)  # branches: the union
    return need[nodes[0]]


def _below(node, modules, units, axis) -> tuple[int, int]:
    """What `units` of a node's output read of its input, along one axis."""
    module = modules[node.target] if node.op == "call_module" else None
    title = type(module).__name__ if module else getattr(node.target, "__name__", node.target)
    if windows := sliding(module):
        return needed(units, *windows[axis])
    if title == "Linear":
        return 0, module.in_features
    if title.lower() in ("flatten", "view", "reshape"):
        return 0, _side(node.all_input_nodes[0], modules, units)
    if title.rstrip("_") in POINTWISE:
        return units
    raise ValueError(f"the receptive field of {title} ({node.name}) is the whole image or not known")


def _side(node, modules, units) -> int:
    """Side of the square maps that a Linear layer, which reads `units` numbers, finds before the Flatten."""
    while not hasattr(module := modules.get(node.target), "out_channels"):
        node = node.all_input_nodes[0]
    side = isqrt(units[1] // module.out_channels)
    if units != (0, module.out_channels * side * side):
        raise ValueError(f"{units[1]} numbers behind {node.target!r} are no square maps: receptive field unknown")
    return side
