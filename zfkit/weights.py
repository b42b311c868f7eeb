"""Trained networks by name, with a card of what they are; safetensors and JSON in and out, nothing is executed."""

import copy
import hashlib
import os
import pickle
import sys
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import loaders, training
from .datasets import load_images
from .files import data_root, read_json, read_tensors, weights_folder, write_json, write_tensors
from .networks import alexnet, build
from .recipes import CONFIGS, RECIPE_VERSION, Config, as_json, changed, check

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
REAL = {  # name -> file under ZFKIT_DATA
    "alexnet-imagenet": "alexnet-conv-imagenet.safetensors",
    "squeezenet-imagenet": "squeezenet1_0-imagenet.safetensors",
}
MODELS = "torchvision.models"  # imported where they are asked for: that takes seconds
NETWORKS = (*CONFIGS, "untrained", *REAL)  # torchvision's names are valid too
SERIES = "series.json"  # of a recorded series: its network, and the sha256 of each epoch's file


@dataclass(frozen=True)
class Card:
    """What a network is: `size`, `mean`, `std` (0..1) of its input, `layers` for the figures; `record`: its sidecar.

    classes is empty where the network gives no class scores.
    """

    name: str
    classes: tuple[str, ...]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layers: tuple[str, ...]
    record: dict

    def normalize(self, images, device="cpu") -> Tensor:
        """The images as the network takes them: float32 (N, 3, size, size), channels_last.

        images: uint8 (N, H, W, 3); of another size they are resized (short side to `size`, bilinear with
        antialiasing) and cut to the central square. Raises ValueError for another type or shape.
        """
        shape = tuple(images.shape)
        if len(shape) == 4 and shape[3] == 3 and 0 not in shape and shape[1:3] != (self.size, self.size):
            images = _squared(torch.as_tensor(images), self.size).numpy()
        return loaders.normalize(images, self.mean, self.std, device)


def _squared(images: Tensor, size: int) -> Tensor:
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}: needed are uint8 (N, H, W, 3)")
    height, width = images.shape[1:3]
    sides = [max(size, round(side * size / min(height, width))) for side in (height, width)]
    planes = images.permute(0, 3, 1, 2).float()
    planes = F.interpolate(planes, size=sides, mode="bilinear", antialias=True, align_corners=False)
    top, left = ((side - size) // 2 for side in sides)
    square = planes[:, :, top : top + size, left : left + size].round().clamp(0, 255)
    return square.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def load_network(name: str) -> tuple[nn.Module, Card]:
    """A network in eval mode and its card.

    name: one of NETWORKS, another file of data/weights, or a classification network of torchvision (its weights from
    torch's cache, else downloaded). "untrained" is where the training of zfnet-menagerie starts (seed 0), with batch
    norms that have seen no image (mean 0, variance 1).
    Raises ValueError, in one line, for an unknown name and for weights that are missing or damaged.
    """
    if name == "untrained":
        config = replace(CONFIGS["zfnet-menagerie"], name=name)
        net = training.start_network(config).eval()
        classes = load_images(config.dataset, "test", config.size, limit=1).classes
        record = dict(name=name, config=as_json(config), classes=list(classes), layers=_chain_layers(net))
        return net, _card(record | dict(mean=config.mean, std=config.std))
    if name in REAL:
        return _load_real(name)
    if (weights_folder() / f"{name}.json").exists():
        return load_published(weights_folder() / f"{name}.safetensors")
    if name in CONFIGS:
        raise ValueError(
            f"no weights of {name} in {weights_folder()}; make them: python -m zfkit train {name} --publish"
        )
    if name in (models := import_module(MODELS)).list_models(module=models):
        return _load_torchvision(name)
    raise ValueError(
        f"unknown network {name!r}; valid: {', '.join(NETWORKS)}, or torchvision's, as alexnet or resnet18"
    )


def networks_available() -> list[str]:
    """The names that load here without a network connection."""
    root = data_root()
    names = [name for name in CONFIGS if (weights_folder() / f"{name}.safetensors").exists()] + ["untrained"]
    names += [name for name, file in REAL.items() if root and (root / file).exists()]
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    cached = {path.name for path in cache.glob("*.pth")} if cache.exists() else set()
    models = import_module(MODELS)
    urls = {name: _torchvision_weights(name).url for name in models.list_models(module=models)}
    return names + [name for name, url in urls.items() if Path(url).name in cached]


def load_published(path: Path) -> tuple[nn.Module, Card]:
    """The network of a weight file and its sidecar, as `publish` writes them."""
    record = _sidecar(path)
    try:
        net = build(record["config"]["network"])
        card = _card(record)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path.with_suffix('.json')}: not the sidecar of a network (lacks {error})") from None
    return apply_state(net, load_state(path), path).eval(), card


