"""The two routes of the deconvnet against a sheet of paper, each other, captum and zennit."""

import copy

import pytest
import torch
import torchvision
from captum.attr import NeuronDeconvolution
from torch import nn
from torch.nn import functional as F
from zennit.composites import DeconvNet

from zfkit.chain import NotAChain
from zfkit.deconvnet import project
from zfkit.forward import feature_maps
from zfkit.networks import alexnet, zfnet

SMALL = dict(size=63, channels=(8, 12, 16, 16, 12), strides=(2, 1, 1, 1, 1), padding=(3, 2, 1, 1, 1), fc=(20, 20))


def he(net, seed=0):
    """Weights that keep the signal alive, biases and batch statistics that show if they leak in."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                scale = (2 / module.weight[0].numel()) ** 0.5
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * scale)
            if isinstance(module, nn.BatchNorm2d):
                if module.affine:
                    module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
            if getattr(module, "bias", None) is not None:
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.05)
    return net.eval()


def pictures(n, size, seed=0, dtype=torch.float64, scale=20.0):
    return torch.randn(n, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * scale


def difference(one, other):
    """Largest difference relative to the largest value; the pictures must not be blank."""
    assert other.abs().max() > 0
    return ((one - other).abs().max() / other.abs().max()).item()


def small(norm="lrn", **kwargs):
    return he(zfnet(5, norm=norm, **{**SMALL, **kwargs})).double()


def strongest_channel(net, images, layer):
    """The channel of the strongest unit of the first image: a projection that is not blank."""
    return feature_maps(net, images, [layer])[layer][0].flatten(1).amax(1).argmax().item()


def unit(net, images, layer):
    """Channel and place of the strongest unit of the first image, and its value in every image."""
    maps = feature_maps(net, images, [layer])[layer]
    channel = maps[0].flatten(1).amax(1).argmax().item()
    place = divmod(maps[0, channel].argmax().item(), maps.shape[-1])
    return channel, place, maps[:, channel, place[0], place[1]]


# --- by hand ------------------------------------------------------------------------------------------------


def test_a_4x4_image_by_hand():
    # one filter (1, -2) along the row, rectified, pooled 2x2; bias of +5 in the filter must play no part
    net = nn.Sequential(nn.Conv2d(1, 1, (1, 2), padding=(0, 0)), nn.ReLU(), nn.MaxPool2d((2, 1)), nn.Conv2d(1, 1, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, -2.0]).view(1, 1, 1, 2))
        net[0].bias.fill_(5.0)
        net[3].weight.fill_(3.0)
        net[3].bias.fill_(-1.0)
    image = torch.tensor([[1.0, 0, 0, 0], [0, 0, 2, 0], [0, 1, 0, 0], [4, 0, 0, 0]])[None, None]
    # maps: rows (6 5 5), (5 1 7), (3 6 5), (9 5 5); pooled (6 5 7), (9 6 5); head 3p-1: (17 14 20), (26 17 14)
    assert feature_maps(net, image, ["3"])["3"].tolist() == [[[[17, 14, 20], [26, 17, 14]]]]
    # the strongest, 26, times 3, to its switch (row 3, column 0), times the filter
    expected = torch.zeros(4, 4)
    expected[3, 0], expected[3, 1] = 78.0, -156.0
    for route in ("mirror", "gradient"):
        assert torch.equal(project(net, image, "3", 0, route=route)[0, 0], expected)
    # unit (0, 2) holds 20; its switch is row 1, column 2
    expected = torch.zeros(4, 4)
    expected[1, 2], expected[1, 3] = 60.0, -120.0
    assert torch.equal(project(net, image, "3", 0, (0, 2))[0, 0], expected)
    # a negative start is rectified away before the first filter
    assert not project(net, image, "3", 0, (0, 2), start=-1.0).any()


# --- each layer is the adjoint of its forward pass ------------------------------------------------------------


def random_layers():
    torch.manual_seed(4)
    pick = lambda *options: options[torch.randint(len(options), ()).item()]  # noqa: E731
    for _ in range(12):
        groups = pick(1, 2, 4)
        kernel, stride, dilation = (
            (pick(1, 2, 3, 5), pick(2, 3)),
            (pick(1, 2, 3), pick(1, 2)),
            (pick(1, 2), pick(1, 2)),
        )
        padding = (pick(0, 1, 2), pick(0, 1))
        yield nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups)
    for _ in range(12):
        kernel = (pick(2, 3), pick(2, 3))
        stride, padding = (pick(1, 2, 3), pick(1, 2)), (pick(0, 1), pick(0, 1))
        yield nn.MaxPool2d(kernel, stride, padding, pick(1, 2), ceil_mode=pick(True, False))
        yield nn.AvgPool2d(kernel, stride, padding, pick(True, False), pick(True, False))
    yield from (nn.AdaptiveAvgPool2d((3, 4)), nn.AdaptiveAvgPool2d(1), nn.Dropout(), nn.Identity())
    yield from (nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False))
    yield nn.Sequential(nn.Flatten(), nn.Linear(4 * 13 * 11, 6))


@pytest.mark.parametrize("layer", list(random_layers()), ids=lambda layer: str(layer).replace("\n", " "))
def test_going_down_is_the_adjoint_of_going_up(layer):
    layer = he(nn.Sequential(layer)).double()
    images = torch.randn(2, 4, 13, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    below = images.clone().requires_grad_()
    maps = layer(below)
    channel = torch.tensor([1, 3])
    flat = maps.reshape(2, maps.shape[1], -1)
    place = flat[torch.arange(2), channel].argmax(1)
    chosen = (flat[torch.arange(2), channel, place] * torch.tensor([2.0, -3.0])).sum()
    expected = torch.autograd.grad(chosen, below)[0]  # no ReLU here: this is the adjoint
    got = project(layer, images, "0", channel, start=torch.tensor([2.0, -3.0]), route="mirror")
    assert difference(got, expected) < 1e-14


# --- mirror against gradient ----------------------------------------------------------------------------------

OPTIONS = [{}, dict(lrn="derivative"), dict(overlap="max"), dict(start=1.0)]


@pytest.mark.parametrize("norm", ["lrn", "batch", "none"])
def test_routes_agree_on_every_stage(norm):
    net, images = small(norm, size=47), pictures(2, 47)
    for layer in net.stages:
        maps = feature_maps(net, images, [layer])[layer]
        alive = maps.reshape(*maps.shape[:2], -1).amax(2).argmax(1)  # a live channel in each image
        for options in OPTIONS if layer in ("conv5", "fc8") else OPTIONS[:1]:
            mirror = project(net, images, layer, alive, route="mirror", **options)
            assert difference(mirror, project(net, images, layer, alive, route="gradient", **options)) < 1e-12


@pytest.mark.parametrize("options", OPTIONS)
def test_the_options_change_the_picture(options):
    net, images = small(), pictures(2, 63)
    channel = strongest_channel(net, images, "conv5")
    same = difference(project(net, images, "conv5", channel, **options), project(net, images, "conv5", channel))
    assert same > 0.01 if options else same == 0


BIG = {
    "zfnet": (lambda: zfnet(10), 224, "conv5"),
    "alexnet-dense": (lambda: alexnet(10), 227, "conv5"),
    "alexnet-grouped": (lambda: alexnet(10, 2), 227, "conv5"),
    "tv-alexnet": (lambda: torchvision.models.alexnet(weights=None), 224, "features.11"),
    "tv-alexnet-class": (lambda: torchvision.models.alexnet(weights=None), 224, "classifier.6"),
    "tv-vgg11": (lambda: torchvision.models.vgg11(weights=None), 224, "features.19"),
    "tv-vgg16-bn": (lambda: torchvision.models.vgg16_bn(weights=None), 224, "features.42"),
}
SLOW = ("tv-vgg11", "tv-vgg16-bn", "alexnet-dense", "tv-alexnet-class")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in BIG])
def test_routes_agree_on_the_big_networks(name):
    build, size, layer = BIG[name]
    net, images = he(build()).double(), pictures(1, size)
    channel = strongest_channel(net, images, layer) if "class" not in name else 3
    for options in ({}, dict(lrn="derivative")) if "norm1" in dict(net.named_children()) else ({},):
        mirror = project(net, images, layer, channel, route="mirror", **options)
        assert difference(mirror, project(net, images, layer, channel, route="gradient", **options)) < 1e-12


# --- against captum and zennit --------------------------------------------------------------------------------


def by_captum(net, module, images, channel, place):
    where = (channel, *place)
    with pytest.warns(UserWarning):  # it sets hooks, and says so
        return NeuronDeconvolution(net, net.get_submodule(module)).attribute(images.clone().requires_grad_(), where)


def by_zennit(net, module, images, channel, place):
    kept = []
    handle = net.get_submodule(module).register_forward_hook(lambda module, inputs, output: kept.append(output))
    images = images.clone().requires_grad_()
    with DeconvNet().context(net) as changed:
        changed(images)
        picture = torch.autograd.grad(kept[0][:, channel, place[0], place[1]].sum(), images)[0]
    handle.remove()
    return picture


class PassThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, maps, norm):
        return norm(maps)

    @staticmethod
    def backward(ctx, signal):
        return signal, None


class Skipped(nn.Module):
    """A contrast normalisation that captum sees as doing nothing on the way down."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, maps):
        return PassThrough.apply(maps, self.norm)


