"""Trained networks by name, each with a card of what it is; nothing loaded is executed."""

import hashlib
import os
import pickle
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from . import training
from .cards import Card, apply_state, card_of, load_state, read_sidecar, save_weights
from .datasets import load_images
from .files import data_root, weights_folder, write_tensors
from .networks import alexnet, build
from .recipes import CONFIGS, RECIPE_VERSION, as_json, changed, check

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
REAL = {  # name -> file under ZFKIT_DATA
    "alexnet-imagenet": "alexnet-conv-imagenet.safetensors",
    "squeezenet-imagenet": "squeezenet1_0-imagenet.safetensors",
}
MODELS = "torchvision.models"  # imported where they are asked for: that takes seconds
NETWORKS = (*CONFIGS, "untrained", *REAL)  # torchvision's names are valid too
BROKEN = (OSError, RuntimeError, EOFError, TypeError, LookupError, AttributeError, ValueError)
FOREIGN = {".pt", ".pth", ".pkl", ".ckpt", ".bin", ".onnx", ".h5", ".safetensors"}


def load_network(name: str) -> tuple[nn.Module, Card]:
    """A network in eval mode and its card.

    name: one of NETWORKS, another file of data/weights, or a classification network of
    torchvision (its weights from torch's cache, else downloaded). "untrained" is where the
    training of zfnet-menagerie starts (seed 0); its batch norms have seen no image (mean 0,
    variance 1).
    Raises ValueError, in one line, for an unknown name and weights that lack or are damaged.

    >>> net, card = load_network("zfnet-menagerie")
    >>> images, labels, classes = load_images("menagerie", limit=2)
    >>> net(card.normalize(images)).shape, card.classes[labels[0]]
    (torch.Size([2, 16]), 'dog')
    """
    if not isinstance(name, str):
        raise ValueError(f"a network is loaded by its name, a str, not by {name!r:.80}")
    if name == "untrained":
        return _untrained()
    if name in REAL:
        return _load_real(name)
    if name in {path.stem for path in weights_folder().glob("*.json")}:
        return load_published(weights_folder() / f"{name}.safetensors")
    if name in CONFIGS:
        command = f"python -m zfkit train {name} --publish"
        raise ValueError(f"no weights of {name} in {weights_folder()}; make them: {command}")
    if name in (models := import_module(MODELS)).list_models(module=models):
        return _load_torchvision(name)
    valid = f"{', '.join(NETWORKS)}, or torchvision's, as alexnet or resnet18"
    if Path(name).suffix in FOREIGN:
        valid += "; weights of your own: load them into your module and hand that on"
    raise ValueError(f"unknown network {name!r:.80}; valid: {valid}")


def _untrained() -> tuple[nn.Module, Card]:
    config = replace(CONFIGS["zfnet-menagerie"], name="untrained")
    net = training.start_network(config).eval()
    classes = load_images(config.dataset, "test", config.size, limit=1).classes
    record = dict(name=config.name, config=as_json(config), mean=config.mean, std=config.std)
    return net, card_of(record | dict(classes=list(classes), layers=_chain_layers(net)))


def networks_available() -> list[str]:
    """The names that load here without a network connection."""
    root, folder = data_root(), weights_folder()
    names = [name for name in CONFIGS if (folder / f"{name}.safetensors").exists()]
    names += ["untrained"] + [name for name in REAL if root and (root / REAL[name]).exists()]
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    cached = {path.name for path in cache.glob("*.pth")} if cache.exists() else set()
    models = import_module(MODELS)
    urls = {name: _torchvision_weights(name).url for name in models.list_models(module=models)}
    return names + [name for name, url in urls.items() if Path(url).name in cached]


def load_published(path: Path) -> tuple[nn.Module, Card]:
    """The network of a weight file and its sidecar, as `publish` writes them; ValueErrors."""
    path = Path(path)
    record = read_sidecar(path)
    try:
        net = build(record["config"]["network"])
        card = card_of(record)
    except (KeyError, TypeError) as error:
        sidecar = path.with_suffix(".json")
        raise ValueError(f"{sidecar}: not the sidecar of a network (lacks {error})") from None
    return apply_state(net, load_state(path), path).eval(), card


def load_or_train(config, *, device="cpu", progress=True) -> tuple[nn.Module, Card]:
    """A network and its card: the shipped one if it is the config's own, else trained here.

    config: a Config or the name of one of CONFIGS. A shipped network is its own if config, data
    and recipe version match. A training goes on from its checkpoint in data/cache, or is only
    read there if it had ended; a new one first prints how long it will take.

    >>> net, card = load_or_train("zfnet-menagerie")  # shipped: loaded in no time
    >>> net, card = load_or_train(recipes.changed("zfnet-menagerie", ["seed=7"]))
    zfnet-menagerie is trained here: about 20 min on cpu
    """
    config = changed(config) if isinstance(config, str) else config
    check(config)
    path = weights_folder() / f"{config.name}.safetensors"
    kept = read_sidecar(path).get("identity") if path.with_suffix(".json").exists() else None
    if kept and kept == training.identity(config):
        return load_published(path)
    folder = training.run_folder(
        config, load_images(config.dataset, "train", config.size, config.images)
    )
    if not (folder / training.CHECKPOINT).exists():
        about = f"about {training.seconds_needed(config, device) / 60:.0f} min on {device}"
        print(f"{config.name} is trained here: {about}", file=sys.stderr)
    net, history = training.train(config, device=device, progress=progress, folder=folder)
    return net.cpu(), card_of(_record(config, net, history))


