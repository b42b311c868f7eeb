"""Images by name: the rendered menagerie, and photographs from archives or folders under ZFKIT_DATA.

An archive (tar, tar.xz, tar.gz) is read as it is, a folder of the same layout likewise; nothing in it is executed. A
whole split is decoded once into data/cache, keyed by the source's size, time and head, and memory-mapped from then on.
Splits that a set's authors made are kept (their validation pictures are the test split where the test labels are not
public); any other is drawn once by a fixed seed, class by class.
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
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from tqdm import tqdm

MENAGERIE = {"menagerie": "standard", "menagerie-hard": "hard"}  # name -> level
SEEDS = {"train": (1, 4000), "validation": (3, 800), "test": (2, 800)}  # the menagerie's splits: seed, images
SPLITS = ("train", "validation", "test", "all")
HELD_OUT, OWN = {"train": 0.9, "validation": 0.1}, {"train": 0.6, "validation": 0.2, "test": 0.2}
BOXED = ("tiny-imagenet", "tiny-imagenet-100", "voc2012")
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
VOC = ("aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant "
       "sheep sofa train tvmonitor").split()  # fmt: skip
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WEBP", ".ppm": "PPM"}
DAMAGE = (LookupError, ValueError, TypeError, OSError, EOFError, SyntaxError, tarfile.TarError, lzma.LZMAError,
          zlib.error, Image.DecompressionBombError)  # fmt: skip
VERSION = 1  # of the cache: a step up discards what older code wrote


class Images(NamedTuple):
    """uint8 (N, H, W, 3), possibly memory-mapped; int64 (N,); one name per label."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


class Entry(NamedTuple):
    """One picture: file, label, row where a file holds many, box and (width, height) where they are known."""

    file: str
    label: int
    row: int | None = None
    box: tuple | None = None
    extent: tuple | None = None


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
    side = size or own_size
    scaled = np.array([_scaled(pair, side) for pair in extent])
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
    for place in places:
        if (root / place).exists():
            return root / place
    raise ValueError(f"{name}: no {' or '.join(places)} in {root}, the folder that ZFKIT_DATA names")


def _listed(name: str, split: str):
    """(tree, the set's own size, class names, entries); the list of an archive, slow to make, is kept in the cache."""
    places, layout, size = DATASETS.get(name) or ((), _class_folders, 224)
    tree = _Tree(_found(name, places))
    kept = cache_dir() / f"list-{_plain(name)}-{tree.stamp()}.json"
    try:
        if not tree.folder and kept.is_file():
            classes, parts = json.loads(kept.read_text())
        else:
            classes, parts = layout(tree)
            bad = [
                e
                for part in parts.values()
                for e in part
                if e.file not in tree.files or e.label not in range(len(classes))
            ]
            if bad:
                raise ValueError(f"{bad[0].file} with label {bad[0].label} is missing or out of range")
    except DAMAGE as error:
        raise ValueError(f"{name}: {tree.path} is damaged or laid out otherwise: {_line(error)}") from error
    if not tree.folder and not kept.is_file():
        _write(kept, lambda part: part.write_text(json.dumps([classes, parts])))
    entries = [Entry(*e) for key, part in parts.items() if split in (key, "all") for e in part]
    if not entries:
        raise ValueError(f"{name}: no picture for split {split} in {tree.path}")
    return tree, size, classes, _in_turn(entries)


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
        if entry.row is not None:
            picture = Image.fromarray(np.ascontiguousarray(tree.rows(entry.file)[entry.row]))
        else:
            picture = Image.open(io.BytesIO(tree.read(entry.file)), formats=sorted(set(FORMATS.values())))
        if picture.mode not in ("RGB", "L", "P", "1", "CMYK") or "transparency" in picture.info:
            alpha = "an alpha channel" if picture.mode[-1] in "AP" else f"pixels of mode {picture.mode}"
            raise ValueError(f"has {alpha}; valid are RGB and grey of 8 bits")
        picture = picture.convert("RGB")
    except DAMAGE as error:
        raise ValueError(f"{tree.path}: {entry.file} cannot be used as a picture: {_line(error)}") from error
    width, height = _scaled(picture.size, size)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def _scaled(extent, size: int) -> tuple[int, int]:
    return tuple(max(size, round(side * size / min(extent))) for side in extent)


