"""A picture decoded: checked, upright, RGB, a square cut out; whole splits kept in the cache.

A split is decoded once into the cache folder, keyed by the source's size, time and head, and
memory-mapped from then on.
"""

import hashlib
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from .files import replacing
from .layouts import Entry, read

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM")
VERSION = 3  # of the cache: a step up discards what older code wrote


def picture(source, size: int | None = None, upright=True) -> np.ndarray:
    """A picture as uint8 (size, size, 3): short side resized, centre cut out; size None: whole.

    source: the bytes of a file, or uint8 (H, W, 3). upright: turned as its EXIF orientation
    says. ValueError: an alpha channel, more than 8 bits; what Pillow raises for bytes that are
    no picture of FORMATS.
    """
    if isinstance(source, np.ndarray):
        image = Image.fromarray(source)
    else:
        image = Image.open(io.BytesIO(source), formats=FORMATS)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        raise ValueError("it has an alpha channel; valid are RGB and grey")
    if image.mode not in ("RGB", "L", "P", "1", "CMYK"):
        raise ValueError(
            f"its pixels are of mode {image.mode}; valid are RGB and grey of 8 bits"
        )
    image = (ImageOps.exif_transpose(image) if upright else image).convert("RGB")
    if size is not None:
        width, height = scaled(image.size, size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.array(image)


def scaled(extent, size: int) -> tuple[int, int]:
    """Width and height once the shorter of them is `size`."""
    return tuple(max(size, round(side * size / min(extent))) for side in extent)


def decoded(path: Path, tree, entries: list[Entry], size: int, limit, kept: Path) -> np.ndarray:
    """uint8 (N, size, size, 3), from the file `kept` if whole; a whole split goes there."""
    shape = (len(entries), size, size, 3)
    try:
        images = np.load(kept, mmap_mode="r", allow_pickle=False)
        if images.shape == shape and images.dtype == np.uint8:
            return images[:limit]
    except (OSError, ValueError):
        pass  # not there, or cut short: made anew
    if limit is not None and limit < len(entries):
        return _fill(np.empty((limit, *shape[1:]), np.uint8), path, tree, entries)
    try:
        with replacing(kept) as part:
            _refuse_a_full_disk(kept, int(np.prod(shape)))
            pixels = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
            _fill(pixels, path, tree, entries).flush()
    except OSError as error:
        raise ValueError(f"cannot write {kept}: {one_line(error)}") from error
    return np.load(kept, mmap_mode="r", allow_pickle=False)


def _refuse_a_full_disk(kept: Path, need: int) -> None:
    if need > (free := shutil.disk_usage(kept.parent).free):
        raise ValueError(
            f"{kept} takes {need >> 20} MiB, but {free >> 20} are free on its disk"
        )


def _fill(images: np.ndarray, path: Path, tree, entries: list[Entry]) -> np.ndarray:
    pairs = zip(images, entries, strict=False)
    for image, entry in tqdm(pairs, path.name, len(images), disable=len(images) < 2000):
        try:
            source = tree[entry.file]
            source = source if isinstance(source, np.ndarray) else read(tree, entry.file)
            image[:] = picture(
                source, images.shape[1], upright=entry.box is None
            )  # boxes are of stored pixels
        except Exception as error:  # whatever a damaged picture makes Pillow raise
            reason = one_line(error)
            raise ValueError(f"{path}: {entry.file} is no usable picture: {reason}") from error
    return images


def stamp(path: Path, tree, entries: list[Entry]) -> str:
    """A key of what is on disk: head, size and time of an archive, or those of all pictures."""
    folder, places = path.is_dir(), {str(path)}
    if folder:  # a picture, or the file that holds it
        places = {
            tree.get(entry.file.rpartition("/")[0], tree[entry.file]) for entry in entries
        }
    about = [(place, os.stat(place)) for place in sorted(places)]
    states = [(place, on_disk.st_size, on_disk.st_mtime_ns) for place, on_disk in about]
    with open(os.devnull if folder else path, "rb") as head:
        key = json.dumps([VERSION, states, entries]).encode()
        return hashlib.sha256(head.read(1 << 20) + key).hexdigest()[:16]


def one_line(error: Exception) -> str:
    """What an error says, in one line."""
    said = re.sub(r"\s+|<_io.\S+ object at \w+>", " ", str(error)).strip()
    return said or type(error).__name__
