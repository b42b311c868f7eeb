"""The occlusion sweep against one forward pass per place."""

import pytest
import torch
from torch import nn

from zfkit.networks import zfnet
from zfkit.occlusion import occlusion_maps


def network():
    torch.manual_seed(0)
    small = dict(channels=(6, 8, 8, 8, 6), strides=(2, 1, 1, 1, 1), padding=(3, 2, 1, 1, 1), fc=(9, 9))
    net = zfnet(5, size=47, **small)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    return net.eval().double()


def one_by_one(net, image, size, stride, fill):
    _, _, height, width = image.shape
    for y in range(0, height - size + 1, stride):
        for x in range(0, width - size + 1, stride):
            covered = image.clone()
            covered[0, :, y : y + size, x : x + size] = fill
            yield covered


@pytest.mark.parametrize("size, stride, fill", [(8, 8, 0.0), (16, 5, torch.tensor([0.5, -1.0, 2.0])[:, None, None])])
def test_equals_one_forward_pass_per_place(size, stride, fill):
    net, image = network(), torch.randn(1, 3, 47, 47, dtype=torch.float64)
    got = occlusion_maps(net, image, 2, size, stride, torch.as_tensor(fill).flatten(), "conv5", 3)
    covered = list(one_by_one(net, image, size, stride, fill))
    side = (47 - size) // stride + 1
    assert got.probability.shape == got.label.shape == got.activity.shape == (side, side)
    head = net[: list(net._modules).index("relu5") + 1]
    with torch.no_grad():
        probabilities = torch.cat([net(one).softmax(1) for one in covered])
        activity = torch.stack([head(one)[0, 3].sum() for one in covered])
    assert probabilities[:, 2].std() > 1e-4 and activity.std() > 1e-4  # the square matters
    torch.testing.assert_close(got.probability.flatten(), probabilities[:, 2], rtol=0, atol=1e-13)
    torch.testing.assert_close(got.activity.flatten(), activity, rtol=1e-12, atol=1e-13)
    assert torch.equal(got.label.flatten(), probabilities.argmax(1))


def convolutions():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_other_than_square_images_and_rows_before_columns():
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


def test_modes_are_restored_and_no_hook_is_left():
    net = network().train()
    net.conv2.eval()
    modes = [module.training for module in net.modules()]
    occlusion_maps(net, torch.randn(1, 3, 47, 47, dtype=torch.float64), 0, 20, 20, layer="conv2", channel=0)
    assert [module.training for module in net.modules()] == modes
    assert not any(module._forward_hooks for module in net.modules())


def test_refusals():
    net, image = network(), torch.randn(1, 3, 47, 47, dtype=torch.float64)
    cases = [
        (dict(size=48), "no place for a square of 48 at stride 8 on 47x47 pixels"),
        (dict(stride=0), "no place for a square of 8 at stride 0"),
        (dict(target=5), "no class 5; valid: 0 to 4"),
        (dict(layer="conv9"), "unknown layer 'conv9'; valid: conv1"),
        (dict(layer="conv5", channel=6), "no channel of 'conv5' is 6; valid: 0 to 5"),
        (dict(normalized=image[0]), r"one image \(1, 3, H, W\) is needed, not \(3, 47, 47\)"),
    ]
    for wrong, message in cases:
        arguments = dict(normalized=image, target=0, size=8, stride=8) | wrong
        with pytest.raises(ValueError, match=message):
            occlusion_maps(net, **arguments)