@pytest.mark.parametrize("route", ["mirror", "gradient"])
@pytest.mark.parametrize("other", [by_captum, by_zennit])
@pytest.mark.parametrize("name, build, layer, module", [
    ("lrn", small, "conv5", "relu5"),
    ("lrn conv2", small, "conv2", "relu2"),
    ("batch", lambda: small("batch"), "conv4", "relu4"),
    ("replica", lambda: he(alexnet(5, 2, size=99, channels=(8, 12, 16, 16, 12), fc=(9, 9))).double(), "conv5", "relu5"),
])  # fmt: skip
def test_equals_captum_and_zennit(route, other, name, build, layer, module):
    net = build()
    images = pictures(2, net.config["size"])
    channel, place, _ = unit(net, images, layer)
    ours = project(net, images, layer, channel, place, start=1.0, lrn="derivative", route=route)
    assert difference(ours, other(net, module, images, channel, place)) < 1e-12


@pytest.mark.parametrize("route", ["mirror", "gradient"])
def test_skipping_lrn_equals_captum_with_lrn_passed_through(route):
    net, images = small(), pictures(2, 63)
    channel, place, values = unit(net, images, "conv5")
    wrapped = copy.deepcopy(net)
    wrapped.norm1, wrapped.norm2 = Skipped(net.norm1), Skipped(net.norm2)
    expected = by_captum(wrapped, "relu5", images, channel, place) * values.view(-1, 1, 1, 1)  # start: the activation
    ours = project(net, images, "conv5", channel, place, route=route)
    assert difference(ours, expected) < 1e-12
    assert difference(project(net, images, "conv5", channel, place, route=route, lrn="derivative"), expected) > 0.05


