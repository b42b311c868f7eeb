"""The loop: killed runs go on bit for bit, recipes do what they say, bad values are refused first."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from zfkit import __main__ as door
from zfkit import files, machine, recipes, training
from zfkit.recipes import CONFIGS, PAPER, Config, plateaus, rate, rms_clip, start_network
from zfkit.training import train

NETWORK = dict(
    builder="zfnet", num_classes=4, size=32, channels=(4, 6, 8, 8, 6), filters=(7, 5, 3, 3, 3),
    strides=(2, 1, 1, 1, 1), padding=(3, 2, 1, 1, 1), fc=(16, 16), norm="batch",
)  # fmt: skip
TINY = Config("tiny", NETWORK, "made-up", size=32, epochs=3, batch_size=8, snapshots=(1, 3), precision="float32")


def made_up(count=37, seed=0):
    """Four classes told apart by where the image is bright."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 4, count)
    images = draw.integers(0, 120, (count, 32, 32, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[8 * label : 8 * label + 8] += 120
    return images, labels, ("a", "b", "c", "d")


DATA = dict(train=made_up(37, 1), validation=made_up(12, 3), test=made_up(20, 2))

KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_training import DATA, TINY
from zfkit import training
training.CHECKPOINT_S = 0.0
step, replace, count = training._step, os.replace, 0
def dying_step(*args):
    global count
    count += 1
    if {place!r} == "step" and count == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    step(*args)
def dying_replace(old, new):
    if {place!r} == "rename" and count == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(old, new)
training._step, os.replace = dying_step, dying_replace
training.train(TINY, folder={folder!r}, data=DATA, progress=False)
"""


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """(net, history, tensors of the last checkpoint) of the tiny run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    net, history = train(TINY, folder=folder, data=DATA, progress=False)
    return net, history, load_file(folder / "checkpoint.safetensors")


def without_times(history):
    rows = [{k: v for k, v in row.items() if "seconds" not in k} for row in history["epochs"]]
    return {k: v for k, v in history.items() if "seconds" not in k} | dict(epochs=rows)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("place", ["step", "rename"])
def test_a_run_killed_in_mid_epoch_goes_on_to_the_same_bits(place, straight, tmp_path):
    program = KILLED.format(tests=str(training.Path(__file__).parent), folder=str(tmp_path), place=place)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    _, about = files.read_tensors(tmp_path / "checkpoint.safetensors")
    assert about["counts"]["epoch"] == 1 and 0 < about["counts"]["step"] < 5  # the case under test: mid-epoch
    torch.rand(3)  # whatever the caller draws changes nothing
    net, history = train(TINY, folder=tmp_path, data=DATA, progress=False)
    assert same(load_file(tmp_path / "checkpoint.safetensors"), straight[2])  # weights, momentum, snapshots
    assert same(net.state_dict(), straight[0].state_dict())
    assert without_times(history) == without_times(straight[1])


def test_ctrl_c_leaves_a_checkpoint_after_a_whole_step(straight, tmp_path, monkeypatch):
    step = training._step

    def interrupted(run, *rest):
        if (run.counts["epoch"], run.counts["step"]) == (1, 2):
            signal.raise_signal(signal.SIGINT)  # arrives in the middle of the step
        step(run, *rest)

    monkeypatch.setattr(training, "_step", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, folder=tmp_path, data=DATA, progress=False)
    assert signal.getsignal(signal.SIGINT) is before
    _, about = files.read_tensors(tmp_path / "checkpoint.safetensors")
    assert (about["counts"]["epoch"], about["counts"]["step"]) == (1, 3)
    monkeypatch.undo()
    net, _ = train(TINY, folder=tmp_path, data=DATA, progress=False)
    assert same(net.state_dict(), straight[0].state_dict())


def test_training_learns_and_records_each_epoch(tmp_path):
    config = replace(TINY, epochs=20, lr=0.02, init_std=None, snapshots=(2,), network={**NETWORK, "dropout": 0.0})
    data = DATA | dict(train=made_up(160, 1))
    seen = []
    net, history = train(
        config, folder=tmp_path, data=data, progress=False, callback=lambda e, n: seen.append((e, n.training))
    )
    assert seen == [(epoch, False) for epoch in range(1, 21)] and not net.training
    assert history["test_accuracy"] >= 0.9 and history["test_images"] == 20
    first, last = history["epochs"][0], history["epochs"][-1]
    assert last["loss"] < 0.5 * first["loss"] and last["epoch"] == 20 and last["cpu_seconds"] > 0
    assert set(first) == {"epoch", "loss", "train_accuracy", "validation_accuracy", "lr", "seconds", "cpu_seconds"}
    json.dumps(history, allow_nan=False)


def test_a_finished_run_is_read_not_trained_again(straight, tmp_path):
    seen = []
    for _ in range(2):
        net, history = train(TINY, folder=tmp_path, data=DATA, progress=False, callback=lambda e, n: seen.append(e))
    assert seen == [1, 2, 3]
    assert same(net.state_dict(), straight[0].state_dict()) and history["test_accuracy"] == straight[1]["test_accuracy"]


def test_the_final_weights_survive_float16_unchanged(straight):
    state = straight[0].state_dict()
    assert all(torch.equal(t, t.half().float()) for t in state.values() if t.ndim > 1)
    assert straight[0].conv1.weight.dtype == torch.float32


def test_snapshots_hold_the_convolutions_of_their_epochs(tmp_path):
    kept = {}
    run = training.fit(TINY, folder=tmp_path, data=DATA, progress=False,
                       callback=lambda e, n: kept.update({e: n.conv1.weight.detach().clone()}))  # fmt: skip
    assert {key.split("/")[0] for key in run.snapshots} == {"epoch01", "epoch03"}
    assert torch.equal(run.snapshots["epoch01/conv1.weight"], kept[1].half())
    assert not torch.equal(run.snapshots["epoch01/conv1.weight"], run.snapshots["epoch03/conv1.weight"])
    assert "epoch03/bn5.running_var" in run.snapshots and not any("fc" in key for key in run.snapshots)


def test_the_history_names_what_the_run_resolved_to(straight):
    history = straight[1]
    whole, (here,) = history["parameters"], history["machines"]
    assert set(whole) == set(asdict(TINY)) and whole["lr"] == TINY.lr and whole["shift"] == 4
    assert whole["network"]["dropout"] == 0.5 and whole["network"]["pools"] == [1, 2, 5]
    assert "dropout" not in TINY.network  # the case under test: a default of the builder
    assert whole["init_std"] == [0.01] * 5 and whole["precision"] == history["precision"] == "float32"
    assert here["threads"] == torch.get_num_threads() and here["torch"] == torch.__version__
    assert set(here) == {"device", "processor", "cores", "threads", "torch"} and here["device"] == "cpu"


def test_a_mean_of_the_data_and_a_precision_without_units_are_named_as_run(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_cpuinfo", lambda name: "sse avx2" if name == "flags" else "abacus")
    config = replace(TINY, epochs=1, snapshots=(), mean=None, precision="bfloat16")
    _, history = train(config, folder=tmp_path, data=DATA, progress=False)
    whole = history["parameters"]
    assert whole["mean"] == history["mean"] == pytest.approx(DATA["train"][0].reshape(-1, 3).mean(0) / 255)
    assert whole["precision"] == history["precision"] == "float32"
    assert history["machines"][0]["processor"] == "abacus"


def test_a_run_goes_on_in_its_precision_and_names_the_second_machine(straight, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(epoch, net):
        raise Stop

    with pytest.raises(Stop):
        train(TINY, folder=tmp_path, data=DATA, progress=False, callback=stop)
    monkeypatch.setattr(machine, "_cpuinfo", lambda name: "amx_bf16" if name == "flags" else "other")
    monkeypatch.setattr(training, "precision_on", lambda *_: "bfloat16")
    net, history = train(TINY, folder=tmp_path, data=DATA, progress=False)
    assert [here["processor"] == "other" for here in history["machines"]] == [False, True]
    assert history["precision"] == "float32" and same(net.state_dict(), straight[0].state_dict())


def test_another_seed_trains_other_weights_and_the_callers_generator_is_left_alone(straight, tmp_path):
    torch.manual_seed(5)
    net, _ = train(replace(TINY, seed=1), folder=tmp_path, data=DATA, progress=False)
    drawn = torch.rand(1)
    assert not torch.equal(net.fc8.weight, straight[0].fc8.weight)
    assert torch.equal(drawn, torch.rand(1, generator=torch.Generator().manual_seed(5)))


def test_shuffled_labels_are_the_same_labels_in_another_order(tmp_path):
    config = replace(TINY, shuffled_labels=True)
    run = training._begin(config, DATA, "cpu", tmp_path / "none")
    labels = training._loaders(run, DATA, "cpu")["train"].labels.numpy()
    assert not np.array_equal(labels, DATA["train"][1])
    assert np.array_equal(np.bincount(labels), np.bincount(DATA["train"][1]))
    again = training._loaders(run, DATA, "cpu")["train"].labels.numpy()
    assert np.array_equal(labels, again)


ALL = replace(
    TINY,
    name="all",
    network={**NETWORK, "dropout": 0.3},
    epochs=2,
    weight_decay=0.05,
    label_smoothing=0.2,
    shift=3,
    init_std="he",
    warm_up=0.3,
    snapshots=(),
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.25, 0.3),
)


def by_hand(config, images, labels) -> list[dict]:
    """The weights after each epoch, by torch's own optimizer and numpy's own padding."""
    net = start_network(config).train()
    options = dict(momentum=config.momentum, nesterov=True, weight_decay=config.weight_decay)
    sgd, shift, count, seen = torch.optim.SGD(net.parameters(), lr=1.0, **options), config.shift, len(images), []
    steps = -(-count // config.batch_size)
    around = np.pad(images / 255, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="reflect")
    for epoch in range(config.epochs):
        draw = np.random.default_rng([config.seed, epoch])
        order, corners = draw.permutation(count), draw.integers(0, 1, (2, count))
        (top, left), mirrored = (
            corners + draw.integers(-shift, shift + 1, (2, count)) + shift,
            draw.integers(0, 2, count),
        )
        cut = [around[n, y : y + 32, x : x + 32] for n, y, x in zip(order, top, left, strict=True)]
        cut = [picture[:, ::-1] if flip else picture for picture, flip in zip(cut, mirrored, strict=True)]
        inputs = torch.tensor((np.stack(cut) - config.mean) / config.std).permute(0, 3, 1, 2).float()
        for step, some in enumerate(torch.arange(count).split(config.batch_size)):
            torch.manual_seed(config.seed * 1_000_003 + epoch * steps + step)
            sgd.param_groups[0]["lr"] = rate(config, epoch * steps + step, steps, [])
            wanted, smooth = torch.tensor(labels[order])[some], config.label_smoothing
            sgd.zero_grad()
            torch.nn.functional.cross_entropy(net(inputs[some]), wanted, label_smoothing=smooth).backward()
            sgd.step()
        seen.append({key: tensor.clone() for key, tensor in net.state_dict().items()})
    return seen


def test_a_training_is_a_plain_loop_of_torchs_own_parts(tmp_path):
    config, seen = replace(ALL, seed=3), []

    def keep(epoch, net):
        seen.append({key: tensor.clone() for key, tensor in net.state_dict().items()})

    train(config, folder=tmp_path, data=DATA, progress=False, callback=keep)
    for ours, theirs in zip(seen, by_hand(config, *DATA["train"][:2]), strict=True):
        for key in theirs:
            torch.testing.assert_close(
                ours[key], theirs[key], rtol=1e-3, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}"
            )


@pytest.mark.parametrize("name, value", [
    ("weight_decay", 0.0), ("nesterov", False), ("momentum", 0.8), ("label_smoothing", 0.0), ("shift", 0),
    ("flip", False), ("network", {**NETWORK, "dropout": 0.0}), ("batch_size", 9), ("lr", 0.03),
])  # fmt: skip
def test_each_of_these_parts_changes_the_weights_by_more_than_that(name, value):
    images, labels = DATA["train"][:2]
    runs = []
    for config in (ALL, replace(ALL, **{name: value})):
        run = training._begin(config, DATA, "cpu", training.Path("none"))
        batches = training._loaders(run, DATA, "cpu")["train"].batches()
        for batch, _ in zip(batches, range(2), strict=False):
            run.net.train()
            training._step(run, *batch, 5)
        runs.append(run.net.conv1.weight.detach().clone())
    assert not torch.allclose(*runs, rtol=1e-3, atol=1e-5)


def test_one_cycle_is_torchs():
    config, steps = replace(TINY, epochs=4, lr=0.04, warm_up=0.2), 25
    parameter = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        sgd, 0.04, total_steps=101, pct_start=0.21 / 1.01, cycle_momentum=False
    )
    rates = []
    for _ in range(100):
        rates.append(sgd.param_groups[0]["lr"])
        sgd.step()
        theirs.step()
    assert rates[20] == pytest.approx(0.04)  # its peak, after a fifth of the steps
    assert [rate(config, step, steps, []) for step in range(100)] == pytest.approx(rates, abs=1e-6)


def test_plateau_divides_by_ten_when_the_best_has_stood():
    assert plateaus([0.1, 0.2, 0.3], 2) == 0
    assert plateaus([0.3, 0.2, 0.3], 2) == 1  # equal is not better
    assert plateaus([0.3, 0.2, 0.3, 0.2], 2) == 1
    assert plateaus([0.3, 0.2, 0.3, 0.2, 0.1], 2) == 2
    config = replace(TINY, schedule="plateau", lr=0.01, patience=2)
    rows = [dict(validation_accuracy=a) for a in (0.3, 0.2, 0.3)]
    assert rate(config, 0, 5, []) == 0.01 and rate(config, 15, 5, rows) == pytest.approx(0.001)


def test_rms_clip_scales_back_only_filters_above_the_radius():
    net = start_network(TINY)
    with torch.no_grad():
        net.conv1.weight[0] = 0.5
        net.conv1.weight[1] = 0.05
        net.fc6.weight[0] = 0.5
    rms_clip(net, 0.1)
    assert torch.allclose(net.conv1.weight[0], torch.tensor(0.1)) and (net.conv1.weight[1] == 0.05).all()
    assert (net.fc6.weight[0] == 0.5).all()  # convolutions only


def test_the_papers_recipe_clips_and_subtracts_the_mean(tmp_path):
    norm = {**NETWORK, "norm": "lrn"}
    config = replace(TINY, **(PAPER | dict(network=norm, patience=1, rms_clip=0.005, epochs=2, snapshots=())))
    net, history = train(config, folder=tmp_path, data=DATA, progress=False)
    expected = DATA["train"][0].reshape(-1, 3).mean(0) / 255
    assert history["mean"] == pytest.approx(expected) and history["std"] == [1 / 255] * 3
    assert net.conv1.weight.square().mean((1, 2, 3)).sqrt().max() <= 0.00501


def test_the_start_is_the_papers_and_depends_on_the_seed_alone():
    config = CONFIGS["zfnet-menagerie"]
    first, second = start_network(config), start_network(config)
    assert same(first.state_dict(), second.state_dict())
    assert first.conv3.weight.std().item() == pytest.approx(0.01, rel=0.02) and not first.conv3.bias.any()
    assert first.fc6.weight.std() > 0.011  # torch's own start: 1/sqrt(3 * 2400)
    assert not torch.equal(first.conv1.weight, start_network(replace(config, seed=1)).conv1.weight)
    he = start_network(replace(config, init_std="he"))
    assert he.conv3.weight.std().item() == pytest.approx((2 / (9 * 96)) ** 0.5, rel=0.02)
    mixed = start_network(replace(config, init_std=(0.01, "he", "he", 0.02, None)))
    assert mixed.conv1.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert mixed.conv3.weight.std().item() == pytest.approx((2 / (9 * 96)) ** 0.5, rel=0.02)
    assert mixed.conv4.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_every_config_is_json_checked_and_comes_back_the_same():
    for name, config in CONFIGS.items():
        recipes.check(config)
        again = Config(**json.loads(json.dumps(asdict(config))))
        assert config.name == name
        assert recipes.fingerprint(again, DATA["train"]) == recipes.fingerprint(config, DATA["train"])


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(schedule="cosine"), ["cosine", "one-cycle, plateau"]),
        (dict(precision="float16"), ["float16", "bfloat16, float32"]),
        (dict(init_std="xavier"), ["xavier", "'he'"]),
        (dict(init_std=(0.01, "he", "he", "he", "xavier")), ["xavier", "'he'"]),
        (dict(init_std=(0.01, "he")), ["(0.01, 'he')", "each of 5"]),
        (dict(epochs=0), ["epochs", "0"]),
        (dict(images=0), ["images", "0"]),
        (dict(snapshots=(1, 9)), ["9", "1 to 3"]),
        (dict(network={**NETWORK, "norm": "group"}), ["group", "lrn, batch, none"]),
        (dict(dataset="no-such-set"), ["no-such-set", "menagerie"]),
    ],
)
def test_a_value_that_cannot_be_run_is_refused_before_the_work(change, words, tmp_path):
    data = None if "dataset" in change else DATA
    with pytest.raises(ValueError) as error:
        train(replace(TINY, **change), folder=tmp_path / "new", data=data)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_of_another_config_or_data_set_is_refused(straight, tmp_path):
    train(TINY, folder=tmp_path, data=DATA, progress=False)
    kept = (tmp_path / "checkpoint.safetensors").read_bytes()
    for config, data in ((replace(TINY, lr=0.01), DATA), (TINY, DATA | dict(train=made_up(37, 9)))):
        with pytest.raises(ValueError, match="another config or data set"):
            train(config, folder=tmp_path, data=data, progress=False)
    wider = replace(TINY, network={**NETWORK, "fc": (8, 8)})
    with pytest.raises(ValueError, match="another config or data set than tiny"):
        train(wider, folder=tmp_path, data=DATA, progress=False)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == kept


