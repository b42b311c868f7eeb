"""Receptive fields: which pixels a unit reads, in any network that can be followed."""

from math import isqrt
from typing import NamedTuple

from torch import fx, nn

from .chain import kind, sliding
from .geometry import needed, resolve


class ReceptiveField(NamedTuple):
    """Field of a unit in pixels: an int where both axes agree, else a pair (rows, columns)."""

    size: int | tuple
    jump: int | tuple  # pixels from one unit to the next; 0 where a layer has one unit only
    start: float | tuple  # pixel at the centre of unit (0, 0); .5 where the size is even

    def box(self, row: int, col: int) -> tuple[int, int, int, int]:
        """Pixels (top, left, bottom, right) read by unit (row, col): half-open, unclipped."""
        sides = [value if isinstance(value, tuple) else (value, value) for value in self]
        near = [
            int(start - (size - 1) / 2 + jump * unit)
            for size, jump, start, unit in zip(*sides, (row, col), strict=True)
        ]
        return near[0], near[1], near[0] + sides[0][0], near[1] + sides[0][1]


# What a unit reads through a function or a method, in the words of the table of layers.
FUNCTIONS = {
    **dict.fromkeys(("relu", "relu_", "dropout", "add", "iadd", "mul", "cat"), "point"),
    **dict.fromkeys(("flatten", "view", "reshape"), "flatten"),
    **dict.fromkeys(("adaptive_avg_pool2d", "adaptive_max_pool2d"), "image"),
}


def receptive_field(net: nn.Module, layer: str) -> ReceptiveField:
    """Size, jump and first centre, in pixels, of the units of `layer`; ZFNet's fc6 reads 331.

    Where branches meet, the union of what they read. Padding counts as pixels. Raises
    ValueError for an unknown layer and, with the reason, where the field is the whole image or
    cannot be followed.

    >>> import zfkit
    >>> zfkit.receptive_field(zfkit.zfnet(), "conv2")
    ReceptiveField(size=27, jump=8, start=12)
    >>> zfkit.receptive_field(zfkit.zfnet(), "conv2").box(0, 5)  # top, left, bottom, right
    (-1, 39, 26, 66)
    """
    nodes, modules = _graph_to(net, resolve(net, layer)), dict(net.named_modules())
    axes = []
    for axis in (0, 1):
        (a, e), (b, _) = (_pixels(nodes, modules, unit, axis) for unit in (0, 1))
        axes.append((e - a, b - a, (a + e - 1) / 2))
    return ReceptiveField(*(_plain(rows, columns) for rows, columns in zip(*axes, strict=True)))


def _plain(rows, columns):
    rows, columns = (int(value) if value == int(value) else value for value in (rows, columns))
    return rows if rows == columns else (rows, columns)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module, name):
        return not any(module.children())


def _graph_to(net: nn.Module, name: str) -> list[fx.Node]:
    """What is called from the pixels up to the first use of module `name`, branches included.

    Raises ValueError where it depends on the image, and for a module that is not run.
    """
    try:
        nodes = list(_Tracer().trace(net).nodes)
    except Exception as error:  # whatever a forward pass does that cannot be followed
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"cannot follow the layers of {type(net).__name__}: {reason}"
        ) from error
    last = [
        number
        for number, node in enumerate(nodes)
        if name in (node.meta.get("nn_module_stack") or {})
    ]
    if not last:
        raise ValueError(f"a forward pass does not run module {name!r}")
    return nodes[: last[-1] + 1]


class Numbers(NamedTuple):
    """All numbers behind a flatten, whatever the unit."""

    count: int


def _pixels(nodes, modules, unit, axis) -> tuple[int, int]:
    """The pixels [a, e) along one axis that a unit of the last node reads."""
    need = {nodes[-1]: (unit, unit + 1)}
    for node in reversed(nodes):
        if node in need and node.op != "placeholder":
            below = _below(node, modules, need[node], axis)
            for source in node.all_input_nodes:
                need[source] = _union(need.get(source, below), below)  # branches meet
    return need[nodes[0]]


def _union(one, other):
    if isinstance(one, Numbers) or isinstance(other, Numbers):
        return one if one == other else Numbers(0)
    return min(one[0], other[0]), max(one[1], other[1])


def _below(node: fx.Node, modules: dict, units, axis: int):
    """What `units` of a node, [first, end) or Numbers, read of its input along one axis."""
    title, module, field = _what(node, modules)
    if field == "image":
        raise ValueError(
            f"the receptive field is the whole image: {title} ({node.name}) pools all of it"
        )
    if field == "window" and not isinstance(units, Numbers):
        return needed(units, *sliding(module)[axis])
    if field == "numbers":
        return Numbers(module.in_features)
    if field == "flatten" and isinstance(units, Numbers):
        return 0, _side(node.all_input_nodes[0], modules, units.count)
    if field == "point":
        return units
    reason = f"nothing says which pixels are read through {title} ({node.name})"
    raise ValueError(f"the receptive field is not known: {reason}")


def _what(node: fx.Node, modules: dict) -> tuple[str, nn.Module | None, str | None]:
    """Name of what a node calls, the module if it is one, and what a unit of it reads."""
    if node.op == "call_module":
        module = modules[node.target]
        return type(module).__name__, module, kind(module).field
    title = getattr(node.target, "__name__", node.target)
    if title == "mean":
        over = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        over = over if isinstance(over, (tuple, list)) else [over]
        return title, None, "image" if set(over) & {None, 2, 3, -1, -2} else None
    return title, None, FUNCTIONS.get(title)


def _side(node: fx.Node, modules: dict, count: int) -> int:
    """Side of the square maps before a Flatten whose `count` numbers a Linear reads."""
    title, module, field = _what(node, modules)
    while not hasattr(module, "out_channels") and field != "image" and node.all_input_nodes:
        node = node.all_input_nodes[0]
        title, module, field = _what(node, modules)
    if field == "image":
        return 1
    side = isqrt(count // (channels := getattr(module, "out_channels", count)))
    if count != channels * side * side:
        maps = f"the {count} numbers behind the flatten are no square maps of "
        maps += f"{title} ({node.name})"
        raise ValueError(f"the receptive field is not known: {maps}")
    return side
