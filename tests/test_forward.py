"""One forward pass: what it refuses, whoever asks for it, and what a network's scores mean."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import zfkit
from zfkit.forward import last_call, probabilities


def images(count=2, side=12):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(2))


def asked(net, layer, count=2, side=12) -> dict[str, str]:
    """What each call says against the network; "" where it gives a result."""
    x, said = images(count, side), {}
    calls = {
        "project": lambda: zfkit.project(net, x, layer, 0),
        "gradient": lambda: zfkit.project(net, x, layer, 0, route="gradient"),
        "feature_maps": lambda: zfkit.feature_maps(net, x, [layer]),
        "strongest": lambda: zfkit.strongest(net, x, [layer], 1),
        "occlusion_maps": lambda: zfkit.occlusion_maps(net, x[:1], 0, 4, 4),
    }
    for name, call in calls.items():
        try:
            call()
            said[name] = ""
        except ValueError as error:
            said[name] = str(error)
            assert "\n" not in said[name]
    return said


class Small(nn.Module):
    """A convolution, a ReLU and five classes, with a forward pass of the test's choice."""

    def __init__(self, run):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.top, self.run = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Linear(8, 5), run

    def forward(self, *inputs, **named):
        return self.run(self, *inputs, **named)

    def pooled(self, x):
        return self.relu(self.conv(x)).mean((2, 3))


# --- refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run, rows", [
    (lambda net, x: net.top(net.relu(net.conv(x)).movedim(1, -1).reshape(-1, 8)), r"(200, 5) for 2 images"),
    (lambda net, x: net.top(net.pooled(x).mean(0)), "(5,) for 2 images"),
    (lambda net, x: net.top(net.pooled(x)[:1]), "(1, 5) for 2 images"),
])  # fmt: skip
def test_another_number_of_rows_is_refused(run, rows):
    said = asked(Small(run), "top")
    for call in ("gradient", "feature_maps", "strongest", "project"):
        assert said[call] == f"layer 'top' gives {rows}, not a row for each: look at its view, reshape and squeeze"


def test_a_view_that_mixes_rows_and_columns_is_refused():
    """Made for 32 px, a view takes the maps of 52 px for those of four images."""
    net = Small(lambda net, x: net.top(net.body(x).view(-1, 400)))
    layers = [nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    net.body, net.top = nn.Sequential(*layers), nn.Linear(400, 10)
    assert all("gives (4, 10) for 1 image, not a row for each" in line for line in asked(net, "top", 1, 52).values())
    assert not any(asked(net, "top", 1, 32).values())


def test_a_squeeze_that_takes_the_row_of_a_last_image_is_refused():
    net = Small(lambda net, x: net.top(net.pooled(x).squeeze()))
    assert zfkit.feature_maps(net, images(32), ["top"])["top"].shape == (32, 5)
    with pytest.raises(ValueError, match=r"'top' gives \(5,\) for 1 image, not a row"):
        zfkit.feature_maps(net, images(33), ["top"])
    assert "the network gives (5,) for 1 image" in asked(net, "top")["occlusion_maps"]


def test_a_network_of_two_inputs_is_refused():
    for line in asked(Small(lambda net, x, mask: net.pooled(x * mask)), "relu").values():
        assert line.startswith("no forward pass with torch.float32 (") and "missing 1 required positional" in line


def broken(net, x):
    assert len(x) == 0
    return x


@pytest.mark.parametrize("run, reason", [
    (broken, "assert "), (lambda net, x: net.missing(x), "no attribute 'missing'"),
    (lambda net, x: x[:, 7:].unbind(1)[0], "index out of range"), (lambda net, x: net.top(x), "cannot be multiplied"),
    (lambda net, x: {}["maps"], "'maps'"),
])  # fmt: skip
def test_what_a_network_raises_becomes_one_line(run, reason):
    for line in asked(Small(run), "relu").values():
        assert line.startswith("no forward pass with") and reason in line


def test_layers_that_give_more_than_maps_are_refused():
    both = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2, return_indices=True))
    for call, line in asked(both, "1").items():
        what = "the network" if call == "occlusion_maps" else "layer '1'"
        assert line == f"{what} gives a tuple, not one tensor of maps"
    twice = Small(lambda net, x: dict(scores=net.top(net.pooled(x))))
    assert asked(twice, "relu")["feature_maps"] == "" and zfkit.project(twice, images(), "relu", 0).any()
    assert asked(twice, "relu")["occlusion_maps"] == "the network gives a dict, not one tensor of maps"


