"""The strongest images of every channel against a full table."""

from importlib import import_module

import pytest
import torch
from torch import nn

from zfkit.deconvnet import feature_maps
from zfkit.networks import zfnet
from zfkit.strongest import strongest

module = import_module("zfkit.strongest")  # zfkit.strongest itself is the function


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)  # 4 at once of so small images


def network():
    torch.manual_seed(0)
    return zfnet(5, size=63, channels=(6, 8, 8, 8, 6), strides=(2, 1, 1, 1, 1), padding=(3, 2, 1, 1, 1), fc=(9, 9))


def by_full_table(maps, k):
    """Every value of every image at once, ranked with Python's stable sort."""
    maps = maps if maps.dim() == 4 else maps[..., None, None]
    rows = []
    for channel in range(maps.shape[1]):
        peaks = []
        for image, plane in enumerate(maps[:, channel].tolist()):
            value, row, col = max((v, -r, -c) for r, line in enumerate(plane) for c, v in enumerate(line))
            peaks.append((value, image, -row, -col))
        rows.append(sorted(peaks, key=lambda peak: -peak[0])[:k])
    return [torch.tensor(field).T for field in zip(*[list(zip(*row, strict=True)) for row in rows], strict=True)]


@pytest.mark.parametrize("k", [1, 3, 10])
def test_equals_the_full_table(k):
    net, images = network(), torch.randn(10, 3, 63, 63)
    layers = ["conv1", "pool2", "conv5", "fc7"]
    got = strongest(net, images, layers, k)
    maps = feature_maps(net, images, layers)
    for layer in layers:
        for ours, table in zip(got[layer], by_full_table(maps[layer], k), strict=True):
            assert ours.shape == table.shape == (k, maps[layer].shape[1])
            torch.testing.assert_close(ours, table.to(ours.dtype), rtol=1e-5, atol=1e-6)


def test_ties_go_to_the_earlier_image_and_the_first_place():
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())
    nn.init.constant_(net[0].bias, -1e9)  # a dead layer: every value is zero
    found = strongest(net, torch.randn(11, 3, 8, 8), ["1"], 6)["1"]
    assert not found.value.any()
    assert found.image.T.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert not found.row.any() and not found.col.any()


def test_images_are_normalised_batch_by_batch():
    net, images = network(), torch.randint(256, (9, 63, 63, 3), dtype=torch.uint8).numpy()
    seen = []

    def normalize(batch):
        seen.append(len(batch))
        return torch.as_tensor(batch).permute(0, 3, 1, 2) / 255

    found = strongest(net, images, ["conv3"], 2, normalize)["conv3"]
    assert seen == [1, 4, 4, 1]
    assert torch.equal(found.image, strongest(net, normalize(images), ["conv3"], 2)["conv3"].image)


def test_refusals():
    net, images = network(), torch.randn(4, 3, 63, 63)
    with pytest.raises(ValueError, match="k is 5; valid: 1 to 4, the number of images"):
        strongest(net, images, ["conv1"], 5)
    with pytest.raises(ValueError, match="k is 9; valid: 1 to 0"):
        strongest(net, images[:0], ["conv1"])
    with pytest.raises(ValueError, match="unknown layer 'conv8'; valid: conv1"):
        strongest(net, images, ["conv1", "conv8"], 2)
    with pytest.raises(ValueError, match="normalized must be a float tensor"):
        strongest(net, images.byte().permute(0, 2, 3, 1), ["conv1"], 2)
