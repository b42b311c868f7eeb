"""Weights in and out: strict, one-line errors, nothing executed, the right network under each name."""

import json
import os
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from test_training import DATA, TINY, same

from zfkit import cards, files, recipes, training, weights
from zfkit.cards import load_state, save_weights
from zfkit.datasets import Images
from zfkit.files import data_root
from zfkit.networks import build
from zfkit.recipes import CONFIGS
from zfkit.series import snapshots
from zfkit.training import start_network
from zfkit.weights import load_network, load_or_train, load_published, publish

HISTORY = dict(
    parameters=dict(lr=0.04), machines=[dict(device="cpu", threads=1)],
    classes=list("abcd"), mean=[0.5] * 3, std=[0.25] * 3, precision="float32", validation_accuracy=0.5,
    test_accuracy=0.25, test_images=20, seconds=1.0, cpu_seconds=2.0, epochs=[dict(epoch=1, loss=1.5)],
)  # fmt: skip
real = pytest.mark.skipif(
    not (data_root() and (data_root() / "alexnet-conv-imagenet.safetensors").exists()),
    reason="needs ZFKIT_DATA with the two real networks",
)


@pytest.fixture
def house(tmp_path, monkeypatch):
    """Empty data/weights and data/cache, "made-up" as a data set and the tiny config; counts the trainings."""

    def load(name, split="test", size=None, limit=None):
        images, labels, classes = DATA[split]
        return Images(images[:limit], labels[:limit], classes)

    for module in (training, weights):
        monkeypatch.setattr(module, "load_images", load)
    monkeypatch.setattr(training, "cache_dir", lambda: tmp_path / "cache")
    for module in (files, weights):
        monkeypatch.setattr(module, "weights_folder", lambda: tmp_path / "data" / "weights")
    monkeypatch.setitem(CONFIGS, "tiny", TINY)
    return tmp_path / "data" / "weights"


def one_line(error):
    return "\n" not in str(error.value) and len(str(error.value)) < 1500


def published(config=TINY, **changes):
    """A network of the config's shape with random weights of float16, published with one snapshot."""
    net = start_network(config)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.copy_(training.half(tensor))
    state = {k: training.half(t) + 1 for k, t in net.state_dict().items() if k.startswith(("conv", "bn"))}
    series = {f"epoch{e:02d}/{key}": t * e for e in (1, 10) for key, t in state.items()}
    return net, publish(config, net, HISTORY | changes, series)


def test_a_published_network_comes_back_the_same_with_its_card(house):
    net, path = published()
    again, card = load_network("tiny")
    assert path == house / "tiny.safetensors" and same(again.state_dict(), net.state_dict())
    assert not again.training and again.stages == net.stages
    assert (card.name, card.size, card.classes, card.mean) == ("tiny", 32, tuple("abcd"), (0.5,) * 3)
    assert card.layers == ("conv1", "conv2", "conv3", "conv4", "conv5")
    assert set(card.record) >= {
        "command", "config", "recipe", "recipe_version", "seed", "history", "machines", "parameters",
        "time_s", "accuracy", "torch", "sha256",
    }  # fmt: skip
    assert card.record["machines"] == HISTORY["machines"] and card.record["accuracy"]["test"] == 0.25
    assert card.record["parameters"] == HISTORY["parameters"]


def test_two_dimensions_and_more_are_shipped_as_float16_the_rest_as_it_is(house):
    published()
    for key, tensor in load_file(house / "tiny.safetensors").items():
        assert tensor.dtype == (torch.float16 if tensor.ndim > 1 else torch.int64 if "num_b" in key else torch.float32)


