"""Tables 2 and 3 as data: what the rows cost, in which order they train, what is kept of a training."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_training import DATA, TINY
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import zfkit.__main__ as door
from zfkit import ablations, files, training
from zfkit.ablations import CORE, ROWS, SEEDS, WORLDS, config, configs, costs, kept, layers_of, network
from zfkit.loaders import normalize
from zfkit.networks import build
from zfkit.recipes import start_network
from zfkit.series import missing, recorded_runs


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("row", ROWS)
def test_costs_are_those_that_torch_counts(row, world):
    net = build(network(row, world)).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        net(torch.zeros(1, 3, net.config["size"], net.config["size"]))
    assert costs(network(row, world)) == (sum(p.numel() for p in net.parameters()), counter.get_total_flops() // 2)


def test_the_papers_networks_have_the_parameters_that_others_count():
    """pytorchcv's README: ZFNet 62,357,608, ZFNet-b 107,627,624, its dense AlexNet 62,378,344."""
    wide = dict(channels=(96, 256, 512, 1024, 512))
    found = [costs(a)[0] for a in (dict(builder="zfnet"), dict(builder="zfnet") | wide, dict(builder="alexnet"))]
    assert found == [62_357_608, 107_627_624, 62_378_344]


def test_layers_of_any_network_are_those_counted_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    net.train()
    conv, dense = layers_of(net, 8)
    assert conv == ("0", 4, 6, 4 * 28 + 8, 4 * 27 * 36) and dense == ("4", 5, 1, 5 * 145, 5 * 144)
    assert net.training and all(module.training for module in net)
    sides = [layer.side for layer in layers_of(build(dict(builder="zfnet", num_classes=None)))]
    assert sides == [110, 26, 13, 13, 13]  # ZF 2013, Fig. 3


@pytest.mark.parametrize("world", WORLDS)
def test_the_controls_cost_what_they_stand_for(world):
    count = {row: costs(network(row, world))[0] for row in ROWS}
    for pair in ("34", "67", "3467"):
        assert abs(count[f"replica-slim-{pair}"] / count[f"replica-without-{pair}"] - 1) < 0.03
    assert abs(count["new-fc-budget"] / count["new-wide"] - 1) < 1e-3 or world == "cifar10"
    assert abs(count["new-fc-budget"] / count["new-wide"] - 1) < 0.01


def test_the_two_blocks_differ_in_layers_1_and_2_alone_and_the_worlds_above_layer_1():
    maps = {}
    for world in WORLDS:
        old, new = (network(row, world) for row in ("replica", "new"))
        assert {k for k in old if old[k] != new[k]} == {"builder", "filters", "strides", "padding"}
        for name in ("filters", "strides", "padding"):
            assert old[name][2:] == new[name][2:]
        maps[world] = {row: [layer.side for layer in layers_of(build(network(row, world)))][1:] for row in ROWS}
    first, second = maps.values()
    assert first == second
    wide = [n / m for n, m in zip(network("new-wide", world)["channels"][2:], (512, 1024, 512), strict=True)]
    assert wide == [1 / 8] * 3


def test_every_row_has_a_seed_before_any_has_two_and_the_claims_come_next():
    runs = configs()
    assert len({run.name for run in runs}) == len(runs)
    wanted = {(row, world, seed) for row in ROWS for world in WORLDS for seed in range(SEEDS)}
    wanted |= {(row, world, s) for row, count in ablations.AVERAGED.items() for world in WORLDS for s in range(count)}
    assert {run.name for run in runs} == {config(*one).name for one in wanted}
    seeds = [run.seed for run in runs]
    assert seeds[: 2 * len(ROWS)] == [0] * 2 * len(ROWS) and 0 not in seeds[2 * len(ROWS) :]
    core = {config(row, world, seed).name for row in CORE for world in WORLDS for seed in (1, 2)}
    assert {run.name for run in runs[2 * len(ROWS) :][: len(core)]} == core
    recipes = {json.dumps({**vars(run), "name": "", "network": "", "seed": 0}, sort_keys=True) for run in runs}
    assert len(recipes) == len(WORLDS)  # one recipe for all rows of a world


@pytest.mark.parametrize("row, world, words", [("both", "cifar10", "row 'both'"), ("new", "mnist", "world 'mnist'")])
def test_a_row_or_world_that_is_none_is_named(row, world, words):
    with pytest.raises(ValueError, match=words) as error:
        network(row, world)
    assert "valid are" in str(error.value) and "\n" not in str(error.value)


