"""Train a network: recipes as data, one loop, checkpoints from which a killed run goes on.

It goes on bit for bit. Everything random is keyed by (seed, epoch) or (seed, step), and the
rate is a function of the step or of the history: a checkpoint holds weights, momentum and
counts, and needs no state of a generator or a scheduler.
"""

import math
import os
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from .datasets import load_images
from .files import cache_dir, read_tensors, write_tensors
from .loaders import Loader
from .machine import machine, precision_on
from .networks import Chain
from .recipes import Config, check, fingerprint, rate, resolved, rms_clip, start_network

CHECKPOINT_S = 60.0  # seconds of work that a killed run loses at most
CHECKPOINT = "checkpoint.safetensors"
SPLITS = ("train", "validation", "test")
NO_TIME = dict(seconds=0.0, cpu_seconds=0.0)


def train(config, *, device="cpu", folder=None, callback=None, progress=True, data=None):
    """The trained network in eval mode, and its history: a dict that JSON can hold.

    folder: where the checkpoint lies (at least every minute and after each epoch); None:
    data/cache/training. A run that was stopped, by Ctrl-C or kill -9, goes on from there to the
    same bits; a finished one is only read.
    callback(epoch, net): called after each epoch (1, 2, ...) that this call trains; net in eval
    mode.    data: split -> images, labels, classes; None: `load_images` by the config's name.
    history: `parameters` as they resolved, `precision` as run, `machines` it ran on, `epochs`.
    Weights are rounded to float16 at the end, as they are shipped, and only then meet the test
    split. Raises ValueError for a config that cannot be run or a checkpoint of another.

    >>> config = recipes.changed("zfnet-menagerie", ["epochs=3", "snapshots=[]"])
    >>> net, history = train(config, callback=series.recorder("build/three", (1, 2, 3)))
    >>> [row["validation_accuracy"] for row in history["epochs"]]  # of epochs 1, 2, 3
    """
    options = dict(device=device, folder=folder, callback=callback, progress=progress)
    run = fit(config, data=data, **options)
    return run.net, run.history


@dataclass
class Run:
    """A training under way: what a checkpoint holds.

    sums: loss and hits over the images of the current epoch.
    """

    config: Config
    path: Path
    precision: str
    net: Chain
    optimizer: torch.optim.SGD
    sums: Tensor
    counts: dict = field(default_factory=lambda: dict(epoch=0, step=0, **NO_TIME))
    history: dict = field(default_factory=lambda: dict(epochs=[], machines=[]))
    snapshots: dict = field(default_factory=dict)
    saved: float = field(default_factory=time.monotonic)

    def tensors(self) -> dict[str, Tensor]:
        """The live tensors of net and optimizer; a momentum buffer that lacks is made, at 0."""
        tensors = {f"net/{key}": tensor for key, tensor in self.net.state_dict().items()}
        for name, p in self.net.named_parameters():
            empty = torch.zeros_like(p).detach()  # in the same memory format, as SGD makes it
            buffer = self.optimizer.state[p].setdefault("momentum_buffer", empty)
            tensors[f"momentum/{name}"] = buffer
        return tensors | {"sums": self.sums}

    def save(self):
        """Write the checkpoint by atomic rename."""
        about = dict(counts=self.counts, history=self.history)
        write_tensors(self.path, self.tensors() | self.snapshots, about)
        self.saved = time.monotonic()

    def restore(self, mark: str):
        """Take over the checkpoint; ValueError if its training is not that of `mark`."""
        kept, about = read_tensors(self.path)
        if about.get("history", {}).get("fingerprint") != mark:
            training = f"{self.config.name} {mark}"
            raise ValueError(f"{self.path}: made by another config or data set than {training}")
        for name, tensor in self.tensors().items():
            tensor.copy_(kept.pop(name))
        self.counts, self.history, self.snapshots = about["counts"], about["history"], kept
        self.precision = self.history["precision"]  # as the run began, on any processor


