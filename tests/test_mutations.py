"""Each error found in published deconvnets, planted once: a named check of ours must turn red.

Every mutation replaces one step of the mirror. The checks are those of test_deconvnet.py in small.
"""

import pytest
import torch
from captum.attr import NeuronDeconvolution
from test_deconvnet import Skipped, difference, pictures, small, unit
from torch import nn
from torch.nn import functional as F

import zfkit.deconvnet as deconvnet
from zfkit import switches
from zfkit.deconvnet import project
from zfkit.forward import feature_maps

# --- the checks: each passes on the code as it is -------------------------------------------------------------


def case(norm="lrn"):
    net, images = small(norm), pictures(2, 63)
    channel, place, values = unit(net, images, "conv5")
    assert (values > 0).all()
    return net, images, channel, place, values


def equals_captum():
    net, images, channel, place, values = case()
    ours = project(net, images, "conv5", channel, place, route="mirror")
    net.norm1, net.norm2 = Skipped(net.norm1), Skipped(net.norm2)
    with pytest.warns(UserWarning):
        theirs = NeuronDeconvolution(net, net.relu5).attribute(images.requires_grad_(), (channel, *place))
    return difference(ours, theirs * values.view(-1, 1, 1, 1)) < 1e-12


def equals_the_gradient_route():
    net, images, channel, place, _ = case("batch")
    both = [project(net, images, "conv5", channel, place, route=route) for route in ("mirror", "gradient")]
    return difference(*both) < 1e-12


def zero_gives_zero():
    net, images, channel, place, _ = case()
    return not project(net, images, "conv5", channel, place, start=0.0, route="mirror").any()


def is_repeatable():
    net, images, channel, place, _ = case()
    first, second = (project(net, images, "conv5", channel, place, route="mirror") for _ in range(2))
    return torch.equal(first, second)


def starts_from_one_unit():
    """Outside the receptive field of the unit the picture is empty."""
    net, images, channel, _, _ = case()
    corner = project(net, images, "conv2", channel % 12, (0, 0), start=1.0, route="mirror")
    return corner.any() and not corner[:, :, 32:].any() and not corner[:, :, :, 32:].any()


def has_the_size_of_the_image():
    """At stride 2 an even and an odd side pool to one map; neither can be guessed from it."""
    net, images, *_ = case()
    try:
        sizes = [
            project(net, images[..., :side, :side], "conv2", 1, (2, 2), route="mirror").shape[2:] for side in (62, 63)
        ]
    except RuntimeError:  # the maps no longer fit
        return False
    return sizes == [(62, 62), (63, 63)]


def is_signed():
    net, images, channel, place, _ = case()
    return (project(net, images, "conv5", channel, place, route="mirror") < 0).any().item()


def keeps_the_strength():
    net, images, channel, place, _ = case()
    one, three = (project(net, images, "conv5", channel, place, start=s, route="mirror") for s in (1.0, 3.0))
    return difference(three, 3 * one) < 1e-13


def largest_wins_is_largest():
    plane = switches.unpool(torch.tensor([[[[3.0, 1.0]]]]), torch.tensor([[[[2, 2]]]]), (2, 2), "max")
    return plane.flatten().tolist() == [0, 0, 3, 0]


CHECKS = [equals_captum, equals_the_gradient_route, zero_gives_zero, is_repeatable, starts_from_one_unit]
CHECKS += [has_the_size_of_the_image, is_signed, keeps_the_strength, largest_wins_is_largest]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_code_as_it_is_passes(check):
    assert check()


# --- the mutations: a name, the step replaced, and the check that must fail -----------------------------------

down, transposed_filter, seed, unpool = (deconvnet._down, deconvnet.transposed_filter, deconvnet._seed, switches.unpool)


def overwriting_unpool(pooled, places, size, overlap="sum"):
    plane = pooled.new_zeros(*pooled.shape[:2], size[0] * size[1])
    return plane.scatter_(2, places.flatten(2), pooled.flatten(2)).unflatten(2, size)


def unpool_without_switches(pooled, places, size, overlap="sum"):
    return F.interpolate(pooled, size=size, mode="nearest")


def unpool_to_the_first_place(pooled, places, size, overlap="sum"):
    columns = torch.arange(pooled.shape[3]) * 2
    rows = torch.arange(pooled.shape[2]) * 2
    fixed = (rows[:, None].clamp(max=size[0] - 1) * size[1] + columns.clamp(max=size[1] - 1)).expand_as(places)
    return unpool(pooled, fixed, size, overlap)


def random_biases(signal, conv, size):
    return transposed_filter(signal, conv, size) + torch.randn(1, size[1], 1, 1, dtype=signal.dtype) * 0.05


def forward_biases(signal, conv, size):
    below = transposed_filter(signal, conv, size)
    return below + conv.bias[: size[1]].mean()


def flipped_filters(signal, conv, size):
    return flipped(signal, conv, size, lambda weight: weight.flip(2, 3))


def height_and_width_swapped(signal, conv, size):
    return flipped(signal, conv, size, lambda weight: weight.transpose(2, 3))


def flipped(signal, conv, size, change):
    other = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
    other = other.to(signal.dtype)
    with torch.no_grad():
        other.weight.copy_(change(conv.weight))
    return transposed_filter(signal, other, size)


