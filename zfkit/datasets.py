"""Images by name: the rendered menagerie, and photographs from archives or folders under ZFKIT_DATA.

An archive (tar, tar.xz, tar.gz) is read as it is, a folder of its layout likewise; nothing in it is executed. A whole
split is decoded once into data/cache, keyed by the source's size, time and head, and memory-mapped from then on.
Splits made by a set's authors are kept (the validation pictures are the test split where test labels are secret);
any other is drawn once by a fixed seed, class by class.
"""

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections import defaultdict
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from tqdm import tqdm

from .files import cache_dir, data_root

MENAGERIE = {"menagerie": "standard", "menagerie-hard": "hard"}  # name -> level
SEEDS = {"train": (1, 4000), "validation": (3, 800), "test": (2, 800)}  # the menagerie's splits: seed, images
SPLITS = ("train", "validation", "test", "all")
OWN, HELD_OUT = {"train": 0.6, "validation": 0.2, "test": 0.2}, {"train": 0.9, "validation": 0.1}
HELD_OUT_FEW = {"train": 0.95, "validation": 0.05}  # of 100,000 images
BOXED = ("tiny-imagenet", "tiny-imagenet-100", "voc2012")
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
VOC = ("aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant "
       "sheep sofa train tvmonitor").split()  # fmt: skip