@pytest.mark.parametrize("damage", ["truncated", "foreign", "text"])
def test_a_damaged_checkpoint_is_a_one_line_error_that_names_it(damage, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_file({"other": torch.zeros(4)}, path)
    if damage != "foreign":
        path.write_bytes(path.read_bytes()[:50] if damage == "truncated" else b"not weights")
    with pytest.raises(ValueError, match="checkpoint.safetensors") as error:
        train(TINY, folder=tmp_path, data=DATA, progress=False)
    assert "\n" not in str(error.value)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(ValueError, match="lr 1e.*30 is too high"):
        train(replace(TINY, lr=1e30, warm_up=0.0), folder=tmp_path, data=DATA, progress=False)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    files.write_bytes(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_the_command_line_trains_changes_fields_and_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(CONFIGS, "tiny", TINY)
    monkeypatch.setattr(training, "load_images", lambda name, split, size, limit: DATA[split])
    monkeypatch.setattr(training, "cache_dir", lambda: tmp_path)
    changes = ["--set", "epochs=1", "--set", "network.fc=[8, 8]", "--set", "snapshots=[1]"]
    assert door.train_command(["tiny", *changes]) == 0
    assert "test images are right" in capsys.readouterr().out
    assert len(list(tmp_path.glob("training/tiny-*/checkpoint.safetensors"))) == 1
    for args, word in (["nothing"], "zfnet-menagerie"), (["tiny", "--set", "speed=1"], "batch_size"):
        with pytest.raises(ValueError, match=word) as error:
            door.train_command(args)
        assert "\n" not in str(error.value)


def test_seconds_needed_grows_with_the_epochs():
    assert training.seconds_needed(replace(TINY, epochs=300)) > 10 * training.seconds_needed(replace(TINY, epochs=3))