@pytest.mark.parametrize("builder, layer", [("resnet18", "layer2.1.conv2"), ("squeezenet1_1", "features.6")])
def test_networks_with_branches_equal_captum(builder, layer):
    net, images = he(getattr(torchvision.models, builder)(weights=None)).double(), pictures(2, 96, scale=1.0)
    channel, place, _ = unit(net, images, layer)
    with pytest.raises(NotAChain):
        project(net, images, layer, channel, place, route="mirror")
    ours = project(net, images, layer, channel, place, start=1.0)
    # captum's full hooks refuse in-place ReLUs behind a branch: it gets a copy without
    plain = copy.deepcopy(net)
    for module in plain.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    assert difference(ours, by_captum(plain, layer, images, channel, place)) < 1e-12


def test_gradient_and_guided_rules_equal_autograd_and_captum():
    from captum.attr import NeuronGuidedBackprop

    net, images = small(), pictures(2, 63)
    channel, place, _ = unit(net, images, "conv5")
    same = dict(start=1.0, lrn="derivative")
    below = images.clone().requires_grad_()
    value = net[: list(net._modules).index("relu5") + 1](below)[:, channel, place[0], place[1]].sum()
    expected = torch.autograd.grad(value, below)[0]
    assert difference(project(net, images, "conv5", channel, place, rule="gradient", **same), expected) < 1e-12
    with pytest.warns(UserWarning):
        guided = NeuronGuidedBackprop(net, net.relu5).attribute(images.clone().requires_grad_(), (channel, *place))
    assert difference(project(net, images, "conv5", channel, place, rule="guided", **same), guided) < 1e-12
    assert difference(expected, guided) > 0.1


