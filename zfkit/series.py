"""Trainings as they went: the networks of some epochs, and the recorded runs of a chapter."""

import copy
import hashlib
import json
from pathlib import Path

from torch import Tensor, nn

from . import files
from .cards import apply_state, compare_states, read_checked, read_sidecar
from .files import read_json, read_tensors, write_tensors
from .networks import build
from .recipes import RECIPE_VERSION, as_json
from .training import half, identity
from .weights import facts, load_network

SERIES = "series.json"  # of a recorded series: its network, and the sha256 of each epoch's file
RUNS = "runs.json"  # of a chapter's recorded runs; beside it a file of tensors for each


def snapshots(name: str | Path, net: nn.Module | None = None) -> dict[int, nn.Module]:
    """Epoch -> the network in eval mode as it was after that epoch; epochs ascend.

    name: a shipped network: its convolutions and batch norms are that epoch's, the rest final;
    where its series ends before the last epoch, the network itself is added as that epoch's. Or
    the Path of a `recorder`'s folder.
    net: for a folder that holds no network of our builders, one of that shape.
    Raises ValueError if the series or one of its files lacks, is damaged or another network's.

    >>> [epoch for epoch in snapshots("zfnet-photos")]
    [1, 2, 3, 4, 8, 11, 15, 24]
    >>> snapshots("zfnet-photos")[1].conv1.weight.shape
    torch.Size([64, 3, 7, 7])
    """
    if isinstance(name, Path):
        return _series_in(name, net)
    final, card = load_network(name)
    path = files.weights_folder() / f"{name}-snapshots.safetensors"
    if not path.exists() or "snapshots_sha256" not in card.record:
        valid = f"those of {_with_series()}"
        raise ValueError(f"{path}: there are no snapshots of {name}; valid: {valid}")
    tensors = read_checked(path, card.record["snapshots_sha256"])
    nets, state = {}, final.state_dict()
    wanted = {key: state[key] for key in state if key.startswith(("conv", "bn"))}
    for epoch in sorted({key.partition("/")[0] for key in tensors}):
        kept = _under(epoch, tensors)
        compare_states(wanted, kept, f"{path} {epoch}")
        net = apply_state(build(card.record["config"]["network"]), state | kept, path)
        nets[int(epoch.removeprefix("epoch"))] = net.eval()
    last = card.record["config"]["epochs"]
    return nets | ({last: final} if last > max(nets) else {})


def _with_series() -> str:
    """The shipped networks that have snapshots, in words."""
    end = "-snapshots.safetensors"
    paths = files.weights_folder().glob(f"*{end}")
    return ", ".join(sorted(path.name.removesuffix(end) for path in paths)) or "none"


def _under(name: str, tensors: dict) -> dict[str, Tensor]:
    """Those of the tensors that are named NAME/..., without it."""
    return {key[len(name) + 1 :]: t for key, t in tensors.items() if key.startswith(f"{name}/")}


def recorder(folder: Path | str, epochs):
    """A function (epoch, net) that keeps the net of these epochs in `folder`, for `snapshots`.

    Any training loop may call it after each epoch (1, 2, ...), as `train(..., callback=)` of
    zfkit.training does; other epochs are passed over. Weights are kept whole, as they are
    shipped (float16 for two or more dimensions), one file an epoch, written by atomic rename; a
    training that was stopped and goes on adds to its folder.
    Raises ValueError for epochs that are no whole numbers from 1 on, and for a damaged list of
    an older series.

    >>> keep = recorder("build/series", epochs=(1, 5))
    >>> for epoch in range(1, 6):
    ...     train_one_epoch(net)  # a loop of your own
    ...     keep(epoch, net)
    >>> list(snapshots(Path("build/series"), net))
    [1, 5]
    """
    folder, epochs = Path(folder), list(epochs)
    if not epochs or any(not isinstance(epoch, int) or epoch < 1 for epoch in epochs):
        raise ValueError(f"epochs {epochs!r}: valid are whole numbers from 1 on, at least one")
    sums = dict(_series(folder)[1]) if (folder / SERIES).exists() else {}

    def keep(epoch: int, net: nn.Module):
        if epoch in epochs:
            path = folder / f"epoch{epoch:02d}.safetensors"
            write_tensors(path, {key: half(t) for key, t in net.state_dict().items()})
            sums[str(epoch)] = hashlib.sha256(path.read_bytes()).hexdigest()
            about = dict(config=getattr(net, "config", None), sums=sums)
            files.write_json(folder / SERIES, about)

    return keep


def _series(folder: Path) -> tuple[dict, dict]:
    """Of a recorded series: what builds the network, and the sha256 of each epoch's file."""
    record = read_sidecar(folder / SERIES)
    sums = record.get("sums")
    if not isinstance(sums, dict) or not sums or not all(epoch.isdecimal() for epoch in sums):
        raise ValueError(f"{folder / SERIES}: not the list of a recorded series")
    return record.get("config"), sums


def _series_in(folder: Path, net: nn.Module | None) -> dict[int, nn.Module]:
    config, sums = _series(folder)
    if net is None and not config:
        reason = "the series is of a network that is none of ours: give one of its shape as net"
        raise ValueError(f"{folder}: {reason}")
    nets = {}
    for epoch in sorted(map(int, sums)):
        path = folder / f"epoch{epoch:02d}.safetensors"
        state = read_checked(path, sums[str(epoch)])
        empty = copy.deepcopy(net) if net else build(config)
        nets[epoch] = apply_state(empty, state, path).eval()
    return nets


