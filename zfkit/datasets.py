"""Images by name: the rendered menagerie, and photographs in archives or folders of ZFKIT_DATA.

An archive (tar, tar.xz, tar.gz) is read as it is, a folder of its layout likewise; nothing in
it is executed.
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .files import cache_dir
from .layouts import (
    cifar10,
    class_folders,
    folder_of,
    found,
    imagenet,
    tiny_imagenet,
    tree_of,
    voc2012,
)
from .pictures import decoded, one_line, picture, scaled, stamp

MENAGERIE = {"menagerie": "standard", "menagerie-hard": "hard"}  # name -> level
# the menagerie's splits: seed, images
SEEDS = {"train": (1, 4000), "validation": (3, 800), "test": (2, 800)}
SPLITS = ("train", "validation", "test", "all")
ONE_SOURCE = ("tiny-imagenet", "tiny-imagenet-100", "imagenet")  # of which the first are parts
BOXED = ("tiny-imagenet", "tiny-imagenet-100", "voc2012")


class Images(NamedTuple):
    """Images of a split with their labels and the names of the classes."""

    images: np.ndarray  # uint8 (N, H, W, 3), possibly memory-mapped
    labels: np.ndarray  # int64 (N,)
    classes: tuple[str, ...]  # one name per label


def warm():
    """Draw and keep the test pictures that chapters take: then none waits or shows a bar."""
    load_scenes("menagerie", "test", 80)  # and what is true of them
    load_images("menagerie", "test", 88)


def load_images(name: str, split="test", size=None, limit=None) -> Images:
    """Images, labels and class names of a set of DATASETS, or of folder:PATH.

    PATH holds pictures, CLASS/picture or SPLIT/CLASS/picture; it is relative to the working
    folder. A small set gives what there is: its number is len(images), whatever the limit.

    split: train, validation or test; photographs also have all. limit: the first so many,
    classes taken in turn. size: side in pixels; photographs: short side resized (bilinear,
    antialiased), centre cut out, grey made RGB. None is the set's own size. ValueError: unknown
    names and values, a set that is not there, a damaged archive, a file that is no picture or
    has an alpha channel; nothing half-written stays.
    """
    _check(name, split, size, limit)
    if name in MENAGERIE:
        from .menagerie import NAMES, cached

        seed, count = SEEDS[split]
        images, labels = cached(seed, min(count, limit or count), size or 80, MENAGERIE[name])
        return Images(images, np.asarray(labels, np.int64), tuple(NAMES))
    path, tree, own_size, classes, entries = _listed(name, split)
    side, label = size or own_size, re.sub(r"[^\w-]+", "-", name)[-40:]
    kept = cache_dir() / f"images-{label}-{split}-{side}-{stamp(path, tree, entries)}.npy"
    labels = np.array([entry.label for entry in entries[:limit]], np.int64)
    return Images(decoded(path, tree, entries, side, limit, kept), labels, tuple(classes))


def load_image(path, size=None) -> np.ndarray:
    """A picture file of your own, checked as those of a set: uint8 (size, size, 3), upright.

    size: short side resized to it (bilinear, antialiased), centre cut out; None: the whole
    picture, (H, W, 3). A relative path is below the working folder. ValueError, one line: no
    such file, no picture (of JPEG, PNG, BMP, WebP, PPM), an alpha channel, a bad size.

    >>> load_image("~/photos/dog.jpg", 80).shape
    (80, 80, 3)
    """
    _check_size(size)
    file = Path(path).expanduser().resolve()
    try:
        return picture(file.read_bytes(), size)
    except Exception as error:  # whatever a damaged picture makes Pillow raise
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ValueError(f"{file} is no usable picture: {reason}") from error


def load_boxes(name: str, split="test", size=None, limit=None) -> np.ndarray:
    """Object boxes, int64 (N, 4) of x0, y0, x1, y1, of the images that `load_images` gives.

    Pixels of the cut image, half-open as slices and clipped to it (a box that was cut away is
    empty). voc2012: the largest object, whose class is the label. ValueError as `load_images`,
    and for a set without boxes.
    """
    _check(name, split, size, limit)
    if name not in BOXED:
        raise ValueError(f"data set {name!r} has no boxes; valid are {', '.join(BOXED)}")
    *_, own_size, _, entries = _listed(name, split)
    extent, box = (
        np.array([getattr(entry, key) for entry in entries[:limit]], float)
        for key in ("extent", "box")
    )
    side = size or own_size
    resized = np.array([scaled(pair, side) for pair in extent])
    ratio, cut = resized / extent, (resized - side) // 2
    corners = np.floor(box[:, :2] * ratio), np.ceil(box[:, 2:] * ratio)
    return np.hstack([np.clip(corner - cut, 0, side) for corner in corners]).astype(np.int64)


def load_presence(name: str, split="test", limit=None) -> np.ndarray:
    """Which classes are seen in the images that `load_images` gives: bool (N, classes).

    Only voc2012 names several; objects that its authors call difficult do not count. ValueError
    as `load_images`, and for sets with one class a picture.
    """
    _check(name, split, None, limit)
    if name != "voc2012":
        raise ValueError(f"data set {name!r} has one class a picture; valid is voc2012")
    *_, classes, entries = _listed(name, split)
    seen = [np.isin(range(len(classes)), entry.present) for entry in entries[:limit]]
    return np.array(seen)


def file_names(name: str, split="test", limit=None) -> list[str]:
    """The files, below the set's top folder, of the images that `load_images` gives.

    For what is known of a picture by its name. ValueError as `load_images`, and for a
    menagerie: it has no files.
    """
    _check(name, split, None, limit)
    if name in MENAGERIE:
        raise ValueError(f"data set {name!r} is drawn, it has no files; valid are photographs")
    return [entry.file for entry in _listed(name, split)[-1][:limit]]


def load_scenes(name: str, split="test", size=None, limit=None) -> list:
    """The menagerie's scenes whose images `load_images` gives for the same arguments: a list.

    Each is a `menagerie.Scene`: image, part map, masks, keypoints, pose; its arrays are
    read-only. Drawn once, then read from the cache. ValueError for a set that is no menagerie.

    >>> load_scenes("menagerie", limit=1)[0].keypoints["nose"]  # x, y, seen
    """
    _check(name, split, size, limit)
    if name not in MENAGERIE:
        raise ValueError(f"data set {name!r} has no scenes; valid are {', '.join(MENAGERIE)}")
    from .menagerie import cached_scenes

    seed, count = SEEDS[split]
    return cached_scenes(seed, min(count, limit or count), size or 80, MENAGERIE[name])


def load_masks(name: str, split="test", size=None, limit=None) -> np.ndarray:
    """Where the object is in the images that `load_images` gives: bool (N, size, size).

    The menagerie: the object's visible pixels; sets with boxes: the box. ValueError for a set
    that knows neither.
    """
    if name in MENAGERIE:
        return np.stack([scene.visible for scene in load_scenes(name, split, size, limit)])
    if name not in BOXED:
        valid = ", ".join([*MENAGERIE, *BOXED])
        raise ValueError(f"data set {name!r} has neither masks nor boxes; valid are {valid}")
    x0, y0, x1, y1 = load_boxes(name, split, size, limit).T[:, :, None]
    rows = cols = np.arange(size or DATASETS[name][2])
    inside = (rows >= y0) & (rows < y1), (cols >= x0) & (cols < x1)
    return inside[0][:, :, None] & inside[1][:, None, :]


def unseen(card, name: str) -> str:
    """The split of a set to show a network on: "test" where it trained on that set, else "all".

    card: a network's card; its record says what it trained on. The two Tiny ImageNets and
    ImageNet count as one set: their training pictures are the same. "test" also for a
    menagerie, which has no "all", and where the record does not say what the network saw.
    imagenet-samples has no split that is sure to be unseen by a network of ImageNet.
    ValueError: a set that there is not.

    >>> _, card = zfkit.load_network("zfnet-photos")
    >>> unseen(card, "tiny-imagenet-100"), unseen(card, "caltech101")
    ('test', 'all')
    """
    _check(name, "test", None, None)
    record = card.record or {}
    trained_on = record.get("config", {}).get("dataset")
    if trained_on is None and "source" in record:  # weights that others trained
        trained_on = "imagenet"
    if name in MENAGERIE or trained_on is None or _same_pictures(name, trained_on):
        return "test"
    return "all"


def _same_pictures(name: str, other: str) -> bool:
    if name.startswith("folder:") and other.startswith("folder:"):
        return folder_of(name) == folder_of(other)
    return name == other or {name, other} <= set(ONE_SOURCE)


def labels_for(card, classes, labels) -> np.ndarray:
    """Labels of a set as class numbers of a network, by name: int64 (N,), -1 for none.

    classes, labels: as `load_images` gives them. Names are compared as they are, then without
    case and with _ and - as spaces, then by their first synonym (up to a comma); where the
    network has several classes of that name, the one of the same number, else -1. ValueError: a
    label that is no number of a class.

    >>> _, card = zfkit.load_network("zfnet-menagerie")  # dog, cat, rabbit, ...
    >>> labels_for(card, ("Cat, house cat", "tapir"), [0, 1, 0])
    array([ 1, -1,  1])
    """
    labels = np.asarray(labels, np.int64)
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        raise ValueError(
            f"labels from {labels.min()} to {labels.max()}: valid are 0 to {len(classes) - 1}"
        )
    numbers = np.full(len(classes), -1, np.int64)
    for as_written in (_first_synonym, _plain, str):  # the closest last: it has the last word
        places = defaultdict(list)
        for number, known in enumerate(card.classes):
            places[as_written(known)].append(number)
        for label, name in enumerate(classes):
            if hits := places[as_written(name)]:
                alone = hits[0] if len(hits) == 1 else -1
                numbers[label] = label if label in hits else alone
    return numbers[labels]


def _plain(name: str) -> str:
    return " ".join(re.sub(r"[_-]", " ", name.casefold()).split())


def _first_synonym(name: str) -> str:
    return _plain(name.partition(",")[0])


def _check(name, split, size, limit) -> None:
    if name not in DATASETS and not str(name).startswith("folder:"):
        raise ValueError(f"data set {name!r}: valid are {', '.join(DATASETS)}, folder:PATH")
    splits = tuple(SEEDS) if name in MENAGERIE else SPLITS
    if split not in splits:
        raise ValueError(f"split {split!r} of {name}: valid are {', '.join(splits)}")
    _check_size(size)
    _check_size(limit, "limit", 2**31)


def _check_size(value, what="size", most=4096) -> None:
    if value is not None and not (isinstance(value, int | np.integer) and 1 <= value <= most):
        raise ValueError(f"{what} {value!r}: valid are None and whole numbers from 1 to {most}")


def _listed(name: str, split: str):
    """(path, its files by name, the set's own size, class names, entries of the split)."""
    places, layout, size = DATASETS.get(name) or ((), class_folders, 224)
    path = found(name, places)
    try:
        tree = tree_of(path)
        classes, parts = layout(tree)
        entries = [
            entry for key, part in parts.items() if split in (key, "all") for entry in part
        ]
        for entry in entries:
            if entry.file not in tree or not 0 <= entry.label < len(classes):
                raise ValueError(
                    f"{entry.file} with label {entry.label} is missing or out of range"
                )
    except Exception as error:  # many kinds: tar, xz, text, XML, numbers, missing files
        raise ValueError(
            f"{name}: {path} is damaged or laid out otherwise: {one_line(error)}"
        ) from error
    if not entries:
        raise ValueError(f"{name}: no picture for split {split} in {path}")
    return path, tree, size, classes, entries


# name -> where under ZFKIT_DATA (the first that is there), how it is laid out, its own size
DATASETS = {
    "menagerie": ((), None, 80),
    "menagerie-hard": ((), None, 80),
    "cifar10": (("cifar10", "cifar-10-batches-bin", "cifar-10-binary.tar.gz",
                 "cifar10-subset-1000", "cifar10-subset-1000.tar"), cifar10, 32),
    "tiny-imagenet": (("tiny-imagenet-200", "tiny-imagenet-200.tar"), tiny_imagenet, 64),
    "tiny-imagenet-100": (("tiny-imagenet-100", "tiny-imagenet-100.tar.xz"), tiny_imagenet, 64),
    "caltech101": (("101_ObjectCategories", "caltech101/101_ObjectCategories",
                    "101_ObjectCategories.tar.gz", "caltech101-small.tar.xz"),
                   class_folders, 128),
    "caltech256": (("256_ObjectCategories",), class_folders, 128),
    "imagenet-samples": (("imagenet-samples", "imagenet-samples.tar"), imagenet, 256),
    "imagenet-val-samples": (("imagenet-val-samples", "imagenet-val-samples.tar"),
                             imagenet, 227),
    "voc2012": (("VOCdevkit",), voc2012, 256),
    "imagenet": (("imagenet",), imagenet, 256),
}  # fmt: skip