FORMATS, SUFFIXES = ("JPEG", "PNG", "BMP", "WEBP", "PPM"), (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
VERSION = 2  # of the cache: a step up discards what older code wrote


class Images(NamedTuple):
    """Images of a split with their labels and the names of the classes."""

    images: np.ndarray  # uint8 (N, H, W, 3), possibly memory-mapped
    labels: np.ndarray  # int64 (N,)
    classes: tuple[str, ...]  # one name per label


class Entry(NamedTuple):
    """One picture of a set, before it is decoded."""

    file: str
    label: int
    box: tuple | None = None  # of the object: x0, y0, x1, y1, half-open
    extent: tuple | None = None  # width, height of a picture that has a box


def warm():
    """Draw and keep the test pictures that chapters take, in both their sizes: then no chapter waits or shows a bar."""
    for size in (80, 88):
        load_images("menagerie", "test", size)


def load_images(name: str, split="test", size=None, limit=None) -> Images:
    """Images, labels and class names of a set of DATASETS or of folder:PATH (PATH/CLASS/ or PATH/SPLIT/CLASS/).

    split: train, validation or test; photographs also have all. limit: the first so many, classes taken in turn.
    size: side in pixels; photographs: short side resized (bilinear, antialiased), centre cut out, grey made RGB.
    None is the set's own size. ValueError: unknown names and values, a set that is not there, a damaged archive, a
    file that is no picture or has an alpha channel; nothing half-written stays.
    """
    _check(name, split, size, limit)
    if name in MENAGERIE:
        from .menagerie import NAMES, cached

        seed, count = SEEDS[split]
        images, labels = cached(seed, min(count, limit or count), size or 80, MENAGERIE[name])
        return Images(images, np.asarray(labels, np.int64), tuple(NAMES))
    path, tree, own_size, classes, entries = _listed(name, split)
    side, label = size or own_size, re.sub(r"[^\w-]+", "-", name)[-40:]
    kept = cache_dir() / f"images-{label}-{split}-{side}-{_stamp(path, tree, entries)}.npy"
    labels = np.array([entry.label for entry in entries[:limit]], np.int64)
    return Images(_decoded(path, tree, entries, side, limit, kept), labels, tuple(classes))


def load_boxes(name: str, split="test", size=None, limit=None) -> np.ndarray:
    """Object boxes of the images that `load_images` gives for the same arguments: int64 (N, 4), x0, y0, x1, y1.

    Pixels of the cut image, half-open as slices and clipped to it (a box that was cut away is empty). voc2012: the
    largest object, whose class is the label. ValueError as `load_images`, and for a set without boxes.
    """
    _check(name, split, size, limit)
    if name not in BOXED:
        raise ValueError(f"data set {name!r} has no boxes; valid are {', '.join(BOXED)}")
    *_, own_size, _, entries = _listed(name, split)
    extent, box = (np.array([getattr(e, key) for e in entries[:limit]], float) for key in ("extent", "box"))
    scaled = np.array([_scaled(pair, side := size or own_size) for pair in extent])
    ratio, cut = scaled / extent, (scaled - side) // 2
    corners = np.floor(box[:, :2] * ratio), np.ceil(box[:, 2:] * ratio)
    return np.hstack([np.clip(corner - cut, 0, side) for corner in corners]).astype(np.int64)


def file_names(name: str, split="test", limit=None) -> list[str]:
    """The files, below the set's top folder, of the images that `load_images` gives for the same arguments.

    For what is known of a picture by its name. ValueError as `load_images`, and for a menagerie: it has no files.
    """
    _check(name, split, None, limit)
    if name in MENAGERIE:
        raise ValueError(f"data set {name!r} is drawn, it has no files; valid are photographs")
    return [entry.file for entry in _listed(name, split)[-1][:limit]]


def load_scenes(name: str, split="test", size=None, limit=None) -> list:
    """The menagerie's scenes, drawn anew, whose images `load_images` gives for the same arguments.

    Each is a `menagerie.Scene`: image, masks, part map, keypoints, pose. ValueError for a set that is no menagerie.
    """
    _check(name, split, size, limit)
    if name not in MENAGERIE:
        raise ValueError(f"data set {name!r} has no scenes; valid are {', '.join(MENAGERIE)}")
    from .menagerie import render

    seed, count = SEEDS[split]
    return [render(seed, k, size or 80, level=MENAGERIE[name]) for k in range(min(count, limit or count))]


def load_masks(name: str, split="test", size=None, limit=None) -> np.ndarray:
    """Where the object is in the images that `load_images` gives for the same arguments: bool (N, size, size).

    The menagerie: the object's visible pixels; sets with boxes: the box. ValueError for a set that knows neither.
    """
    if name in MENAGERIE:
        return np.stack([scene.visible for scene in load_scenes(name, split, size, limit)])
    if name not in BOXED:
        raise ValueError(f"data set {name!r} has neither masks nor boxes; valid are {', '.join([*MENAGERIE, *BOXED])}")
    x0, y0, x1, y1 = load_boxes(name, split, size, limit).T[:, :, None]
    rows = cols = np.arange(size or DATASETS[name][2])
    inside = (rows >= y0) & (rows < y1), (cols >= x0) & (cols < x1)
    return inside[0][:, :, None] & inside[1][:, None, :]


def _check(name, split, size, limit) -> None:
    if name not in DATASETS and not str(name).startswith("folder:"):
        raise ValueError(f"data set {name!r}: valid are {', '.join(DATASETS)}, folder:PATH")
    splits = tuple(SEEDS) if name in MENAGERIE else SPLITS
    if split not in splits:
        raise ValueError(f"split {split!r} of {name}: valid are {', '.join(splits)}")
    for what, value, most in (("size", size, 4096), ("limit", limit, 2**31)):
        if value is not None and not (isinstance(value, int | np.integer) and 1 <= value <= most):
            raise ValueError(f"{what} {value!r}: valid are None and whole numbers from 1 to {most}")


def _found(name: str, places) -> Path:
    if name.startswith("folder:"):
        if (path := Path(name.removeprefix("folder:")).expanduser()).is_dir():
            return path
        raise ValueError(f"{name}: there is no folder {path}")
    wanted, root = " or ".join(places), data_root()
    if root is None:
        raise ValueError(f"{name}: ZFKIT_DATA is not set; it names the folder that holds {wanted}")
    for path in (root / place for place in places):
        if path.exists():
            return path
    raise ValueError(f"{name}: no {wanted} in {root}, the folder that ZFKIT_DATA names")


def _listed(name: str, split: str):
    """(path, its files by name, the set's own size, class names, entries of the split)."""
    places, layout, size = DATASETS.get(name) or ((), _class_folders, 224)
    path = _found(name, places)
    try:
        tree = _folder(path) if path.is_dir() else _archive(path, path.stat().st_mtime_ns)
        classes, parts = layout(tree)
        entries = [entry for key, part in parts.items() if split in (key, "all") for entry in part]
        for entry in entries:
            if entry.file not in tree or not 0 <= entry.label < len(classes):
                raise ValueError(f"{entry.file} with label {entry.label} is missing or out of range")
    except Exception as error:  # many kinds: tar, xz, text, XML, numbers, missing files
        raise ValueError(f"{name}: {path} is damaged or laid out otherwise: {_line(error)}") from error
    if not entries:
        raise ValueError(f"{name}: no picture for split {split} in {path}")
    return path, tree, size, classes, entries


def _folder(path: Path) -> dict[str, str]:
    found = sorted(os.path.join(base, name) for base, _, names in os.walk(path) for name in names)
    return {os.path.relpath(file, path).replace(os.sep, "/"): file for file in found}


@lru_cache(maxsize=1)  # the splits of an archive share one decompression
def _archive(path: Path, time_ns: int) -> dict[str, bytes]:
    """What an archive holds below its top folder; nothing is written to the disk."""
    tree = {}
    with tarfile.open(path) as tar:
        for member in tar:
            if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
                raise ValueError(f"member {member.name!r} lies outside the archive")
            if member.isreg():
                tree[member.name.removeprefix("./").partition("/")[2]] = tar.extractfile(member).read()
    return tree


def _read(tree, file: str) -> bytes:
    return tree[file] if isinstance(tree[file], bytes) else Path(tree[file]).read_bytes()


def _lines(tree, file: str) -> list[list[str]]:
    return [line.split("\t") for line in _read(tree, file).decode().splitlines() if line]


def _stamp(path: Path, tree, entries: list[Entry]) -> str:
    """A key of what is on disk: an archive's head, size and time, or size and time of a folder's pictures."""
    folder = path.is_dir()
    places = {tree.get(e.file.rpartition("/")[0], tree[e.file]) for e in entries} if folder else {str(path)}
    states = [(place, os.stat(place).st_size, os.stat(place).st_mtime_ns) for place in sorted(places)]
    with open(os.devnull if folder else path, "rb") as head:
        return hashlib.sha256(head.read(1 << 20) + json.dumps([VERSION, states, entries]).encode()).hexdigest()[:16]


def _decoded(path: Path, tree, entries: list[Entry], size: int, limit: int | None, kept: Path) -> np.ndarray:
    """uint8 (N, size, size, 3), from the file `kept` if it is whole; only a whole split is put there."""
    shape = (len(entries), size, size, 3)
    try:
        images = np.load(kept, mmap_mode="r", allow_pickle=False)
        if images.shape == shape and images.dtype == np.uint8:
            return images[:limit]
    except (OSError, ValueError):
        pass  # not there, or cut short: made anew
    if limit is not None and limit < len(entries):
        return _fill(np.empty((limit, *shape[1:]), np.uint8), path, tree, entries)
    part = kept.with_name(f"{kept.name}.{os.getpid()}.part")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        if (need := int(np.prod(shape))) > (free := shutil.disk_usage(kept.parent).free):
            raise ValueError(f"{kept} takes {need >> 20} MiB, but {free >> 20} are free on its disk")
        _fill(np.lib.format.open_memmap(part, "w+", np.uint8, shape), path, tree, entries).flush()
        os.replace(part, kept)
    except OSError as error:
        raise ValueError(f"cannot write {kept}: {_line(error)}") from error
    finally:
        part.unlink(missing_ok=True)
    return np.load(kept, mmap_mode="r", allow_pickle=False)


def _fill(images: np.ndarray, path: Path, tree, entries: list[Entry]) -> np.ndarray:
    for image, entry in tqdm(zip(images, entries, strict=False), path.name, len(images), disable=len(images) < 2000):
        try:
            image[:] = _picture(tree, entry.file, images.shape[1])
        except Exception as error:  # whatever a damaged picture makes Pillow raise
            raise ValueError(f"{path}: {entry.file} is no usable picture: {_line(error)}") from error
    return images


def _picture(tree, file: str, size: int) -> np.ndarray:
    """A picture as uint8 (size, size, 3): RGB, short side resized, centre cut out."""
    if isinstance(tree[file], np.ndarray):
        picture = Image.fromarray(tree[file])
    else:
        picture = Image.open(io.BytesIO(_read(tree, file)), formats=FORMATS)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        raise ValueError("it has an alpha channel; valid are RGB and grey")
    if picture.mode not in ("RGB", "L", "P", "1", "CMYK"):
        raise ValueError(f"its pixels are of mode {picture.mode}; valid are RGB and grey of 8 bits")
    width, height = _scaled(picture.size, size)
    picture = picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)  # same size: a copy
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def _scaled(extent, size: int) -> tuple[int, int]:
    return tuple(max(size, round(side * size / min(extent))) for side in extent)