HISTORY = dict(mean=[0.5, 0.4, 0.3], std=[0.2, 0.25, 0.3])


def plain_probabilities(net, image):
    """P(class) of one image by arithmetic on its own."""
    values = (image.astype(np.float64) / 255 - HISTORY["mean"]) / HISTORY["std"]
    logits = net(torch.tensor(values.transpose(2, 0, 1)[None], dtype=torch.float32))[0].tolist()
    powers = [math.exp(value - max(logits)) for value in logits]
    return np.array(powers) / sum(powers)


def test_what_is_kept_of_a_training_is_what_a_loop_gives(monkeypatch):
    monkeypatch.setitem(ablations.SEEN, "train", 5)
    net = start_network(replace(TINY, init_std="he", fc_init_std="he")).eval()
    with torch.no_grad():  # or one class would be the likeliest of every image, mirrored or not
        net[-1].weight.mul_(30)
        net[-1].bias.sub_(net(normalize(DATA["test"][0], **HISTORY)).mean(0))
    run = replace(config("new", "cifar10", 0), network=TINY.network)
    more, tensors = kept(run, net, HISTORY, DATA)
    images, labels = DATA["test"][:2]
    assert (tensors["plain"].int() - tensors["mirrored"].int()).abs().max() > 5
    for k, image in enumerate(images):
        once, mirrored = plain_probabilities(net, image), plain_probabilities(net, image[:, ::-1])
        assert tensors["predicted"][k] == once.argmax() and tensors["labels"][k] == labels[k]
        assert abs(tensors["plain"][k].numpy() - 255 * once).max() <= 0.51
        assert abs(tensors["mirrored"][k].numpy() - 255 * (once + mirrored) / 2).max() <= 0.51
    said = [plain_probabilities(net, image).argmax() for image in DATA["train"][0][:5]]
    assert more == dict(train_seen_accuracy=np.mean(np.array(said) == DATA["train"][1][:5]))
    assert set(kept(config("replica", "cifar10", 1), net, HISTORY, DATA)[1]) == {"predicted"}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The command's trainings, two tiny ones, and folders of their own."""
    monkeypatch.setattr(files, "runs_folder", lambda: tmp_path / "runs")
    monkeypatch.setattr(training, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(training, "load_images", lambda name, split, size, limit: DATA[split])
    monkeypatch.setattr(ablations, "load_images", lambda name, split, size, limit: DATA[split])
    tiny = replace(TINY, epochs=1, snapshots=())
    runs = [replace(tiny, name=f"tiny-s{seed}", seed=seed) for seed in (0, 1)]
    monkeypatch.setattr(ablations, "configs", lambda: runs)
    return runs


def test_the_command_trains_what_is_missing_and_then_nothing(small, capsys):
    assert door.train_command(["--chapter", "09"]) == 0
    assert capsys.readouterr().out.count(" of a core") == 2 and missing("09", small) == []
    first, second = recorded_runs("09").values()
    assert {"conv1.weight", "labels", "predicted"} <= set(first["tensors"]) and "train_seen_accuracy" in first[
        "history"
    ]
    assert set(second["tensors"]) == {"predicted"}
    assert door.train_command(["--chapter", "09"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("words", [[], ["zfnet-menagerie", "--chapter", "09"], ["--chapter", "09", "--set", "lr=1"]])
def test_the_command_wants_a_name_or_a_chapter(words, capsys):
    with pytest.raises(SystemExit):
        door.train_command(words)
    assert "give a name, or --chapter alone" in capsys.readouterr().err


def test_the_committed_trainings_are_those_of_the_tables():
    """One seed of every row; all seeds of the rows that claims rest on, and of those that are averaged."""
    found, planned = recorded_runs("09"), {run.name: run for run in configs()}
    least = {ablations.name_of(row, world, 0) for row in ROWS for world in WORLDS}
    for row in (*CORE, *ablations.AVERAGED):
        count = ablations.AVERAGED.get(row, SEEDS)
        least |= {ablations.name_of(row, world, seed) for world in WORLDS for seed in range(count)}
    assert least <= set(found) <= set(planned)
    for run in (planned[name] for name in found):
        about = found[run.name]
        assert about["config"]["network"] == json.loads(json.dumps(run.network)) and about["seed"] == run.seed
        assert len(about["tensors"]["predicted"]) == about["history"]["test_images"]
        row = config("new", run.dataset, 0)
        labels = found[row.name]["tensors"]["labels"]
        right = float((about["tensors"]["predicted"] == labels).float().mean())
        assert abs(right - about["history"]["test_accuracy"]) < 0.002