def test_dropout_that_stays_on_is_refused_and_one_that_does_not_is_not():
    on = Small(lambda net, x: net.top(F.dropout(net.pooled(x))))
    for call, line in asked(on, "top").items():
        what = "the network" if call == "occlusion_maps" else "layer 'top'"
        assert line.startswith(f"{what} gives two results for the same images: it draws random numbers"), call
    assert asked(on, "conv")["feature_maps"] == ""  # it lies behind
    off = Small(lambda net, x: net.top(F.dropout(net.pooled(x), training=net.training)))
    unused = Small(lambda net, x: (torch.randn(1), net.top(net.pooled(x)))[1])
    for net in (off, unused):
        assert not any(asked(net, "top").values())


def test_traced_networks_are_refused_and_parts_of_them():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 5))
    for other in (torch.jit.trace(net, images(1)), nn.Sequential(torch.jit.trace(net[:2], images(1)), *net[2:])):
        for call in (zfkit.feature_maps, zfkit.project):
            with pytest.raises(ValueError, match="a compiled .*Module hides its layers: give the plain network"):
                call(other, images(1), *((["0"],) if call is zfkit.feature_maps else ("0", 0)))


@pytest.mark.filterwarnings("ignore")
def test_quantised_layers_are_refused_and_networks_around_them_swept():
    quantisation = torch.ao.quantization
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 5)
    net = nn.Sequential(quantisation.QuantStub(), *layers, quantisation.DeQuantStub()).eval()
    net.qconfig = quantisation.get_default_qconfig("x86")
    quantisation.prepare(net, inplace=True)(images())
    said = asked(quantisation.convert(net), "2")
    assert said.pop("occlusion_maps") == ""
    for line in said.values():
        assert line == "layer '2' gives torch.quint8: give the network as it was before it was quantised"


def test_a_refusal_names_the_librarys_line_not_ones_own():
    net = torchvision.models.googlenet(weights=None, init_weights=False)
    with pytest.raises(ValueError, match=r"relu\(\) in BasicConv2d.forward, googlenet.py line \d+"):
        zfkit.project(net, images(1, 64), "inception3a", 1)
    assert Path(torchvision.__file__).parent.name.startswith(Path(torch.__file__).parent.name)  # the case occurs


# --- taken ----------------------------------------------------------------------------------------------------


def test_modules_may_be_called_by_keyword():
    def by_keyword(net, x):
        return net.top(input=net.relu(input=net.conv(input=x)).mean((2, 3)))

    net, usual = Small(by_keyword), Small(lambda net, x: net.top(net.pooled(x)))
    for layer in ("conv", "relu"):
        for route in ("mirror", "gradient"):
            pictures = [zfkit.project(each, images(), layer, 1, route=route) for each in (net, usual)]
            assert pictures[0].any() and torch.equal(*pictures)
    maps = [zfkit.occlusion_maps(each, images(1), 1, 4, 4, layer="relu") for each in (net, usual)]
    assert torch.equal(maps[0].probability, maps[1].probability) and torch.equal(maps[0].activity, maps[1].activity)
    chain = nn.Sequential(net.conv, net.relu, nn.Flatten(), nn.Linear(800, 5))
    chain.forward = lambda x: chain[3](input=chain[2](input=chain[1](input=chain[0](input=x))))
    assert zfkit.occlusion_maps(chain, images(1), 1, 4, 4).method == "windows"


# --- what scores mean -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_probabilities_stay_and_logits_become_them(dtype):
    scores = torch.randn(6, 1000, generator=torch.Generator().manual_seed(0)).to(dtype) * 3
    by_softmax = scores.softmax(1)
    assert torch.equal(probabilities(scores), by_softmax)
    assert torch.equal(probabilities(by_softmax), by_softmax)
    torch.testing.assert_close(probabilities(scores.log_softmax(1)), by_softmax)
    mixed = torch.cat([by_softmax, scores])  # one row of logits says that all are
    assert torch.equal(probabilities(mixed), mixed.softmax(1))
    assert torch.equal(probabilities(scores[:, :1]), scores[:, :1].sigmoid())
    assert torch.equal(probabilities(scores.sigmoid(), "sigmoid"), scores.sigmoid())


def test_the_last_call_is_what_gives_the_values():
    x = images()
    for run, name in [
        (lambda net, x: net.top(net.pooled(x)), "linear"),
        (lambda net, x: torch.sigmoid(net.top(net.pooled(x))[:, :1]).squeeze(1).float(), "sigmoid"),
        (lambda net, x: net.top(net.pooled(x)).softmax(1), "softmax"),
        (lambda net, x: net.top(net.pooled(x)).sigmoid_() * 2, "mul"),
    ]:
        assert last_call(Small(run), x) == name