def _tiny_imagenet(tree):
    names, wnids = dict(_lines(tree, "words.txt")), _read(tree, "wnids.txt").decode().split()

    def entry(file, wnid, box):
        x0, y0, x1, y1 = map(int, box)  # both ends within the box
        return Entry(file, wnids.index(wnid), (x0, y0, x1 + 1, y1 + 1), (64, 64))

    train = [entry(f"train/{wnid}/images/{file}", wnid, box)
             for wnid in wnids for file, *box in _lines(tree, f"train/{wnid}/{wnid}_boxes.txt")]  # fmt: skip
    test = [entry(f"val/images/{file}", wnid, box) for file, wnid, *box in _lines(tree, "val/val_annotations.txt")]
    return [names[wnid] for wnid in wnids], _split(train, HELD_OUT_FEW) | _split(test)


def _class_folders(tree, classes=None):
    """CLASS/picture, or SPLIT/CLASS/picture with a train folder; pictures outside of folders are one class."""
    parts, pictures = defaultdict(list), [f for f in tree if f.lower().endswith(SUFFIXES)]
    official = any(file.startswith("train/") for file in pictures)
    for file in pictures:
        split, rest = file.split("/", 1) if official and "/" in file else ("", file)
        parts[split].append((file, rest.partition("/")[0] if "/" in rest else ""))
    classes = classes or sorted({name for part in parts.values() for _, name in part})
    number = {name: k for k, name in enumerate(classes)}
    parts |= {split: [Entry(file, number[name]) for file, name in part] for split, part in parts.items()}
    validation = parts["validation"] or parts["val"]
    if not official:
        return classes, _split(parts[""], OWN)
    train = _split(parts["train"], HELD_OUT)
    if parts["test"] and validation:
        train = _split(parts["train"], {"train": 1}) | _split(validation, {"validation": 1})
    return classes, train | _split(parts["test"] or validation)


