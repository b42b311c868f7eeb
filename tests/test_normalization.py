"""Contrast normalisation against torch's own layer: values, gradients, layouts, types, and where it must be known."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zfkit import feature_maps, project, receptive_field
from zfkit.networks import alexnet, zfnet
from zfkit.normalization import ContrastNormalization, contrast_normalization

LAYOUTS = (torch.channels_last, torch.contiguous_format)


def maps(*shape, dtype=torch.float64, scale=10.0, layout=torch.contiguous_format):
    torch.manual_seed(0)
    return torch.randn(shape, dtype=torch.float64).mul(scale).to(dtype).contiguous(memory_format=layout)


def with_gradient(function, below, signal):
    below = below.detach().requires_grad_()
    above = function(below)
    return above.detach(), torch.autograd.grad(above, below, signal)[0]


def apart(a, b):
    """Largest difference, as a share of the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype, tolerances", [(torch.float64, (1e-15, 1e-15)), (torch.float32, (2e-7, 3e-7))])
@pytest.mark.parametrize("channels, side", [(96, 27), (256, 13)])
def test_equals_torch_in_value_and_gradient(channels, side, dtype, tolerances, layout):
    below = maps(2, channels, side, side, dtype=dtype, layout=layout)
    signal = torch.randn_like(below)
    ours = with_gradient(ContrastNormalization(), below, signal)
    theirs = with_gradient(nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0), below, signal)
    exact = with_gradient(nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0), below.double(), signal.double())
    for our, their, true, tolerance in zip(ours, theirs, exact, tolerances, strict=True):
        assert apart(our, their) < tolerance and apart(our.double(), true) < tolerance
        assert our.stride() == below.stride() and our.dtype == dtype
    assert apart(ours[0], below / 2**0.75) > 1e-3  # the neighbours count


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 2, 4, 5, 9, 300])
@pytest.mark.parametrize("beta", [0.75, 0.5, 1.0])
def test_any_window_and_power(size, beta, layout):
    below = maps(2, 12, 4, 3, layout=layout)
    signal = torch.randn_like(below)
    ours = with_gradient(lambda x: contrast_normalization(x, size, 0.3, beta, 1.5), below, signal)
    theirs = with_gradient(lambda x: F.local_response_norm(x, size, 0.3, beta, 1.5), below, signal)
    assert apart(ours[0], theirs[0]) < 1e-15 and apart(ours[1], theirs[1]) < 1e-15


@pytest.mark.parametrize("shape", [(2, 7, 5), (3, 6, 2, 4, 2), (0, 4, 3, 3), (1, 1, 2, 2)])
def test_any_number_of_dimensions(shape):
    below = maps(*shape)
    torch.testing.assert_close(
        ContrastNormalization()(below), nn.LocalResponseNorm(5, k=2.0)(below), atol=0, rtol=1e-14
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [5, 4])
def test_derivatives_of_both_orders(size, layout):
    below = maps(2, 6, 3, 2, scale=1.0, layout=layout).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: contrast_normalization(x, size, 0.5, 0.75, 2.0), below)
    assert torch.autograd.gradgradcheck(lambda x: contrast_normalization(x, size, 0.5, 0.75, 2.0), below)


def test_gradients_of_torch_func():
    below, layer = maps(3, 6, 2, 2), ContrastNormalization(alpha=0.1)
    one_by_one = torch.func.vmap(torch.func.grad(lambda x: layer(x[None]).sum()))(below)
    assert apart(one_by_one, with_gradient(layer, below, torch.ones_like(below))[1]) < 1e-15


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_rounds_the_maps_alone(layout):
    """Under autocast: bfloat16 comes out, within one rounding of the exact value; float32 stays float32."""
    below = maps(2, 96, 13, 13, dtype=torch.bfloat16, layout=layout)
    signal = torch.randn_like(below)
    with torch.autocast("cpu", torch.bfloat16):
        above, gradient = with_gradient(ContrastNormalization(), below, signal)
        full = ContrastNormalization()(below.float())
    exact = with_gradient(nn.LocalResponseNorm(5, k=2.0), below.double(), signal.double())
    assert above.dtype == gradient.dtype == torch.bfloat16 and full.dtype == torch.float32
    assert ((above - exact[0]).abs() <= exact[0].abs() * 2**-8).all()
    assert apart(gradient.double(), exact[1]) < 2**-8
    assert apart(full.double(), exact[0]) < 2e-7


def test_it_is_torch_s_layer_by_kind_and_has_no_parameters():
    layer = ContrastNormalization()
    assert isinstance(layer, nn.LocalResponseNorm) and not layer.state_dict()
    assert (layer.size, layer.alpha, layer.beta, layer.k) == (5, 1e-4, 0.75, 2.0)
    again = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    assert torch.equal(again(maps(1, 8, 3, 3)), layer(maps(1, 8, 3, 3)))
    assert layer(torch.empty(2, 8, 3, 3, device="meta")).shape == (2, 8, 3, 3)


def test_refusals():
    with pytest.raises(ValueError, match="size is 0; valid: from 1"):
        ContrastNormalization(0)
    with pytest.raises(ValueError, match=r"maps must be \(N, C, ...\), not \(4, 5\)"):
        ContrastNormalization()(torch.zeros(4, 5))
    for size in (0, -3):  # would divide by zero, or sum nothing
        with pytest.raises(ValueError, match=f"size from 1, not {size}"):
            contrast_normalization(torch.ones(1, 4, 2, 2), size)


# --- the networks that hold it ------------------------------------------------------------------------------


def networks(builder=zfnet):
    """One network with our layer and the same with torch's."""
    torch.manual_seed(0)
    ours = builder(5, size=80, channels=(6, 8, 8, 8, 6), fc=(9, 9)).double()
    for parameter in ours.parameters():
        parameter.data *= 3
    theirs = copy.deepcopy(ours)
    for name, module in ours.named_children():
        if isinstance(module, ContrastNormalization):
            module.alpha = 0.5
            setattr(theirs, name, nn.LocalResponseNorm(module.size, 0.5, module.beta, module.k))
    assert sum(type(module) is nn.LocalResponseNorm for module in theirs) == 2
    return ours, theirs


@pytest.mark.parametrize("route", ["mirror", "gradient"])
@pytest.mark.parametrize("lrn", ["skip", "derivative"])
@pytest.mark.parametrize("builder", [zfnet, alexnet])
def test_projections_know_both_layers(builder, lrn, route):
    ours, theirs = networks(builder)
    images = torch.randn(2, 3, 80, 80, dtype=torch.float64)
    unit = "conv5", feature_maps(ours, images, ["conv5"])["conv5"].amax((2, 3)).argmax(1)
    pictures = [project(net, images, *unit, lrn=lrn, route=route) for net in (ours, theirs)]
    other = project(ours, images, *unit, lrn="skip" if lrn == "derivative" else "derivative", route=route)
    assert apart(*pictures) < 1e-12 and pictures[0].abs().max() > 0 and apart(other, pictures[0]) > 1e-3


def test_receptive_fields_know_both_layers():
    ours, theirs = networks()
    assert receptive_field(ours, "conv5") == receptive_field(theirs, "conv5")
