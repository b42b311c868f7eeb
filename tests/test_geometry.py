"""Arithmetic on intervals against brute force and torch."""

import pytest
import torch
from torch import nn

from zfkit.geometry import needed, out_size, touched


@pytest.mark.parametrize("geometry", [(3, 1, 0, 1), (5, 2, 2, 1), (3, 2, 1, 2), (2, 3, 0, 1), (1, 2, 1, 1)])
def test_intervals_by_brute_force(geometry):
    kernel, stride, padding, dilation = geometry
    size = 17
    count = out_size(size, kernel, stride, padding, dilation)
    layer = nn.Conv1d(1, 1, kernel, stride, padding, dilation)
    assert layer(torch.zeros(1, 1, size)).shape[-1] == count
    reads = [{o * stride - padding + j * dilation for j in range(kernel)} for o in range(count)]
    for first in range(count):
        for end in range(first + 1, count + 1):
            inputs = set().union(*reads[first:end])
            assert needed((first, end), *geometry) == (min(inputs), max(inputs) + 1)
    if dilation == 1:
        for a in range(size):
            units = [o for o in range(count) if reads[o] & set(range(a, a + 2))]
            first, end = touched((a, a + 2), count, *geometry)
            assert units == list(range(first, end))


@pytest.mark.parametrize("size", range(5, 25))
@pytest.mark.parametrize("pool", [(3, 2, 0), (2, 2, 1), (3, 2, 1), (3, 3, 1)])
def test_out_size_with_ceil_is_torchs(size, pool):
    maps = nn.MaxPool2d(*pool, ceil_mode=True)(torch.zeros(1, 1, size, size))
    assert maps.shape[-1] == out_size(size, *pool, ceil=True)