def test_the_card_normalizes_by_its_own_mean_and_resizes_to_a_centred_square(house):
    published(mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 0.2])
    _, card = load_network("tiny")
    images = np.zeros((2, 64, 96, 3), np.uint8)
    images[:, :, 16:80] = (51, 102, 255)  # the central square; beside it black
    normalized = card.normalize(images)
    assert normalized.shape == (2, 3, 32, 32) and normalized.is_contiguous(memory_format=torch.channels_last)
    inside = normalized[:, :, 2:-2, 2:-2]
    expected = (torch.tensor([0.2, 0.4, 1.0]) - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.25, 0.2])
    assert torch.allclose(inside, expected.view(1, 3, 1, 1).expand_as(inside), atol=1e-5)
    same_size = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    assert card.normalize(same_size)[0, 1, 4, 5].item() == pytest.approx((same_size[0, 4, 5, 1] / 255 - 0.2) / 0.25)


@pytest.mark.parametrize(
    "shape, dtype", [((1, 32, 32, 4), "uint8"), ((1, 40, 40, 3), "float32"), ((40, 40, 3), "uint8")]
)
def test_images_of_another_type_or_shape_are_refused(house, shape, dtype):
    published()
    with pytest.raises(ValueError, match="uint8") as error:
        load_network("tiny")[1].normalize(np.zeros(shape, dtype))
    assert one_line(error)


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES = dict(
    truncated=lambda path: path.write_bytes(path.read_bytes()[:-100]),
    empty=lambda path: path.write_bytes(b""),
    text=lambda path: path.write_text("these are no weights"),
    pickled=lambda path: path.write_bytes(pickle.dumps(dict(a=1))),
    flipped=flipped,
    foreign=lambda path: save_file(dict(other=torch.zeros(3)), path),
    missing=lambda path: path.unlink(),
)


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("file", ["tiny.safetensors", "tiny-snapshots.safetensors"])
def test_a_damaged_file_is_a_one_line_error_that_names_it(house, name, file):
    published()
    DAMAGES[name](house / file)
    with pytest.raises(ValueError, match=file) as error:
        snapshots("tiny")
    assert one_line(error)


@pytest.mark.parametrize("content", ["{", "[1]", "{}", '{"config": 3}', '{"config": {"network": {"builder": "no"}}}'])
def test_a_damaged_sidecar_is_a_one_line_error(house, content):
    published()
    (house / "tiny.json").write_text(content)
    with pytest.raises(ValueError) as error:
        load_network("tiny")
    assert one_line(error)


def test_keys_shapes_and_kinds_are_compared_before_anything_is_set():
    net = start_network(TINY)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    state = {key: tensor + 1 for key, tensor in before.items()}
    del state["conv2.bias"]
    state |= {
        "conv9.weight": torch.zeros(1),
        "fc8.weight": torch.zeros(5, 16),
        "fc7.bias": torch.zeros(16, dtype=torch.long),
    }
    with pytest.raises(ValueError) as error:
        cards.apply_state(net, state, "file.safetensors")
    for word in (
        "file.safetensors",
        "lacks conv2.bias",
        "unexpected conv9.weight",
        "fc8.weight is",
        "fc7.bias is torch.int64",
    ):
        assert word in str(error.value)
    assert same(net.state_dict(), before) and one_line(error)


def test_snapshots_have_their_epochs_convolutions_and_the_final_classifier(house):
    net, _ = published()
    series = snapshots("tiny")
    assert list(series) == [1, 10] and not series[1].training
    assert torch.equal(series[10].conv2.weight, (training.half(net.conv2.weight) + 1).mul(10).float())
    assert torch.equal(series[1].fc8.weight, net.fc8.weight)


def test_snapshots_of_another_network_are_refused_although_they_fit(house):
    published()
    other = load_file(house / "tiny-snapshots.safetensors")
    published(replace(TINY, name="other"))
    save_file({key: tensor * 2 for key, tensor in other.items()}, house / "other-snapshots.safetensors")
    with pytest.raises(ValueError, match="other-snapshots"):
        snapshots("other")