def record_run(
    chapter: str, config, net, history: dict, keep=("conv", "bn"), extra=None
) -> Path:
    """Add a training to data/runs/NN; gives the path of its list, runs.json.

    chapter: two digits.    history: as `train` gives it; the rows of its epochs are rounded to
    five digits.    keep: how the names of the tensors begin that are kept, float16 for two or
    more dimensions, in a file for each run, written before the list names it.    extra: further
    tensors by name, kept as they are (what the net said of test images, for instance); with
    them `keep` may be empty.
    A run that is, of this config, data and recipe, is left as it is. One process a chapter.
    Raises ValueError for a chapter that is none, if `keep` names no tensor of the net, and for
    an extra that has the name of one that is kept.

    >>> for config in missing("06", configs):  # stopped, it goes on where it was
    ...     net, history = train(config)
    ...     record_run("06", config, net, history, keep=("conv1", "bn1"))
    """
    folder, name, names = _folder(chapter), config.name, list(net.state_dict())
    state = {k: half(t).cpu() for k, t in net.state_dict().items() if k.startswith(tuple(keep))}
    if not state and (keep or not extra):
        raise ValueError(f"keep {keep!r} names no tensor of {name}; valid: {', '.join(names)}")
    if twice := sorted(set(state) & set(extra or {})):
        raise ValueError(f"extra {twice[0]!r} has the name of a tensor of {name} that is kept")
    state |= extra or {}
    if not missing(chapter, [config]):
        return folder / RUNS
    parts = facts(history)
    rows = parts["history"]["epochs"]
    parts["history"]["epochs"] = [{k: round(row[k], 5) for k in row} for row in rows]
    about = dict(config=as_json(config), seed=config.seed, recipe_version=RECIPE_VERSION)
    about |= parts | dict(identity=identity(config), sha256=_digest(state))
    return _add(folder, name, about, state)


def _add(folder: Path, name: str, about: dict, state: dict) -> Path:
    """Write the tensors, then the list with this run in it; files that it does not name go."""
    runs = _listed(folder) | {name: about}
    write_tensors(_tensors_of(folder, name, about), state)
    lines = [f"{json.dumps(run)}: {json.dumps(runs[run], allow_nan=False)}" for run in runs]
    files.write_bytes(folder / RUNS, ("{\n" + ",\n".join(lines) + "\n}\n").encode())
    named = {_tensors_of(folder, *run) for run in runs.items()}
    for path in set(folder.glob("*.safetensors")) - named:
        path.unlink()
    return folder / RUNS


def _tensors_of(folder: Path, name: str, about: dict) -> Path:
    """The file of a run's tensors; another training of that name has another file."""
    return folder / f"{name}-{about['sha256'][:8]}.safetensors"


def missing(chapter: str, configs) -> list:
    """Those of the configs whose training on these data by this recipe is not recorded yet."""
    marks = {name: run.get("identity") for name, run in _listed(_folder(chapter)).items()}
    return [c for c in configs if c.name not in marks or marks[c.name] != identity(c)]


def recorded_runs(chapter: str) -> dict[str, dict]:
    """Name -> a recorded training of the chapter, in the order in which they were recorded.

    Each is a dict: config, seed, mean, std, precision, machines, parameters, history (epochs,
    test_accuracy, seconds, ...) and tensors (name -> tensor, as they were kept).
    Raises ValueError, in one line, where there is none and where a file is damaged.

    >>> run = recorded_runs("06")["selection-7x7-2-plain-s0"]
    >>> run["seed"], run["tensors"]["conv1.weight"].shape
    (0, torch.Size([48, 3, 7, 7]))
    """
    folder = _folder(chapter)
    if not (folder / RUNS).exists():
        valid = sorted(path.parent.name for path in folder.parent.glob(f"*/{RUNS}"))
        valid = ", ".join(valid) or "none"
        raise ValueError(f"no recorded trainings of {chapter} in {folder}; valid: {valid}")
    runs = _listed(folder)
    for name, run in runs.items():
        path = _tensors_of(folder, name, run)
        run["tensors"] = read_tensors(path)[0]
        if _digest(run["tensors"]) != run["sha256"]:
            reason = f"the tensors of {name} are not those that {RUNS} names"
            raise ValueError(f"{path}: {reason}")
    return runs


def _folder(chapter: str) -> Path:
    if not (isinstance(chapter, str) and len(chapter) == 2 and chapter.isdecimal()):
        raise ValueError(f"chapter {chapter!r}: valid are two digits, as '06'")
    return files.runs_folder() / chapter


def _listed(folder: Path) -> dict[str, dict]:
    runs = read_json(folder / RUNS) if (folder / RUNS).exists() else {}
    for name, run in runs.items():
        lacks = {"config", "history", "sha256"} - set(run if isinstance(run, dict) else ())
        if lacks:
            raise ValueError(f"{folder / RUNS}: {name} lacks {', '.join(sorted(lacks))}")
    return runs


def _digest(tensors: dict[str, Tensor]) -> str:
    """The sha256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
