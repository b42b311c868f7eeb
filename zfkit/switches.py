"""Max pooling that remembers where each maximum was, and unpooling that puts it back."""

from torch import Tensor
from torch.nn import functional as F

OVERLAPS = ("sum", "max")


def pool_with_switches(
    maps: Tensor, kernel, stride=None, padding=0, dilation=1, ceil_mode=False
):
    """The pooled maps (N, C, h, w) and their switches, int64 of the same shape.

    A switch is the flat position of the maximum in the (H, W) plane of `maps`; of equal maxima
    the first in reading order counts. Arguments as torch's MaxPool2d. Source: ZF 2013, sec.
    2.1.

    >>> import torch
    >>> maps = torch.tensor([[[[1.0, 2.0, 0.0, 3.0], [5.0, 0.0, 1.0, 1.0]]]])
    >>> pooled, switches = pool_with_switches(maps, 2)
    >>> pooled.tolist(), switches.tolist()
    ([[[[5.0, 3.0]]]], [[[[4, 3]]]])
    """
    return F.max_pool2d(maps, kernel, stride, padding, dilation, ceil_mode, return_indices=True)


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