def test_load_or_train_trains_once_then_reads_the_cache(house, capsys, monkeypatch):
    first, card = load_or_train("tiny", progress=False)
    assert "about" in capsys.readouterr().err and card.record["accuracy"]["test"] >= 0
    monkeypatch.setattr(training, "_step", None)  # any further step would fail
    again, _ = load_or_train("tiny", progress=False)
    assert same(first.state_dict(), again.state_dict()) and capsys.readouterr().err == ""
    assert not house.exists()


def test_load_or_train_takes_shipped_weights_only_if_config_data_and_version_match(house, monkeypatch):
    net, _ = published()
    assert same(load_or_train("tiny")[0].state_dict(), net.state_dict())
    trained = []
    monkeypatch.setattr(training, "train", lambda config, **_: trained.append(config) or (net, HISTORY))
    load_or_train(replace(TINY, lr=0.02))
    monkeypatch.setitem(DATA, "train", (DATA["train"][0] ^ 1, *DATA["train"][1:]))
    load_or_train(TINY)
    monkeypatch.undo()
    assert len(trained) == 2
    with pytest.raises(ValueError, match="zfnet-menagerie"):
        load_or_train("no-such-config")


def test_the_version_of_the_recipe_is_part_of_the_match(house, monkeypatch):
    before = training.identity(TINY)
    monkeypatch.setattr(recipes, "RECIPE_VERSION", recipes.RECIPE_VERSION + 1)
    assert training.identity(TINY) != before


def test_untrained_is_where_the_training_starts(house):
    net, card = load_network("untrained")
    assert same(net.state_dict(), start_network(CONFIGS["zfnet-menagerie"]).state_dict())
    assert not net.training and card.size == 80 and len(card.layers) == 5


def test_an_unknown_name_lists_the_valid_ones(house):
    with pytest.raises(ValueError, match="zfnet-menagerie.*squeezenet-imagenet") as error:
        load_network("zfnet-menagery")
    assert one_line(error)
    with pytest.raises(ValueError, match="python -m zfkit train shuffled-labels"):
        load_network("shuffled-labels")


def test_real_networks_without_the_data_say_what_is_needed(house, monkeypatch, tmp_path):
    for root in (None, tmp_path):
        monkeypatch.setattr(weights, "data_root", lambda root=root: root)
        with pytest.raises(ValueError, match="ZFKIT_DATA") as error:
            load_network("alexnet-imagenet")
        assert one_line(error)


def hub_file(folder, name, state):
    """A made-up download: torch's cache holds `state` under the name that torchvision asks for."""
    (folder / "checkpoints").mkdir(parents=True)
    file = folder / "checkpoints" / weights._torchvision_weights(name).url.rpartition("/")[2]
    torch.save(state, file)


def test_torchvisions_networks_load_by_name_from_made_up_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    torch.manual_seed(3)
    made_up = torchvision.models.squeezenet1_1().state_dict()
    hub_file(tmp_path, "squeezenet1_1", made_up)
    net, card = load_network("squeezenet1_1")
    assert same(net.state_dict(), made_up) and not net.training
    assert len(card.classes) == 1000 and card.classes[0] == "tench" and card.size == 224
    assert card.layers[:2] == ("features.1", "features.3") and card.mean == (0.485, 0.456, 0.406)
    assert "squeezenet1_1" in weights.networks_available()
    assert card.normalize(np.zeros((1, 300, 224, 3), np.uint8)).shape == (1, 3, 224, 224)


