"""A series of snapshots: recorded by any training loop, read back as it was, refused where a file is not its own."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_training import DATA, TINY, same
from test_weights import house, one_line, published  # noqa: F401  (house is a fixture)
from torch import nn

from zfkit import files, training
from zfkit.recipes import Config
from zfkit.series import missing, record_run, recorded_runs, recorder, snapshots
from zfkit.training import start_network
from zfkit.weights import load_network


def plain_loop(net, callback, epochs=4):
    """A training loop that knows nothing of zfkit: a step of gradient descent an epoch; gives every epoch's weights."""
    torch.manual_seed(0)
    images, labels, seen = torch.randn(8, 3, 32, 32), torch.arange(8) % 4, {}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for epoch in range(1, epochs + 1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net.train()(images), labels).backward()
        optimizer.step()
        seen[epoch] = {key: t.detach().clone() for key, t in net.state_dict().items()}
        callback(epoch, net)
    return seen


@pytest.fixture
def folder(tmp_path):
    """A series of epochs 1, 2 and 4 of the tiny network."""
    plain_loop(start_network(TINY), recorder(tmp_path / "run", (1, 2, 4)))
    return tmp_path / "run"


def test_a_recorded_series_comes_back_as_the_loop_saw_it(tmp_path):
    net = start_network(TINY)
    seen = plain_loop(net, recorder(tmp_path / "run", [4, 1]))
    series = snapshots(tmp_path / "run")
    assert list(series) == [1, 4] and not any(kept.training for kept in series.values())
    assert not same(seen[1], seen[4])  # the case under test occurs: the weights moved
    for epoch, kept in series.items():
        rounded = {key: t.half().float() if t.ndim > 1 else t for key, t in seen[epoch].items()}
        assert same(kept.state_dict(), rounded) and kept.stages == net.stages
    assert net.training, "recording leaves the net in its mode"