def publish(config, net, history, snapshots=None, folder=None) -> Path:
    """Write NAME.safetensors, its sidecar and, if there are any, NAME-snapshots.safetensors.

    Gives the path of the first.
    """
    path = Path(folder or weights_folder()) / f"{config.name}.safetensors"
    record = _record(config, net, history) | dict(identity=training.identity(config))
    if snapshots:
        kept = path.with_name(f"{config.name}-snapshots.safetensors")
        write_tensors(kept, snapshots)
        record["snapshots_sha256"] = hashlib.sha256(kept.read_bytes()).hexdigest()
    save_weights(path, net.state_dict(), record)
    return path


def _record(config, net, history) -> dict:
    """What the sidecar says about a training."""
    top = facts(history)
    history = top.pop("history")
    accuracies = {split: history[f"{split}_accuracy"] for split in ("validation", "test")}
    return top | dict(
        name=config.name, command=f"python -m zfkit train {config.name} --publish",
        recipe=config.recipe, recipe_version=RECIPE_VERSION, seed=config.seed,
        config=as_json(config), layers=_chain_layers(net), accuracy=accuracies,
        test_images=history["test_images"], time_s=history["seconds"],
        cpu_time_s=history["cpu_seconds"], torch=torch.__version__, history=history,
    )  # fmt: skip


def facts(history: dict) -> dict:
    """A training's history in parts: what describes the whole run, and the rest, "history"."""
    history = dict(history)
    whole = ("classes", "mean", "std", "precision", "machines", "parameters")
    return {key: history.pop(key) for key in whole if key in history} | dict(history=history)


def _chain_layers(net) -> list[str]:
    return [stage for stage in net.stages if stage.startswith("conv")]


def _load_real(name: str) -> tuple[nn.Module, Card]:
    root = data_root()
    if root is None or not os.path.lexists(root / REAL[name]):
        place = f"the folder that ZFKIT_DATA names ({root or 'not set'})"
        raise ValueError(f"{name} needs {REAL[name]} in {place}")
    path, classes = root / REAL[name], ()
    if name == "alexnet-imagenet":  # the five convolutions of Caffe's AlexNet: no class scores
        net = alexnet(None, groups=2, size=227, lrn_k=1.0)
        layers = _chain_layers(net)
    else:
        net = import_module(MODELS).squeezenet1_0()
        layers, classes = figure_layers(net), _imagenet_classes(root)
    record = dict(name=name, source=path.name, config=dict(size=227), classes=classes)
    record |= dict(layers=layers, **IMAGENET)
    return apply_state(net, load_state(path), path).eval(), card_of(record)


def _imagenet_classes(root: Path) -> list[str]:
    path = root / "imagenet-classes.tsv"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [line.split("\t")[2].partition(",")[0] for line in lines]
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: not the list of ImageNet's classes ({error})") from None


def figure_layers(net: nn.Module) -> list[str]:
    """The layers worth a figure in another's network, by qualified name.

    They are the rectified maps and the blocks of its trunk.
    """
    body, prefix = (net.features, "features.") if hasattr(net, "features") else (net, "")
    worth = (n for n, m in body.named_children() if isinstance(m, nn.ReLU) or any(m.children()))
    return [prefix + name for name in worth]


def _torchvision_weights(name: str):
    return import_module(MODELS).get_model_weights(name).DEFAULT


def _load_torchvision(name: str) -> tuple[nn.Module, Card]:
    weights, forced = _torchvision_weights(name), "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(forced)
    os.environ[forced] = "1"  # torchvision would unpickle whatever came
    try:
        net = import_module(MODELS).get_model(name, weights=weights)
    except (pickle.UnpicklingError, *BROKEN) as error:
        raise ValueError(_not_got(name, weights.url, error)) from None
    finally:
        del os.environ[forced]
        os.environ.update({forced: before} if before is not None else {})
    return net.eval(), _torchvision_card(name, figure_layers(net))


def _not_got(name: str, url: str, error: Exception) -> str:
    """One line on weights that did not load: what torch's cache holds, or why nothing came."""
    kept = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    reason = f"{' '.join(str(error).split()) or type(error).__name__:.200}"
    if not os.path.lexists(kept):
        return f"cannot get the weights of {name} from {url}: {reason}"
    if kept.is_symlink() and not kept.exists():
        reason = "a link to nowhere"
    elif isinstance(error, pickle.UnpicklingError) or "TorchScript" in reason:
        reason = "a traced network or other Python objects, which are not executed"
    return f"{kept}: not the weights of {name}: {reason}; remove it to download it again"


def _torchvision_card(name: str, layers: list[str]) -> Card:
    weights = _torchvision_weights(name)
    use, record = weights.transforms(), dict(name=name, source=weights.url, layers=layers)
    sides = dict(size=use.crop_size[0], resize=use.resize_size[0])
    record |= dict(config=sides | dict(interpolation=use.interpolation.value))
    record |= dict(classes=weights.meta["categories"], mean=use.mean, std=use.std)
    return card_of(record)
