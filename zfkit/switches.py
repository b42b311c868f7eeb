"""Max pooling that remembers where each maximum was, and unpooling that puts it back."""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

OVERLAPS = ("sum", "max")
# what rounding may part: values whose distance is a smaller share of the larger count as equal
TIES = {torch.float32: 1e-5, torch.float64: 1e-10}
CACHED = 2**17  # pooled values at once: they stay in the processor's cache


def pool_with_switches(
    maps: Tensor, kernel, stride=None, padding=0, dilation=1, ceil_mode=False
):
    """The pooled maps (N, C, h, w) and their switches, int64 of the same shape.

    A switch is the flat position of the maximum in the (H, W) plane of `maps`. Of maxima that
    are equal up to rounding (`TIES`: within 1e-5 of the larger in float32, 1e-10 in float64)
    the first in reading order counts, so that the switches of a flat region do not hang on the
    order in which a processor adds. Not covered: values that cancel to zero, whose rounding is
    no small share of them; half precision and unbatched maps, where ties are torch's.
    Arguments as torch's MaxPool2d. Source: ZF 2013, sec. 2.1.

    >>> import torch
    >>> maps = torch.tensor([[[[1.0, 2.0, 0.0, 3.0], [5.0, 0.0, 1.0, 3.000001]]]])
    >>> pooled, switches = pool_with_switches(maps, 2)
    >>> pooled.round(decimals=2).tolist(), switches.tolist()
    ([[[[5.0, 3.0]]]], [[[[4, 3]]]])
    """
    shape = kernel, stride or kernel, padding, dilation
    pooled, switches = F.max_pool2d(maps, *shape, ceil_mode, return_indices=True)
    if maps.dtype in TIES and maps.dim() == 4:
        axes = list(zip(*map(_pair, shape), maps.shape[2:], pooled.shape[2:]))
        if (axes[0][0] - 1) * axes[0][3] * maps.shape[3] < 2**24:  # whole numbers in float32
            switches = _of_equals_the_first(maps.detach(), pooled.detach(), switches, axes)
    return pooled, switches


def _pair(value) -> tuple[int, int]:
    """A number for rows and columns, as torch takes it: one for both, or two."""
    both = [int(number) for number in value] if isinstance(value, Sequence) else [int(value)]
    return both[0], both[-1]


def _of_equals_the_first(maps: Tensor, pooled: Tensor, switches: Tensor, axes) -> Tensor:
    """The switches, each moved to the first place of its window that holds the same value.

    axes: (kernel, stride, padding, dilation, side of the plane, windows) of rows and columns.
    """
    (_, down, above, *_, rows), (_, right, left, _, width, columns) = axes
    corners = (torch.arange(rows) * down - above)[:, None] * width
    corners = (corners + torch.arange(columns) * right - left).to(switches.device)
    many = max(1, CACHED // max(1, pooled[:1].numel()))
    least, same, order = (torch.empty_like(pooled[:many]) for _ in range(3))
    for n in range(0, len(pooled), many):
        some, values = switches[n : n + many], pooled[n : n + many]
        room = [part[: len(values)] for part in (least, same, order)]
        torch.sub(values, torch.abs(values, out=room[0]), alpha=TIES[maps.dtype], out=room[0])
        last = _order(maps[n : n + many], axes, *room)
        first = (corners + last).sub(room[2].long())
        found = room[2] > 0  # not where the maximum is inf or nan
        some.copy_(first if found.all() else torch.where(found, first, some))
    return switches


def _order(maps, axes, least, same, order) -> int:
    """Sets `order` to a number, less the place of the first value from `least` on; gives it.

    A place counts from its window's first corner. 0: there is no such value.
    """
    (tall, down, above, below, height, rows), (wide, right, left, beside, width, columns) = axes
    last = (tall - 1) * below * width + (wide - 1) * beside + 1
    order.zero_()
    for y, x in product(range(0, tall * below, below), range(0, wide * beside, beside)):
        i, row = _inside(y - above, down, height, rows)
        j, column = _inside(x - left, right, width, columns)
        part, most = same[:, :, i, j], order[:, :, i, j]
        torch.ge(maps[:, :, row, column], least[:, :, i, j], out=part)
        torch.maximum(most, part.mul_(last - y * width - x), out=most)
    return last


def _inside(first: int, stride: int, side: int, count: int) -> tuple[slice, slice]:
    """Of places first, first + stride, ... those inside a side: which, and where."""
    start, end = max(0, -(first // stride)), min(count, (side - 1 - first) // stride + 1)
    begin = first + start * stride
    return slice(start, end), slice(begin, begin + max(0, end - start) * stride, stride)


def unpool(pooled: Tensor, switches: Tensor, size: tuple[int, int], overlap="sum") -> Tensor:
    """Pooled values back where their switches say the maximum was; (N, C, H, W), else zero.

    pooled, switches: (N, C, h, w).    size: (H, W) before pooling; several sizes pool to one
    (h, w).
    overlap: 3x3 windows at stride 2 share places, and the paper does not say what happens
    there. "sum" adds the values (the adjoint of pooling); "max" keeps the largest. Neither
    depends on the order.
    Raises ValueError for shapes that differ, an unknown overlap or a switch outside the plane.

    >>> import torch
    >>> unpool(torch.tensor([[[[5.0, 3.0]]]]), torch.tensor([[[[4, 3]]]]), (2, 4))
    tensor([[[[0., 0., 0., 3.],
              [5., 0., 0., 0.]]]])
    """
    if pooled.shape != switches.shape:
        raise ValueError(f"pooled {tuple(pooled.shape)} but switches {tuple(switches.shape)}")
    if overlap not in OVERLAPS:
        raise ValueError(f"unknown overlap {overlap!r}; valid: {', '.join(OVERLAPS)}")
    height, width = size
    if switches.numel() and (switches.min() < 0 or switches.max() >= height * width):
        raise ValueError(
            f"switches reach {int(switches.max())}, outside a plane of {height}x{width}"
        )
    plane = pooled.new_zeros(*pooled.shape[:2], height * width)
    places, values = switches.flatten(2), pooled.flatten(2)
    if overlap == "sum":
        plane.scatter_add_(2, places, values)
    else:
        plane.scatter_reduce_(2, places, values, "amax", include_self=False)
    return plane.unflatten(2, (height, width))