def test_a_network_of_ones_own_is_read_into_one_of_its_shape(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    net(torch.zeros(1, 3, 32, 32))
    before = {key: t.clone() for key, t in net.state_dict().items()}
    seen = plain_loop(net, recorder(str(tmp_path / "run"), range(1, 5)))
    last = {key: t.clone() for key, t in net.state_dict().items()}
    series = snapshots(tmp_path / "run", net)
    assert torch.equal(series[2][0].weight, seen[2]["0.weight"].half().float())
    assert same(net.state_dict(), last) and not same(last, before)
    with pytest.raises(ValueError, match="none of ours") as error:
        snapshots(tmp_path / "run")
    assert one_line(error)


def test_the_training_of_zfkit_records_by_its_callback_and_goes_on_unchanged(tmp_path):
    plain, _ = training.train(TINY, folder=tmp_path / "a", data=DATA, progress=False)
    keep = recorder(tmp_path / "series", range(1, TINY.epochs + 1))
    net, _ = training.train(TINY, folder=tmp_path / "b", data=DATA, progress=False, callback=keep)
    assert same(net.state_dict(), plain.state_dict())
    assert same(snapshots(tmp_path / "series")[TINY.epochs].state_dict(), net.state_dict())


def test_a_stopped_training_goes_on_in_its_folder(tmp_path):
    net = start_network(TINY)
    plain_loop(net, recorder(tmp_path, (1, 2)), epochs=2)
    recorder(tmp_path, (1, 2, 3))(3, net)
    assert list(snapshots(tmp_path)) == [1, 2, 3]


def overwrite(path):
    state = load_file(path)
    save_file({key: tensor * 2 for key, tensor in state.items()}, path)


FAULTS = dict(
    missing=(lambda folder: (folder / "epoch02.safetensors").unlink(), "epoch02"),
    foreign=(lambda folder: overwrite(folder / "epoch02.safetensors"), "epoch02.*sha256"),
    truncated=(lambda folder: (folder / "epoch04.safetensors").write_bytes(b"{}"), "epoch04"),
    unlisted=(lambda folder: (folder / "series.json").unlink(), "series.json"),
    not_json=(lambda folder: (folder / "series.json").write_text("{"), "series.json"),
    empty=(lambda folder: (folder / "series.json").write_text("{}"), "series.json"),
    no_epoch=(lambda folder: (folder / "series.json").write_text('{"sums": {"../x": ""}}'), "series.json"),
)


@pytest.mark.parametrize("name", FAULTS)
def test_a_missing_or_foreign_file_is_a_one_line_error_that_names_it(folder, name):
    assert list(snapshots(folder)) == [1, 2, 4]
    fault, words = FAULTS[name]
    fault(folder)
    with pytest.raises(ValueError, match=words) as error:
        snapshots(folder)
    assert one_line(error)


def test_a_file_of_another_network_is_refused_although_the_list_names_it(folder):
    other = nn.Conv2d(3, 4, 3)
    recorder(folder, [2])(2, other)  # the list now names a file that does not fit the epochs beside it
    record = json.loads((folder / "series.json").read_text())
    (folder / "series.json").write_text(json.dumps(record | dict(config=start_network(TINY).config)))
    with pytest.raises(ValueError, match="epoch02.safetensors: not this network's weights.*lacks") as error:
        snapshots(folder)
    assert one_line(error)


@pytest.fixture
def runs(tmp_path, monkeypatch, house):  # noqa: F811
    """data/runs/06 with two trainings in it: ("tiny", seeds 0 and 1), first layers alone."""
    monkeypatch.setattr(files, "runs_folder", lambda: tmp_path / "runs")
    for seed in (0, 1):
        config = seeded(seed)
        net, history = training.train(config, folder=tmp_path / f"made-{seed}", data=DATA, progress=False)
        record_run("06", config, net, history, keep=("conv1", "bn1"))
    return tmp_path / "runs" / "06"


def seeded(seed):
    return replace(TINY, name=f"tiny-s{seed}", seed=seed, epochs=1, snapshots=())


def test_recorded_runs_come_back_with_config_history_and_tensors(runs, tmp_path):
    found = recorded_runs("06")
    assert list(found) == ["tiny-s0", "tiny-s1"] and not list(runs.glob("*.part"))
    for seed, (name, run) in enumerate(found.items()):
        net, history = training.train(seeded(seed), folder=tmp_path / f"made-{seed}", data=DATA, progress=False)
        assert run["seed"] == seed and Config(**run["config"]).name == name
        assert run["history"]["test_accuracy"] == history["test_accuracy"] and run["mean"] == history["mean"]
        assert run["precision"] == "float32" and run["machines"] == history["machines"]
        assert run["parameters"] == history["parameters"]
        assert run["history"]["epochs"][0]["loss"] == round(history["epochs"][0]["loss"], 5)
        state = {k: t for k, t in net.state_dict().items() if k.startswith(("conv1", "bn1"))}
        assert same({k: t.to(state[k].dtype) for k, t in run["tensors"].items()}, state)
        assert run["tensors"]["conv1.weight"].dtype == torch.float16


def test_a_run_that_is_there_is_not_recorded_again_and_another_recipe_takes_its_place(runs):
    assert missing("06", [seeded(0), seeded(2), seeded(1)]) == [seeded(2)]
    before = {path.name: path.read_bytes() for path in runs.iterdir()}
    assert len(before) == 3  # the list, and a file a run
    history = json.loads((runs / "runs.json").read_text())["tiny-s0"]["history"]
    record_run("06", seeded(0), start_network(TINY), history)
    assert before == {path.name: path.read_bytes() for path in runs.iterdir()}
    other = replace(seeded(0), lr=0.01)
    assert missing("06", [other]) == [other] and missing("07", [other]) == [other]
    record_run("06", other, start_network(other), history, keep=["fc8"])
    found = recorded_runs("06")
    assert list(found["tiny-s0"]["tensors"]) == ["fc8.bias", "fc8.weight"] and found["tiny-s0"]["config"]["lr"] == 0.01
    assert set(found["tiny-s1"]["tensors"]) == {
        k for k in start_network(TINY).state_dict() if k.startswith(("conv1", "bn1"))
    }
    assert len(list(runs.iterdir())) == 3  # the file of the run that was replaced is gone


def test_a_recording_killed_between_its_files_leaves_the_old_runs_and_goes_on(runs, monkeypatch):
    net, history = start_network(seeded(2)), json.loads((runs / "runs.json").read_text())["tiny-s0"]["history"]

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "write_bytes", lambda path, _: killed() if path.name == "runs.json" else None)
        record_run("06", seeded(2), net, history)
    assert list(recorded_runs("06")) == ["tiny-s0", "tiny-s1"] and missing("06", [seeded(2)])
    record_run("06", seeded(2), net, history)
    assert list(recorded_runs("06")) == ["tiny-s0", "tiny-s1", "tiny-s2"]


def tensors_of(folder):
    return next(folder.glob("tiny-s0-*.safetensors"))