def fit(config, *, device="cpu", folder=None, callback=None, progress=True, data=None) -> Run:
    """The finished run of `train`, with its snapshots: "epochNN/conv1.weight" -> tensor."""
    check(config)
    limits = dict(train=config.images)
    data = data or {
        s: load_images(config.dataset, s, config.size, limits.get(s)) for s in SPLITS
    }
    folder, images = Path(folder or run_folder(config, data["train"])), len(data["train"][0])
    total, size = config.epochs * images, config.batch_size
    with torch.random.fork_rng(), interrupts() as stopped:
        run = _begin(config, data, device, folder / CHECKPOINT)
        loaders = _loaders(run, data, device)
        with tqdm(total=total, unit=" images", desc=config.name, disable=not progress) as bar:
            bar.update(min(run.counts["epoch"] * images + run.counts["step"] * size, total))
            while run.counts["epoch"] < config.epochs:
                _train_epoch(run, loaders["train"], bar, stopped)
                _end_epoch(run, loaders["validation"], images)
                if callback:
                    callback(run.counts["epoch"], run.net.eval())
        if "test_accuracy" not in run.history:
            _finish(run, loaders)
    run.net.eval()
    return run


def run_folder(config, images) -> Path:
    """Where the checkpoint of a config on these training images lies by default."""
    return cache_dir() / "training" / f"{config.name}-{fingerprint(config, images)}"


def identity(config) -> str:
    """Ten hex digits that name config, recipe version and data: few images tell, not all."""
    return fingerprint(config, load_images(config.dataset, "train", config.size, limit=16))


def _begin(config, data, device, path) -> Run:
    net = start_network(config).to(device, memory_format=torch.channels_last)
    names = "lr", "momentum", "nesterov", "weight_decay"
    sgd = torch.optim.SGD(net.parameters(), **{name: getattr(config, name) for name in names})
    precision = precision_on(device, config.precision)
    run = Run(config, path, precision, net, sgd, torch.zeros(2, device=device))
    mark = fingerprint(config, data["train"])
    if path.exists():
        run.restore(mark)
    else:
        run.history |= dict(fingerprint=mark) | _outset(run, data)
    machines = run.history.setdefault("machines", [])
    if run.counts["epoch"] < config.epochs and (here := machine(device)) not in machines:
        machines.append(here)
    return run


def _outset(run, data) -> dict:
    """Of the history: what the config leaves to the data and the device, and all parameters."""
    mean = run.config.mean or (np.mean(data["train"][0], axis=(0, 1, 2)) / 255).tolist()
    decided = dict(mean=list(mean), std=list(run.config.std), precision=run.precision)
    counts = {f"{split}_images": len(data[split][0]) for split in SPLITS}
    parameters = resolved(run.config, run.net) | decided
    return decided | counts | dict(classes=list(data["train"][2]), parameters=parameters)


def _loaders(run, data, device) -> dict[str, Loader]:
    config, (images, labels) = run.config, data["train"][:2]
    common = dict(mean=run.history["mean"], std=run.history["std"], device=device)
    if config.shuffled_labels:
        labels = np.random.default_rng(config.seed).permutation(labels)
    shaken = common | dict(shift=config.shift, flip=config.flip, seed=config.seed)
    still = common | dict(shuffle=False)
    loaders = {split: Loader(*data[split][:2], 256, **still) for split in SPLITS[1:]}
    return loaders | dict(train=Loader(images, labels, config.batch_size, **shaken))


def _train_epoch(run, loader, bar, stopped):
    loader.set_epoch(run.counts["epoch"])
    run.net.train()
    before = time.perf_counter(), time.process_time()
    for normalized, labels in loader.batches(run.counts["step"]):
        _step(run, normalized, labels, len(loader))
        bar.update(len(labels))
        now = time.perf_counter(), time.process_time()
        for name, start, end in zip(NO_TIME, before, now, strict=True):
            run.counts[name] += end - start
        before = now
        if stopped or time.monotonic() - run.saved >= CHECKPOINT_S:
            run.save()
        if stopped:
            raise KeyboardInterrupt


def _step(run, normalized, labels, steps):
    config, done = run.config, run.counts["epoch"] * steps + run.counts["step"]
    torch.manual_seed(config.seed * 1_000_003 + done)  # dropout: by step, whatever ran between
    run.optimizer.param_groups[0]["lr"] = rate(config, done, steps, run.history["epochs"])
    with _autocast(run):
        logits = run.net(normalized).float()
    loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
    run.optimizer.zero_grad()
    loss.backward()
    run.optimizer.step()
    if config.rms_clip:
        rms_clip(run.net, config.rms_clip)
    hits = (logits.argmax(1) == labels).sum()
    run.sums += torch.stack([loss.detach() * len(labels), hits])
    run.counts["step"] += 1


