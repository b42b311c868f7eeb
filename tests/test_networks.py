"""ZFNet and the replica against the paper's tables: maps, parameters, order of layers, Table 3."""

import json

import pytest
import torch
from torch import nn

import zfkit
from zfkit.networks import alexnet, build, resolve, vgg, zfnet

SMALL = dict(
    size=80,
    channels=(48, 96, 128, 128, 96),
    filters=(7, 5, 3, 3, 3),
    strides=(2, 1, 1, 1, 1),
    padding=(3, 2, 1, 1, 1),
    fc=(256, 256),
    norm="batch",
)


def on_paper(builder, *args, **kwargs):
    with torch.device("meta"):  # shapes without memory
        return builder(*args, **kwargs)


def parameters(net):
    return sum(parameter.numel() for parameter in net.parameters())


def sides(net, size):
    maps, sizes = torch.empty(1, 3, size, size, device="meta"), {}
    for name, module in net.named_children():
        maps = module(maps)
        sizes[name] = tuple(maps.shape[1:])
    return sizes


def test_zfnet_has_the_maps_of_figure_3():
    sizes = sides(on_paper(zfnet), 224)
    names = ["conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5"]
    assert [sizes[name][1] for name in names] == [110, 55, 26, 13, 13, 13, 13, 6]
    assert [sizes[f"conv{n}"][0] for n in range(1, 6)] == [96, 256, 384, 384, 256]
    assert sizes["flatten"] == (9216,) and sizes["fc8"] == (1000,)


def test_alexnet_has_the_maps_of_the_replica():
    sizes = sides(on_paper(alexnet), 227)
    names = ["conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5"]
    assert [sizes[name][1] for name in names] == [55, 27, 27, 13, 13, 13, 13, 6]
    assert sides(on_paper(alexnet, size=224, padding=(2, 2, 1, 1, 1)), 224)["pool5"] == (256, 6, 6)


def test_parameters_layer_by_layer():
    net = on_paper(zfnet)
    counts = [14_208, 614_656, 885_120, 1_327_488, 884_992, 37_752_832, 16_781_312, 4_097_000]
    names = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
    assert [parameters(net.get_submodule(name)) for name in names] == counts
    assert parameters(net) == sum(counts) == 62_357_608


WIDE = dict(channels=(96, 256, 512, 1024, 512))
TABLE_3 = [
    (alexnet, {}, 62_378_344),
    (alexnet, dict(groups=2), 60_965_224),
    (alexnet, dict(without=(3, 4)), 59_870_824),
    (alexnet, dict(without=(7,)), 45_597_032),
    (alexnet, dict(without=(6, 7)), 12_964_200),
    (alexnet, dict(without=(3, 4, 6, 7)), 10_456_680),
    (alexnet, dict(fc=(2048, 2048)), 28_868_968),
    (alexnet, dict(fc=(8192, 8192)), 154_562_920),
    (zfnet, {}, 62_357_608),
    (zfnet, dict(fc=(2048, 2048)), 28_848_232),
    (zfnet, dict(fc=(8192, 8192)), 154_542_184),
    (zfnet, WIDE, 107_627_624),
    (zfnet, dict(fc=(8192, 8192), **WIDE), 237_560_936),
]


@pytest.mark.parametrize("builder, arguments, count", TABLE_3)
def test_every_row_of_table_3(builder, arguments, count):
    assert parameters(on_paper(builder, **arguments)) == count


def test_order_within_a_layer():
    zf, alex = list(dict(on_paper(zfnet).named_children())), list(dict(on_paper(alexnet).named_children()))
    assert zf[:8] == ["conv1", "relu1", "pool1", "norm1", "conv2", "relu2", "pool2", "norm2"]
    assert alex[:8] == ["conv1", "relu1", "norm1", "pool1", "conv2", "relu2", "norm2", "pool2"]
    batch = list(dict(on_paper(zfnet, 16, **SMALL).named_children()))
    assert batch[:4] == ["conv1", "bn1", "relu1", "pool1"]
    assert zf[-8:] == batch[-8:] == ["flatten", "fc6", "relu6", "drop6", "fc7", "relu7", "drop7", "fc8"]
    assert list(dict(on_paper(zfnet, dropout=0, without=(7,)).named_children()))[-3:] == ["fc6", "relu6", "fc8"]


