"""Images by name: the rendered menagerie, and photographs from archives or folders under ZFKIT_DATA.

An archive (tar, tar.xz, tar.gz) is read as it is, a folder of its layout likewise; nothing in it is executed. A whole
split is decoded once into data/cache, keyed by the source's size, time and head, and memory-mapped from then on.
Splits made by a set's authors are kept (the validation pictures are the test split where test labels are secret);
any other is drawn once by a fixed seed, class by class.
"""

import gzip
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import tarfile
import zlib
from collections import Counter, defaultdict
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

MENAGERIE = {"menagerie": "standard", "menagerie-hard": "hard"}  # name -> level
SEEDS = {"train": (1, 4000), "validation": (3, 800), "test": (2, 800)}  # the menagerie's splits: seed, images
SPLITS = ("train", "validation", "test", "all")
HELD_OUT, OWN = {"train": 0.9, "validation": 0.1}, {"train": 0.6, "validation": 0.2, "test": 0.2}
BOXED = ("tiny-imagenet", "tiny-imagenet-100", "voc2012")
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
VOC = ("aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant "
       "sheep sofa train tvmonitor").split()  # fmt: skip
FORMATS, SUFFIXES = ("JPEG", "PNG", "BMP", "WEBP", "PPM"), (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
DAMAGE = (LookupError, ValueError, TypeError, OSError, EOFError, SyntaxError, tarfile.TarError, lzma.LZMAError,
          zlib.error, Image.DecompressionBombError)  # fmt: skip
VERSION = 1  # of the cache: a step up discards what older code wrote


class Images(NamedTuple):
    images: np.ndarray  # uint8 (N, H, W, 3), possibly memory-mapped
    labels: np.ndarray  # int64 (N,)
    classes: tuple[str, ...]  # one name per label


class Entry(NamedTuple):
    file: str
    label: int
    row: int | None = None  # in a file that holds many pictures
    box: tuple | None = None  # of the object: x0, y0, x1, y1, half-open
    extent: tuple | None = None  # width, height of the picture that has a box


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
    tree, own_size, classes, entries = _listed(name, split)
    labels = np.array([entry.label for entry in entries[:limit]], np.int64)
    return Images(_decoded(name, tree, entries, split, size or own_size, limit), labels, tuple(classes))


def load_boxes(name: str, split="test", size=None, limit=None) -> np.ndarray:
    """Object boxes of the images that `load_images` gives for the same arguments: int64 (N, 4), x0, y0, x1, y1.

    Pixels of the cut image, half-open as slices and clipped to it (a box that was cut away is empty). voc2012: the
    largest object, whose class is the label. ValueError as `load_images`, and for a set without boxes.
    """
    _check(name, split, size, limit)
    if name not in BOXED:
        raise ValueError(f"data set {name!r} has no boxes; valid are {', '.join(BOXED)}")
    _, own_size, _, entries = _listed(name, split)
    extent, box = (
        np.array([getattr(e, field) for e in entries[:limit]], float) for field in ("extent", "box")
    )
    scaled = np.array([_scaled(pair, side := size or own_size) for pair in extent])
    ratio, cut = scaled / extent, (scaled - side) // 2
    corners = np.floor(box[:, :2] * ratio), np.ceil(box[:, 2:] * ratio)
    return np.hstack([np.clip(corner - cut, 0, side) for corner in corners]).astype(np.int64)


def repo_root() -> Path:
    """The folder that holds zfkit/, data/ and notebooks/."""
    return Path(__file__).resolve().parents[1]


def cache_dir() -> Path:
    """Where decoded and rendered images are kept: ZFKIT_CACHE, or data/cache."""
    return Path(os.environ.get("ZFKIT_CACHE") or repo_root() / "data" / "cache")


def data_root() -> Path | None:
    """The folder of photographs that ZFKIT_DATA names; None if it is not set."""
    return Path(os.environ["ZFKIT_DATA"]).expanduser() if os.environ.get("ZFKIT_DATA") else None


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
        if not (path := Path(name.removeprefix("folder:")).expanduser()).is_dir():
            raise ValueError(f"{name}: there is no folder {path}")
        return path
    if (root := data_root()) is None:
        raise ValueError(
            f"{name}: ZFKIT_DATA is not set; it names the folder that holds {' or '.join(places)}"
        )
    for path in (root / place for place in places):
        if path.exists():
            return path
    raise ValueError(f"{name}: no {' or '.join(places)} in {root}, the folder that ZFKIT_DATA names")


def _listed(name: str, split: str):
    """(tree, own size, class names, entries); the list of an archive, slow to make, is kept in the cache."""
    places, layout, size = DATASETS.get(name) or ((), _class_folders, 224)
    tree = _Tree(_found(name, places))
    kept = cache_dir() / f"list-{_plain(name)}-{tree.stamp()}.json"
    try:
        classes, parts = json.loads(kept.read_text())
    except (OSError, ValueError):  # not there, or cut short
        classes, parts = _read_list(name, tree, layout)
        if not tree.folder:
            _write(kept, lambda part: part.write_text(json.dumps([classes, parts])))
    entries = [Entry(*e) for key, part in parts.items() if split in (key, "all") for e in part]
    if not entries:
        raise ValueError(f"{name}: no picture for split {split} in {tree.path}")
    return tree, size, classes, _in_turn(entries)


def _read_list(name: str, tree, layout):
    try:
        classes, parts = layout(tree)
        for entry in sum(parts.values(), []):
            if entry.file not in tree.files or not 0 <= entry.label < len(classes):
                raise ValueError(f"{entry.file} with label {entry.label} is missing or out of range")
    except DAMAGE as error:
        raise ValueError(f"{name}: {tree.path} is damaged or laid out otherwise: {_line(error)}") from error
    return classes, parts


def _decoded(name: str, tree, entries: list[Entry], split: str, size: int, limit: int | None) -> np.ndarray:
    """uint8 (N, size, size, 3), from the cache if it is whole there; only a whole split is put there."""
    shape = (len(entries), size, size, 3)
    kept = cache_dir() / f"images-{_plain(name)}-{split}-{size}-{tree.stamp(entries)}.npy"
    try:
        images = np.load(kept, mmap_mode="r", allow_pickle=False)
        if images.shape == shape and images.dtype == np.uint8:
            return images[:limit]
    except (OSError, ValueError):
        pass  # not there, or cut short: made anew

    def fill(images):
        steps = zip(images, entries, strict=False)
        for image, entry in tqdm(steps, name, len(images), disable=len(images) < 2000):
            image[:] = _picture(tree, entry, size)
        return images

    if limit is not None and limit < len(entries):
        return fill(np.empty((limit, *shape[1:]), np.uint8))
    _write(
        kept,
        lambda part: fill(np.lib.format.open_memmap(part, "w+", np.uint8, shape)).flush(),
        np.prod(shape),
    )
    return np.load(kept, mmap_mode="r", allow_pickle=False)


def _picture(tree, entry: Entry, size: int) -> np.ndarray:
    """The entry's picture as uint8 (size, size, 3)."""
    try:
        picture = tree.picture(entry)
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            raise ValueError("it has an alpha channel; valid are RGB and grey")
        if picture.mode not in ("RGB", "L", "P", "1", "CMYK"):
            raise ValueError(f"its pixels are of mode {picture.mode}; valid are RGB and grey of 8 bits")
        picture = picture.convert("RGB")
    except DAMAGE as error:
        why = f"not of {', '.join(FORMATS)}" if isinstance(error, UnidentifiedImageError) else _line(error)
        raise ValueError(f"{tree.path}: {entry.file} is no usable picture: {why}") from error
    width, height = _scaled(picture.size, size)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def _scaled(extent, size: int) -> tuple[int, int]:
    return tuple(max(size, round(side * size / min(extent))) for side in extent)


@lru_cache(maxsize=1)  # the splits of an archive share one decompression
def _members(archive: Path, time_ns: int):
    packed = {".xz": lzma, ".gz": gzip}.get(archive.suffix)
    tar = tarfile.open(
        fileobj=io.BytesIO(packed.decompress(archive.read_bytes())) if packed else archive.open("rb")
    )
    members = tar.getmembers()
    for name in (member.name for member in members):
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise ValueError(f"member {name!r} lies outside the archive")
    return tar, {m.name.removeprefix("./").partition("/")[2]: m for m in members if m.isreg()}


class _Tree:
    """The files of a folder, or of an archive below its top folder, by name."""

    def __init__(self, path: Path):
        self.path, self.folder, self.tables = path, path.is_dir(), {}

    @cached_property
    def files(self) -> dict:
        if not self.folder:
            return _members(self.path, self.path.stat().st_mtime_ns)[1]
        found = sorted(os.path.join(base, name) for base, _, names in os.walk(self.path) for name in names)
        return {os.path.relpath(file, self.path).replace(os.sep, "/"): file for file in found}

    def read(self, file: str) -> bytes:
        if self.folder:
            return Path(self.files[file]).read_bytes()
        return _members(self.path, self.path.stat().st_mtime_ns)[0].extractfile(self.files[file]).read()

    def lines(self, file: str) -> list[list[str]]:
        return [line.split("\t") for line in self.read(file).decode().splitlines() if line]

    def table(self, file: str) -> np.ndarray:
        """The rows of a CIFAR-10 batch, uint8: label and three planes (N, 3073), or as a PNG (N, 3072)."""
        if file not in self.tables:
            binary, data = file.endswith(".bin"), self.read(file)
            rows = np.frombuffer(data, np.uint8) if binary else np.asarray(Image.open(io.BytesIO(data)))
            self.tables[file] = rows.reshape(-1, 3073 if binary else 3072)
        return self.tables[file]

    def picture(self, entry: Entry) -> Image.Image:
        if entry.row is None:
            return Image.open(io.BytesIO(self.read(entry.file)), formats=FORMATS)
        row = self.table(entry.file)[entry.row]
        planes = row[1:].reshape(3, 32, 32).transpose(1, 2, 0) if len(row) == 3073 else row.reshape(32, 32, 3)
        return Image.fromarray(np.ascontiguousarray(planes))

    def stamp(self, entries=()) -> str:
        """A key of what is on disk: an archive's head, size and time, or size and time of a folder's pictures."""
        paths = [Path(self.files[e.file]) for e in entries] if self.folder else [self.path]
        states = [(str(path), (state := path.stat()).st_size, state.st_mtime_ns) for path in paths]
        head = b"" if self.folder else self.path.open("rb").read(1 << 20)
        return hashlib.sha256(head + json.dumps([VERSION, states, entries]).encode()).hexdigest()[:16]


def _tiny_imagenet(tree):
    names, wnids = dict(tree.lines("words.txt")), tree.read("wnids.txt").decode().split()

    def entry(file, wnid, box):
        x0, y0, x1, y1 = map(int, box)  # both ends within the box
        return Entry(file, wnids.index(wnid), None, (x0, y0, x1 + 1, y1 + 1), (64, 64))

    lists = {wnid: tree.lines(f"train/{wnid}/{wnid}_boxes.txt") for wnid in wnids}
    train = [entry(f"train/{w}/images/{file}", w, box) for w, lines in lists.items() for file, *box in lines]
    test = [entry(f"val/images/{file}", w, box) for file, w, *box in tree.lines("val/val_annotations.txt")]
    return [names[wnid] for wnid in wnids], _divided(train, HELD_OUT) | {"test": test}


def _class_folders(tree, classes=None):
    """CLASS/picture, or SPLIT/CLASS/picture with a train folder; pictures outside of folders are one class."""
    parts, pictures = defaultdict(list), [f for f in tree.files if f.lower().endswith(SUFFIXES)]
    official = any(file.startswith("train/") for file in pictures)
    for file in pictures:
        split, rest = file.split("/", 1) if official and "/" in file else ("", file)
        parts[split].append((file, rest.partition("/")[0] if "/" in rest else ""))
    classes = classes or sorted({name for part in parts.values() for _, name in part})
    number = {name: k for k, name in enumerate(classes)}
    parts |= {split: [Entry(file, number[name]) for file, name in part] for split, part in parts.items()}
    if not official:
        return classes, _divided(parts[""], OWN)
    validation = parts["validation"] or parts["val"]
    if parts["test"] and validation:
        return classes, {"train": parts["train"], "validation": validation, "test": parts["test"]}
    return classes, _divided(parts["train"], HELD_OUT) | {"test": parts["test"] or validation}


def _cifar10(tree):
    def batch(file):
        return [Entry(file, int(label), row) for row, label in enumerate(tree.table(file)[:, 0])]

    if "labels.tsv" in tree.files:
        lines = tree.lines("labels.tsv")[1:]
        return CIFAR10, _divided([Entry("cifar10_batch_0.png", int(k), int(row)) for row, k, _ in lines], OWN)
    if "test_batch.bin" in tree.files:
        train = [entry for k in range(1, 6) for entry in batch(f"data_batch_{k}.bin")]
        return CIFAR10, _divided(train, HELD_OUT) | {"test": batch("test_batch.bin")}
    return _class_folders(tree, CIFAR10)


def _wnids() -> dict[str, str]:
    lines = _found("ImageNet's class names", ["imagenet-classes.tsv"]).read_text().splitlines()
    return {wnid: name for _, wnid, name in (line.split("\t") for line in lines)}


def _imagenet(tree):
    return list(_wnids().values()), _class_folders(tree, list(_wnids()))[1]


def _imagenet_samples(tree):
    entries = [Entry(file, int(label)) for file, label, *_ in tree.lines("labels.tsv")[1:]]
    return list(_wnids().values()), _divided(entries, OWN)


def _voc2012(tree):
    def area(item):
        return (item[3] - item[1]) * (item[4] - item[2])

    def entry(number):
        root = ElementTree.fromstring(tree.read(f"VOC2012/Annotations/{number}.xml"))
        extent = [int(root.findtext(f"size/{side}")) for side in ("width", "height")]
        corners = [f"bndbox/{corner}" for corner in ("xmin", "ymin", "xmax", "ymax")]
        items = [
            (o.findtext("name"), *(round(float(o.findtext(c))) for c in corners)) for o in root.iter("object")
        ]
        name, x0, y0, x1, y1 = max(items, key=area)  # counted from 1, both ends within the box
        return Entry(
            f"VOC2012/JPEGImages/{number}.jpg", VOC.index(name), None, (x0 - 1, y0 - 1, x1, y1), extent
        )

    lists = [tree.read(f"VOC2012/ImageSets/Main/{part}.txt").decode().split() for part in ("train", "val")]
    train, test = ([entry(number) for number in numbers] for numbers in lists)
    return VOC, _divided(train, HELD_OUT) | {"test": test}


def _divided(entries: list[Entry], shares: dict[str, float]) -> dict[str, list[Entry]]:
    """The entries by split: every class is shuffled by its own fixed seed and cut at the shares."""
    classes, parts = defaultdict(list), {split: [] for split in shares}
    for entry in entries:
        classes[entry.label].append(entry)
    for label, members in sorted(classes.items()):
        draw = np.random.default_rng([2013, label])
        places = (draw.permutation(len(members)) + draw.random(len(members))) / len(members)
        for entry, cut in zip(
            members, np.searchsorted(np.cumsum([*shares.values()])[:-1], places), strict=True
        ):
            parts[[*shares][cut]].append(entry)
    return parts


def _in_turn(entries: list[Entry]) -> list[Entry]:
    """First the first picture of every class, then the second of every class, and so on."""
    seen, order = Counter(), []
    for number, entry in enumerate(entries):
        order.append((seen[entry.label], entry.label, number))
        seen[entry.label] += 1
    return [entries[number] for *_, number in sorted(order)]


def _write(kept: Path, save, bytes_needed: int = 0) -> None:
    """Let `save` write a file beside `kept` and move it there whole."""
    part = kept.with_name(f"{kept.name}.{os.getpid()}.part")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        if bytes_needed > (free := shutil.disk_usage(kept.parent).free):
            raise ValueError(f"{kept} takes {bytes_needed >> 20} MiB, but {free >> 20} are free on its disk")
        save(part)
        os.replace(part, kept)
    except OSError as error:
        raise ValueError(f"cannot write {kept}: {_line(error)}") from error
    finally:
        part.unlink(missing_ok=True)


def _plain(name: str) -> str:
    return re.sub(r"[^\w-]+", "-", name)[-40:]


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


DATASETS = {  # name -> where under ZFKIT_DATA (the first that is there), how it is laid out, its own size
    "menagerie": ((), None, 80),
    "menagerie-hard": ((), None, 80),
    "cifar10": (("cifar10", "cifar-10-batches-bin", "cifar-10-binary.tar.gz", "cifar10-subset-1000",
                 "cifar10-subset-1000.tar"), _cifar10, 32),
    "tiny-imagenet": (("tiny-imagenet-200", "tiny-imagenet-200.tar"), _tiny_imagenet, 64),
    "tiny-imagenet-100": (("tiny-imagenet-100", "tiny-imagenet-100.tar.xz"), _tiny_imagenet, 64),
    "caltech101": (("101_ObjectCategories", "caltech101/101_ObjectCategories", "101_ObjectCategories.tar.gz",
                    "caltech101-small.tar.xz"), _class_folders, 128),
    "imagenet-samples": (("imagenet-samples", "imagenet-samples.tar"), _imagenet_samples, 256),
    "imagenet-val-samples": (("imagenet-val-samples", "imagenet-val-samples.tar"), _imagenet_samples, 227),
    "voc2012": (("VOCdevkit", "VOCtrainval_11-May-2012.tar"), _voc2012, 256),
    "imagenet": (("imagenet",), _imagenet, 256),
}  # fmt: skip
