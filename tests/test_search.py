"""The strongest images of every channel against a full table."""

import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from zfkit.fields import receptive_field
from zfkit.forward import feature_maps
from zfkit.networks import alexnet, zfnet
from zfkit.search import Strongest, crops, most_excited, strongest

module = import_module("zfkit.search")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)  # 4 at once of so small images


def network(**more):
    torch.manual_seed(0)
    small = dict(channels=(6, 8, 8, 8, 6), strides=(2, 1, 1, 1, 1), padding=(3, 2, 1, 1, 1), fc=(9, 9))
    return zfnet(5, size=63, **small, **more)


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


NETS = {
    "LRN": (network, ["conv1", "pool2", "conv5", "fc7"]),
    "batch norm": (lambda: network(norm="batch"), ["conv1", "pool1", "conv2", "conv5", "fc8"]),
    "AlexNet": (lambda: alexnet(5, 2, size=95, channels=(6, 8, 8, 8, 6), fc=(9, 9)), ["conv1", "conv2", "conv5"]),
    "SqueezeNet": (
        lambda: import_module("torchvision").models.squeezenet1_1(weights=None),
        ["features.1", "features.3", "features.4.expand3x3"],
    ),
    "gaps": (lambda: nn.Sequential(nn.Conv2d(3, 4, (4, 2)), nn.ReLU(), nn.MaxPool2d(2, 3)), ["1", "2"]),
    "padded": (lambda: nn.Sequential(nn.Conv2d(3, 4, (4, 2)), nn.ReLU(), nn.MaxPool2d(3, 3, 1)), ["0", "1"]),
    "overhang": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d((3, 5), 2, 1)), ["0", "1"]),
}


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("which", NETS)
def test_equals_the_full_table(which, k):
    build, layers = NETS[which]
    net, images = build().eval(), torch.randn(10, 3, 95, 63)
    if hasattr(net, "config"):
        images = torch.randn(10, 3, net.config["size"], net.config["size"])
    got = strongest(net, images, layers, k)
    maps = feature_maps(net, images, layers)
    for layer in layers:
        for ours, table in zip(got[layer], by_full_table(maps[layer], k), strict=True):
            assert ours.shape == table.shape == (k, maps[layer].shape[1])
            torch.testing.assert_close(ours, table.to(ours.dtype), rtol=1e-5, atol=1e-6)


def test_equal_values_everywhere_equal_the_full_table():
    """Images of few grey values and filters of few weights: many units and images tie, pooled or not."""
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(5, 4, 1))
    generator = torch.Generator().manual_seed(3)
    for module in (net[0], net[3]):
        module.weight.data = torch.randint(-1, 2, module.weight.shape, generator=generator).float()
        module.bias.data.zero_()
    images = torch.randint(0, 2, (30, 3, 9, 14), generator=generator).float()
    got, maps = strongest(net, images, ["1", "2", "3"], 7), feature_maps(net, images, ["1", "2", "3"])
    for layer, found in got.items():
        planes = maps[layer].flatten(2)
        assert ((planes == planes.amax(2, keepdim=True)).sum(2) > 1).float().mean() > 0.3, "the case under test"
        assert all(torch.equal(a, b.to(a)) for a, b in zip(found, by_full_table(maps[layer], 7), strict=True))


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


def test_images_that_the_network_cannot_take_are_refused_with_their_size():
    with pytest.raises(ValueError, match=r"no forward pass with .*\(4, 3, 9, 9\)") as error:
        strongest(network(), torch.randn(4, 3, 9, 9), ["pool5"], 2)
    assert "\n" not in str(error.value)
    tiny = torch.randn(4, 3, 9, 9)  # too small for the pooling above, which nobody asked for
    maps = feature_maps(network(), tiny, ["conv5"])["conv5"]
    assert torch.equal(strongest(network(), tiny, ["conv5"], 1)["conv5"].value[0], maps.amax((0, 2, 3)))
    small = torch.randn(4, 3, 33, 33)  # smaller than the receptive field, which is none of our concern
    assert receptive_field(network(), "conv5").size > 33
    assert strongest(network(), small, ["conv5"], 2)["conv5"].value.shape == (2, 6)


def test_activations_that_are_not_finite_are_refused():
    images = torch.randn(9, 3, 63, 63)
    images[5, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="layer 'relu1' is not finite on the images 4 to 7"):
        strongest(network(), images, ["conv1"], 2)


