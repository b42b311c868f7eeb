"""Where files lie (the repository, its cache, real data) and how they are written: whole."""

import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

HASHED_BYTES = 64e6  # of the images of a kept result; a larger set is sampled evenly
VERSION = 1  # of kept results: a step up discards what older code wrote


def repo_root() -> Path:
    """The folder that holds zfkit/, data/ and notebooks/."""
    return Path(__file__).resolve().parents[1]


def weights_folder() -> Path:
    """Where the shipped weights lie: data/weights."""
    return repo_root() / "data" / "weights"


def runs_folder() -> Path:
    """Where recorded trainings of chapters lie: data/runs."""
    return repo_root() / "data" / "runs"


def results_folder() -> Path:
    """Where the committed verdicts lie: data/results."""
    return repo_root() / "data" / "results"


def cache_dir() -> Path:
    """Where what can be made again is kept: ZFKIT_CACHE, or data/cache if unset or empty."""
    named = os.environ.get("ZFKIT_CACHE")
    return Path(named).expanduser() if named else repo_root() / "data" / "cache"


def data_root() -> Path | None:
    """The folder of photographs that ZFKIT_DATA names; None if it is unset or empty."""
    return Path(os.environ["ZFKIT_DATA"]).expanduser() if os.environ.get("ZFKIT_DATA") else None


@contextmanager
def replacing(path: Path):
    """The name of a file to write to, which takes the place of `path` after the block.

    Whoever reads `path` finds the old file or the new one whole, also after a crash; if the
    block raises, the old one stays and nothing is left behind. The folder is made where it is
    missing.

    >>> with replacing(path) as part:
    ...     part.write_text("all or nothing")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes):
    """Write a file by atomic rename."""
    with replacing(Path(path)) as part:
        part.write_bytes(content)


def write_json(path: Path, value):
    """Write a value as indented JSON by atomic rename; first ValueError for nan or infinity."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict:
    """The JSON object in a file; ValueError that names the file if it holds none."""
    try:
        value = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object, but {type(value).__name__}")
    return value


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict | None = None):
    """Write a safetensors file by atomic rename; about: what JSON can hold, for its header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(tensors, {"about": json.dumps(about or {})}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """A safetensors file's tensors and its header; ValueError names what is no such file."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return tensors, json.loads((file.metadata() or {}).get("about", "{}"))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None


def kept_file(folder, what: str, net, images, normalize, *more) -> Path:
    """FOLDER/what-FINGERPRINT.safetensors, by whatever the result may depend on.

    That is the network's structure and every weight, the images (all bytes up to 64 MB, else
    evenly spaced ones), what `normalize` makes of the first, and `more`.
    """
    digest = hashlib.blake2b(
        repr(
            (VERSION, what, str(net), getattr(net, "stages", None), len(images), more)
        ).encode()
    )
    for name, tensor in net.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    step = 1 + int(len(images) * _bytes(images[:1]).nbytes // HASHED_BYTES)
    for start in range(0, len(images), 64 * step):
        digest.update(_bytes(images[start : start + 64 * step : step]))
    digest.update(_bytes(normalize(images[:1]) if normalize else images[:1]))
    return Path(folder) / f"{what}-{digest.hexdigest()[:16]}.safetensors"


def _bytes(values) -> np.ndarray:
    tensor = (
        values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    )  # a copy may be written to
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