# --- what must always hold ------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["mirror", "gradient"])
def test_homogeneous_in_the_start_value_and_zero_gives_zero(route):
    net, images = small("batch"), pictures(2, 63)
    one = project(net, images, "conv5", 1, start=1.0, route=route)
    assert difference(project(net, images, "conv5", 1, start=2.5, route=route), 2.5 * one) < 1e-14
    assert not project(net, images, "conv5", 1, start=0.0, route=route).any()
    assert project(net, images, "conv5", 1, start=[1.0, 0.0], route=route)[1].abs().max() == 0


@pytest.mark.parametrize("route", ["mirror", "gradient"])
def test_one_unit_per_image_equals_one_call_per_image(route):
    net, images = small(), pictures(3, 63)
    channels, places = [4, 0, 7], [(1, 2), (3, 0), (6, 6)]
    together = project(net, images, "conv4", channels, places, start=[1.0, 2.0, 3.0], route=route)
    for n in range(3):
        alone = project(net, images[n : n + 1], "conv4", channels[n], places[n], start=n + 1.0, route=route)
        assert difference(alone[0], together[n]) < 1e-12


def test_no_position_means_the_first_of_the_strongest():
    net = nn.Sequential(nn.Conv2d(3, 2, 3, bias=False), nn.ReLU())
    images = torch.zeros(1, 3, 7, 7)
    images[0, :, 1:4, 1:4] = images[0, :, 3:6, 3:6] = 1.0
    nn.init.constant_(net[0].weight, 1.0)
    maps = feature_maps(net, images, ["1"])["1"][0, 0]
    assert (maps == maps.max()).sum() == 2  # the case under test occurs
    assert torch.equal(project(net, images, "1", 0), project(net, images, "1", 0, (1, 1)))


def test_many_images_go_in_chunks(monkeypatch):
    net, images = small(), pictures(5, 63)
    whole = project(net, images, "conv3", [0, 1, 2, 3, 4]), feature_maps(net, images, ["conv1", "fc7"])
    monkeypatch.setattr("zfkit.deconvnet.CHUNK", 2)
    monkeypatch.setattr("zfkit.forward.CHUNK", 2)
    assert difference(project(net, images, "conv3", [0, 1, 2, 3, 4]), whole[0]) < 1e-14
    chunked = feature_maps(net, images, ["conv1", "fc7"])
    assert all(difference(chunked[layer], whole[1][layer]) < 1e-13 for layer in ("conv1", "fc7"))


def test_float32_and_channels_last_agree_with_float64():
    net, images = small(), pictures(2, 63)
    channel, place, _ = unit(net, images, "conv5")
    exact = project(net, images, "conv5", channel, place)
    as_loaded = images.float().contiguous(memory_format=torch.channels_last)
    rough = project(net.float(), as_loaded, "conv5", channel, place)
    assert rough.dtype == torch.float32 and difference(rough.double(), exact) < 1e-4


def test_feature_maps_are_those_of_running_the_layers_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True)).double()
    images = pictures(2, 9)
    got = feature_maps(net, images, ["3", "0", "2"])
    assert list(got) == ["3", "0", "2"]
    conv1 = F.conv2d(images, net[0].weight, net[0].bias)
    assert (conv1 < 0).any() and torch.equal(got["0"], conv1)  # not the map that the in-place ReLU left behind
    assert torch.equal(got["3"], F.relu(F.conv2d(F.relu(conv1), net[2].weight, net[2].bias)))


