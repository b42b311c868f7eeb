"""Receptive fields against the paper's tables and against what gradients reach."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from zfkit.fields import receptive_field
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
    assert receptive_field(net, "conv1").box(0, 0) == (-1, -1, 6, 6)
    assert receptive_field(net, "conv5").box(0, 3) == (-49, -1, 90, 138)
    assert receptive_field(net, "pool5").box(5, 5) == (111, 111, 282, 282)
    assert receptive_field(net, "fc7").box(0, 0) == (-49, -49, 282, 282)


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
    assert receptive_field(net, "3").box(*position) == reached(net, position, (48, 40))
    field = receptive_field(net, "3")
    assert field.size == (5 + 2 + 16, 7 + 2) and field.jump == (4, 1) and field.start == (7, 3)


def test_an_even_field_has_its_centre_between_two_pixels():
    assert receptive_field(nn.Sequential(nn.MaxPool2d(2)), "0") == (2, 2, 0.5)


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
    assert receptive_field(net, "last").box(4, 3) == reached(net, (4, 3), (40, 40))
    squeezenet = torchvision.models.squeezenet1_1(weights=None)
    assert receptive_field(squeezenet, "features.6") == (47, 8, 7)
    assert receptive_field(torchvision.models.resnet18(weights=None), "layer1.0.conv1").size == 19


class Dynamic(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, images):
        return self.conv(images) if images.sum() > 0 else images


@pytest.mark.parametrize("kernel, dilation", [(3, 1), (5, 2), (2, 1), ((4, 3), (1, 3)), (4, 2)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name_as_gradients_say(padding, kernel, dilation):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, kernel, dilation=dilation, padding=padding))
    assert receptive_field(net, "1").box(7, 6) == reached(net, (7, 6), (60, 60))


@pytest.mark.parametrize("padding, start", [("same", 0), ("valid", 1)])
def test_padding_by_name_on_paper(padding, start):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=padding), nn.ReLU())
    assert receptive_field(net, "1") == (3, 1, start)


class Mixed(nn.Module):
    """Groups of channels mixed by hand, and a mean over the maps."""

    def __init__(self):
        super().__init__()
        self.low, self.high, self.top = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)

    def forward(self, images):
        maps = self.low(images)
        n, c, h, w = maps.shape
        maps = maps.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.top(self.high(maps).mean((2, 3)))


class Pooled(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.conv, self.pool, self.top = nn.Conv2d(3, 4, 3), pool, nn.Linear(8, 2)

    def forward(self, images):
        maps = self.conv(images)
        return self.top(torch.flatten(self.pool(torch.cat([maps, maps], 1)), 1))


def test_a_channel_shuffle_as_a_module_reads_point_by_point():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ChannelShuffle(2), nn.Conv2d(4, 4, 3))
    assert receptive_field(net, "2") == (5, 1, 2)


MEAN = nn.AdaptiveAvgPool2d(1)
SHUFFLENET = torchvision.models.shufflenet_v2_x0_5(weights=None)


@pytest.mark.parametrize(
    "net, layer, message",
    [
        (zfnet(size=99, fc=(9, 9)), "conv6", "unknown layer 'conv6'; valid: conv1"),
        (torchvision.models.alexnet(weights=None), "classifier.1", "is the whole image: AdaptiveAvgPool2d .* pools"),
        (torchvision.models.resnet18(weights=None), "fc", "is the whole image: AdaptiveAvgPool2d .* pools"),
        (Pooled(MEAN), "top", "is the whole image: AdaptiveAvgPool2d .* pools all"),
        (Pooled(lambda maps: F.adaptive_max_pool2d(maps, 1)), "top", "is the whole image: adaptive_max_pool2d"),
        (Mixed(), "top", "is the whole image: mean .* pools all"),
        (Mixed(), "high", "is not known: nothing says which pixels are read through reshape"),
        (SHUFFLENET, "fc", r"is the whole image: mean \(mean\) pools all"),
        (SHUFFLENET, "conv5", "is not known: nothing says which pixels are read through view"),
        (nn.Sequential(nn.Upsample(scale_factor=2)), "0", "is not known: .* through Upsample"),
        (nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), "0", "is not known: .* through BatchNorm2d"),
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.Flatten(), nn.Linear(15, 2)), "2", "15 numbers .* no square maps"),
        (Dynamic(), "conv", "cannot follow the layers of Dynamic"),
    ],
    ids=lambda it: it if isinstance(it, str) else type(it).__name__,
)
def test_refusals_say_why(net, layer, message):
    with pytest.raises(ValueError, match=message) as error:
        receptive_field(net, layer)
    assert "\n" not in str(error.value)


def test_what_a_module_of_ones_own_reads_is_not_guessed():
    class Shifted(nn.Conv2d):
        def forward(self, maps):
            return super().forward(torch.roll(maps, 1, 2))

    class Named(nn.Conv2d):
        """Of the same forward pass."""

    assert receptive_field(nn.Sequential(Named(3, 4, 3)), "0") == (3, 1, 1)
    with pytest.raises(ValueError, match="nothing says which pixels are read through Shifted"):
        receptive_field(nn.Sequential(Shifted(3, 4, 3)), "0")
