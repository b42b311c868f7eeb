"""Train a network: recipes as data, one loop, checkpoints from which a killed run goes on bit for bit.

Everything random is keyed by (seed, epoch) or (seed, step), and the rate is a function of the step or of the history:
a checkpoint holds weights, momentum and counts, and needs no state of a generator or a scheduler.
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
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from .datasets import load_images
from .files import cache_dir, read_tensors, write_tensors
from .loaders import Loader
from .networks import Chain, build
from .recipes import Config, check, fingerprint, rate, starts_of

CHECKPOINT_S = 60.0  # seconds of work that a killed run loses at most
CHECKPOINT = "checkpoint.safetensors"
SPLITS = ("train", "validation", "test")


def train(config, *, device="cpu", folder=None, callback=None, progress=True, data=None):
    """The trained network in eval mode, and its history: a dict that JSON can hold.

    folder: where the checkpoint lies (at least every minute and after each epoch); None: data/cache/training. A run
    that was stopped, by Ctrl-C or kill -9, goes on from there to the same bits; a finished one is only read.
    callback(epoch, net): called after each epoch (1, 2, ...) that this call trains, net in eval mode.
    data: split -> images, labels, classes; None: `load_images` by the config's name.
    Weights are rounded to float16 at the end, as they are shipped, and only then meet the test split.
    Raises ValueError for a config that cannot be run or a checkpoint that is not its own.
    """
    run = fit(config, device=device, folder=folder, callback=callback, progress=progress, data=data)
    return run.net, run.history


@dataclass
class Run:
    """A training under way: what a checkpoint holds. sums: loss and hits over the images of the current epoch."""

    config: Config
    path: Path
    precision: str
    net: Chain
    optimizer: torch.optim.SGD
    sums: Tensor
    counts: dict = field(default_factory=lambda: dict(epoch=0, step=0, seconds=0.0, cpu_seconds=0.0))
    history: dict = field(default_factory=lambda: dict(epochs=[]))
    snapshots: dict = field(default_factory=dict)
    saved: float = field(default_factory=time.monotonic)

    def tensors(self) -> dict[str, Tensor]:
        """The live tensors of net and optimizer; a momentum buffer that is not there yet is made, at 0."""
        tensors = {f"net/{key}": tensor for key, tensor in self.net.state_dict().items()} | {"sums": self.sums}
        for name, p in self.net.named_parameters():  # zeros_like keeps the memory format, as SGD does
            buffer = self.optimizer.state[p].setdefault("momentum_buffer", torch.zeros_like(p).detach())
            tensors[f"momentum/{name}"] = buffer
        return tensors

    def save(self):
        """Write the checkpoint by atomic rename."""
        write_tensors(self.path, self.tensors() | self.snapshots, dict(counts=self.counts, history=self.history))
        self.saved = time.monotonic()

    def restore(self, mark: str):
        """Take over the checkpoint; ValueError if it is not of the training that the fingerprint names."""
        kept, about = read_tensors(self.path)
        if about.get("history", {}).get("fingerprint") != mark:
            raise ValueError(f"{self.path}: made by another config or data set than {self.config.name} {mark}")
        for name, tensor in self.tensors().items():
            tensor.copy_(kept.pop(name))
        self.counts, self.history, self.snapshots = about["counts"], about["history"], kept


def fit(config, *, device="cpu", folder=None, callback=None, progress=True, data=None) -> Run:
    """The finished run of `train`, with its snapshots: "epochNN/conv1.weight" -> tensor."""
    check(config)
    data = data or {split: load_images(config.dataset, split, config.size) for split in SPLITS}
    folder, images = Path(folder or run_folder(config, data["train"])), len(data["train"][0])
    total = config.epochs * images
    with torch.random.fork_rng(), interrupts() as stopped:
        run = _begin(config, data, device, folder / CHECKPOINT)
        loaders = _loaders(run, data, device)
        with tqdm(total=total, unit=" images", desc=config.name, disable=not progress) as bar:
            bar.update(min(run.counts["epoch"] * images + run.counts["step"] * config.batch_size, total))
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


def _begin(config, data, device, path) -> Run:
    net = start_network(config).to(device, memory_format=torch.channels_last)
    options = {name: getattr(config, name) for name in ("lr", "momentum", "nesterov", "weight_decay")}
    sgd, precision = torch.optim.SGD(net.parameters(), **options), _precision(config, device)
    run = Run(config, path, precision, net, sgd, torch.zeros(2, device=device))
    mark, mean = fingerprint(config, data["train"]), config.mean and list(config.mean)
    if path.exists():
        run.restore(mark)
        return run
    mean = mean or (np.mean(data["train"][0], axis=(0, 1, 2)) / 255).tolist()
    run.history |= dict(fingerprint=mark, mean=mean, std=list(config.std), precision=precision)
    run.history |= {f"{split}_images": len(data[split][0]) for split in SPLITS}
    run.history["classes"] = list(data["train"][2])
    return run


def start_network(config) -> Chain:
    """The network from which the config's training starts (also the control "untrained"); its seed alone decides."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(config.seed)
        net = build(config.network)
        starts = iter(starts_of(config, len([module for module in net if isinstance(module, nn.Conv2d)])))
        for module in net:
            std = next(starts) if isinstance(module, nn.Conv2d) else config.fc_init_std
            if isinstance(module, nn.Conv2d | nn.Linear) and std is not None:
                inputs = module.weight[0].numel()
                module.weight.normal_(0, math.sqrt(2 / inputs) if std == "he" else std)
                module.bias.zero_()
    return net


