"""The occlusion sweep: windows against one forward pass per place, over all classes, and what it leaves behind."""

import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from zfkit import load_images, load_network, windows
from zfkit.forward import feature_maps
from zfkit.networks import alexnet, zfnet
from zfkit.occlusion import CoarseToFine, grid, occluded, occluder, occlusion_maps

TINY = dict(channels=(6, 8, 8, 8, 6), strides=(2, 1, 1, 1, 1), padding=(3, 2, 1, 1, 1), fc=(9, 9))


def drawn(net, seed=0):
    """The net with weights under which differences survive to the top, statistics of batch norms included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=generator)
                module.bias.normal_(0, 0.05, generator=generator)
            if isinstance(module, nn.BatchNorm2d):
                for values in (module.running_mean, module.bias):
                    values.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
    return net.eval()


def network():
    return drawn(zfnet(5, size=47, **TINY)).double()


def picture(*sides, dtype=torch.float64):
    torch.manual_seed(0)
    coarse = torch.rand(1, 3, *(max(2, side // 24) for side in sides), dtype=dtype)
    return F.interpolate(coarse, sides, mode="bicubic") * 4 - 2 + torch.randn(1, 3, *sides, dtype=dtype) / 5


def sharpened(net, image):
    """The net with a last layer so scaled that its first class is likely; and that class."""
    last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    while (sure := net(image).softmax(1).max()) < 0.5:
        last.weight.data *= 1.25
        last.bias.data *= 1.25
    assert sure < 0.99
    return net, net(image).argmax().item()


def one_by_one(net, image, size, stride, fill):
    """The images of the sweep, made in the plainest way."""
    (h, w), (dy, dx), (height, width) = size, stride, image.shape[2:]
    for y in range(0, height - h + 1, dy):
        for x in range(0, width - w + 1, dx):
            covered = image.clone()
            covered[0, :, y : y + h, x : x + w] = fill
            yield covered


@pytest.mark.parametrize("method", ["windows", "plain"])
@pytest.mark.parametrize(
    "size, stride, fill",
    [((8, 8), (8, 8), 0.0), ((16, 16), (5, 5), torch.tensor([0.5, -1.0, 2.0])), ((3, 20), (7, 4), 1.0)],
)
def test_equals_one_forward_pass_per_place(size, stride, fill, method):
    net, image = network(), torch.randn(1, 3, 47, 47, dtype=torch.float64)
    got = occlusion_maps(net, image, 2, size, stride, fill, "conv5", 3, method=method)
    colour = torch.as_tensor(fill).reshape(-1, 1, 1)
    covered = list(one_by_one(net, image, size, stride, colour))
    shape = tuple((47 - s) // t + 1 for s, t in zip(size, stride, strict=True))
    assert got.probability.shape == got.label.shape == got.activity.shape == shape and got.method == method
    head = net[: list(net._modules).index("relu5") + 1]
    with torch.no_grad():
        probabilities = torch.cat([net(one).softmax(1) for one in covered])
        activity = torch.stack([head(one)[0, 3].sum() for one in covered])
    assert probabilities[:, 2].std() > 1e-4 and activity.std() > 1e-4  # the square matters
    torch.testing.assert_close(got.probability.flatten(), probabilities[:, 2], rtol=0, atol=1e-13)
    torch.testing.assert_close(got.activity.flatten(), activity, rtol=1e-12, atol=1e-13)
    assert torch.equal(got.label.flatten(), probabilities.argmax(1))


# --- windows against plain, over the whole vector of probabilities ------------------------------------------


def compared(net, image, places, size, layer, tolerance, **other):
    windows = occluded(net, image, places, size, layer=layer, method="windows", **other)
    plain = occluded(net, image, places, size, layer=layer, method="plain", **other)
    assert (windows.method, plain.method) == ("windows", "plain")
    assert (windows.probabilities - plain.probabilities).abs().max() < tolerance
    assert torch.equal(windows.probabilities.argmax(1), plain.probabilities.argmax(1))
    some = tolerance / 10 * max(1.0, plain.activity.abs().max().item())  # a sum may all but cancel at one place
    torch.testing.assert_close(windows.activity, plain.activity, rtol=tolerance / 10, atol=some)
    return plain.probabilities


def lrn_of_torch(**arguments):
    net = zfnet(**arguments)
    for name in ("norm1", "norm2"):
        setattr(net, name, nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0))
    return net


def without_classifier(net, width):
    return nn.Sequential(net.features, net.avgpool, nn.Flatten(), nn.Linear(width, 100))


FEW = dict(num_classes=100, fc=(64, 64))
WHOLE = {
    "zfnet": (partial(zfnet, **FEW), "conv5", 224),
    "zfnet, torch's LRN": (partial(lrn_of_torch, **FEW), "conv5", 224),
    "zfnet, batch norm": (partial(zfnet, norm="batch", **FEW), "conv5", 224),
    "alexnet, two groups": (partial(alexnet, groups=2, **FEW), "pool2", 227),
    "torchvision's AlexNet": (lambda: without_classifier(torchvision.models.alexnet(), 9216), "0", 224),
    "torchvision's VGG-11": (lambda: without_classifier(torchvision.models.vgg11(), 25088), "0.8", 128),
}


@pytest.fixture(scope="module", params=WHOLE)
def whole(request):
    make, layer, side = WHOLE[request.param]
    image = picture(side, side, dtype=torch.float32)
    return *sharpened(drawn(make()), image), image, layer


@pytest.mark.parametrize("size", [16, 32, 75])
def test_networks_of_full_size(whole, size):
    """At a corner, at odd places and inside, with an image and class whose P is large."""
    net, target, image, layer = whole
    last = image.shape[3] - size
    found = compared(net, image, [(last, last), (37, last), (last // 2, size // 2)], size, layer, 1e-5)
    assert found[:, target].max() > 0.2


@pytest.mark.parametrize("norm, size, stride", [("lrn", 16, 4), ("batch", 32, 8), ("none", 50, 16), ("lrn", 75, 4)])
def test_whole_sweeps(norm, size, stride):
    image = picture(80, 80)
    net, target = sharpened(drawn(zfnet(16, size=80, norm=norm, **TINY)).double(), image)
    arguments = (net, image, target, size, stride, 0.0, "conv4")
    maps, plain = occlusion_maps(*arguments), occlusion_maps(*arguments, method="plain")
    assert maps.method == "windows" and plain.probability.max() > 0.1
    torch.testing.assert_close(maps.probability, plain.probability, rtol=0, atol=1e-12)
    torch.testing.assert_close(maps.activity, plain.activity, rtol=1e-12, atol=1e-12)
    assert torch.equal(maps.label, plain.label)


def test_a_trained_network_on_drawings():
    """Where the square lies decides what it says: of an untrained one P hardly moves, and any map would agree."""
    net, card = load_network("zfnet-menagerie")
    images, labels, _ = load_images("menagerie", limit=6)
    spans = []
    for image, label in zip(card.normalize(images).split(1), labels.tolist(), strict=True):
        maps = occlusion_maps(net, image, label, 40, 20, 0.0, "conv4", 3)
        covered = torch.cat(list(one_by_one(net, image, (40, 40), (20, 20), 0.0)))
        with torch.no_grad():
            expected = net(covered).softmax(1)[:, label]
        spans.append((expected.max() - expected.min()).item())
        torch.testing.assert_close(maps.probability.flatten(), expected, rtol=0, atol=1e-5)
        sums = feature_maps(net, covered, ["conv4"])["conv4"][:, 3].sum((1, 2))
        torch.testing.assert_close(maps.activity.flatten(), sums, rtol=1e-4, atol=1e-3)
    assert max(spans) > 0.2, spans


@pytest.mark.parametrize("method", ["windows", "plain"])
@pytest.mark.parametrize("classes, last, meaning", [
    (7, nn.Softmax(1), lambda given: given), (7, nn.LogSoftmax(1), torch.exp),
    (7, nn.Sigmoid(), lambda given: given), (1, nn.Sigmoid(), lambda given: given), (1, nn.Identity(), torch.sigmoid),
    (7, nn.Identity(), lambda scores: scores.softmax(1)),
])  # fmt: skip
def test_what_the_last_layer_gives_is_read_as_what_it_is(classes, last, meaning, method):
    image = picture(33, 33)
    net = drawn(nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 15 * 15, classes), last))
    net.double()
    covered = torch.cat(list(one_by_one(net, image, (9, 9), (8, 8), 0.0)))
    expected = meaning(net(covered)).detach()
    maps = occlusion_maps(net, image, classes - 1, 9, 8, method=method)
    assert expected[:, -1].max() - expected[:, -1].min() > 0.01
    torch.testing.assert_close(maps.probability.flatten(), expected[:, -1], rtol=0, atol=1e-12)
    assert torch.equal(maps.label.flatten(), expected.argmax(1))
    assert occluded(net, image, [(0, 8)], 9, method=method).probabilities.shape == (1, classes)


def test_a_network_that_takes_one_image_alone_is_refused():
    net = Branches()
    net.forward = lambda images: net.top(net.left(images).mean((2, 3)).view(1, -1))
    with pytest.raises(ValueError, match=r"no forward pass with torch.float32 \(4, 3, 20, 20\)") as error:
        occlusion_maps(net.float(), picture(20, 20, dtype=torch.float32), 0, 10, 10)
    assert "\n" not in str(error.value)


def chain(layers, image):
    width = nn.Sequential(*layers).double()(image).numel()
    return drawn(nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 7))).double()


def conv(inputs, outputs, *geometry, **more):
    return nn.Conv2d(inputs, outputs, *geometry, **more)


ODD = {
    "padded pools": [conv(3, 4, 5, 2, 2), nn.MaxPool2d(3, 2, 1), nn.ReLU(), conv(4, 5, 3), nn.MaxPool2d(2)],
    "ceil mode": [conv(3, 4, 4, 1), nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(2, 2, ceil_mode=True)],
    "gaps between windows": [conv(3, 4, 2, 5), nn.ReLU(), nn.MaxPool2d(1, 3), conv(4, 6, 1, 2)],
    "dilated, not square": [conv(3, 4, (3, 5), (1, 2), (2, 0), (2, 1)), nn.MaxPool2d((4, 2), (3, 2))],
    "means": [conv(3, 4, 3), nn.AvgPool2d(3, 2), nn.ReLU(), nn.AvgPool2d(2, divisor_override=3)],
    "means over a border": [conv(3, 4, 3), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(4, 3, ceil_mode=True)],
    "means to a fixed size": [conv(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d((2, 3))],
    "contrast, power 1": [conv(3, 6, 3, 2), nn.LocalResponseNorm(4, 1.0, 1.0, 1.0), nn.MaxPool2d(5, 5)],
    "works in place": [nn.ReLU(inplace=True), conv(3, 4, 3, 4), nn.ReLU(inplace=True), nn.ELU(inplace=True)],
    "padded by mirroring": [conv(3, 4, 3, 3), conv(4, 4, 3, 2, 1, padding_mode="reflect"), nn.ReLU()],
    "padded to the same size": [conv(3, 4, 3, 3), nn.ReLU(), conv(4, 4, 3, padding="same"), nn.ReLU()],
    "no spatial layer": [nn.Identity()],
}  # fmt: skip


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (30, 5), (41, 58)])
@pytest.mark.parametrize("name", ODD)
def test_odd_geometry_on_an_image_that_is_not_square(name, size):
    layers, image = ODD[name], picture(41, 58)
    net = chain(layers, image)
    last = [side - s for side, s in zip((41, 58), size, strict=True)]
    rows, cols = ([round(share * end) for share in (0, 0.03, 0.4, 0.97, 1)] for end in last)
    places = [(row, col) for row in rows for col in cols]
    before = image.clone()
    compared(net, image, places, size, str(len(layers) - 1), 1e-12, channel=2)
    assert torch.equal(image, before)


def test_images_of_one_channel():
    image = picture(33, 47)[:, :1]
    net = chain([conv(1, 4, 5, 2, 2), nn.ReLU(), nn.MaxPool2d(3, 2), conv(4, 6, 3)], image)
    compared(net, image, [(0, 0), (9, 20), (25, 38)], (8, 9), "3", 1e-12, channel=5)
    maps = occlusion_maps(net, image, 6, (8, 9), (25, 19))
    assert maps.method == "windows" and maps.probability.shape == (2, 3)


def test_a_layer_in_the_head_and_a_container_can_be_followed():
    net, image = network(), picture(47, 47)
    compared(net, image, [(0, 0), (10, 20)], 12, "fc6", 1e-12, channel=4)
    nested = nn.Sequential(net[:6], net[6:])
    followed = occluded(nested, image, [(0, 0), (10, 20)], 12, layer="0", channel=1)
    assert followed.method == "windows"
    expected = occluded(net, image, [(0, 0), (10, 20)], 12, layer="conv2", channel=1)
    assert torch.equal(followed.activity, expected.activity)


@pytest.mark.parametrize("method", ["windows", "plain"])
def test_an_occluder_is_asked_again_and_again(method):
    """One clean pass serves every call, whatever the calls before it were."""
    net, image, passes = network().train(), picture(47, 47), []
    look = occluder(net, image, 12, layer="conv4", channel=1, method=method)
    net.conv1.register_forward_hook(lambda *_: passes.append(1))
    for places in ([(0, 0)], [(35, 35), (3, 7)], [(3, 7)]):
        found, expected = look(places), occluded(net, image, places, 12, layer="conv4", channel=1, method="plain")
        torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=0, atol=1e-13)
        torch.testing.assert_close(found.activity, expected.activity, rtol=1e-12, atol=1e-12)
        assert not found.probabilities.requires_grad and net.training
        passes.clear()
        look(places)
        assert len(passes) == (method == "plain")
    with pytest.raises(ValueError, match=r"no place for the occluder at \[36, 0\]; valid: \[0, 0\] to \[35, 35\]"):
        look([(36, 0)])


@pytest.mark.parametrize("watched", [{}, dict(layer="conv4"), dict(layer="0"), dict(layer="fc6", channel=2)])
def test_the_clean_image_goes_through_the_network_once(watched):
    net, passes = network(), []
    whole = nn.Sequential(net[:6], net[6:]) if watched.get("layer") == "0" else net
    net.conv1.register_forward_hook(lambda *_: passes.append(1))
    assert occlusion_maps(whole, picture(47, 47), 0, 12, 12, **watched).method == "windows" and len(passes) == 1


def test_a_forward_hook_that_changes_an_output_counts():
    """The sweep is done by whole forward passes, in which the hook takes part."""
    net, image, places = network(), picture(47, 47), [(0, 0), (10, 20), (35, 35)]
    plain = occluded(net, image, places, 12).probabilities
    net.relu2.register_forward_hook(lambda module, inputs, output: 2 * output)
    hooked = occluded(net, image, places, 12, layer="conv3")
    covered = torch.cat([occluded_by_hand(image, place, 12) for place in places])
    expected = net(covered).softmax(1).detach()
    torch.testing.assert_close(hooked.probabilities, expected, rtol=0, atol=1e-13)
    assert hooked.method == "plain" and not torch.allclose(plain, expected, atol=1e-4)
    with pytest.raises(ValueError, match="a forward hook changes what 'relu2' gives"):
        occluded(net, image, places, 12, method="windows")


def occluded_by_hand(image, place, size):
    covered = image.clone()
    covered[0, :, place[0] : place[0] + size, place[1] : place[1] + size] = 0
    return covered


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.top = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 6)

    def forward(self, images):
        return self.top((self.left(images).relu() + self.right(images)).mean((2, 3)))


def test_a_network_with_branches_says_that_it_is_swept_plainly():
    net, image = drawn(Branches()).double(), picture(30, 34)
    maps = occlusion_maps(net, image, 1, 10, (8, 6), layer="right", channel=3)
    assert maps.method == "plain" and maps.error is None
    covered = torch.cat(list(one_by_one(net, image, (10, 10), (8, 6), 0.0)))
    torch.testing.assert_close(maps.probability.flatten(), net(covered).softmax(1)[:, 1], rtol=0, atol=1e-13)
    torch.testing.assert_close(maps.activity.flatten(), net.right(covered)[:, 3].sum((1, 2)), rtol=1e-12, atol=1e-12)
    for wrong in (dict(method="windows"), dict(precision="bfloat16")):
        with pytest.raises(ValueError, match="no sweep by windows: the mirror knows modules only, not relu"):
            occlusion_maps(net, image, 1, 10, 8, **wrong)


class Tokens(nn.Module):
    """A chain of modules with a reshape that is no Flatten."""

    def __init__(self):
        super().__init__()
        self.conv, self.flatten, self.linear = nn.Conv2d(3, 4, 3, 3), nn.Flatten(), nn.Linear(24, 2)

    def forward(self, images):
        return self.flatten(self.linear(self.conv(images).reshape(len(images), 2, -1, 24)))


def test_a_reshape_that_the_windows_cannot_follow_is_swept_plainly():
    net, image = drawn(Tokens()).double(), picture(18, 24)
    assert occluded(net, image, [(0, 0)], 6).method == "plain"


def test_a_grid_holds_the_places_that_fit():
    assert grid((7, 5), (3, 2), (2, 3)).tolist() == [[y, x] for y in (0, 2, 4) for x in (0, 3)]
    assert grid(6, 2, 4).tolist() == [[0, 0], [0, 4], [4, 0], [4, 4]] and grid(6, 6, 1).tolist() == [[0, 0]]
    for wrong in ((6, 7, 1), (6, 0, 1), (6, 2, 0), ((6, 5), (5, 6), 1)):
        with pytest.raises(ValueError, match="no occluder of .* px at stride .* on an image of"):
            grid(*wrong)
    with pytest.raises(ValueError, match="stride must be a whole number"):
        grid(6, 2, 1.5)


@pytest.mark.parametrize("watched", [(), ("conv4", 1)])
def test_a_sweep_that_becomes_fine_is_broken_off_and_gone_on_with(watched):
    net, image, asked = network(), picture(47, 47), []
    look = occluder(net, image, 12, 0.0, *watched)

    def counted(places):
        asked.append(len(places))
        return look(places)

    places = grid(47, 12, 5)  # 64 of them
    sweep = CoarseToFine(counted, grid(47, 12, 17), places, 10)
    assert asked == [] and sweep.fine is None
    coarse = look(grid(47, 12, 17))
    for _ in range(2):
        assert torch.equal(sweep.coarse.probabilities, coarse.probabilities)
    assert asked == [9]
    first = sweep.steps()
    for _ in range(3):
        next(first)
    first.close()  # a slider moved
    assert sweep.fine is None and asked == [9, 10, 10, 10]
    assert len(list(sweep.steps())) == 4 and asked[4:] == [10, 10, 10, 4]
    expected = look(places)
    assert (sweep.fine.probabilities - expected.probabilities).abs().max() < 1e-12
    assert sweep.fine.method == "windows"
    if watched:
        assert (sweep.fine.activity - expected.activity).abs().max() < 1e-12 * expected.activity.abs().max()
    else:
        assert sweep.fine.activity is None
    assert list(sweep.steps()) == [] and len(asked) == 8


def test_the_occluder_can_show_another_image():
    net, image, blurred = network(), picture(47, 47), torch.full((3, 47, 47), 0.3, dtype=torch.float64)
    blurred[0] = torch.arange(47)
    covered = image.clone()
    covered[0, :, 9:21, 30:42] = blurred[:, 9:21, 30:42]
    for method in ("windows", "plain"):
        got = occluded(net, image, [(9, 30)], 12, blurred, method=method).probabilities
        torch.testing.assert_close(got, net(covered).softmax(1).detach(), rtol=0, atol=1e-13)


# --- the approximate sweep ----------------------------------------------------------------------------------


def test_bfloat16_is_near_and_says_how_near():
    image = picture(80, 80, dtype=torch.float32)
    net, target = sharpened(drawn(zfnet(16, size=80, norm="batch", **TINY)), image)
    near = occlusion_maps(net, image, target, 24, 16, layer="conv3", precision="bfloat16")
    exact = occlusion_maps(net, image, target, 24, 16, layer="conv3")
    worst = (near.probability - exact.probability).abs().max().item()
    assert 1e-6 < near.error <= worst + 1e-5 and worst < 0.05
    torch.testing.assert_close(near.activity, exact.activity, rtol=0.02, atol=1e-6)
    assert near.probability.dtype == torch.float32 and exact.error is None


# --- manners ------------------------------------------------------------------------------------------------


def convolutions():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_rows_before_columns():
    net, image = convolutions().eval(), torch.zeros(1, 3, 20, 30)
    image[0, :, 10:, 24:] = 5.0
    maps = occlusion_maps(net, image, 0, 10, 10)
    assert maps.probability.shape == (2, 3) and maps.activity is None
    assert maps.probability.flatten().sub(maps.probability[0, 0]).abs().argmax() == 5  # only the last is bright


def test_an_occluder_of_the_same_colour_changes_nothing_and_the_image_is_kept():
    net, image = network(), torch.full((1, 3, 47, 47), 0.25, dtype=torch.float64)
    before = image.clone()
    maps = occlusion_maps(net, image, 1, 12, 7, fill=0.25)
    expected = net(image).softmax(1)[0, 1]
    assert (maps.probability - expected).abs().max() < 1e-13 and torch.equal(image, before)


def test_the_strongest_map_is_followed_if_none_is_named():
    net, image = convolutions().eval(), torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        clean = net[:2](image)
    strongest = clean[0].flatten(1).amax(1).argmax().item()
    named = occlusion_maps(net, image, 0, 8, 8, layer="1", channel=strongest)
    assert torch.equal(occlusion_maps(net, image, 0, 8, 8, layer="1").activity, named.activity)
    assert not torch.equal(occlusion_maps(net, image, 0, 8, 8, layer="1", channel=(strongest + 1) % 4)[2], named[2])


@pytest.mark.parametrize("method", ["windows", "plain"])
def test_ctrl_c_leaves_nothing_behind_and_the_next_call_is_right(method, monkeypatch):
    for limit in ("ROOM", "HEAD_BATCH"):
        monkeypatch.setattr(windows, limit, 1)
    net, image = network().train(), picture(47, 47)
    net.conv2.eval()
    modes = [module.training for module in net.modules()]
    arguments = (net, image, 0, 20, 4, 0.0, "fc7", 0)
    expected = occlusion_maps(*arguments, method=method)
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) > 4:
            raise KeyboardInterrupt

    handle = net.fc8.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt) as raised:  # keeps the frames alive, as a notebook does
        occlusion_maps(*arguments, method=method, progress=True)
    handle.remove()
    assert raised.traceback and len(calls) == 5
    assert [module.training for module in net.modules()] == modes
    assert not any(module._forward_hooks for module in net.modules())
    assert torch.equal(occlusion_maps(*arguments, method=method).probability, expected.probability)


INTERRUPTED = """
import signal, torch
from zfkit.networks import zfnet
from zfkit.occlusion import occlusion_maps