def test_contrast_normalisation_has_the_constants():
    def constants(net, name):
        norm = net.get_submodule(name)
        return norm.size, norm.alpha, norm.beta, norm.k

    for name in ("norm1", "norm2"):
        assert constants(on_paper(zfnet), name) == (5, 1e-4, 0.75, 2.0)
        assert constants(on_paper(alexnet), name) == (5, 1e-4, 0.75, 2.0)
    assert constants(on_paper(alexnet, lrn_k=1.0), "norm2")[3] == 1.0
    assert not any("norm" in name for name, _ in on_paper(zfnet, norm="none").named_children())


def test_groups_are_in_layers_2_4_and_5():
    net = on_paper(alexnet, groups=2)
    assert [net.get_submodule(f"conv{n}").groups for n in range(1, 6)] == [1, 2, 1, 2, 2]


def test_stages_name_the_rectified_map_and_what_a_layer_hands_on():
    net = on_paper(zfnet)
    assert net.stages["conv2"] == resolve(net, "conv2") == "relu2"
    assert net.stages["pool2"] == "norm2" and net.stages["pool5"] == "pool5"
    assert on_paper(alexnet).stages["pool2"] == "pool2"
    assert [net.stages[name] for name in ("fc6", "fc7", "fc8")] == ["relu6", "relu7", "fc8"]
    assert list(on_paper(alexnet, None).stages) == list(net.stages)[:8]
    assert all(name in dict(net.named_modules()) for name in net.stages.values())
    assert not any(module.inplace for module in net.modules() if isinstance(module, nn.ReLU))
    assert resolve(nn.Sequential(nn.Sequential(nn.ReLU())), "0.0") == "0.0"


@pytest.mark.parametrize("net", [on_paper(zfnet, 16, **SMALL), on_paper(alexnet, 10, 2, size=99, without=(3, 7))])
def test_build_makes_the_like_from_json(net):
    with torch.device("meta"):
        like = build(json.loads(json.dumps(net.config)))
    assert like.config == net.config and like.stages == net.stages and str(like) == str(net)


def test_a_small_network_runs_and_is_seeded_by_torch():
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(zfnet(16, **SMALL).eval())
    images = torch.randn(2, 3, 80, 80)
    assert nets[0](images).shape == (2, 16)
    assert torch.equal(nets[0](images), nets[1](images))


REFUSED = [
    (dict(builder="resnet"), "unknown builder 'resnet'; valid: zfnet, alexnet, vgg"),
    (dict(builder="zfnet", groups=2), "zfnet has no argument 'groups'; valid: blurred, channels, dropout"),
    (dict(builder="zfnet", norm="layer"), "unknown norm 'layer'; valid: lrn, batch, none"),
    (dict(builder="zfnet", channels=(96, 256)), r"channels must hold 5 numbers, not \[96, 256\]"),
    (dict(builder="zfnet", fc=4096), "fc must hold 2 numbers, not 4096"),
    (dict(builder="zfnet", pools=(1, 6)), "pools names layer 6; valid: 1 to 5"),
    (dict(builder="zfnet", blurred=(6,)), "blurred names layer 6; valid: 1 to 5"),
    (dict(builder="zfnet", without=(1,)), "without names layer 1; valid: 2 to 7"),
    (dict(builder="zfnet", dropout=1.5), r"dropout must lie in \[0, 1\), not 1.5"),
    (dict(builder="zfnet", size=12), "size 12 is too small: the map of layer 2 would be empty"),
    (dict(builder="alexnet", groups=3, channels=(96, 255, 384, 384, 256)), "groups 3 must divide every number"),
]


