"""Receptive fields against the paper's tables and against what gradients reach."""

import pytest
import torch
import torchvision
from torch import nn

from zfkit.geometry import needed, out_size, receptive_field, sliding, touched, window
from zfkit.networks import alexnet, zfnet

ZFNET = {
    "conv1": (7, 2, 2),
    "pool1": (11, 4, 4),
    "conv2": (27, 8, 12),
    "pool2": (43, 16, 20),
    "conv3": (75, 16, 20),
    "conv4": (107, 16, 20),
    "conv5": (139, 16, 20),
    "pool5": (171, 32, 36),
    "fc6": (331, 0, 116),
    "fc8": (331, 0, 116),
}
ALEXNET = {
    "conv1": (11, 4, 3),
    "pool1": (19, 8, 7),
    "conv2": (51, 8, 7),
    "pool2": (67, 16, 15),
    "conv3": (99, 16, 15),
    "conv4": (131, 16, 15),
    "conv5": (163, 16, 15),
    "pool5": (195, 32, 31),
}


def on_paper(builder, **arguments):
    with torch.device("meta"):
        return builder(**arguments)


def test_zfnet_has_the_fields_of_the_table():
    net = on_paper(zfnet)
    assert {layer: tuple(receptive_field(net, layer)) for layer in ZFNET} == ZFNET


def test_the_replica_has_the_fields_of_the_table():
    net = on_paper(alexnet, size=224, padding=(2, 2, 1, 1, 1))
    assert {layer: tuple(receptive_field(net, layer)) for layer in ALEXNET} == ALEXNET


def test_windows_of_the_first_and_last_units():
    net = on_paper(zfnet)
    assert window(net, "conv1", (0, 0), 224) == (-1, -1, 6, 6)
    assert window(net, "conv5", (0, 3), 224) == (-49, -1, 90, 138)
    assert window(net, "pool5", (5, 5), (224, 224)) == (111, 111, 282, 282)
    assert window(net, "fc7", (0, 0), 224) == (-49, -49, 282, 282)


def reached(net, position, size):
    """The box of pixels that a unit's gradient reaches, with weights of one sign so that nothing cancels."""
    image = torch.ones(1, 3, *size, dtype=torch.float64, requires_grad=True)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.01)
    maps = net.double()(image)
    gradient = torch.autograd.grad(maps[0, :, position[0], position[1]].sum(), image)[0][0].sum(0)
    rows, columns = gradient.sum(1).nonzero(), gradient.sum(0).nonzero()
    return rows.min().item(), columns.min().item(), rows.max().item() + 1, columns.max().item() + 1


def test_dilation_and_filters_that_are_not_square_as_gradients_say():
    net = nn.Sequential(
        nn.Conv2d(3, 4, (5, 3), stride=(2, 1), dilation=(1, 3), padding=(2, 1)),
        nn.ReLU(),
        nn.AvgPool2d((2, 3), (2, 1), (1, 0)),
        nn.Conv2d(4, 4, (3, 1), dilation=2),
    )
    position = (3, 6)
    assert window(net, "3", position, (48, 40)) == reached(net, position, (48, 40))
    field = receptive_field(net, "3")
    assert field.size == (5 + 2 + 16, 7 + 2) and field.jump == (4, 1) and field.start == (7, 3)


def test_an_even_field_has_its_centre_between_two_pixels():
    assert receptive_field(nn.Sequential(nn.MaxPool2d(2)), "0") == (2, 2, 0.5)


def test_what_slides_and_how():
    assert sliding(nn.Conv2d(3, 4, (5, 3), (2, 1), dilation=(1, 3), padding=2)) == [(5, 2, 2, 1), (3, 1, 2, 3)]
    assert sliding(nn.MaxPool2d(3, 2)) == [(3, 2, 0, 1)] * 2
    assert sliding(nn.AvgPool2d((2, 3), padding=(1, 0))) == [(2, 2, 1, 1), (3, 3, 0, 1)]
    assert sliding(nn.ReLU()) is None and sliding(nn.Conv2d(3, 4, 3, padding="same")) is None


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(3, 4, 1, stride=2), nn.Conv2d(3, 4, 5, stride=2, padding=2)
        self.last = nn.Conv2d(8, 2, 3)

    def forward(self, images):
        return self.last(torch.cat([self.narrow(images), self.wide(images)], 1))


def test_branches_count_by_the_widest():
    net = Branches()
    assert receptive_field(net, "narrow").size == 1
    assert window(net, "last", (4, 3), 40) == reached(net, (4, 3), (40, 40))
    squeezenet = torchvision.models.squeezenet1_1(weights=None)
    assert receptive_field(squeezenet, "features.6") == (47, 8, 7)
    assert receptive_field(torchvision.models.resnet18(weights=None), "layer1.0.conv1").size == 19


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


class Dynamic(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, images):
        return self.conv(images) if images.sum() > 0 else images


@pytest.mark.parametrize(
    "net, layer, message",
    [
        (zfnet(size=99, fc=(9, 9)), "conv6", "unknown layer 'conv6'; valid: conv1"),
        (torchvision.models.alexnet(weights=None), "classifier.1", "AdaptiveAvgPool2d .* whole image or not known"),
        (nn.Sequential(nn.Upsample(scale_factor=2)), "0", "Upsample .* not known"),
        (Dynamic(), "conv", "cannot follow the layers of Dynamic"),
    ],
)
def test_refusals(net, layer, message):
    with pytest.raises(ValueError, match=message) as error:
        receptive_field(net, layer)
    assert "\n" not in str(error.value)


def test_a_unit_outside_the_image_is_refused():
    with pytest.raises(ValueError, match=r"unit \(40, 0\) of 'conv5' reads .* outside an image of \(224, 224\)"):
        window(on_paper(zfnet), "conv5", (40, 0), 224)


def test_box_of_a_field_is_the_window_of_its_unit():
    net = zfnet(16, size=80, strides=(2, 1, 1, 1, 1), fc=(8, 8))
    for layer in ("conv1", "pool1", "conv3", "conv5"):
        for position in ((0, 0), (3, 5)):
            assert receptive_field(net, layer).box(*position) == window(net, layer, position, 80)
