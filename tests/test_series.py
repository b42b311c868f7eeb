"""A series of snapshots: recorded by any training loop, read back as it was, refused where a file is not its own."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_training import DATA, TINY, same
from test_weights import house, one_line, published  # noqa: F401  (house is a fixture)
from torch import nn

from zfkit import files, training
from zfkit.series import recorder, snapshots
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
