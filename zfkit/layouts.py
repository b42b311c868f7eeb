"""How each set lies on disk: a folder or an archive as a tree of files, its entries, splits.

A layout is a function: tree of files -> (class names, {split: entries}). Splits made by a set's
authors are kept (the validation pictures are the test split where test labels are secret); any
other is drawn once by a fixed seed, class by class.
"""

import io
import os
import tarfile
from collections import defaultdict
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from .files import data_root

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation",
    "validation": "validation", "test": "test", "testing": "test",
}  # fmt: skip
OWN = {"train": 0.6, "validation": 0.2, "test": 0.2}  # shares of a set that comes undivided
HELD_OUT = {"train": 0.9, "validation": 0.1}
HELD_OUT_FEW = {"train": 0.95, "validation": 0.05}  # of 100,000 images
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
VOC = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
).split()


class Entry(NamedTuple):
    """One picture of a set, before it is decoded."""

    file: str
    label: int
    box: tuple | None = None  # of the object: x0, y0, x1, y1, half-open
    extent: tuple | None = None  # width, height of a picture that has a box
    present: tuple = ()  # labels of all that is seen, where that is told


def found(name: str, places) -> Path:
    """Where a set lies: the folder that folder:PATH names, or its first place under ZFKIT_DATA.

    A relative PATH is below the working folder. ValueError, which says where it looked, if
    there is none.
    """
    if name.startswith("folder:"):
        if (path := folder_of(name)).is_dir():
            return path
        raise ValueError(f"{name}: there is no folder {path}")
    wanted, root = " or ".join(places), data_root()
    if root is None:
        raise ValueError(
            f"{name}: ZFKIT_DATA is not set; it names the folder that holds {wanted}"
        )
    for path in (root / place for place in places):
        if path.exists():
            return path
    raise ValueError(f"{name}: no {wanted} in {root}, the folder that ZFKIT_DATA names")


def folder_of(name: str) -> Path:
    """The folder that folder:PATH names, whether it is there or not."""
    return Path(name.removeprefix("folder:")).expanduser().resolve()


def tree_of(path: Path) -> dict:
    """What a folder or an archive holds: name below its top -> file on disk, or bytes."""
    return _folder(path) if path.is_dir() else _archive(path, path.stat().st_mtime_ns)


def _folder(path: Path) -> dict[str, str]:
    files = sorted(
        os.path.join(base, name) for base, _, names in os.walk(path) for name in names
    )
    tree = {os.path.relpath(file, path).replace(os.sep, "/"): file for file in files}
    return {name: file for name, file in tree.items() if not _is_litter(name)}


def _is_litter(name: str) -> bool:
    """Whether a file or its folder is hidden: .ipynb_checkpoints, .DS_Store, __MACOSX."""
    parts = name.split("/")
    return "__MACOSX" in parts or any(part.startswith(".") for part in parts)


@lru_cache(maxsize=1)  # the splits of an archive share one decompression
def _archive(path: Path, time_ns: int) -> dict[str, bytes]:
    """What an archive holds below its top folder; nothing is written to the disk."""
    tree = {}
    with tarfile.open(path) as tar:
        for member in tar:
            if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
                raise ValueError(f"member {member.name!r} lies outside the archive")
            name = member.name.removeprefix("./").partition("/")[2]
            if member.isreg() and not _is_litter(member.name.removeprefix("./")):
                tree[name] = tar.extractfile(member).read()
    return tree


def read(tree: dict, file: str) -> bytes:
    """The bytes of a file of a tree."""
    return tree[file] if isinstance(tree[file], bytes) else Path(tree[file]).read_bytes()


def _lines(tree, file: str) -> list[list[str]]:
    return [line.split("\t") for line in read(tree, file).decode().splitlines() if line]


def tiny_imagenet(tree):
    """Lists of classes and boxes; a twentieth of train is held out, val is the test split."""
    names, wnids = dict(_lines(tree, "words.txt")), read(tree, "wnids.txt").decode().split()

    def entry(file, wnid, box):
        x0, y0, x1, y1 = map(int, box)  # both ends within the box
        return Entry(file, wnids.index(wnid), (x0, y0, x1 + 1, y1 + 1), (64, 64))

    boxes = {wnid: _lines(tree, f"train/{wnid}/{wnid}_boxes.txt") for wnid in wnids}
    train = [
        entry(f"train/{wnid}/images/{file}", wnid, box)
        for wnid, lines in boxes.items()
        for file, *box in lines
    ]
    lines = _lines(tree, "val/val_annotations.txt")
    test = [entry(f"val/images/{file}", wnid, box) for file, wnid, *box in lines]
    return [names[wnid] for wnid in wnids], _split(train, HELD_OUT_FEW) | _split(test)


def class_folders(tree, classes=None):
    """CLASS/picture or SPLIT/CLASS/picture; pictures outside of folders are of class "".

    SPLIT is one of SPLIT_NAMES in any case, with a train folder among them; classes that are
    called like a split stay classes. valid without test is the test split, test without valid
    leaves a tenth of train for validation. ValueError where folders of classes and of splits
    lie together.
    """
    pictures = [file for file in tree if file.lower().endswith(SUFFIXES)]
    parts = _split_folders(pictures) or {"": [(file, file) for file in pictures]}
    named = {
        split: [(file, rest.partition("/")[0] if "/" in rest else "") for file, rest in part]
        for split, part in parts.items()
    }
    classes = classes or sorted({name for part in named.values() for _, name in part})
    number = {name: k for k, name in enumerate(classes)}
    own = defaultdict(list)
    for split, part in named.items():
        own[split] = [Entry(file, number[name]) for file, name in part]
    if "" in own:
        return classes, _split(own[""], OWN)
    if own["test"] and own["validation"]:
        return classes, {
            k: v for split in own for k, v in _split(own[split], {split: 1}).items()
        }
    train = _split(own["train"], HELD_OUT)
    return classes, train | _split(own["test"] or own["validation"])