class Tokens(nn.Module):
    """The first half of a vision transformer: patches as rows of features."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 8, 8), nn.LayerNorm(8)

    def forward(self, images):
        return self.norm(self.patches(images).flatten(2).transpose(1, 2))


def test_tokens_are_not_taken_for_channels():
    images = torch.randn(4, 3, 32, 32)
    assert strongest(Tokens(), images, ["patches"], 2)["patches"].value.shape == (2, 8)
    with pytest.raises(ValueError, match=r"layer 'norm' gives \(4, 16, 8\), not \(N, C, h, w\) or \(N, units\)"):
        strongest(Tokens(), images, ["norm"], 2)


@pytest.mark.parametrize("hooked", ["relu1", "pool1"])
def test_a_forward_hook_that_changes_an_output_counts(hooked):
    """Of the pooling too, by whose maxima those of the layer below are found otherwise."""
    net, images = network(), torch.randn(10, 3, 63, 63)
    before = strongest(net, images, ["conv1", "conv2"], 3)
    getattr(net, hooked).register_forward_hook(lambda module, inputs, output: output.flip(2))
    got, maps = strongest(net, images, ["conv1", "conv2"], 3), feature_maps(net, images, ["conv1", "conv2"])
    for layer in maps:
        for ours, table in zip(got[layer], by_full_table(maps[layer], 3), strict=True):
            torch.testing.assert_close(ours, table.to(ours.dtype), rtol=1e-5, atol=1e-6)
    assert not torch.equal(got["conv2"].value, before["conv2"].value)


def test_a_batch_norm_without_running_statistics_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(ValueError, match="module '1' normalises over its batch"):
        strongest(net, torch.randn(4, 3, 9, 9), ["1"], 2)


# --- the folder ----------------------------------------------------------------------------------------------


def refuse(*arguments):
    raise AssertionError("the network was run")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(x, y) for layer in a for x, y in zip(a[layer], b[layer]))


def test_a_finished_pass_is_only_read(tmp_path, monkeypatch):
    net, images = network(), torch.randn(10, 3, 63, 63)
    first = strongest(net, images, ["conv1", "fc7"], 3, folder=tmp_path)
    assert same(first, strongest(net, images, ["conv1", "fc7"], 3))
    monkeypatch.setattr(module, "run_to", refuse)
    assert same(first, strongest(net, images, ["conv1", "fc7"], 3, folder=tmp_path))


def changed_weight(net):
    net.conv4.weight.data[0, 0, 0, 0] += 1e-6


def changed_stride(net):
    net.conv4.stride = (2, 2)


def changed_running_mean(net):
    net.bn2.running_mean[0] += 1e-6


@pytest.mark.parametrize("change", [changed_weight, changed_stride, changed_running_mean])
def test_a_cache_of_another_network_is_not_used(tmp_path, change):
    net, images = network(norm="batch").eval(), torch.randn(10, 3, 63, 63)
    strongest(net, images, ["conv5"], 3, folder=tmp_path)
    change(net)
    assert same(strongest(net, images, ["conv5"], 3, folder=tmp_path), strongest(net, images, ["conv5"], 3))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_cache_of_other_images_or_arguments_is_not_used(tmp_path):
    net, images = network(), torch.randint(256, (10, 63, 63, 3), dtype=torch.uint8)
    other = images.clone()
    other[7, 3, 3, 1] ^= 1

    def normalize(batch, scale=255):
        return batch.permute(0, 3, 1, 2) / scale

    calls = [(images, ["conv5"], 3, normalize), (other, ["conv5"], 3, normalize), (images[:9], ["conv5"], 3, normalize)]
    calls += [(images, ["conv4"], 3, normalize), (images, ["conv5"], 2, normalize)]
    calls += [(images, ["conv5"], 3, lambda batch: normalize(batch, 128))]
    for number, call in enumerate(calls, 1):
        assert same(strongest(net, *call, folder=tmp_path), strongest(net, *call))
        assert len(list(tmp_path.iterdir())) == number
    strongest(net, images.numpy(), ["conv5"], 3, lambda batch: normalize(torch.as_tensor(batch)), folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == number, "the same images, as an array"


def test_a_large_set_is_sampled_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HASHED_BYTES", 3 * 63 * 63 * 3)
    net, images = network(), torch.randint(256, (10, 63, 63, 3), dtype=torch.uint8)
    names = set()
    for number in range(10):
        other = images.clone()
        other[number] += 1
        names.add(module.kept_file(tmp_path, "x", net, other, lambda batch: batch.float()))
    assert len(names) == 4, "images 0, 4 and 8 are looked at"


@pytest.mark.parametrize("damage", [b"", b"no tensors", None])
def test_a_damaged_file_is_made_again(tmp_path, damage):
    net, images = network(), torch.randn(10, 3, 63, 63)
    first = strongest(net, images, ["conv1"], 3, folder=tmp_path)
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-9] if damage is None else damage)
    assert same(first, strongest(net, images, ["conv1"], 3, folder=tmp_path))


def test_a_file_under_anothers_name_is_not_used(tmp_path):
    net, images = network(), torch.randn(10, 3, 63, 63)
    strongest(net, images, ["conv1"], 3, folder=tmp_path)
    [file] = tmp_path.iterdir()
    other = module.kept_file(tmp_path, "strongest", net, -images, None, [("conv1", "relu1")], 3)
    file.rename(other)
    assert same(strongest(net, -images, ["conv1"], 3, folder=tmp_path), strongest(net, -images, ["conv1"], 3))


KILLED = """
import sys, time
from importlib import import_module
import torch
sys.path.insert(0, {tests!r})
from test_search import network, pictures
module = import_module("zfkit.search")
module.BATCH, module.SAVE_S = 2, 0
class Slow:
    def __init__(self, images): self.images = images
    def __len__(self): return len(self.images)
    def __getitem__(self, which):
        if which.start and which.start >= 16 and which.step is None and which.stop - which.start == 4:
            print("far enough", flush=True); time.sleep(60)
        return self.images[which]