def snapshots(name: str | Path, net: nn.Module | None = None) -> dict[int, nn.Module]:
    """Epoch -> the network in eval mode as it was after that epoch; epochs ascend.

    name: a shipped network: its convolutions and batch norms are that epoch's, the rest is final, and where its series
    ends before the last epoch the network itself is added as that epoch's. Or the Path of a `recorder`'s folder.
    net: for a folder that holds no network of our builders, one of that shape.
    Raises ValueError if the series or one of its files is missing, damaged or another network's.
    """
    if isinstance(name, Path):
        return _recorded(name, net)
    final, card = load_network(name)
    path = weights_folder() / f"{name}-snapshots.safetensors"
    if not path.exists() or "snapshots_sha256" not in card.record:
        valid = sorted(p.name.removesuffix(path.name[len(name) :]) for p in path.parent.glob("*-snapshots.safetensors"))
        raise ValueError(f"{path}: there are no snapshots of {name}; valid: those of {', '.join(valid) or 'none'}")
    tensors = _read_checked(path, card.record["snapshots_sha256"])
    nets, state = {}, final.state_dict()
    wanted = [key for key in state if key.startswith(("conv", "bn"))]
    for epoch in sorted({key.partition("/")[0] for key in tensors}):
        kept = {key.partition("/")[2]: t for key, t in tensors.items() if key.startswith(f"{epoch}/")}
        _compare({key: state[key] for key in wanted}, kept, f"{path} {epoch}")
        net = apply_state(build(card.record["config"]["network"]), state | kept, path)
        nets[int(epoch.removeprefix("epoch"))] = net.eval()
    last = card.record["config"]["epochs"]
    return nets | ({last: final} if last > max(nets) else {})


def recorder(folder: Path | str, epochs):
    """A function (epoch, net) that keeps the net of these epochs in `folder`, a series that `snapshots` reads back.

    Any training loop may call it after each epoch (1, 2, ...), as `training.train(..., callback=)` does; other epochs
    are passed over. Weights are kept whole, as they are shipped (float16 for two or more dimensions), one file an
    epoch, written by atomic rename; a training that was stopped and goes on adds to its folder.
    Raises ValueError for epochs that are no whole numbers from 1 on, and for a damaged list of an older series.
    """
    folder, epochs = Path(folder), list(epochs)
    if not epochs or any(not isinstance(epoch, int) or epoch < 1 for epoch in epochs):
        raise ValueError(f"epochs {epochs!r}: valid are whole numbers from 1 on, at least one")
    sums = dict(_series(folder)[1]) if (folder / SERIES).exists() else {}

    def keep(epoch: int, net: nn.Module):
        if epoch in epochs:
            path = folder / f"epoch{epoch:02d}.safetensors"
            write_tensors(path, {key: training.half(t) for key, t in net.state_dict().items()})
            sums[str(epoch)] = hashlib.sha256(path.read_bytes()).hexdigest()
            about = dict(config=getattr(net, "config", None), sums=sums)
            write_json(folder / SERIES, about)

    return keep