signal.signal(signal.SIGINT, signal.default_int_handler)  # a process of a background job starts with it ignored
torch.manual_seed(0)
torch.set_num_threads(1)
net = zfnet(8, size=64, channels=(16, 16, 16, 16, 16), strides=(2, 1, 1, 1, 1), padding=(3, 2, 1, 1, 1), fc=(16, 16))
for parameter in net.parameters():
    parameter.data *= 2.5
net.train().conv2.eval()
image, modes = torch.randn(1, 3, 64, 64), [module.training for module in net.modules()]
sweep = lambda stride: occlusion_maps(net, image, 1, 16, stride, layer="conv4", method={method!r}, progress=stride == 1)
expected = sweep(8)
assert expected.probability.max() - expected.probability.min() > 0.01, "the square matters"
try:
    while True:
        sweep(1)
except KeyboardInterrupt as stopped:
    assert stopped.__traceback__.tb_next, "not amid a sweep"
assert torch.is_grad_enabled() and [module.training for module in net.modules()] == modes
assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
assert all(map(torch.equal, sweep(8)[:3], expected[:3]))
print("clean")
"""


@pytest.mark.parametrize("method", ["windows", "plain"])
def test_a_real_interrupt_leaves_nothing_behind(method):
    code = INTERRUPTED.replace("{method!r}", repr(method))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=subprocess.PIPE, text=True)
    while "/" not in (seen := process.stderr.read(1)) and seen:  # the bar of the sweep at stride 1: it runs
        pass
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert said == "clean\n", errors[-800:]


MEMORY = """
import resource, torch
from zfkit import occlusion, windows
from zfkit.networks import zfnet