def no_output_size(signal, conv, size):
    return F.conv_transpose2d(signal, conv.weight, None, conv.stride, conv.padding)


def output_padding_guessed(signal, conv, size):
    return F.conv_transpose2d(signal, conv.weight, None, conv.stride, conv.padding, conv.stride[0] - 1)


def pixels_rectified(signal, conv, size):
    below = transposed_filter(signal, conv, size)
    return below.clamp(min=0) if size[1] == 3 else below


def lrn_run_forward(step, signal, overlap, lrn):
    return step.module(signal) if isinstance(step.module, nn.LocalResponseNorm) else down(step, signal, overlap, lrn)


def lrn_differentiated(step, signal, overlap, lrn):
    return down(step, signal, overlap, "derivative")


def batch_norm_ignored(step, signal, overlap, lrn):
    return signal if isinstance(step.module, nn.BatchNorm2d) else down(step, signal, overlap, lrn)


def sign_of_batch_norm_lost(step, signal, overlap, lrn):
    if not isinstance(step.module, nn.BatchNorm2d):
        return down(step, signal, overlap, lrn)
    return signal * deconvnet.folded_scale(step.module).abs().view(-1, 1, 1)


def batch_norm_run_forward(step, signal, overlap, lrn):
    return step.module(signal) if isinstance(step.module, nn.BatchNorm2d) else down(step, signal, overlap, lrn)


def whole_map(layer, channel, position, start, maps):
    chosen = torch.zeros_like(maps)
    images = torch.arange(len(maps))
    chosen[images, channel] = maps[images, channel]
    return chosen


def map_of_ones(layer, channel, position, start, maps):
    chosen = torch.zeros_like(maps)
    chosen[torch.arange(len(maps)), channel] = 1.0
    return chosen


def start_ignored(layer, channel, position, start, maps):
    return seed(layer, channel, position, None, maps)


def row_and_column_swapped(layer, channel, position, start, maps):
    return seed(layer, channel, None if position is None else position.flip(1), start, maps)


def own_scale(step, signal, overlap, lrn):
    below = down(step, signal, overlap, lrn)
    return below / below.abs().max().clamp(min=1e-9) if step.name == "conv1" else below


def rectified_at_pools_only(step, signal, overlap, lrn):
    return signal if step.name in ("relu3", "relu4", "relu5") else down(step, signal, overlap, lrn)


def guided(module_maps):
    """Guided backprop under the deconvnet's name: the forward pass masks the signal as well."""

    def step(step, signal, overlap, lrn):
        below = down(step, signal, overlap, lrn)
        return below * (module_maps[step.name] > 0) if isinstance(step.module, nn.ReLU) else below

    return step


MUTATIONS = [
    ("unpool", overwriting_unpool, equals_captum),
    ("unpool", unpool_without_switches, equals_captum),
    ("unpool", unpool_to_the_first_place, equals_the_gradient_route),
    ("transposed_filter", random_biases, zero_gives_zero),
    ("transposed_filter", random_biases, is_repeatable),
    ("transposed_filter", forward_biases, zero_gives_zero),
    ("rectify", lambda signal: signal, equals_captum),
    ("rectify", lambda signal: signal.abs(), equals_captum),
    ("_down", rectified_at_pools_only, equals_captum),
    ("transposed_filter", flipped_filters, equals_captum),
    ("transposed_filter", height_and_width_swapped, equals_the_gradient_route),
    ("transposed_filter", no_output_size, has_the_size_of_the_image),
    ("transposed_filter", output_padding_guessed, has_the_size_of_the_image),
    ("transposed_filter", pixels_rectified, is_signed),
    ("_down", lrn_run_forward, equals_captum),
    ("_down", lrn_differentiated, equals_captum),
    ("_down", batch_norm_ignored, equals_the_gradient_route),
    ("_down", sign_of_batch_norm_lost, equals_the_gradient_route),
    ("_down", batch_norm_run_forward, equals_the_gradient_route),
    ("_seed", whole_map, equals_captum),
    ("_seed", map_of_ones, starts_from_one_unit),
    ("_seed", start_ignored, zero_gives_zero),
    ("_seed", row_and_column_swapped, equals_captum),
    ("_down", own_scale, keeps_the_strength),
]


@pytest.mark.parametrize(
    "step, mutant, check", MUTATIONS, ids=lambda it: it if isinstance(it, str) else it.__name__.strip("<>")
)
def test_a_planted_error_turns_its_check_red(monkeypatch, step, mutant, check):
    monkeypatch.setattr(deconvnet, step, mutant)
    assert not check()


def test_guided_backprop_under_the_name_of_the_deconvnet_turns_a_check_red(monkeypatch):
    net, images, channel, place, _ = case()
    relus = [name for name, module in net.named_modules() if isinstance(module, nn.ReLU)]
    maps = feature_maps(net, images, relus)
    monkeypatch.setattr(deconvnet, "_down", guided(maps))
    assert not equals_captum()


def test_a_pool_whose_overlaps_overwrite_instead_of_keeping_the_largest_turns_a_check_red(monkeypatch):
    monkeypatch.setattr(switches, "unpool", overwriting_unpool)
    assert not largest_wins_is_largest()