def _cifar10(tree):
    def batch(file):  # a label, then three planes
        rows = np.frombuffer(_read(tree, file), np.uint8).reshape(-1, 3073)
        return pictures(file, rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0])

    def pictures(file, rows, labels):  # each becomes a file below its own
        tree.update({f"{file}/{k}": row for k, row in enumerate(np.ascontiguousarray(rows))})
        return [Entry(f"{file}/{k}", int(label)) for k, label in enumerate(labels)]

    if (sheet := "cifar10_batch_0.png") in tree:  # a picture per line
        rows = np.asarray(Image.open(io.BytesIO(_read(tree, sheet)))).reshape(-1, 32, 32, 3)
        return CIFAR10, _split(pictures(sheet, rows, [k for _, k, _ in _lines(tree, "labels.tsv")[1:]]), OWN)
    if "test_batch.bin" in tree:
        train = [entry for k in range(1, 6) for entry in batch(f"data_batch_{k}.bin")]
        return CIFAR10, _split(train, HELD_OUT) | _split(batch("test_batch.bin"))
    return _class_folders(tree, CIFAR10)


def _imagenet(tree):
    lines = _found("ImageNet's class names", ["imagenet-classes.tsv"]).read_text().splitlines()
    _, wnids, names = zip(*(line.split("\t") for line in lines), strict=True)
    if "labels.tsv" not in tree:
        return names, _class_folders(tree, wnids)[1]
    return names, _split([Entry(file, int(k)) for file, k, *_ in _lines(tree, "labels.tsv")[1:]], OWN)