@pytest.mark.parametrize("route", ["mirror", "gradient"])
def test_in_place_relus_change_nothing(route):
    net, images = small("batch"), pictures(2, 63)
    in_place = copy.deepcopy(net)
    for module in in_place.modules():
        module.inplace = isinstance(module, nn.ReLU)
    before = images.clone()
    for layer in ("conv5", "fc7", "conv4", "bn3", "relu1"):
        ours = project(net, images, layer, 2, start=1.0, route=route)
        assert difference(project(in_place, images, layer, 2, start=1.0, route=route), ours) == 0
    assert torch.equal(images, before)


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.relu = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()
        self.head = nn.Conv2d(6, 4, 3)

    def forward(self, images):
        return self.head(self.relu(self.conv2(self.relu(self.conv1(images)))))


def test_a_reused_module_is_refused_by_the_mirror_and_right_by_the_gradient():
    net, images = he(Reused()).double(), pictures(2, 12)
    with pytest.raises(NotAChain, match="'relu' is used twice"):
        project(net, images, "head", 0, route="mirror")
    chain = nn.Sequential(net.conv1, nn.ReLU(), net.conv2, nn.ReLU(), net.head)
    assert difference(project(net, images, "head", 0), project(chain, images, "4", 0, route="mirror")) < 1e-14


def test_dropout_and_batch_norm_are_evaluated_and_modes_restored():
    net, images = small("batch", dropout=0.9), pictures(2, 63)
    expected = {route: project(net, images, "fc8", 1, route=route) for route in ("mirror", "gradient")}
    net.train()
    net.bn2.eval()
    modes, statistics = [m.training for m in net.modules()], net.bn1.running_mean.clone()
    for route, picture in expected.items():
        assert torch.equal(project(net, images, "fc8", 1, route=route), picture)
    assert [m.training for m in net.modules()] == modes and torch.equal(net.bn1.running_mean, statistics)


def state(net):
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in net.modules()]
    grads = [(p.grad is None, p.requires_grad) for p in net.parameters()]
    return hooks, grads, [m.training for m in net.modules()], [sorted(vars(m)) for m in net.modules()]


@pytest.mark.parametrize("route", ["mirror", "gradient"])
def test_nothing_is_left_behind_even_after_an_exception(route):
    net, images = small().train(), pictures(2, 63)
    net.conv3.weight.requires_grad_(False)
    before, weights = state(net), copy.deepcopy(net.state_dict())
    project(net, images, "conv5", 0, route=route)
    feature_maps(net, images, ["conv2"])
    for layer, channel in (("conv5", 99), ("pool5", 0)):
        with pytest.raises(ValueError):
            project(net, images if channel else images[:, :2], layer, channel, route=route)
    assert state(net) == before and torch.is_grad_enabled()
    assert all(torch.equal(weights[key], value) for key, value in net.state_dict().items())
    assert not images.requires_grad and not project(net, images, "conv1", 0, route=route).requires_grad
    with torch.inference_mode():  # also asked from within
        assert project(net, images, "conv5", 0, route=route, lrn="derivative").abs().max() > 0
    assert F.relu(torch.ones(1)) == 1  # no torch function mode is left on


# --- layers as people have them -------------------------------------------------------------------------------