def _split_folders(pictures: list[str]) -> dict[str, list]:
    """Split -> (file, its name below the split's folder) of each picture; {}: class folders."""
    inside = [file for file in pictures if "/" in file]
    role = {
        top: SPLIT_NAMES.get(top.lower()) for top in {file.partition("/")[0] for file in inside}
    }
    train = [file for file in inside if role[file.partition("/")[0]] == "train"]
    if not (any(file.count("/") > 1 for file in train) or (train and all(role.values()))):
        return {}
    if others := sorted(top for top in role if not role[top]):
        valid = ", ".join(SPLIT_NAMES)
        raise ValueError(
            f"folder {others[0]} lies beside a train folder of classes; valid are {valid}"
        )
    parts = {split: [] for split in ("train", "validation", "test")}
    for file in inside:
        top, _, rest = file.partition("/")
        parts[role[top]].append((file, rest))
    return parts


def cifar10(tree):
    """One picture of many rows and a list of labels, binary batches, or folders of pictures."""

    def batch(file):  # a label, then three planes
        rows = np.frombuffer(read(tree, file), np.uint8).reshape(-1, 3073)
        planes = rows[:, 1:].reshape(-1, 3, 32, 32)
        return pictures(file, planes.transpose(0, 2, 3, 1), rows[:, 0])

    def pictures(file, rows, labels):  # each becomes a file below its own
        rows = np.ascontiguousarray(rows)
        tree.update({f"{file}/{k}": row for k, row in enumerate(rows)})
        return [Entry(f"{file}/{k}", int(label)) for k, label in enumerate(labels)]

    if (sheet := "cifar10_batch_0.png") in tree:  # a picture per line
        rows = np.asarray(Image.open(io.BytesIO(read(tree, sheet)))).reshape(-1, 32, 32, 3)
        labels = [k for _, k, _ in _lines(tree, "labels.tsv")[1:]]
        return CIFAR10, _split(pictures(sheet, rows, labels), OWN)
    if "test_batch.bin" in tree:
        train = [entry for k in range(1, 6) for entry in batch(f"data_batch_{k}.bin")]
        return CIFAR10, _split(train, HELD_OUT) | _split(batch("test_batch.bin"))
    return class_folders(tree, CIFAR10)


def imagenet(tree):
    """A list of files, or folders named by WordNet id; classes as in imagenet-classes.tsv."""
    path = found("ImageNet's class names", ["imagenet-classes.tsv"])
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    _, wnids, names = zip(*lines, strict=True)
    if "labels.tsv" not in tree:
        return names, class_folders(tree, wnids)[1]
    entries = [Entry(file, int(k)) for file, k, *_ in _lines(tree, "labels.tsv")[1:]]
    return names, _split(entries, OWN)


def voc2012(tree):
    """Pictures with an XML file each; the largest object gives label and box."""

    def entry(number):
        root = ElementTree.fromstring(read(tree, f"VOC2012/Annotations/{number}.xml"))
        extent = [int(root.findtext(f"size/{side}")) for side in ("width", "height")]
        objects = [(o.findtext("name"), o.find("bndbox")) for o in root.iter("object")]
        corners = ("xmin", "ymin", "xmax", "ymax")
        boxes = [[round(float(box.findtext(c))) for c in corners] for _, box in objects]
        k = np.argmax([(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes])
        x0, y0, x1, y1 = boxes[k]  # counted from 1, both ends within the box
        label, box = VOC.index(objects[k][0]), (x0 - 1, y0 - 1, x1, y1)
        seen = (
            o.findtext("name") for o in root.iter("object") if o.findtext("difficult") != "1"
        )
        present = tuple(sorted({VOC.index(what) for what in seen}))
        return Entry(f"VOC2012/JPEGImages/{number}.jpg", label, box, extent, present)

    lists = [f"VOC2012/ImageSets/Main/{part}.txt" for part in ("train", "val")]
    train, test = (list(map(entry, read(tree, file).decode().split())) for file in lists)
    return VOC, _split(train, HELD_OUT) | _split(test)


def _split(entries: list[Entry], shares=None) -> dict[str, list[Entry]]:
    """The entries by split, in an order of which every first part holds all classes evenly.

    Each class is spread over 0..1 by its own fixed seed, one entry per 1/n; the shares
    (default: all test) cut there.
    """
    shares, members, placed = shares or {"test": 1}, defaultdict(list), []
    for entry in entries:
        members[entry.label].append(entry)
    for label, part in sorted(members.items()):
        draw = np.random.default_rng([2013, label])
        spots = (draw.permutation(len(part)) + draw.random(len(part))) / len(part)
        placed += zip(spots, part, strict=True)
    placed.sort(key=lambda pair: pair[0])
    ends = np.cumsum([*shares.values()])[:-1]
    cuts = [0, *np.searchsorted([spot for spot, _ in placed], ends), len(placed)]
    pairs = zip(shares, cuts, cuts[1:], strict=False)
    return {split: [entry for _, entry in placed[a:b]] for split, a, b in pairs}