def _voc2012(tree):
    def entry(number):
        root = ElementTree.fromstring(_read(tree, f"VOC2012/Annotations/{number}.xml"))
        extent = [int(root.findtext(f"size/{side}")) for side in ("width", "height")]
        objects = [(o.findtext("name"), o.find("bndbox")) for o in root.iter("object")]
        boxes = [[round(float(b.findtext(c))) for c in ("xmin", "ymin", "xmax", "ymax")] for _, b in objects]
        k = np.argmax([(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes])
        x0, y0, x1, y1 = boxes[k]  # counted from 1, both ends within the box
        return Entry(f"VOC2012/JPEGImages/{number}.jpg", VOC.index(objects[k][0]), (x0 - 1, y0 - 1, x1, y1), extent)

    names = [_read(tree, f"VOC2012/ImageSets/Main/{part}.txt").decode().split() for part in ("train", "val")]
    train, test = (list(map(entry, part)) for part in names)
    return VOC, _split(train, HELD_OUT) | _split(test)


def _split(entries: list[Entry], shares=None) -> dict[str, list[Entry]]:
    """The entries by split, in an order of which every first part holds all classes evenly.

    Each class is spread over 0..1 by its own fixed seed, one entry per 1/n; the shares (default: all test) cut there.
    """
    shares, members, placed = shares or {"test": 1}, defaultdict(list), []
    for entry in entries:
        members[entry.label].append(entry)
    for label, part in sorted(members.items()):
        draw = np.random.default_rng([2013, label])
        placed += zip((draw.permutation(len(part)) + draw.random(len(part))) / len(part), part, strict=True)
    placed.sort(key=lambda pair: pair[0])
    cuts = [0, *np.searchsorted([place for place, _ in placed], np.cumsum([*shares.values()])[:-1]), len(placed)]
    return {split: [e for _, e in placed[a:b]] for split, a, b in zip(shares, cuts, cuts[1:], strict=False)}


def _line(error: Exception) -> str:
    return re.sub(r"\s+|<_io.\S+ object at \w+>", " ", str(error)).strip() or type(error).__name__


DATASETS = {  # name -> where under ZFKIT_DATA (the first that is there), how it is laid out, its own size
    "menagerie": ((), None, 80),
    "menagerie-hard": ((), None, 80),
    "cifar10": (("cifar10", "cifar-10-batches-bin", "cifar-10-binary.tar.gz", "cifar10-subset-1000",
                 "cifar10-subset-1000.tar"), _cifar10, 32),
    "tiny-imagenet": (("tiny-imagenet-200", "tiny-imagenet-200.tar"), _tiny_imagenet, 64),
    "tiny-imagenet-100": (("tiny-imagenet-100", "tiny-imagenet-100.tar.xz"), _tiny_imagenet, 64),
    "caltech101": (("101_ObjectCategories", "caltech101/101_ObjectCategories", "101_ObjectCategories.tar.gz",
                    "caltech101-small.tar.xz"), _class_folders, 128),
    "imagenet-samples": (("imagenet-samples", "imagenet-samples.tar"), _imagenet, 256),
    "imagenet-val-samples": (("imagenet-val-samples", "imagenet-val-samples.tar"), _imagenet, 227),
    "voc2012": (("VOCdevkit",), _voc2012, 256),
    "imagenet": (("imagenet",), _imagenet, 256),
}  # fmt: skip