def _end_epoch(run, loader, images):
    (loss, hits), counts, config = (run.sums / images).tolist(), run.counts, run.config
    epoch = counts["epoch"] + 1
    if not math.isfinite(loss):
        reason = f"the loss is {loss} in epoch {epoch}; lr {config.lr} is too high"
        raise ValueError(f"{config.name}: {reason}")
    row = dict(epoch=epoch, loss=loss, train_accuracy=hits)
    row |= dict(validation_accuracy=accuracy(run, loader))
    row |= dict(lr=run.optimizer.param_groups[0]["lr"])
    run.history["epochs"].append(row | {name: round(counts[name], 3) for name in NO_TIME})
    if epoch in config.snapshots:
        for key, tensor in run.net.state_dict().items():
            if key.startswith(("conv", "bn")):
                run.snapshots[f"epoch{epoch:02d}/{key}"] = half(tensor).cpu().clone()
    counts.update(epoch=epoch, step=0, **NO_TIME)
    run.sums.zero_()
    run.save()


def _finish(run, loaders):
    for tensor in run.net.state_dict().values():
        tensor.copy_(half(tensor))
    run.precision = "float32"  # the final figures are those of the shipped network in float32
    run.history |= {f"{split}_accuracy": accuracy(run, loaders[split]) for split in SPLITS[1:]}
    run.history["test_top"] = top(run, loaders["test"])
    for name in NO_TIME:
        run.history[name] = round(sum(row[name] for row in run.history["epochs"]), 1)
    run.save()


def accuracy(run, loader) -> float:
    """The share of the loader's images whose label is the strongest output."""
    run.net.eval()
    with torch.inference_mode(), _autocast(run):
        hits = sum((run.net(batch).argmax(1) == labels).sum() for batch, labels in loader)
    return int(hits) / len(loader.images)


def top(run, loader) -> dict[str, float]:
    """Shares of the loader's images whose label comes first, or among the first five.

    Keys "1" and "5"; with "mirrored": by the mean probability of image and mirror image.
    """
    run.net.eval()
    hits, names = torch.zeros(4), ("1", "5", "1 mirrored", "5 mirrored")
    with torch.inference_mode(), _autocast(run):
        for normalized, labels in loader:
            views = normalized, normalized.flip(3)
            plain, mirrored = (run.net(view).float().softmax(1) for view in views)
            both = plain, plain + mirrored
            ranks = [(p > p.gather(1, labels[:, None])).sum(1) for p in both]
            hits += torch.stack([(rank < k).sum() for rank in ranks for k in (1, 5)]).cpu()
    return dict(zip(names, (hits / len(loader.images)).tolist(), strict=True))


def half(tensor: Tensor) -> Tensor:
    """As it is shipped: float16 for two or more dimensions; all else as it is."""
    return tensor.half() if tensor.ndim > 1 else tensor


def _autocast(run):
    enabled = run.precision == "bfloat16"
    return torch.autocast(run.sums.device.type, torch.bfloat16, enabled=enabled)


@contextmanager
def interrupts():
    """A list that Ctrl-C fills instead of raising, so that a step is never left half done."""
    hits, main = [], threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, lambda *_: hits.append(True)) if main else None
    try:
        yield hits
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


def seconds_needed(config, device="cpu", images=4000) -> float:
    """About how long `train` takes here, from four steps on noise."""
    shape, times = (config.batch_size, config.size, config.size, 3), []
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    data = dict.fromkeys(SPLITS, (pixels, np.zeros(len(pixels), np.int64), ()))
    with torch.random.fork_rng():
        run = _begin(config, data, device, Path(os.devnull) / "none")
        batch = next(iter(_loaders(run, data, device)["train"]))
        for _ in range(4):
            start = time.perf_counter()
            _step(run, *batch, 1)
            run.sums.tolist()  # waits for the device
            times.append(time.perf_counter() - start)
    return 1.15 * min(times) * math.ceil(images / config.batch_size) * config.epochs
