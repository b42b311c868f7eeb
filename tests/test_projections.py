"""Projections by windows against `project` on whole images, at every border.

A quarter of the images is half flat: there the maxima of a pool are equal but for rounding, which depends on window and
processor, and the rule for ties (`switches.TIES`) must give both ways the same switches.
"""

from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn

from zfkit.deconvnet import project
from zfkit.fields import receptive_field
from zfkit.forward import feature_maps
from zfkit.networks import alexnet, zfnet
from zfkit.projections import projections
from zfkit.search import Strongest, crops, strongest

module = import_module("zfkit.projections")
SMALL = dict(channels=(6, 8, 8, 8, 6), fc=(9, 9))
NARROW = SMALL | dict(strides=(2, 1, 1, 1, 1), padding=(3, 2, 1, 1, 1))


def vgg(norm=False):
    layers, maps = [], 3
    for channels, pool in ((5, True), (6, True), (7, False), (8, True), (6, False)):
        layers += [nn.Conv2d(maps, channels, 3, padding=1), *([nn.BatchNorm2d(channels)] if norm else []), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
        maps = channels
    return nn.Sequential(*layers)


def odd():
    """Padded and overhanging pools that are not square, dilation, groups, two layers in place."""
    return nn.Sequential(
        nn.Conv2d(3, 6, (5, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), nn.ReLU(),
        nn.MaxPool2d((3, 2), (2, 1), (1, 0), ceil_mode=True), nn.LocalResponseNorm(3), nn.Conv2d(6, 8, 3, groups=2),
        nn.ReLU(inplace=True), nn.Identity(), nn.Conv2d(8, 6, 3, padding=2, groups=2), nn.BatchNorm2d(6),
        nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Dropout(), nn.Conv2d(6, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2),
    )  # fmt: skip


NORMS = (nn.LocalResponseNorm, nn.BatchNorm2d)
NETS = {
    "ZFNet, LRN": (lambda: zfnet(5, size=127, **SMALL), ["conv1", "pool1", "conv2", "pool2", "conv3", "conv5"]),
    "batch norm": (lambda: zfnet(5, size=127, norm="batch", **SMALL), ["conv1", "bn2", "conv3", "conv4", "pool5"]),
    "80 px": (lambda: zfnet(5, size=80, norm="batch", **NARROW), ["conv1", "conv2", "conv3", "conv5"]),
    "AlexNet, groups": (lambda: alexnet(5, 2, size=131, **SMALL), ["relu1", "pool1", "conv2", "conv4", "conv5"]),
    "VGG": (vgg, ["0", "3", "5", "8", "12"]),
    "VGG, batch norm": (lambda: vgg(True), ["1", "6", "10", "16"]),
    "odd": (odd, ["0", "2", "3", "4", "6", "9", "10", "14"]),
}


def prepared(which, dtype):
    torch.manual_seed(1)
    net = NETS[which][0]().to(dtype).eval()
    for part in net.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
            nn.init.normal_(part.bias, 0, 0.05)
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1), part.running_var.uniform_(0.5, 2)
            part.weight.data.normal_(1, 0.5), part.bias.data.normal_(0, 0.1)
    size = (net.config["size"],) * 2 if hasattr(net, "config") else (67, 59)
    if which == "ZFNet, LRN":
        size = (127, 151)  # not square
    images = torch.randn(4, 3, *size, dtype=dtype)
    images[3, :, :, size[1] // 2 :] = 0.5  # flat: many equal maxima
    return net, images.to(memory_format=torch.channels_last)


def units_everywhere(maps, count=20):
    """Units at the corners and at random, over all images and channels, as a flat Strongest, and their channels."""
    n, c, h, w = maps.shape
    generator = torch.Generator().manual_seed(0)
    image, channel, row, col = (torch.randint(side, (count,), generator=generator) for side in (n, c, h, w))
    row[:4], col[:4] = torch.tensor([0, 0, h - 1, h - 1]), torch.tensor([0, w - 1, 0, w - 1])
    value = maps[image, channel, row, col].abs() + 0.1
    return Strongest(value, image, row, col), channel


def pasted(picture, box, size):
    whole = picture.new_zeros(3, *size)
    whole[:, box[0] : box[2], box[1] : box[3]] = picture
    return whole


@pytest.mark.parametrize("way", ["crops", "kept"])
@pytest.mark.parametrize("which", NETS)
@pytest.mark.parametrize("dtype, bar", [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["float64", "float32"])
def test_equals_the_mirror_on_whole_images(which, way, dtype, bar):
    net, images = prepared(which, dtype)
    clipped = False
    for layer in NETS[which][1]:
        units, channel = units_everywhere(feature_maps(net, images, [layer])[layer])
        boxes, seen = crops(images.permute(0, 2, 3, 1), receptive_field(net, layer), units)[1], 0
        clipped |= bool(np.ptp(boxes[:, 2:] - boxes[:, :2], 0).any())
        for flat in (False, True):
            some = ((units.image == 3) == flat).nonzero()[:, 0]
            ours, cut = projections(net, images, layer, taken(units, some), channel[some], way=way)
            whole = by_the_mirror(net, images, layer, taken(units, some), channel[some])
            assert np.array_equal(cut, boxes[some]), layer
            for picture, box, expected in zip(ours, cut, whole, strict=True):
                far = (pasted(picture, box, images.shape[2:]) - expected).abs().max()
                assert far <= bar * expected.abs().max() + bar * 1e-3, (layer, flat, far)
                seen += bool(picture.any())
        assert seen > len(channel) // 2
    assert clipped, "windows that the border cuts"


def taken(units, some):
    return Strongest(*(part[some] for part in units))


def by_the_mirror(net, images, layer, units, channel):
    position = torch.stack([units.row, units.col], 1)
    return project(net, images[units.image], layer, channel, position, start=units.value, route="mirror")


@pytest.mark.parametrize("way", ["crops", "kept"])
@pytest.mark.parametrize("which", ["VGG", "whole numbers, odd"])
def test_equal_maxima_go_to_the_first_place_both_ways(which, way):
    """Flat images and weights of whole numbers: no arithmetic rounds, so every tie is one on every processor."""
    net = nn.Sequential(*(m for m in (vgg() if which == "VGG" else odd()) if not isinstance(m, NORMS))).double().eval()
    generator = torch.Generator().manual_seed(2)
    for weight in (part for layer in net if isinstance(layer, nn.Conv2d) for part in (layer.weight, layer.bias)):
        weight.data = torch.randint(-1, 3, weight.shape, generator=generator).double()
    images = torch.ones(2, 3, 67, 59, dtype=torch.float64)
    images[1, :, 20:, 30:] = 3
    layer = [name for name, module in net.named_children() if isinstance(module, nn.ReLU)][-1]
    units, channel = units_everywhere(feature_maps(net, images, [layer])[layer])
    units = units._replace(value=torch.arange(1.0, 21, dtype=torch.float64))
    pictures, boxes = projections(net, images, layer, units, channel, way=way)
    position = torch.stack([units.row, units.col], 1)
    whole = project(net, images[units.image], layer, channel, position, start=units.value, route="mirror")
    for n, picture in enumerate(pictures):
        assert torch.equal(pasted(picture, boxes[n], (67, 59)), whole[n])
    assert sum(bool(picture.any()) for picture in pictures) > 10


@pytest.mark.parametrize("which", ["batch norm", "AlexNet, groups"])
def test_a_whole_layer_of_the_strongest(which):
    net, images = prepared(which, torch.float64)
    best = strongest(net, images, ["conv2", "conv4"], 3)
    for layer, units in best.items():
        pictures, boxes = projections(net, images, layer, units)
        for way in module.WAYS:
            other, also = projections(net, images, layer, units, way=way)
            assert np.array_equal(boxes, also)
            assert all(torch.allclose(a, b, rtol=1e-11, atol=1e-11) for a, b in zip(pictures, other, strict=True))
        some, [*_] = projections(net, images, layer, units.of(5), 5)
        assert torch.allclose(some[2], pictures[2 * units.value.shape[1] + 5], rtol=1e-11, atol=1e-11)
        several, _ = projections(net, images, layer, units.of([5, 1]), [5, 1])
        assert torch.allclose(several[1], pictures[1], rtol=1e-11, atol=1e-11)


class Branches(nn.Module):
    """Neither a chain nor a module that hides nothing: two paths, and one chain with a step between its modules."""

    def __init__(self, branch):
        super().__init__()
        self.first, self.relu, self.second, self.branch = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), branch

    def forward(self, images):
        maps = self.relu(self.first(images))
        return self.second(maps) + maps[:, :, 1:-1, 1:-1] if self.branch else self.second(maps.mul_(2))


@pytest.mark.parametrize("branch", [True, False])
def test_other_networks_take_the_plain_way(branch):
    torch.manual_seed(0)
    net, images = Branches(branch).double(), torch.randn(3, 3, 20, 20, dtype=torch.float64)
    layer = "second"
    units, channel = units_everywhere(feature_maps(net, images, [layer])[layer])
    if not branch:
        with pytest.raises(ValueError, match="way 'kept' needs a chain"):
            projections(net, images, layer, units, channel, way="kept")
        return
    pictures, boxes = projections(net, images, layer, units, channel)
    position = torch.stack([units.row, units.col], 1)
    whole = project(net, images[units.image], layer, channel, position, start=units.value)
    for n, picture in enumerate(pictures):
        assert picture.shape == (3, 5, 5)
        assert torch.allclose(pasted(picture, boxes[n], (20, 20)), whole[n], rtol=1e-11, atol=1e-11)


def test_units_behind_the_flatten_see_the_whole_image():
    net, images = prepared("80 px", torch.float64)
    units = strongest(net, images, ["fc6"], 2)["fc6"]
    pictures, boxes = projections(net, images, "fc6", units.of(3), 3)
    assert boxes.tolist() == [[0, 0, 80, 80]] * 2
    assert torch.allclose(pictures[1], project(net, images[units.image[1, 3]][None], "fc6", 3)[0], atol=1e-12)


def test_the_contrast_normalisations_derivative_takes_the_plain_way():
    net, images = prepared("ZFNet, LRN", torch.float64)
    units = strongest(net, images, ["conv3"], 1)["conv3"].of(2)
    [picture], _ = projections(net, images, "conv3", units, 2, lrn="derivative")
    [skipped], [box] = projections(net, images, "conv3", units, 2)
    whole = project(net, images[units.image], "conv3", 2, lrn="derivative")[0]
    assert torch.allclose(pasted(picture, box, images.shape[2:]), whole, atol=1e-12)
    assert not torch.allclose(picture, skipped)


def test_a_folder_keeps_the_pictures(tmp_path, monkeypatch):
    net, images = prepared("80 px", torch.float32)
    units = strongest(net, images, ["conv2", "conv3"], 3)
    plain, boxes = projections(net, images, "conv3", units["conv3"])
    made, also = projections(net, images, "conv3", units["conv3"], folder=tmp_path)
    assert np.array_equal(boxes, also)
    assert all((a - b).abs().max() <= 5e-4 * a.abs().max() for a, b in zip(plain, made, strict=True))
    for file in list(tmp_path.iterdir()):  # what is damaged is made again
        file.write_bytes(file.read_bytes()[:100])
    projections(net, images, "conv3", units["conv3"], folder=tmp_path)
    monkeypatch.setattr(module, "chain_to", None)
    again, also = projections(net, images, "conv3", units["conv3"], folder=tmp_path)
    assert np.array_equal(boxes, also) and all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
    for call in [("conv2", units["conv2"]), ("conv3", units["conv3"]._replace(row=1 + 0 * units["conv3"].row))]:
        with pytest.raises(TypeError):
            projections(net, images, *call, folder=tmp_path)
    file = max(tmp_path.iterdir())
    assert module._read(file) and module._read(file.rename(tmp_path / "projections-conv2-0.safetensors")) is None
    net.conv3.weight.data[0, 0, 0, 0] += 1
    with pytest.raises(TypeError):
        projections(net, images, "conv3", units["conv3"], folder=tmp_path)


def test_images_of_one_channel_that_are_not_square(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 5, 2, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(4, 6, 3), nn.ReLU())
    images = torch.randn(3, 1, 33, 47)
    units = strongest(net, images, ["3"], 2)["3"].of(4)
    whole = project(net, images[units.image], "3", 4, torch.stack([units.row, units.col], 1), start=units.value)
    for options, bar in ((dict(way="crops"), 1e-5), (dict(way="kept"), 1e-5), (dict(folder=tmp_path), 1e-3)):
        pictures, boxes = projections(net, images, "3", units, 4, **options)
        for n, picture in enumerate(pictures):
            assert picture.shape[0] == 1 and picture.any()
            top, left, bottom, right = boxes[n]
            expected = whole[n, :, top:bottom, left:right]
            assert (picture - expected).abs().max() < bar * expected.abs().max()


def test_images_are_normalised_as_they_are_needed():
    net, images = prepared("80 px", torch.float32)
    raw = torch.randint(256, (40, 80, 80, 3), dtype=torch.uint8).numpy()

    def normalize(batch):
        assert len(batch) <= 16
        return torch.as_tensor(batch).permute(0, 3, 1, 2) / 255 - 0.5

    numbers = torch.arange(40)
    units = Strongest(torch.ones(40), numbers.flip(0), numbers % 5, numbers % 7)
    pictures, _ = projections(net, raw, "conv3", units, numbers % 8, normalize=normalize)
    few = Strongest(*(part[30:32] for part in units))
    whole, _ = projections(net, raw, "conv3", few, numbers[30:32] % 8, normalize=normalize, way="project")
    assert torch.allclose(pictures[30], whole[0], atol=1e-6) and torch.allclose(pictures[31], whole[1], atol=1e-6)


def test_refusals():
    net, images = prepared("80 px", torch.float32)
    units = strongest(net, images, ["conv2"], 2)["conv2"]
    one = units.of(3)
    wrong = [
        ("conv9", (one, 3), {}, "unknown layer 'conv9'; valid: conv1"),
        ("conv2", (one, 3), dict(way="fast"), "unknown way 'fast'; valid: auto, crops, kept, project"),
        ("conv2", (one, 8), {}, "no channel of 'conv2' is 8; valid: 0 to 7"),
        ("conv2", (one, None), {}, "channel is None"),
        ("conv2", (one, [1, 2, 3]), {}, r"channel \(3,\) does not go with units \(2,\)"),
        ("conv2", (one._replace(image=one.image + 4), 3), {}, "no image .; valid: 0 to 3"),
        ("conv2", (one._replace(row=one.row + 99), 3), {}, "no row of 'conv2' is .*; valid: 0 to 19"),
        ("conv2", (one, 3), dict(way="crops", overlap="max"), "way 'crops' needs a chain"),
        ("conv2", (units.of([]), []), {}, r"no units: their fields are \(2, 0\)"),
        ("fc6", (one, 3), dict(way="kept"), "way 'kept' needs a chain"),
        ("conv2", (one, 3), dict(overlap="mean"), "unknown overlap 'mean'"),
    ]
    for layer, arguments, options, message in wrong:
        with pytest.raises(ValueError, match=message) as error:
            projections(net, images, layer, *arguments, **options)
        assert "\n" not in str(error.value)