class _Tree:
    """The files of a folder, or of an archive below its top folder, by name."""

    def __init__(self, path: Path):
        self.path, self.folder, self.tables = path, path.is_dir(), {}

    @cached_property
    def files(self) -> dict:
        if self.folder:
            found = [os.path.join(base, name) for base, _, names in os.walk(self.path) for name in names]
            return {Path(f).relative_to(self.path).as_posix(): f for f in sorted(found)}
        packed = {".xz": lzma, ".gz": gzip}.get(self.path.suffix)
        file = io.BytesIO(packed.decompress(self.path.read_bytes())) if packed else self.path.open("rb")
        self.tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115: read from until the process is done with it
        members = self.tar.getmembers()
        for name in (m.name for m in members):
            if name.startswith(("/", "\\")) or ".." in PurePosixPath(name.replace("\\", "/")).parts:
                raise ValueError(f"member {name!r} lies outside the archive")
        return {m.name.removeprefix("./").partition("/")[2]: m for m in members if m.isreg()}

    def read(self, file: str) -> bytes:
        place = self.files[file]
        return Path(place).read_bytes() if self.folder else self.tar.extractfile(place).read()

    def lines(self, file: str) -> list[list[str]]:
        return [line.split("\t") for line in self.read(file).decode().splitlines() if line]

    def rows(self, file: str) -> np.ndarray:
        """The pictures of a CIFAR-10 file, uint8 (N, 32, 32, 3)."""
        if file not in self.tables and file.endswith(".bin"):  # a label, then three planes
            self.tables[file] = self.table(file)[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        elif file not in self.tables:  # a picture per line
            self.tables[file] = np.asarray(Image.open(io.BytesIO(self.read(file)))).reshape(-1, 32, 32, 3)
        return self.tables[file]

    def table(self, file: str) -> np.ndarray:
        return np.frombuffer(self.read(file), np.uint8).reshape(-1, 3073)

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
    parts = defaultdict(list)
    pictures = [f for f in tree.files if PurePosixPath(f).suffix.lower() in FORMATS]
    official = any(f.startswith("train/") for f in pictures)
    for file in pictures:
        split, rest = file.split("/", 1) if official and "/" in file else ("", file)
        parts[split].append((file, rest.rpartition("/")[0].partition("/")[0]))
    classes = classes or sorted({name for part in parts.values() for _, name in part})
    number = {name: k for k, name in enumerate(classes)}
    parts = {split: [Entry(file, number[name]) for file, name in part] for split, part in parts.items()}
    if not official:
        return classes, _divided(parts.get("", []), OWN)
    validation = parts.get("validation") or parts.get("val")
    if "test" in parts and validation:
        return classes, {"train": parts["train"], "validation": validation, "test": parts["test"]}
    return classes, _divided(parts["train"], HELD_OUT) | {"test": parts.get("test") or validation or []}


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
    def entry(number):
        root = ElementTree.fromstring(tree.read(f"VOC2012/Annotations/{number}.xml"))
        extent = tuple(int(root.findtext(f"size/{side}")) for side in ("width", "height"))
        corners = ("xmin", "ymin", "xmax", "ymax")
        boxes = [
            (o.findtext("name"), [round(float(o.findtext(f"bndbox/{c}"))) for c in corners])
            for o in root.iter("object")
        ]
        name, (x0, y0, x1, y1) = max(boxes, key=lambda b: (b[1][2] - b[1][0]) * (b[1][3] - b[1][1]))
        return Entry(
            f"VOC2012/JPEGImages/{number}.jpg", VOC.index(name), None, (x0 - 1, y0 - 1, x1, y1), extent
        )

    train, test = (
        [
            entry(number)
            for number, *_ in map(
                str.split, tree.read(f"VOC2012/ImageSets/Main/{part}.txt").decode().splitlines()
            )
        ]
        for part in ("train", "val")
    )
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
