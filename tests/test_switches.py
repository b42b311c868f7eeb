"""Pooling with switches and unpooling, against a sheet of paper, a loop and autograd."""

import pytest
import torch
from torch.nn import functional as F

from zfkit.switches import pool_with_switches, unpool

PLANE = torch.tensor([[1.0, 2.0, 0.0, 3.0], [5.0, 0.0, 1.0, 1.0], [0.0, 7.0, 2.0, 2.0], [4.0, 1.0, 0.0, 6.0]])[
    None, None
]


def unpool_by_loop(pooled, switches, size, overlap="sum"):  # slow, and close to the paper's sentence
    out = torch.zeros(*size, dtype=pooled.dtype)
    claimed = torch.zeros(*size, dtype=torch.bool)
    for value, switch in zip(pooled.flatten().tolist(), switches.flatten().tolist(), strict=True):
        place = divmod(switch, size[1])
        if overlap == "sum":
            out[place] += value
        else:
            out[place] = max(out[place].item(), value) if claimed[place] else value
        claimed[place] = True
    return out


def overlapping_case(dtype=torch.float64):
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 9, 11, dtype=dtype)
    pooled, switches = pool_with_switches(maps, 3, 2)
    assert switches[0, 0].unique().numel() < switches[0, 0].numel()  # the case under test occurs
    return maps, torch.randn_like(pooled), switches


def test_a_4x4_plane_by_hand():
    pooled, switches = pool_with_switches(PLANE, 2)
    assert pooled[0, 0].tolist() == [[5, 3], [7, 6]]
    assert switches[0, 0].tolist() == [[4, 3], [9, 15]]
    back = unpool(pooled, switches, (4, 4))
    assert back[0, 0].tolist() == [[0, 0, 0, 3], [5, 0, 0, 0], [0, 7, 0, 0], [0, 0, 0, 6]]


def test_overlapping_windows_by_hand():
    pooled, switches = pool_with_switches(PLANE, 3, 1)
    assert switches[0, 0].tolist() == [[9, 9], [9, 9]]  # the 7 wins all four windows
    above = torch.tensor([[1.0, 2.0], [3.0, -4.0]])[None, None]
    assert unpool(above, switches, (4, 4))[0, 0, 2, 1] == 2
    assert unpool(above, switches, (4, 4), overlap="max")[0, 0, 2, 1] == 3
    assert unpool(above, switches, (4, 4)).count_nonzero() == 1


@pytest.mark.parametrize("overlap", ["sum", "max"])
def test_unpool_matches_the_loop(overlap):
    maps, above, switches = overlapping_case()
    got = unpool(above, switches, (9, 11), overlap)
    for n in range(2):
        for c in range(3):
            expected = unpool_by_loop(above[n, c], switches[n, c], (9, 11), overlap)
            torch.testing.assert_close(got[n, c], expected, rtol=0, atol=1e-15)


def test_the_largest_value_wins_even_if_all_claims_are_negative():
    above = torch.full((1, 1, 2, 2), -2.0)
    above[0, 0, 1, 1] = -1.0
    switches = torch.full((1, 1, 2, 2), 5)
    assert unpool(above, switches, (4, 4), "max")[0, 0, 1, 1] == -1


GEOMETRIES = [(2, 2, 0, 1, False), (3, 2, 0, 1, True), (3, 2, 1, 1, False), (2, 1, 1, 2, False), (3, 3, 1, 2, True)]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_sum_is_the_adjoint_of_pooling(geometry):
    torch.manual_seed(1)
    maps = torch.randn(2, 3, 12, 10, dtype=torch.float64, requires_grad=True)
    kernel, stride, padding, dilation, ceil_mode = geometry
    pooled, switches = pool_with_switches(maps, kernel, stride, padding, dilation, ceil_mode)
    above = torch.randn_like(pooled)
    expected = torch.autograd.grad(F.max_pool2d(maps, *geometry), maps, above)[0]
    torch.testing.assert_close(unpool(above, switches, (12, 10)), expected, rtol=0, atol=1e-14)


def test_ties_go_to_the_first_in_reading_order():
    pooled, switches = pool_with_switches(torch.zeros(1, 1, 4, 4), 2)
    assert switches[0, 0].tolist() == [[0, 2], [8, 10]]


def test_refusals_name_the_values():
    pooled, switches = pool_with_switches(PLANE, 2)
    with pytest.raises(ValueError, match=r"pooled \(1, 1, 1, 2\) but switches \(1, 1, 2, 2\)"):
        unpool(pooled[:, :, :1], switches, (4, 4))
    with pytest.raises(ValueError, match="unknown overlap 'last'; valid: sum, max"):
        unpool(pooled, switches, (4, 4), overlap="last")
    with pytest.raises(ValueError, match="switches reach 15, outside a plane of 3x3"):
        unpool(pooled, switches, (3, 3))