@pytest.mark.parametrize("name", ["squeezenet1_1", "inception_v3", "efficientnet_b0"])  # 256-224, 342-299, bicubic
@pytest.mark.parametrize("shape", [(300, 421), (411, 290), (120, 95)])
def test_a_card_of_torchvision_prepares_as_torchvision_does(name, shape):
    noise = torch.rand(1, 3, 12, 17, generator=torch.Generator().manual_seed(4))
    smooth = torch.nn.functional.interpolate(noise, size=shape, mode="bicubic").clamp(0, 1)
    fine = 0.15 * torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(5))
    image = (255 * (0.85 * smooth + fine)).to(torch.uint8)
    card, prepare = weights._torchvision_card(name, []), weights._torchvision_weights(name).transforms()
    pictures = [image[0]]  # as a tensor, and as Pillow's picture, whose bicubic filter rounds twice
    pictures += [Image.fromarray(image[0].permute(1, 2, 0).numpy())] if card.interpolation == "bilinear" else []
    ours = card.normalize(image.permute(0, 2, 3, 1).numpy())[0]
    assert ours.shape == (3, card.size, card.size) and card.resize > card.size
    for theirs in map(prepare, pictures):
        far = (ours - theirs).abs() * torch.tensor(card.std).view(3, 1, 1)
        assert far.max() <= 2.01 / 255 and far.mean() < 0.5 / 255
    plain = replace(card, resize=None).normalize(image.permute(0, 2, 3, 1).numpy())[0]
    assert (plain - theirs).abs().mean() > 0.1  # the case under test: without it another part is seen


def test_pictures_of_the_cards_own_size_are_taken_as_they_are():
    images = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    card = weights._torchvision_card("resnet18", [])
    assert card.resize == 256 and np.allclose(
        card.normalize(images)[0, 2], (images[0, :, :, 2] / 255 - 0.406) / 0.225, atol=1e-5
    )


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_download_that_would_execute_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    hub_file(tmp_path, "squeezenet1_1", dict(a=Evil()))
    with pytest.raises(ValueError, match="squeezenet1_1") as error:
        load_network("squeezenet1_1")
    assert not (tmp_path / "executed").exists() and one_line(error)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def traced(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated; people have such files
        torch.jit.save(torch.jit.trace(torch.nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8)), str(path))


FILES = dict(
    traced=traced,
    a_module=lambda path: torch.save(torch.nn.Conv2d(3, 4, 3), path),
    a_list=lambda path: torch.save([1, 2], path),
    a_tensor=lambda path: torch.save(torch.zeros(3), path),
    of_another=lambda path: torch.save(dict(state_dict={}), path),
    numbered=lambda path: torch.save({1: 2}, path),
    text=lambda path: path.write_text("hello"),
    page=lambda path: path.write_text("<html>not found"),
    empty=lambda path: path.write_bytes(b""),
    pickled=lambda path: path.write_bytes(pickle.dumps(dict(a=1))),
    folder=lambda path: path.mkdir(),
    link_to_nowhere=lambda path: path.symlink_to(path.parent / "nowhere"),
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore")
def test_a_foreign_file_under_a_known_name_is_a_one_line_error(house, name, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(weights, "data_root", lambda: tmp_path)
    kept = weights._torchvision_weights("squeezenet1_1").url.rpartition("/")[2]
    published()
    (house / "tiny.safetensors").unlink()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    real = weights.REAL["alexnet-imagenet"]
    places = dict(squeezenet1_1=tmp_path / "hub/checkpoints" / kept, tiny=house / "tiny.safetensors")
    for network, path in (places | {"alexnet-imagenet": tmp_path / real}).items():
        FILES[name](path)
        with pytest.raises(ValueError, match=path.name) as error:
            load_network(network)
        assert one_line(error) and "weights_only" not in str(error.value), error.value


@pytest.mark.parametrize("name", [3, None, files.Path("zfnet-menagerie"), ["tiny"], "", "../tiny", "x" * 5000, "a\0b"])
def test_what_is_no_name_is_a_one_line_error(house, name):
    published()
    with pytest.raises(ValueError, match="by its name|unknown network") as error:
        load_network(name)
    assert one_line(error)


def test_a_file_of_ones_own_is_pointed_to_the_way_in(house):
    with pytest.raises(ValueError, match="unknown network 'mine.pt'.*load them into your module") as error:
        load_network("mine.pt")
    assert one_line(error)


def test_a_sidecar_that_is_a_link_to_nowhere_is_named(house):
    published()
    (house / "tiny.json").unlink()
    (house / "tiny.json").symlink_to(house / "gone.json")
    with pytest.raises(ValueError, match="tiny.json") as error:
        load_network("tiny")
    assert one_line(error)


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"one column\n"])
def test_a_list_of_classes_that_is_none_is_named(tmp_path, content):
    if content:
        (tmp_path / "imagenet-classes.tsv").write_bytes(content)
    with pytest.raises(ValueError, match="imagenet-classes.tsv: not the list") as error:
        weights._imagenet_classes(tmp_path)
    assert one_line(error)