class Unpooling(nn.Module):
    """A pooling that hands its switches on, as networks with a decoder have it."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.pool = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(3, 2, return_indices=True)
        self.head, self.last = nn.Conv2d(8, 8, 3), nn.ReLU()

    def forward(self, images):
        maps, _ = self.pool(self.relu(self.conv(images)))
        return self.last(self.head(maps))


@pytest.mark.parametrize("overlap", ["sum", "max"])
def test_a_pooling_that_gives_its_switches_is_a_pooling(overlap):
    net, images = he(Unpooling()).double(), pictures(2, 32)
    chain = nn.Sequential(net.conv, net.relu, nn.MaxPool2d(3, 2), net.head, net.last)
    channel = strongest_channel(net, images, "last")
    for route in ("auto", "mirror"):
        ours = project(net, images, "last", channel, overlap=overlap, route=route)
        assert difference(ours, project(chain, images, "4", channel, overlap=overlap, route="mirror")) == 0
    other = project(net, images, "last", channel, overlap={"sum": "max", "max": "sum"}[overlap])
    assert difference(ours, other) > 1e-3


@pytest.mark.parametrize("kernel, dilation", [(3, 1), (5, 2), ((2, 4), 1), (4, (1, 3))])
def test_padding_by_name_goes_down_as_it_went_up(kernel, dilation):
    torch.manual_seed(0)
    first = nn.Conv2d(3, 6, kernel, padding="same", dilation=dilation)
    net = nn.Sequential(first, nn.ReLU(), nn.Conv2d(6, 4, 3, padding="valid"))
    net, images = he(net).double(), pictures(2, 17)[..., :13]
    channel = strongest_channel(net, images, "2")
    mirror = project(net, images, "2", channel, route="mirror")
    assert difference(mirror, project(net, images, "2", channel, route="gradient")) < 1e-13


def doubled(module, inputs, output):
    return 2 * output


def doubled_in_place(module, inputs, output):
    output.mul_(2)


def input_doubled(module, inputs):
    return (2 * inputs[0],)


@pytest.mark.parametrize("hook", [doubled, doubled_in_place, input_doubled], ids=lambda hook: hook.__name__)
def test_a_forward_hook_that_changes_what_a_layer_gives_counts_on_the_way_down(hook):
    """The mirror does not see it and says so; the gradient route doubles the signal there as well."""
    net, images = he(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))).double(), pictures(2, 12)
    twice = nn.Conv2d(6, 6, 1, bias=False).double()
    twice.weight.data = 2 * torch.eye(6, dtype=torch.float64)[:, :, None, None]
    explicit = nn.Sequential(net[0], net[1], twice, net[2])
    channel = strongest_channel(explicit, images, "3")
    expected = project(explicit, images, "3", channel, route="mirror")
    plain = project(net, images, "2", channel)
    if hook is input_doubled:
        net[2].register_forward_pre_hook(hook)
    else:
        net[1].register_forward_hook(hook)
    assert difference(project(net, images, "2", channel), expected) < 1e-13 < difference(plain, expected)
    with pytest.raises(NotAChain, match="hook changes what '1' gives|the mirror needs a chain: '2'"):
        project(net, images, "2", channel, route="mirror")


def test_a_hook_that_only_looks_leaves_the_mirror_be():
    net, images, seen = small(), pictures(1, 63), []
    net.relu3.register_forward_hook(lambda module, inputs, output: seen.append(output.mean().item()))
    assert project(net, images, "conv5", 1, route="mirror").shape == images.shape and len(seen) == 1


@pytest.mark.parametrize("route", ["auto", "mirror", "gradient"])
def test_a_batch_norm_without_running_statistics_is_refused(route):
    norms = nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm2d(4)
    norms[1].running_mean = norms[1].running_var = None  # as people make it use the batch's
    for norm in norms:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU())
        refused("module '1' normalises over its batch: it keeps no running statistics", net, route=route)
        with pytest.raises(ValueError, match="module '1' normalises over its batch"):
            feature_maps(net, torch.randn(2, 3, 9, 9), ["0"])
    kept = nn.BatchNorm2d(4)
    kept.track_running_stats = False  # in eval mode torch still takes the statistics that are there
    net, images = he(nn.Sequential(nn.Conv2d(3, 4, 3), kept)), torch.randn(2, 3, 9, 9)
    both = [project(net, images, "1", 0, start=1.0, route=way) for way in ("mirror", "gradient")]
    assert difference(*both) < 1e-5


# --- refusals -------------------------------------------------------------------------------------------------


class Functional(Reused):
    def forward(self, images):
        return self.head(torch.relu(self.conv1(images)))


class Gated(nn.Module):
    def forward(self, maps):
        return maps * torch.sigmoid(maps)


def refused(match, net, images=None, layer="2", channel=0, position=None, **options):
    images = torch.randn(2, 3, 12, 12) if images is None else images
    with pytest.raises(ValueError, match=match) as error:
        project(net, images, layer, channel, position, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("route", ["auto", "mirror", "gradient"])
def test_networks_that_no_route_can_take_are_refused(route):
    line = Functional.forward.__code__.co_firstlineno + 1
    refused(rf"relu\(\) in Functional.forward, test_deconvnet.py line {line}", Functional(), layer="head", route=route)
    for activation, name in ((nn.GELU(), "GELU"), (nn.ReLU6(), "ReLU6"), (nn.Sigmoid(), "Sigmoid")):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), activation, nn.Conv2d(4, 4, 3))
        refused(rf"module '1'.*{name}", net, route=route)
    refused("Gated", nn.Sequential(nn.Conv2d(3, 4, 3), Gated(), nn.Conv2d(4, 4, 3)), route=route)


def test_the_plain_gradient_takes_any_activation_and_what_lies_behind_the_layer_does_not_count():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.GELU())
    images = torch.randn(2, 3, 12, 12)
    assert project(net, images, "2", 0).shape == project(net, images, "3", 0, rule="gradient").shape
    refused("GELU", net, layer="3")


def test_layers_without_a_step_fall_to_the_gradient_route():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Upsample(scale_factor=2))
    for layer in ("1", "2"):
        refused("the mirror has no step for module", net, layer=layer, route="mirror")
        assert project(net, torch.randn(1, 3, 8, 8), layer, 0).shape == (1, 3, 8, 8)


def test_a_compiled_network_is_refused():
    refused("compiled .* hides its layers", torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())), layer="1")


def test_bad_arguments_are_refused_in_one_line():
    net, images = zfnet(5, **SMALL), torch.randn(2, 3, 63, 63)
    refused("unknown layer 'conv9'; valid: conv1, pool1", net, images, "conv9")
    refused("no channel of 'conv5' is 12; valid: 0 to 11", net, images, "conv5", 12)
    refused("no channel of 'conv5' is -1; valid: 0 to 11", net, images, "conv5", [0, -1])
    refused("no row of 'conv5' is 9; valid: 0 to 7", net, images, "conv5", 0, (9, 0))
    refused("no column of 'conv5' is 8; valid: 0 to 7", net, images, "conv5", 0, [(0, 8), (0, 0)])
    refused("channel must be an integer for all or for each of 2 images, not 1.5", net, images, "conv5", 1.5)
    refused(r"channel must be an integer .*, not \[1, 2, 3\]", net, images, "conv5", [1, 2, 3])
    refused(r"channel must be an integer .*, not None", net, images, "conv5", None)
    refused(r"position must be a pair \(row, col\) .*, not 3", net, images, "conv5", 0, 3)
    refused("start must be a number .*, not 'high'", net, images, "conv5", 0, start="high")
    refused("unknown overlap 'last'; valid: sum, max", net, images, "conv5", overlap="last")
    refused("unknown lrn 'none'; valid: skip, derivative", net, images, "conv5", lrn="none")
    refused("unknown route 'back'; valid: auto, mirror, gradient", net, images, "conv5", route="back")
    refused("unknown rule 'lrp'; valid: deconvnet, guided, gradient", net, images, "conv5", rule="lrp")
    refused("rule 'guided' needs", net, images, "conv5", rule="guided", route="mirror")
    refused("normalized must be a float tensor .* not torch.uint8", net, images.byte(), "conv5")
    refused(r"normalized must be a float tensor .* not torch.float32 \(3, 63, 63\)", net, images[0], "conv5")
    refused("normalized must be a float tensor .* N > 0", net, images[:0], "conv5")
    refused("normalized must be a float tensor .* not ndarray", net, images.numpy(), "conv5")
    refused(r"no forward pass with torch.float32 \(2, 1, 63, 63\)", net, images[:, :1], "conv5")
    refused(r"no forward pass with torch.float64", net, images.double(), "conv5")
    with pytest.raises(ValueError, match="unknown layer 'conv7'"):
        feature_maps(net, images, ["conv1", "conv7"])
