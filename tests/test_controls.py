"""Controls: an edge map against a loop, networks that forgot what was learnt, directions against sums of channels."""

import pytest
import torch

import zfkit
from zfkit.controls import Directions, edges, filtering, randomized
from zfkit.projections import projections

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


def directed(seed=0):
    """A small network in float64, images, and vectors for two of its layers: the first is channel 2 alone."""
    torch.manual_seed(seed)
    net, images = zfkit.zfnet(4, **SMALL).double().eval(), torch.randn(12, 3, 40, 40).double()
    vectors = {"conv3": torch.randn(5, 8).double(), "conv4": torch.randn(3, 8).double()}
    for rows in vectors.values():
        rows[0] = torch.eye(8)[2]
    return net, images, vectors


def test_directions_are_sums_of_a_layers_maps_found_in_one_pass():
    net, images, vectors = directed()
    both = Directions(net, vectors)
    best = zfkit.strongest(both, images, ["conv4", "conv3 directions", "conv4 directions"], k=3)
    for layer, rows in vectors.items():
        maps = zfkit.feature_maps(net, images, [layer])[layer]
        by_hand = torch.stack([sum(w * maps[:, c] for c, w in enumerate(row)) for row in rows], 1)
        values, places = by_hand.flatten(2).max(2)
        top = values.topk(3, dim=0)
        found = best[f"{layer} directions"]
        torch.testing.assert_close(found.value, top.values)
        assert torch.equal(found.image, top.indices)
        assert torch.equal(found.row * maps.shape[3] + found.col, places.gather(0, top.indices))
    own = zfkit.strongest(net, images, ["conv4"], k=3)["conv4"]
    assert all(torch.equal(a, b) for a, b in zip(own, best["conv4"]))
    assert all(torch.equal(a, b) for a, b in zip(own.of(2), best["conv4 directions"].of(0)))


def test_a_direction_projects_as_its_channels_together():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU()).double()
    images, row = torch.randn(2, 3, 6, 6).double(), torch.randn(1, 8).double()
    found = zfkit.project(Directions(net, {"1": row}), images, "1 directions", 0, (2, 3), start=1.5)
    signal = torch.zeros(2, 8, 6, 6).double()
    signal[:, :, 2, 3] = (1.5 * row[0]).clamp(min=0)  # the ReLU below it takes the positive weights only
    by_hand = torch.nn.functional.conv_transpose2d(signal, net[0].weight, padding=1)
    torch.testing.assert_close(found, by_hand)


def test_directions_go_down_by_every_route():
    net, images, vectors = directed()
    one = Directions(net, {"conv4": vectors["conv4"]})
    units = zfkit.strongest(one, images, ["conv4 directions"], k=4)["conv4 directions"]
    alone = zfkit.project(net, images, "conv4", 2, (1, 2))
    torch.testing.assert_close(zfkit.project(one, images, "conv4 directions", 0, (1, 2)), alone)
    ways = [projections(one, images, "conv4 directions", units, way=way) for way in ("project", "crops", "kept")]
    for pictures, boxes in ways[1:]:
        assert (boxes[:, 2:] > boxes[:, :2]).all() and len(pictures) == 12
    spot = {n: torch.stack([units.row[0], units.col[0]], 1)[n] for n in range(3)}
    for n in range(3):
        image = images[units.image[0, n]][None]
        mirror, gradient = (
            zfkit.project(one, image, "conv4 directions", n, spot[n], route=route)[0]
            for route in ("mirror", "gradient")
        )
        torch.testing.assert_close(mirror, gradient)
        for pictures, boxes in ways:
            top, left, bottom, right = boxes[n]
            torch.testing.assert_close(pictures[n], mirror[:, top:bottom, left:right])


def test_directions_refuse_an_unknown_layer():
    with pytest.raises(ValueError, match="unknown layer 'conv9'"):
        Directions(directed()[0], {"conv9": torch.ones(1, 1)})