def test_no_network_is_a_one_line_error(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))

    def offline(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ValueError, match="vgg11.*not known") as error:
        load_network("vgg11")
    assert one_line(error)


@pytest.mark.parametrize(
    "name, layers",
    [
        ("alexnet", ["features.1", "features.4", "features.7", "features.9", "features.11"]),
        ("resnet18", ["relu", "layer1", "layer2", "layer3", "layer4"]),
    ],
)
def test_figure_layers_of_well_known_networks(name, layers):
    assert weights.figure_layers(torchvision.models.get_model(name)) == layers


@real
def test_the_real_alexnet_has_caffes_geometry():
    net, card = load_network("alexnet-imagenet")
    assert card.size == 227 and card.layers == ("conv1", "conv2", "conv3", "conv4", "conv5") and not card.classes
    assert net.norm1.k == 1.0 and net.conv2.groups == 2 and net.conv3.groups == 1
    assert net(card.normalize(np.zeros((1, 227, 227, 3), np.uint8))).shape == (1, 256, 6, 6)


@real
def test_the_real_squeezenet_knows_a_photograph():
    from zfkit.datasets import load_images

    net, card = load_network("squeezenet-imagenet")
    assert card.layers[:2] == ("features.1", "features.3") and card.layers[-1] == "features.12"
    photos = load_images("imagenet-samples", size=227, limit=20)
    with torch.inference_mode():
        guesses = net(card.normalize(photos.images)).argmax(1)
    names = [photos.classes[label] for label in photos.labels]
    assert sum(card.classes[g] == n.partition(",")[0] for g, n in zip(guesses, names, strict=True)) >= 10


@pytest.mark.skipif(not list(files.weights_folder().glob("*.json")), reason="no shipped weights yet")
@pytest.mark.parametrize("name", sorted(path.stem for path in files.weights_folder().glob("*.json")))
def test_shipped_weights_load_are_their_configs_and_keep_their_word(name):
    from zfkit.datasets import load_images

    (net, card), config = load_network(name), CONFIGS[name]
    assert card.record["config"] == recipes.as_json(config), "the config has changed"
    try:
        images, labels, classes = load_images(config.dataset, "test", config.size, limit=200)
    except ValueError as error:
        pytest.skip(f"needs {config.dataset}: {error}")
    assert card.record["identity"] == training.identity(config), "the data have changed"
    with torch.inference_mode():
        share = (net(card.normalize(images)).argmax(1).numpy() == labels).mean()
    assert card.classes == tuple(classes)
    assert abs(share - card.record["accuracy"]["test"]) < 0.12  # 200 images: four standard errors at most


def test_save_weights_is_read_back_and_checked_by_its_sum(tmp_path):
    path = tmp_path / "a.safetensors"
    save_weights(path, dict(w=torch.ones(2, 2)), dict(note="x"))
    assert load_state(path)["w"].dtype == torch.float16
    assert json.loads((tmp_path / "a.json").read_text())["note"] == "x"
    other = tmp_path / "b.safetensors"
    save_weights(other, dict(w=torch.zeros(2, 2)), {})
    path.write_bytes(other.read_bytes())  # a sound file, but not this one
    with pytest.raises(ValueError, match="sha256"):
        load_state(path)
    with pytest.raises(ValueError, match="sidecar"):
        load_published(tmp_path / "c.safetensors")
    assert build(TINY.network) is not None
