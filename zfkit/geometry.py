"""Sizes of maps and windows: arithmetic along one axis, no tensors; and the names of layers."""


def out_size(size: int, kernel: int, stride=1, padding=0, dilation=1, ceil=False) -> int:
    """Units along one axis when a filter of `kernel` taps slides over `size` inputs.

    With `ceil` a last window may hang over the far edge, but must begin inside (torch's rule).

    >>> out_size(224, 7, stride=2, padding=1)  # ZFNet's first layer
    110
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
    names = list(stages) or [
        name for name, module in modules.items() if not any(module.children())
    ]
    more = f" and {len(names) - 40} more" if len(names) > 40 else ""
    raise ValueError(f"unknown layer {layer!r}; valid: {', '.join(names[:40])}{more}")


def needed(
    units: tuple[int, int], kernel: int, stride=1, padding=0, dilation=1
) -> tuple[int, int]:
    """The inputs [a, e) that the units [first, end) read; outside the map where it is padding.

    >>> needed((0, 2), kernel=3, stride=2, padding=1)
    (-1, 4)
    """
    first, end = units
    return first * stride - padding, (end - 1) * stride - padding + dilation * (kernel - 1) + 1


def touched(
    inputs: tuple[int, int], count: int, kernel: int, stride=1, padding=0, dilation=1
) -> tuple[int, int]:
    """The units [first, end), of `count`, that read any of the inputs [a, e)."""
    a, e = inputs
    first = -(-(a + padding - dilation * (kernel - 1)) // stride)
    return max(0, first), min(count, (e - 1 + padding) // stride + 1)
