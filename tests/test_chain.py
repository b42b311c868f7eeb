"""The table of layers and the pass that follows a chain, against torch's own layers and against what runs."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zfkit.chain import KINDS, Climb, Kind, NotAChain, kind, sliding, steps_to, unpadded
from zfkit.normalization import ContrastNormalization


def test_what_slides_and_how():
    assert sliding(nn.Conv2d(3, 4, (5, 3), (2, 1), dilation=(1, 3), padding=2)) == [(5, 2, 2, 1), (3, 1, 2, 3)]
    assert sliding(nn.MaxPool2d(3, 2)) == [(3, 2, 0, 1)] * 2
    assert sliding(nn.AvgPool2d((2, 3), padding=(1, 0))) == [(2, 2, 1, 1), (3, 3, 0, 1)]
    assert sliding(nn.Conv2d(3, 4, (4, 3), dilation=(1, 2), padding="same")) == [(4, 1, 1, 1), (3, 1, 2, 2)]
    assert sliding(nn.Conv2d(3, 4, 3, padding="valid")) == [(3, 1, 0, 1)] * 2
    assert sliding(nn.ReLU()) is None and sliding(nn.AdaptiveAvgPool2d(1)) is None


SPATIAL = [
    nn.Conv2d(4, 6, (3, 5), (2, 1), (1, 2), groups=2), nn.Conv2d(4, 6, 3, padding="same"),
    nn.Conv2d(4, 6, (2, 4), padding="same"), nn.Conv2d(4, 6, 3, dilation=2, padding="valid"),
    nn.MaxPool2d(3, 2, 1), nn.MaxPool2d((2, 3), padding=(1, 0)), nn.AvgPool2d(2),
    nn.AvgPool2d(3, 2, 1, divisor_override=4), nn.ReLU(), nn.LocalResponseNorm(3),
    ContrastNormalization(), nn.BatchNorm2d(4).eval(), nn.Dropout().eval(), nn.ELU(),
]  # fmt: skip


@pytest.mark.parametrize("layer", SPATIAL, ids=str)
def test_a_layer_on_padded_maps_is_the_layer(layer):
    maps = torch.randn(2, 4, 13, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer = layer.double()
    above, padded = layer(maps), maps.clone()
    if axes := sliding(layer):
        spans = [(-p, (n - 1) * s - p + d * (k - 1) + 1) for n, (k, s, p, d) in zip(above.shape[2:], axes)]
        (top, bottom), (left, right) = spans
        edges = (-left, right - 11, -top, bottom - 13)
        padded = F.pad(maps, edges, value=kind(layer).beyond)
    torch.testing.assert_close(unpadded(layer, torch.float64)(padded), above, rtol=0, atol=1e-14)


def test_what_has_no_form_for_windows():
    for layer in (
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(2, ceil_mode=True),
        nn.AdaptiveAvgPool2d(1), nn.Linear(3, 4), nn.Flatten(), nn.Upsample(scale_factor=2),
    ):  # fmt: skip
        assert unpadded(layer) is None
    assert kind(nn.BatchNorm2d(3, track_running_stats=False)) == kind(nn.Softmax()) == Kind()


def test_every_step_of_the_table_is_one_of_the_mirror():
    """A layer entered into the table with a way down that the mirror lacks is found here."""
    mirror = {"filter", "rectify", "unpool", "contrast", "scale", "mean", "linear", "reshape", None}
    assert {entry.down for entry in KINDS.values()} == mirror
    fields = {entry.field for entry in KINDS.values()}
    assert fields == {"point", "window", "image", "numbers", "flatten"}


# --- the pass ------------------------------------------------------------------------------------------------


def chain():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(4 * 25, 5), nn.ReLU(), nn.Linear(5, 2),
    )  # fmt: skip


def test_steps_tell_what_runs():
    net, images = chain(), torch.randn(2, 3, 12, 12)
    steps, maps = steps_to(net, images, "3")
    assert [step.name for step in steps] == ["0", "1", "2", "3"]
    assert [tuple(step.below)[1:] for step in steps] == [(3, 12, 12), (4, 10, 10), (4, 10, 10), (4, 5, 5)]
    assert steps[2].kept.shape == (2, 4, 5, 5) and steps[3].above == maps.shape == (2, 100)
    assert torch.equal(maps, net[:4](images))


def test_one_pass_gives_the_maps_of_several_layers_and_their_depth():
    net, images = nn.Sequential(chain()[:3], chain()[3:]), torch.randn(1, 3, 12, 12)
    seen = []
    handle = net[0][0].register_forward_hook(lambda *_: seen.append(1))
    climb = Climb(net, images, {"0.0", "0", ""})
    handle.remove()
    assert len(seen) == 1 and climb.depth == {"0.0": 1, "0": 3, "": 7}
    expected = F.conv2d(images, net[0][0].weight, net[0][0].bias)
    assert torch.equal(climb.maps["0.0"], expected) and (expected < 0).any()  # not what the ReLU in place left
    assert torch.equal(climb.maps["0"], F.max_pool2d(expected.relu(), 2)) and torch.equal(climb.maps[""], net(images))
    assert [step.name for step in Climb(net, images, {"0.0"}, beyond=True).steps] == ["0.0", "0.1"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


class Meddling(nn.Module):
    def __init__(self, meddle):
        super().__init__()
        self.first, self.relu, self.second, self.meddle = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), meddle

    def forward(self, images):
        maps = self.relu(self.first(images))
        return self.second(self.meddle(maps))


def in_place(maps):
    maps[:, 0] = 0
    return maps


@pytest.mark.parametrize(
    "meddle, message",
    [
        (in_place, "what 'second' takes was changed in place"),
        (lambda maps: maps * 2, r"knows modules only, not mul\(\) in .*test_chain.py"),
        (lambda maps: maps.mul_(2), r"knows modules only, not mul_\(\)"),
        (lambda maps: maps.flatten(1).view(maps.shape).detach(), r"not detach\(\)"),
    ],
)
def test_what_is_done_between_the_layers_ends_the_chain(meddle, message):
    with pytest.raises(NotAChain, match=message):
        steps_to(Meddling(meddle), torch.randn(1, 3, 9, 9), "second")


def test_the_images_stay_as_they_were():
    net, images = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3)), torch.randn(1, 3, 9, 9)
    before = images.clone()
    steps_to(net, images, "1")
    assert torch.equal(images, before)