RUN_FAULTS = dict(
    no_tensors=(lambda folder: tensors_of(folder).unlink(), "tiny-s0-.*safetensors"),
    foreign=(lambda folder: overwrite(tensors_of(folder)), "the tensors of tiny-s0 are not those"),
    not_json=(lambda folder: (folder / "runs.json").write_text("{"), "runs.json"),
    no_runs=(lambda folder: (folder / "runs.json").write_text('{"a": 3}'), "runs.json: a lacks config"),
    gone=(lambda folder: (folder / "runs.json").unlink(), "no recorded trainings of 06.*valid: none"),
)


@pytest.mark.parametrize("name", RUN_FAULTS)
def test_damaged_runs_are_a_one_line_error(runs, name):
    fault, words = RUN_FAULTS[name]
    fault(runs)
    with pytest.raises(ValueError, match=words) as error:
        recorded_runs("06")
    assert one_line(error)


def test_a_chapter_or_keep_that_is_none_is_refused(runs):
    for chapter in ("6", 6, "../x", "006"):
        with pytest.raises(ValueError, match="valid are two digits") as error:
            recorded_runs(chapter)
        assert one_line(error)
    with pytest.raises(ValueError, match="names no tensor of tiny-s2; valid: conv1.weight"):
        record_run("06", seeded(2), start_network(TINY), {}, keep=("convolution",))


def test_further_tensors_are_kept_as_they_are_and_may_stand_alone(runs):
    net, history = start_network(seeded(2)), json.loads((runs / "runs.json").read_text())["tiny-s0"]["history"]
    said = dict(predicted=torch.tensor([3, 1], dtype=torch.uint8), logits=torch.tensor([[0.1, 2.0]]))
    record_run("06", seeded(2), net, history, keep=(), extra=said)
    record_run("06", seeded(3), net, history, keep=("conv1",), extra=said)
    alone, beside = (recorded_runs("06")[f"tiny-s{seed}"]["tensors"] for seed in (2, 3))
    assert same(alone, said) and set(beside) == {"conv1.weight", "conv1.bias", *said}
    with pytest.raises(ValueError, match="extra 'conv1.bias' has the name of a tensor of tiny-s4") as error:
        record_run("06", seeded(4), net, history, keep=("conv1",), extra={"conv1.bias": torch.zeros(1)})
    assert one_line(error)
    with pytest.raises(ValueError, match="names no tensor"):
        record_run("06", seeded(4), net, history, keep=())


def test_the_committed_runs_are_whole():
    found = recorded_runs("06")
    assert len(found) == 37 and all(0 < run["history"]["test_accuracy"] < 1 for run in found.values())
    run = found["selection-7x7-2-plain-s0"]
    assert run["tensors"]["conv1.weight"].shape == (48, 3, 7, 7) and run["seed"] == 0


@pytest.mark.parametrize("epochs", [(), (0, 1), (1.5,), ("1",)])
def test_epochs_that_are_none_are_refused_before_the_training(tmp_path, epochs):
    with pytest.raises(ValueError, match="epochs.*valid are whole numbers") as error:
        recorder(tmp_path / "run", epochs)
    assert one_line(error) and not (tmp_path / "run").exists()


def test_the_shipped_network_is_its_last_epoch_where_the_series_ends_before(house):  # noqa: F811
    net, path = published()
    series = {key: t for key, t in load_file(house / "tiny-snapshots.safetensors").items() if key.startswith("epoch01")}
    sidecar = json.loads(path.with_suffix(".json").read_text())
    files.write_tensors(house / "tiny-snapshots.safetensors", series)
    sidecar.pop("snapshots_sha256")
    path.with_suffix(".json").write_text(json.dumps(sidecar))
    with pytest.raises(ValueError, match="there are no snapshots of tiny") as error:
        snapshots("tiny")
    assert one_line(error)
    sidecar["snapshots_sha256"] = hashlib.sha256((house / "tiny-snapshots.safetensors").read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(sidecar))
    found = snapshots("tiny")
    assert list(found) == [1, TINY.epochs]
    assert same(found[TINY.epochs].state_dict(), load_network("tiny")[0].state_dict())
    assert not torch.equal(found[1].conv1.weight, net.conv1.weight)


def test_networks_without_snapshots_name_those_that_have_some(house):  # noqa: F811
    _, path = published()
    (house / "other.safetensors").write_bytes(path.read_bytes())
    sidecar = json.loads(path.with_suffix(".json").read_text())
    (house / "other.json").write_text(json.dumps(sidecar | dict(name="other")))
    with pytest.raises(ValueError, match="no snapshots of other; valid: those of tiny$") as error:
        snapshots("other")
    assert one_line(error)