torch.set_num_threads(1)
windows.ROOM = 2**20  # 4 MB in a map of a batch
net = zfnet(8, size=64, channels=(16, 16, 16, 16, 16), strides=(2, 1, 1, 1, 1), padding=(3, 2, 1, 1, 1), fc=(16, 16))
image, peak = torch.randn(1, 3, 64, 64), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
for stride in (4, 1):
    maps = occlusion.occlusion_maps(net, image, 1, 16, stride, layer="conv4")
    print(maps.label.numel(), peak())
"""


def test_peak_memory_is_that_of_a_coarse_sweep_whatever_the_stride():
    """MiB of a process; were there room for all windows at once, stride 1 would take 48 more."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=60)
    (few, coarse), (many, fine) = (map(float, line.split()) for line in done.stdout.splitlines())
    assert (few, many) == (169, 2401)
    assert fine - coarse < 25, f"{coarse} to {fine} MiB"


def test_progress_is_shown_if_asked(capsys):
    net, image = network(), picture(47, 47)
    occlusion_maps(net, image, 0, 20, 4)
    assert capsys.readouterr().err == ""
    occlusion_maps(net, image, 0, 20, 4, progress=True)
    assert "occluder: 100%" in capsys.readouterr().err


def test_memory_does_not_grow_with_the_places(monkeypatch):
    """Stride 1: no batch of maps is larger than the room, whichever side of the head it lies."""
    net, image = network(), picture(47, 47)
    monkeypatch.setattr(windows, "ROOM", 40_000)
    sizes, real, forward = [], windows._patches, net.fc6.forward
    monkeypatch.setattr(windows, "_patches", lambda *a: (sizes.append(real(*a).numel()), real(*a))[1])
    monkeypatch.setattr(net.fc6, "forward", lambda maps: (sizes.append(maps.numel()), forward(maps))[1])
    maps = occlusion_maps(net, image, 0, 30, 1)
    assert maps.probability.numel() == 18 * 18
    assert max(sizes) < 3 * 40_000 and len(sizes) > 20


