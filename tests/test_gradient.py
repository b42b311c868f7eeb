"""What the gradient route takes and what it refuses: it equals an own deconvnet, or the function is named."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from zfkit.deconvnet import project

WEIGHT, FILTERS, SEEN = torch.randn(8, 1, 1), torch.randn(8, 8), []


class Does(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, maps):
        return self.what(maps)


def around(what, maps=8):
    """A convolution, what is asked about, a ReLU: layer "2"."""
    torch.manual_seed(0)
    middle = what if isinstance(what, nn.Module) else Does(what)
    return nn.Sequential(nn.Conv2d(3, maps, 3), middle, nn.ReLU()).double().eval()


def images(count=2, side=14):
    return torch.randn(count, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Clamped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, maps):
        return maps.clamp(min=0)

    @staticmethod
    def backward(ctx, signal):
        return signal.clamp(min=0)


def by_autograd(net, x, layer, channel):
    """Image by image, each nn.ReLU replaced by one whose backward pass rectifies the signal."""
    net, pictures = copy.deepcopy(net), []
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.forward = Clamped.apply
    for image in x:
        below, kept = image[None].clone().requires_grad_(), []
        handle = net.get_submodule(layer).register_forward_hook(lambda _, __, maps, kept=kept: kept.append(maps))
        net(below)
        handle.remove()
        unit = kept[0][0, channel].max()
        pictures.append(torch.autograd.grad(unit * unit.detach(), below)[0])
    return torch.cat(pictures)


# --- linear and routing ---------------------------------------------------------------------------------------


def written_into(maps):
    full = torch.zeros_like(maps)
    full[:, :4], full[:, 4:, 1:] = maps[:, 4:], maps[:, :4, :-1]
    full[:, 0] = 0
    return full


def looked_at(maps):
    assert not torch.isnan(maps).any() and maps.abs().max() < 1e9 and maps.shape[1] == 8
    SEEN.append(maps.detach().cpu().sort()[0].mean())
    return maps


TAKEN = {
    "numbers": lambda maps: 1 - (2 * maps - 3) / 4 + maps.mul(0.7).add_(1),
    "weights": lambda maps: torch.addcmul(WEIGHT, WEIGHT, WEIGHT).double() * maps.div(WEIGHT.abs() + 1),
    "matrices": lambda maps: torch.einsum("nchw,cd->ndhw", maps, FILTERS.double()),
    "linear": lambda maps: F.linear(input=maps.movedim(1, -1), weight=FILTERS.double()).movedim(-1, 1),
    "places": lambda maps: torch.cat([part.flip(2).roll(1, 3) for part in maps.chunk(2, 1)], 1).contiguous(),
    "written into": written_into,
    "looked at": looked_at,
    "branches": lambda maps: maps[:, :, 1:, 1:] + maps[:, :, :-1, :-1].mean(1, keepdim=True),
    "dropout off": lambda maps: F.dropout(F.dropout(maps, 0.0), 0.5, training=False),
    "batch norm": nn.BatchNorm2d(8),
    "instance norm": nn.InstanceNorm2d(8, track_running_stats=True),
    "reflected": nn.ReflectionPad2d(2),
    "enlarged": nn.Upsample(scale_factor=2, mode="bicubic"),
    "shuffled": nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(2)),
    "folded": nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (12, 12)), nn.ChannelShuffle(4)),
    "unpooled": lambda maps: F.max_unpool2d(*F.max_pool2d(maps, 2, return_indices=True), 2),
    "largest": nn.AdaptiveMaxPool2d(5),
}


@pytest.mark.parametrize("what", TAKEN)
def test_what_is_linear_or_picks_is_taken_and_right(what):
    net = around(TAKEN[what])
    picture = project(net, images(), "2", 1, route="gradient")
    assert picture.any() and torch.allclose(picture, by_autograd(net, images(), "2", 1), rtol=1e-12, atol=1e-12)


def test_pools_keep_the_largest_where_asked_whatever_they_return():
    class Both(nn.Module):
        def __init__(self, pool):
            super().__init__()
            self.conv, self.pool, self.top = nn.Conv2d(3, 8, 3, bias=False), pool, nn.Conv2d(8, 8, 3)

        def forward(self, maps):
            maps = self.pool(self.conv(maps))
            return self.top(maps[0] if isinstance(maps, tuple) else maps)

    def made(pool):
        torch.manual_seed(0)
        return Both(pool).double()

    plain = project(made(nn.MaxPool2d(3, 2)), images(), "top", 1, overlap="max", route="mirror")
    both = project(made(nn.MaxPool2d(3, 2, return_indices=True)), images(), "top", 1, overlap="max")
    assert torch.allclose(both, plain, atol=1e-12)
    added = project(made(nn.MaxPool2d(3, 2, return_indices=True)), images(), "top", 1)
    assert not torch.allclose(both, added)
    fixed = {name: project(made(nn.AdaptiveMaxPool2d(5)), images(), "top", 1, overlap=name) for name in ("sum", "max")}
    assert not torch.allclose(fixed["sum"], fixed["max"])  # 12 to 5: windows share places


# --- refused by name ------------------------------------------------------------------------------------------


@torch.jit.script
def swish(maps: torch.Tensor) -> torch.Tensor:
    return maps.mul(maps.sigmoid())


@torch.jit.script
def positive(maps: torch.Tensor) -> torch.Tensor:
    return (maps > 0).to(maps.dtype)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, maps):
        return maps.view_as(maps)

    @staticmethod
    def backward(ctx, signal):
        return -signal


def emptied(maps):
    maps = maps.clone()
    maps[maps < 0] = 0
    return maps


def unnoticed(maps):
    with torch.no_grad():
        return maps.mul_(2)


REFUSED = {
    "threshold": nn.Threshold(0.0, 0.0), "log_sigmoid": nn.LogSigmoid(), "softmin": nn.Softmin(1),
    "leaky_relu": lambda maps: F.leaky_relu_(maps, 0.2), "celu": torch.celu_, "selu": torch.selu_,
    "rrelu": F.rrelu_, "max": lambda maps: torch.max(maps, torch.zeros_like(maps)),
    "gt": lambda maps: maps * (maps > 0), "masked_fill": lambda maps: maps.masked_fill(torch.eye(8).bool(), 0.0),
    "erf": lambda maps: maps * 0.5 * (1 + torch.erf(maps / 2**0.5)), "hardtanh": nn.ReLU6(), "prelu": nn.PReLU(),
    "abs": torch.abs, "pow": lambda maps: maps**2, "__rdiv__": lambda maps: 1 / maps, "lt": emptied,
    "mul": lambda maps: maps * maps.mean((2, 3), keepdim=True), "conv2d": lambda maps: F.conv2d(maps, maps[:8, :]),
    "div": lambda maps: torch.div(maps, 2, rounding_mode="floor"), "clamp": lambda maps: maps.clamp(min=0),
    "round": lambda maps: maps + (maps.round() - maps).detach(), "detach": lambda maps: maps + maps.detach(),
    "data": lambda maps: (maps.data.clamp_(min=0), maps)[1], "mul_": unnoticed, "sort": lambda maps: maps.sort(1)[0],
    "numpy": lambda maps: torch.from_numpy(maps.numpy(force=True)) + maps, "group_norm": nn.GroupNorm(2, 8),
    "item": lambda maps: maps * maps.sum().item(), "instance_norm": nn.InstanceNorm2d(8),
    "softmax": lambda maps: maps.softmax(1),
    "lp_pool2d": nn.LPPool2d(2, 2), "sigmoid": lambda maps: swish(maps), "function or extension with gt":
    lambda maps: maps * positive(maps), "Reversed, test_gradient.py line": Reversed.apply,
}  # fmt: skip


CALLS = {
    "by name": lambda maps: F.max_pool2d(input=maps, kernel_size=3, stride=2),
    "torch's": lambda maps: torch.max_pool2d(input=maps, kernel_size=[3], stride=[2, 2]),
    "with places": lambda maps: F.max_pool2d(maps, (3,), 2, return_indices=True)[0],
}


@pytest.mark.parametrize("overlap", ["sum", "max"])
@pytest.mark.parametrize("call", CALLS)
def test_a_pool_is_the_module_however_it_is_called(call, overlap):
    flat = torch.full((2, 3, 14, 14), 0.5, dtype=torch.float64)
    for pictures in (images(), flat):
        expected = project(around(nn.MaxPool2d(3, 2)), pictures, "2", 1, route="mirror", overlap=overlap, start=1.0)
        assert torch.equal(project(around(CALLS[call]), pictures, "2", 1, overlap=overlap, start=1.0), expected)


def test_a_network_that_asks_for_the_places_gets_torchs():
    """Its own forward pass is what is projected; the rule for ties is for the way down alone."""
    seen = []

    def unpooled(maps):
        pooled, places = F.max_pool2d(maps, 2, return_indices=True)
        seen.append(places.clone())
        return F.max_unpool2d(pooled, places, 2)

    net = around(unpooled)
    nearly_flat = 1 + 1e-12 * images()
    project(net, nearly_flat, "2", 1, start=1.0)
    net(nearly_flat)
    assert torch.equal(seen[0], seen[-1])


def reason(net, layer="2", **options) -> str:
    with pytest.raises(ValueError) as error:
        project(net, images(8, 10), layer, 1, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused_by_name_and_place(name):
    what = REFUSED[name]
    said = reason(around(what))
    place = f"module '1' ({type(what).__name__})" if isinstance(what, nn.Module) else ", test_gradient.py line "
    assert said.startswith("no deconvnet rule for ") and name in said and place in said
    assert reason(around(what), rule="guided") == said


def test_the_plain_gradient_takes_them_all():
    for name in ("threshold", "gt", "erf", "sigmoid", "Reversed, test_gradient.py line"):
        net = around(REFUSED[name])
        below = images().requires_grad_()
        unit = net(below)[:, 1].flatten(1).amax(1)
        expected = torch.autograd.grad((unit * unit.detach()).sum(), below)[0]
        assert torch.allclose(project(net, images(), "2", 1, rule="gradient"), expected, atol=1e-12), name


def test_random_layers_and_layers_out_of_reach_are_refused():
    assert "layer '2' gives two results for the same images" in reason(around(F.dropout))
    assert "no gradient leads from the layer" in reason(around(lambda maps: torch.ones(8, 8, 2, 2).double()))
    inner = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3)).double()
    assert "no way back from layer '2'" in reason(around(lambda maps: checkpoint(inner, maps, use_reentrant=False)))
    along = around(lambda maps: F.max_pool1d(maps.flatten(2), 3).unsqueeze(3))
    assert "no overlap='max' for max_pool1d() in " in reason(along, overlap="max")


# --- torchvision ----------------------------------------------------------------------------------------------

TORCHVISION = {
    "alexnet": "features.10", "vgg11": "features.18", "resnet18": "layer4.1.conv2", "squeezenet1_1": "features.12",
    "densenet121": "features.denseblock2.denselayer3.conv2", "mnasnet0_5": "layers.14",
    "regnet_x_400mf": "trunk_output", "shufflenet_v2_x0_5": "conv5.0", "fcn_resnet50": "backbone.layer2.2.conv1",
    "googlenet": "relu() in BasicConv2d.forward, googlenet.py line",
    "inception_v3": "BasicConv2d.forward, inception.py",
    "mobilenet_v2": "hardtanh() of module 'features.0.2' (ReLU6)", "mobilenet_v3_small": "hardswish() of module",
    "efficientnet_b0": "silu() of module", "convnext_tiny": "layer_norm() in LayerNorm2d.forward, convnext.py line",
    "regnet_y_400mf": "sigmoid() of module", "raft_small": "missing 1 required positional argument",
}  # fmt: skip


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_networks(name):
    torch.manual_seed(0)
    more = dict(init_weights=False) if name in ("googlenet", "inception_v3") else {}
    more |= dict(weights_backbone=None) if name.startswith("fcn") else {}
    net = torchvision.models.get_model(name, weights=None, **more).eval()
    layer, said = TORCHVISION[name], ""
    if " " in layer:
        said = layer
        layer = [key for key, module in net.named_modules() if isinstance(module, nn.Conv2d) and "aux" not in key][-1]
    x = torch.randn(1, 3, 80, 80)
    if said:
        with pytest.raises(ValueError) as error:
            project(net, x, layer, 0)
        assert said in str(error.value) and "\n" not in str(error.value)
        return
    picture, other = project(net, x, layer, 0, route="gradient"), by_autograd(net, x, layer, 0)
    assert (picture - other).abs().max() <= 1e-5 * other.abs().max()