def _series(folder: Path) -> tuple[dict, dict]:
    """Of a recorded series: what builds the network, and the sha256 of each epoch's file."""
    record = _sidecar(folder / SERIES)
    sums = record.get("sums")
    if not isinstance(sums, dict) or not sums or not all(epoch.isdecimal() for epoch in sums):
        raise ValueError(f"{folder / SERIES}: not the list of a recorded series")
    return record.get("config"), sums


def _recorded(folder: Path, net: nn.Module | None) -> dict[int, nn.Module]:
    config, sums = _series(folder)
    if net is None and not config:
        raise ValueError(f"{folder}: the series is of a network that is none of ours: give one of its shape as net")
    nets = {}
    for epoch in sorted(map(int, sums)):
        path = folder / f"epoch{epoch:02d}.safetensors"
        state = _read_checked(path, sums[str(epoch)])
        nets[epoch] = apply_state(copy.deepcopy(net) if net else build(config), state, path).eval()
    return nets


def load_or_train(config: Config | str, *, device="cpu", progress=True) -> tuple[nn.Module, Card]:
    """A network and its card: the shipped one if config, data and recipe version are its own, else trained here.

    A training goes on from its checkpoint in data/cache, or is only read there if it had ended; a new one
    first prints how long it will take.
    """
    if isinstance(config, str):
        config = changed(config)
    check(config)
    path = weights_folder() / f"{config.name}.safetensors"
    if path.with_suffix(".json").exists() and _sidecar(path).get("identity") == training.identity(config):
        return load_published(path)
    folder = training.run_folder(config, load_images(config.dataset, "train", config.size))
    if not (folder / training.CHECKPOINT).exists():
        minutes = training.seconds_needed(config, device) / 60
        print(f"{config.name} is trained here: about {minutes:.0f} min on {device}", file=sys.stderr)
    net, history = training.train(config, device=device, progress=progress, folder=folder)
    return net.cpu(), _card(_record(config, net, history))


def publish(config, net, history, snapshots=None, folder=None) -> Path:
    """Write NAME.safetensors, its sidecar and, if there are any, NAME-snapshots.safetensors; returns the first."""
    path = Path(folder or weights_folder()) / f"{config.name}.safetensors"
    record = _record(config, net, history) | dict(identity=training.identity(config))
    if snapshots:
        kept = path.with_name(f"{config.name}-snapshots.safetensors")
        write_tensors(kept, snapshots)
        record["snapshots_sha256"] = hashlib.sha256(kept.read_bytes()).hexdigest()
    save_weights(path, net.state_dict(), record)
    return path