REFUSED = [
    (dict(size=48), "no place for a square of 48 at stride 8 on 47x47 pixels; valid: sizes 1 to the image's"),
    (dict(size=(8, 50)), r"no place for a square of \(8, 50\) at stride 8"),
    (dict(stride=0), "no place for a square of 8 at stride 0"),
    (dict(stride=(4, -1)), r"no place for a square of 8 at stride \(4, -1\)"),
    (dict(size=7.5), r"size must be a whole number or a pair \(rows, columns\), not 7.5"),
    (dict(size=(1, 2, 3)), r"size must be a whole number or a pair \(rows, columns\), not \(1, 2, 3\)"),
    (dict(target=5), "no class 5; valid: 0 to 4"),
    (dict(target=-1), "no class -1; valid: 0 to 4"),
    (dict(target=1.5), "no class 1.5; valid: 0 to 4"),
    (dict(layer="conv9"), "unknown layer 'conv9'; valid: conv1"),
    (dict(layer="conv5", channel=6), "no channel of 'conv5' is 6; valid: 0 to 5"),
    (dict(fill=(0.0, 1.0)), r"fill must hold 1 number, 3 or an image \(3, 47, 47\), not \(2,\)"),
    (dict(precision="half"), "unknown precision 'half'; valid: exact, bfloat16"),
    (dict(method="quick"), "unknown method 'quick'; valid: auto, windows, plain"),
    (dict(method="plain", precision="bfloat16"), "precision 'bfloat16' is for method 'windows', not 'plain'"),
    (dict(normalized=torch.zeros(3, 47, 47)), r"one image \(1, 3, H, W\) is needed, not \(3, 47, 47\)"),
    (dict(normalized=torch.zeros(0, 3, 47, 47)), r"one image \(1, 3, H, W\) is needed, not \(0, 3, 47, 47\)"),
    (dict(normalized=torch.zeros(1, 3, 0, 0)), "no place for a square of 8 at stride 8 on 0x0 pixels"),
    (dict(normalized=[[1.0]]), r"one image \(1, 3, H, W\) is needed, not \(\)"),
    (dict(normalized=torch.zeros(1, 1, 47, 47).double()), r"\(1, 1, 47, 47\).*to have 3 channels, but got 1"),
]


