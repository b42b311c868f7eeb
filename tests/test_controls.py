"""Controls: an edge map against a loop, networks that forgot what was learnt."""

import torch

import zfkit
from zfkit.controls import edges, filtering, randomized

SMALL = dict(
    size=40, channels=(4, 6, 8, 8, 6), strides=(2, 1, 1, 1, 1), padding=(3, 2, 1, 1, 1), fc=(10, 10), norm="batch"
)


def test_edges_are_central_differences():
    normalized = torch.zeros(1, 3, 5, 6)
    normalized[..., 3:] = 2.0
    found = edges(normalized)
    assert found.shape == (1, 1, 5, 6)
    assert found[0, 0].tolist() == [[0, 0, 2, 2, 0, 0]] * 5  # the step lies between columns 2 and 3
    torch.testing.assert_close(edges(normalized.mT), found.mT)


def test_filtering_names_what_a_layer_rests_on():
    net = zfkit.zfnet(4, **SMALL)
    images = torch.randn(2, 3, 40, 40)
    assert filtering(net, images, "conv3") == ["conv1", "conv2", "conv3"]
    assert filtering(net, images, "fc8")[-3:] == ["fc6", "fc7", "fc8"]
    assert not any(module._forward_hooks for module in net.modules())


def test_randomized_forgets_the_named_layers_alone():
    torch.manual_seed(0)
    net, images = zfkit.zfnet(4, **SMALL).eval(), torch.randn(6, 3, 40, 40)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    other = randomized(net, ["conv4", "fc6"], images, seed=3)
    changed = {n for n, p in other.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"conv4.weight", "fc6.weight"} and not other.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())
    spread = other.conv4.weight.std() / net.conv4.weight.std()
    assert 0.9 < spread < 1.1
    means = [zfkit.feature_maps(one, images, ["bn4"])["bn4"].mean((0, 2, 3)).abs().max() for one in (other, net)]
    assert means[0] < 0.02 < means[1]  # its statistics are those of these images
    again = randomized(net, ["conv4", "fc6"], images, seed=3)
    assert torch.equal(again.conv4.weight, other.conv4.weight)
    assert not torch.equal(randomized(net, ["conv4"], images, seed=4).conv4.weight, other.conv4.weight)