module.strongest(network(norm="batch").eval(), Slow(pictures()), ["conv1", "conv5"], 3, folder={folder!r})
"""


def pictures():
    return torch.randn(30, 3, 63, 63, generator=torch.Generator().manual_seed(5))


def test_a_killed_pass_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parent.parent))
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert run.stdout.readline() == "far enough\n"
    run.send_signal(signal.SIGKILL)
    run.wait()
    [file] = tmp_path.glob("*.safetensors")
    assert module._read(file)[0] == 16
    ran = []
    plain = module.run_to
    monkeypatch.setattr(module, "run_to", lambda net, batch, *more: (ran.append(len(batch)), plain(net, batch, *more)))
    net = network(norm="batch").eval()
    resumed = strongest(net, pictures(), ["conv1", "conv5"], 3, folder=tmp_path)
    assert sum(ran) == 30 - 16
    assert same(resumed, strongest(net, pictures(), ["conv1", "conv5"], 3))


# --- what the strongest units see ----------------------------------------------------------------------------


def test_one_channel_or_some():
    found = Strongest(*(torch.arange(12).reshape(3, 4) + n for n in range(4)))
    assert found.of(2).image.tolist() == [3, 7, 11]
    assert found.of([3, 0]).row.tolist() == [[5, 2], [9, 6], [13, 10]]
    for wrong in (4, -1, [0, 9]):
        with pytest.raises(ValueError, match=r"no channel (4|-1|9); valid: 0 to 3"):
            found.of(wrong)


def test_crops_hold_the_pixels_that_matter():
    """Noise outside a unit's crop leaves the unit as it was; noise inside changes it."""
    net, generator = network().double().eval(), torch.Generator().manual_seed(1)
    images = torch.randint(256, (8, 63, 63, 3), dtype=torch.uint8, generator=generator).numpy()

    def normalize(batch):
        return torch.as_tensor(batch).permute(0, 3, 1, 2).double() / 255 - 0.5

    borders = []
    for layer in ("conv1", "pool1", "conv3"):
        units = strongest(net, images, [layer], 3, normalize)[layer]
        field, (patches, boxes) = receptive_field(net, layer), crops(images, receptive_field(net, layer), units)
        assert boxes.shape == (units.value.numel(), 4)
        borders += [*((boxes.min(1) == 0) | (boxes.max(1) == 63))]
        for n, (value, image, row, col) in enumerate(zip(*(part.flatten().tolist() for part in units), strict=True)):
            top, left, bottom, right = boxes[n]
            assert patches[n].shape == (bottom - top, right - left, 3) and bottom - top <= field.size
            inside = np.random.default_rng(n).integers(0, 256, images[image].shape, dtype=np.uint8)
            inside[top:bottom, left:right] = patches[n]
            channel = n % units.value.shape[1]
            outcome = feature_maps(net, normalize(inside[None]), [layer])[layer][0, channel, row, col].item()
            assert outcome == pytest.approx(value, abs=1e-12)
            inside[top:bottom, left:right] ^= 255
            outcome = feature_maps(net, normalize(inside[None]), [layer])[layer][0, channel, row, col].item()
            assert value == 0 or outcome != pytest.approx(value, abs=1e-12)
    assert any(borders) and not all(borders), "units at the border and inside"


def test_a_field_beyond_the_image_gives_the_whole_image():
    images, field = np.zeros((2, 20, 30, 3), np.uint8), receptive_field(network(), "conv5")
    units = Strongest(*(torch.tensor([value]) for value in (1.0, 1, 2, 2)))
    patches, boxes = crops(images, field, units)
    assert patches[0].shape == (20, 30, 3) and boxes.tolist() == [[0, 0, 20, 30]]
    with pytest.raises(ValueError, match=r"box .* lies outside an image of \(20, 30\)"):
        crops(images, field, units._replace(row=torch.tensor([99])))
    with pytest.raises(ValueError, match="no image 2; valid: 0 to 1"):
        crops(images, field, units._replace(image=torch.tensor([2])))


def test_most_excited_by_numpy():
    maps = torch.randn(7, 9, 4, 5, generator=torch.Generator().manual_seed(0))
    peaks = maps.numpy().max((2, 3))
    scores = (peaks - peaks.mean(0)) / peaks.std(0, ddof=1)
    assert most_excited(maps).tolist() == scores.argmax(1).tolist() != peaks.argmax(1).tolist()
    assert torch.equal(most_excited(maps.amax((2, 3))), most_excited(maps))
    with pytest.raises(ValueError, match="maps of 1 image"):
        most_excited(maps[:1])