@pytest.mark.parametrize("config, message", REFUSED)
def test_refusals_name_the_value_and_the_valid_ones(config, message):
    with pytest.raises(ValueError, match=message) as error:
        build(config)
    assert "\n" not in str(error.value)


def test_an_unknown_layer_is_refused():
    with pytest.raises(ValueError, match="unknown layer 'conv9'; valid: conv1, pool1, .*, fc8"):
        resolve(on_paper(zfnet), "conv9")
    with pytest.raises(ValueError, match="unknown layer 'conv1'; valid: 0.0, 1"):
        resolve(nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU()), "conv1")


def blurred_pair():
    """Stride 4 in layer 1, sampled at once and after a blur."""
    common = SMALL | dict(builder="zfnet", num_classes=16, strides=(4, 1, 1, 1, 1))
    return common | dict(padding=(2, 2, 1, 1, 1)), common | dict(padding=(3, 2, 1, 1, 1), blurred=(1,))


def test_blurred_layers_keep_the_grid():
    plain, blurred = (on_paper(build, config) for config in blurred_pair())
    for stage in ("conv1", "pool1", "conv2", "pool5", "fc6"):
        ends = [sides(net, 80)[net.stages[stage]] for net in (plain, blurred)]
        assert ends[0] == ends[1], stage
    assert sides(blurred, 80)["conv1"][1] == 2 * sides(plain, 80)["conv1"][1]  # sampled only after the blur


def test_blurring_is_the_triangle_before_every_second_value():
    net = build(blurred_pair()[1]).eval()
    maps = torch.rand(1, 3, 40, 40)
    found = net.relu1_sample(net.relu1_blur(maps))
    triangle = torch.tensor([1.0, 2.0, 1.0]) / 4
    filters = torch.outer(triangle, triangle).expand(3, 1, 3, 3)
    wanted = nn.functional.conv2d(maps, filters, stride=2, groups=3)
    assert found.shape[2:] == (20, 20) and torch.allclose(found[..., :19, :19], wanted, atol=1e-6)


def test_blurred_layers_have_a_mirror():
    net = build(blurred_pair()[1] | dict(num_classes=None)).eval()
    x = torch.randn(2, 3, 80, 80)
    mirror, gradient = (zfkit.project(net, x, "conv3", 5, route=route) for route in ("mirror", "gradient"))
    assert mirror.abs().max() > 0 and torch.allclose(mirror, gradient, atol=1e-6)


def test_vgg16_is_torchvisions_with_other_names():
    from torchvision.models import vgg16

    with torch.device("meta"):
        assert sum(p.numel() for p in vgg().parameters()) == 138_357_544
    torch.manual_seed(0)
    theirs = vgg16(weights=None).eval()  # 224 px: their adaptive pooling passes a 7x7 map as it is
    with torch.device("meta"):
        ours = vgg()
    state = zip(ours.state_dict(), theirs.state_dict().values(), strict=True)
    ours.load_state_dict(dict(state), assign=True)
    images = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images), theirs(images))


def test_vgg_is_built_again_from_its_config_and_refuses_what_makes_no_network():
    net = build(dict(builder="vgg", num_classes=16, size=80, blocks=((8, 8), (8,)), fc=(12,), norm="batch"))
    assert json.loads(json.dumps(net.config)) == build(net.config).config
    assert list(net.stages) == ["conv1_1", "conv1_2", "pool1", "conv2_1", "pool2", "fc3", "fc4"]
    assert net.eval()(torch.rand(2, 3, 80, 80)).shape == (2, 16)
    for bad, words in (
        (dict(size=3), "size 3 is too small for 5 blocks"),
        (dict(blocks=((8,), ())), "blocks must hold"),
        (dict(norm="lrn"), "unknown norm 'lrn'; valid: batch, none"),
        (dict(dropout=1.0), "dropout must lie"),
        (dict(filters=3), "vgg has no argument 'filters'"),
    ):
        with pytest.raises(ValueError, match=words):
            build(dict(builder="vgg", num_classes=4) | bad)