@pytest.mark.parametrize("method", ["auto", "plain"])
@pytest.mark.parametrize("wrong, message", REFUSED)
def test_refusals_name_the_value_and_the_valid_ones(wrong, message, method):
    arguments = dict(normalized=picture(47, 47), target=0, size=8, stride=8, method=method) | wrong
    with pytest.raises(ValueError, match=message) as error:
        occlusion_maps(network(), **arguments)
    assert "\n" not in str(error.value)


def test_networks_that_cannot_be_swept_are_refused():
    image = torch.zeros(1, 3, 24, 24)
    with pytest.raises(ValueError, match=r"the network gives \(1, 4, 22, 22\), not class scores"):
        occlusion_maps(convolutions()[:2], image, 0, 8, 8)
    mixing = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), *convolutions())
    with pytest.raises(ValueError, match="'0' normalises over its batch"):
        occlusion_maps(mixing, image, 0, 8, 8)


@pytest.mark.parametrize("places", [[(0, 40)], [(-1, 0)]])
def test_chosen_places_lie_inside(places):
    with pytest.raises(ValueError, match=rf"no place for the occluder at .*{places[0][1]}\]; valid: \[0, 0\] to \[39"):
        occluded(network(), picture(47, 47), places, 8)
    for none in (torch.zeros(0, 2).long(), [0, 1], [(0.5, 1.0)]):
        with pytest.raises(ValueError, match=r"places must be integers \(N, 2\), N > 0, not"):
            occluded(network(), picture(47, 47), none, 8)
