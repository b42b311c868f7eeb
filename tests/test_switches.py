"""Pooling with switches and unpooling, against a sheet of paper, a loop and autograd."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zfkit import project, switches
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


def first_of_equals(plane, geometry, tie):
    """The switches of one plane by a plain loop: the first place whose value is the maximum's but for `tie`."""
    kernel, stride, padding, dilation, _ = geometry
    pooled, found = F.max_pool2d(plane[None, None], *geometry)[0, 0], []
    for y, x in itertools.product(*map(range, pooled.shape)):
        corner = y * stride - padding, x * stride - padding
        steps = [step * dilation for step in range(kernel)]
        places = [(corner[0] + i, corner[1] + j) for i in steps for j in steps]
        inside = [(i, j) for i, j in places if 0 <= i < plane.shape[0] and 0 <= j < plane.shape[1]]
        top = max(plane[place].item() for place in inside)
        row, col = next(place for place in inside if plane[place].item() >= top - tie * abs(top))
        found.append(row * plane.shape[1] + col)
    return torch.tensor(found).view(pooled.shape)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype, tie", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_maxima_equal_up_to_rounding_go_to_the_first_place(geometry, dtype, tie, layout, monkeypatch):
    torch.manual_seed(2)
    maps = torch.randint(-2, 3, (3, 4, 12, 10)).to(dtype)  # many ties
    maps *= 1 + torch.tensor([0.0, tie / 3, 3 * tie], dtype=dtype)[torch.randint(3, maps.shape)]
    monkeypatch.setattr(switches, "CACHED", 200)  # several turns
    pooled, found = pool_with_switches(maps.to(memory_format=layout), *geometry)
    assert torch.equal(pooled, F.max_pool2d(maps, *geometry))
    expected = [first_of_equals(plane, geometry, tie) for plane in maps.flatten(0, 1)]
    assert torch.equal(found.flatten(0, 1), torch.stack(expected))
    assert not torch.equal(found, F.max_pool2d(maps, *geometry, return_indices=True)[1])


@pytest.mark.parametrize("geometry", [*GEOMETRIES, ((3, 2), (2, 1), (1, 0), 1, True)])
def test_without_ties_the_switches_are_torchs(geometry):
    torch.manual_seed(3)
    for maps in (torch.randn(2, 3, 17, 19, dtype=torch.float64), torch.randint(-9, 9, (2, 3, 9, 9)).bfloat16()):
        ours, torchs = pool_with_switches(maps, *geometry), F.max_pool2d(maps, *geometry, return_indices=True)
        assert all(map(torch.equal, ours, torchs))


@pytest.mark.parametrize("shape", [((2,),), (2, (2,)), ([2, 2],), (np.int64(2),), (2, None, 0, 1, True)])
def test_windows_are_told_as_torch_takes_them(shape):
    maps = torch.randn(1, 2, 9, 9)
    expected = F.max_pool2d(maps, 2, 2, ceil_mode=len(shape) == 5, return_indices=True)
    assert all(map(torch.equal, pool_with_switches(maps, *shape), expected))


def test_what_has_no_rule_is_torchs():
    flat = 1 + 1e-7 * torch.rand(2, 8, 8)
    for maps in (flat, flat[None].half()):
        assert torch.equal(pool_with_switches(maps, 2)[1], F.max_pool2d(maps, 2, return_indices=True)[1])
    wide = torch.zeros(1, 1, 3, 2**23 + 5)
    wide[0, 0, 2] = torch.rand(2**23 + 5) + 1
    assert torch.equal(pool_with_switches(wide, 3, 3)[1], F.max_pool2d(wide, 3, 3, return_indices=True)[1])


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_values_that_are_no_numbers_are_left_to_torch(value):
    maps = torch.randn(1, 2, 8, 8)
    maps[0, 0, 2:7, 2:7] = value
    ours, torchs = pool_with_switches(maps, 3, 2, 1), F.max_pool2d(maps, 3, 2, 1, return_indices=True)
    assert torch.equal(ours[1], torchs[1])


def test_a_projection_hangs_on_the_unit_not_on_the_arithmetic():
    """Values apart by rounding, as another order of adding gives them, lead both routes to the same picture."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(4, 2, 3), nn.ReLU()).eval()
    image, noise = torch.full((1, 3, 21, 21), 0.5), 1 + 1e-7 * torch.randn(1, 3, 21, 21)
    unit = dict(layer="4", channel=1, position=(3, 3), start=1.0)
    plain = project(net, image, **unit)
    assert plain.any()
    for route in ("mirror", "gradient"):
        torch.testing.assert_close(project(net, image * noise, route=route, **unit), plain, rtol=1e-5, atol=1e-7)


def test_refusals_name_the_values():
    pooled, switches = pool_with_switches(PLANE, 2)
    with pytest.raises(ValueError, match=r"pooled \(1, 1, 1, 2\) but switches \(1, 1, 2, 2\)"):
        unpool(pooled[:, :, :1], switches, (4, 4))
    with pytest.raises(ValueError, match="unknown overlap 'last'; valid: sum, max"):
        unpool(pooled, switches, (4, 4), overlap="last")
    with pytest.raises(ValueError, match="switches reach 15, outside a plane of 3x3"):
        unpool(pooled, switches, (3, 3))