def save_weights(path: Path, state: dict, sidecar: dict):
    """Write a weight file (float16 for two or more dimensions) and its sidecar, which gets the file's sha256."""
    write_tensors(path, {name: training.half(tensor) for name, tensor in state.items()})
    record = dict(sidecar, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    write_json(path.with_suffix(".json"), record)


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file; ValueError if it is none or not the one that its sidecar, if any, names."""
    path = Path(path)
    expected = _sidecar(path).get("sha256") if path.with_suffix(".json").exists() else None
    return _read_checked(path, expected)


def apply_state(net: nn.Module, state: dict, source) -> nn.Module:
    """The same net with these weights; ValueError, before any is set, lists what lacks or does not fit."""
    _compare(net.state_dict(), state, source)
    net.load_state_dict(state)
    return net


def _compare(wanted: dict, state: dict, source):
    faults = [f"lacks {key}" for key in wanted if key not in state]
    faults += [f"has unexpected {key}" for key in state if key not in wanted]
    for key in wanted.keys() & state.keys():
        want, got = wanted[key], state[key]
        if want.shape != got.shape or want.is_floating_point() != got.is_floating_point():
            faults.append(f"{key} is {got.dtype} {tuple(got.shape)}, not {want.dtype} {tuple(want.shape)}")
    if faults:
        more = f" and {len(faults) - 6} more" if len(faults) > 6 else ""
        raise ValueError(f"{source}: not this network's weights: {'; '.join(sorted(faults)[:6])}{more}")


def _read_checked(path: Path, sha256: str | None) -> dict[str, Tensor]:
    tensors, _ = read_tensors(path)
    if sha256 and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ValueError(f"{path}: not the file that its sidecar names (sha256 differs)")
    return tensors


def _sidecar(path: Path) -> dict:
    try:
        return read_json(path.with_suffix(".json"))
    except ValueError as error:
        raise ValueError(f"the sidecar {error}") from None


def _record(config, net, history) -> dict:
    """What the sidecar says about a training."""
    history = dict(history)
    top = {key: history.pop(key) for key in ("classes", "mean", "std", "precision")}
    return dict(
        name=config.name, command=f"python -m zfkit train {config.name} --publish", recipe=config.recipe,
        recipe_version=RECIPE_VERSION, seed=config.seed, config=as_json(config), **top,
        layers=_chain_layers(net), accuracy={s: history[f"{s}_accuracy"] for s in ("validation", "test")},
        test_images=history["test_images"], time_s=history["seconds"], cpu_time_s=history["cpu_seconds"],
        machines=history.pop("machines", []), parameters=history.pop("parameters", {}),
        torch=torch.__version__, history=history,
    )  # fmt: skip


def _chain_layers(net) -> list[str]:
    return [stage for stage in net.stages if stage.startswith("conv")]


def _card(record: dict) -> Card:
    lists = {key: tuple(record[key]) for key in ("classes", "mean", "std", "layers")}
    return Card(name=record["name"], size=record["config"]["size"], record=record, **lists)


def _load_real(name: str) -> tuple[nn.Module, Card]:
    root = data_root()
    if root is None or not (root / REAL[name]).exists():
        raise ValueError(f"{name} needs {REAL[name]} in the folder that ZFKIT_DATA names ({root or 'not set'})")
    path, classes = root / REAL[name], ()
    if name == "alexnet-imagenet":  # the five convolutions of Caffe's AlexNet: no class scores
        net = alexnet(None, groups=2, size=227, lrn_k=1.0)
        layers = _chain_layers(net)
    else:
        net = import_module(MODELS).squeezenet1_0()
        layers, classes = figure_layers(net), _imagenet_classes(root)
    record = dict(name=name, source=path.name, config=dict(size=227), layers=layers, classes=classes, **IMAGENET)
    return apply_state(net, load_state(path), path).eval(), _card(record)


def _imagenet_classes(root: Path) -> list[str]:
    lines = (root / "imagenet-classes.tsv").read_text().splitlines()
    return [line.split("\t")[2].partition(",")[0] for line in lines]


def figure_layers(net: nn.Module) -> list[str]:
    """The layers worth a figure in another's network: rectified maps and blocks of its trunk, by qualified name."""
    body, prefix = (net.features, "features.") if hasattr(net, "features") else (net, "")
    return [prefix + n for n, m in body.named_children() if isinstance(m, nn.ReLU) or any(m.children())]


def _torchvision_weights(name: str):
    return import_module(MODELS).get_model_weights(name).DEFAULT


def _load_torchvision(name: str) -> tuple[nn.Module, Card]:
    weights, forced = _torchvision_weights(name), "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(forced)
    os.environ[forced] = "1"  # torchvision would unpickle whatever came
    try:
        net = import_module(MODELS).get_model(name, weights=weights)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot get the weights of {name} from {weights.url}: {reason:.200}") from None
    finally:
        del os.environ[forced]
        os.environ.update({forced: before} if before is not None else {})
    use = weights.transforms()
    record = dict(name=name, source=weights.url, config=dict(size=use.crop_size[0]), layers=figure_layers(net))
    record |= dict(classes=weights.meta["categories"], mean=use.mean, std=use.std)
    return net.eval(), _card(record)