def _loaders(run, data, device) -> dict[str, Loader]:
    config, common = run.config, dict(mean=run.history["mean"], std=run.history["std"], device=device)
    images, labels = data["train"][:2]
    if config.shuffled_labels:
        labels = np.random.default_rng(config.seed).permutation(labels)
    shaken = dict(shift=config.shift, flip=config.flip, seed=config.seed)
    loaders = {split: Loader(*data[split][:2], 256, shuffle=False, **common) for split in SPLITS[1:]}
    return loaders | dict(train=Loader(images, labels, config.batch_size, **shaken, **common))


def _train_epoch(run, loader, bar, stopped):
    loader.set_epoch(run.counts["epoch"])
    run.net.train()
    before = time.perf_counter(), time.process_time()
    for normalized, labels in loader.batches(run.counts["step"]):
        _step(run, normalized, labels, len(loader))
        bar.update(len(labels))
        now = time.perf_counter(), time.process_time()
        for name, start, end in zip(("seconds", "cpu_seconds"), before, now, strict=True):
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


def rms_clip(net: nn.Module, radius: float):
    """Scale each convolution filter whose RMS weight exceeds the radius back to it, in place (ZF 2013, sec. 3)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.data
            rms = weight.square().mean((1, 2, 3), keepdim=True).sqrt()
            weight.mul_((radius / rms).clamp(max=1))


def _end_epoch(run, loader, images):
    (loss, hits), counts, config = (run.sums / images).tolist(), run.counts, run.config
    epoch = counts["epoch"] + 1
    if not math.isfinite(loss):
        raise ValueError(f"{config.name}: the loss is {loss} in epoch {epoch}; lr {config.lr} is too high")
    row = dict(epoch=epoch, loss=loss, train_accuracy=hits, validation_accuracy=accuracy(run, loader))
    row |= dict(lr=run.optimizer.param_groups[0]["lr"])
    run.history["epochs"].append(row | {name: round(counts[name], 3) for name in ("seconds", "cpu_seconds")})
    if epoch in config.snapshots:
        kept = {key: t for key, t in run.net.state_dict().items() if key.startswith(("conv", "bn"))}
        run.snapshots |= {f"epoch{epoch:02d}/{key}": half(t).cpu().clone() for key, t in kept.items()}
    counts.update(epoch=epoch, step=0, seconds=0.0, cpu_seconds=0.0)
    run.sums.zero_()
    run.save()


def _finish(run, loaders):
    for tensor in run.net.state_dict().values():
        tensor.copy_(half(tensor))
    run.precision = "float32"  # the two final figures are those of the shipped network in float32
    run.history |= {f"{split}_accuracy": accuracy(run, loaders[split]) for split in SPLITS[1:]}
    run.history["test_top"] = top(run, loaders["test"])
    for name in ("seconds", "cpu_seconds"):
        run.history[name] = round(sum(row[name] for row in run.history["epochs"]), 1)
    run.save()


def accuracy(run, loader) -> float:
    """The share of the loader's images whose label is the strongest output."""
    run.net.eval()
    with torch.inference_mode(), _autocast(run):
        hits = [(run.net(normalized).argmax(1) == labels).sum() for normalized, labels in loader]
    return int(sum(hits)) / len(loader.images)


def top(run, loader) -> dict[str, float]:
    """Shares of the loader's images whose label is the strongest output ("1") or one of the five strongest ("5").

    With "mirrored": of the probabilities averaged over the image and its mirror image.
    """
    run.net.eval()
    hits = torch.zeros(4)
    with torch.inference_mode(), _autocast(run):
        for normalized, labels in loader:
            plain, mirrored = (run.net(x).float().softmax(1) for x in (normalized, normalized.flip(3)))
            ranks = [(p > p.gather(1, labels[:, None])).sum(1) for p in (plain, plain + mirrored)]
            hits += torch.stack([(rank < k).sum() for rank in ranks for k in (1, 5)]).cpu()
    return dict(zip(("1", "5", "1 mirrored", "5 mirrored"), (hits / len(loader.images)).tolist(), strict=True))


def half(tensor: Tensor) -> Tensor:
    """As it is shipped: float16 for two or more dimensions; biases, norms and buffers as they are."""
    return tensor.half() if tensor.ndim > 1 else tensor


def _autocast(run):
    return torch.autocast(run.sums.device.type, torch.bfloat16, enabled=run.precision == "bfloat16")


def _precision(config, device) -> str:
    """bfloat16 pays only where there are units for it: without, it is many times slower than float32."""
    if torch.device(device).type == "cuda":
        return config.precision if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    return config.precision if flags & {"amx_bf16", "avx512_bf16"} else "float32"


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
