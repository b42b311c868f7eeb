"""Data sets by name: every layout as a small made-up folder or archive, bad input, and the real archives."""

import io
import os
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import zfkit
from zfkit import datasets, files, layouts
from zfkit.datasets import (
    labels_for,
    load_boxes,
    load_image,
    load_images,
    load_masks,
    load_presence,
    load_scenes,
    unseen,
)

REAL = os.environ.get("ZFKIT_DATA")
needs_data = pytest.mark.skipif(not REAL, reason="ZFKIT_DATA is not set: the real archives are not tested")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("ZFKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ZFKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def picture(path, size=(40, 30), seed=0, mode="RGB", **options):
    """A noise picture, so that no two are alike; its pixels are returned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    depth = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,), "CMYK": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], *depth), dtype=np.uint8)
    Image.fromarray(pixels, mode=mode if mode in ("LA", "CMYK") else None).save(path, **options)
    return pixels


def packed(root, folder, name, mode="w"):
    with tarfile.open(root / name, mode) as tar:
        tar.add(root / folder, folder)
    (root / folder).rename(root / f"was-{folder}")


def tiny_imagenet(root, folder="tiny-imagenet-100"):
    base, wnids = root / folder, ("n02", "n01", "n03")  # not in order of name
    for label, wnid in enumerate(wnids):
        for k in range(20):
            picture(base / f"train/{wnid}/images/{wnid}_{k}.JPEG", (64, 64), 100 * label + k)
        lines = [f"{wnid}_{k}.JPEG\t{k}\t2\t30\t50\n" for k in range(20)]
        (base / f"train/{wnid}/{wnid}_boxes.txt").write_text("".join(lines))
        picture(base / f"val/images/val_{label}.JPEG", (64, 64), 900 + label, mode="L")
    (base / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (base / "words.txt").write_text("n01\tone\nn02\ttwo\nn03\tthree\nn99\tanother\n")
    (base / "val/val_annotations.txt").write_text(
        "".join(f"val_{k}.JPEG\t{w}\t0\t32\t44\t62\n" for k, w in enumerate(wnids))
    )
    return base


def class_folders(base, classes=("ant", "bee"), count=10, **options):
    for label, name in enumerate(classes):
        for k in range(count):
            picture(base / name / f"image_{k:04}.png", seed=100 * label + k, **options)
    return base


def test_tiny_imagenet_from_folder_and_archive_alike(root):
    base = tiny_imagenet(root)
    folder = {split: load_images("tiny-imagenet-100", split) for split in ("train", "validation", "test", "all")}
    assert [len(part.images) for part in folder.values()] == [57, 3, 3, 63]
    assert folder["test"].classes == ("two", "one", "three")  # the order of wnids.txt
    assert sorted(folder["test"].labels) == [0, 1, 2] and folder["test"].labels.dtype == np.int64
    grey = folder["test"].images[np.argsort(folder["test"].labels)]
    assert grey.shape == (3, 64, 64, 3) and (grey == grey[..., :1]).all()
    expected = np.asarray(Image.open(base / "val/images/val_1.JPEG").convert("RGB"))
    assert np.array_equal(grey[1], expected)
    packed(root, base.name, "tiny-imagenet-100.tar.xz", "w:xz")
    for split, part in folder.items():
        again = load_images("tiny-imagenet-100", split)
        assert np.array_equal(part.images, again.images) and part.labels.tolist() == again.labels.tolist()


def test_boxes_follow_the_resizing(root):
    tiny_imagenet(root, "tiny-imagenet-200")
    assert load_boxes("tiny-imagenet").tolist() == [[0, 32, 45, 63]] * 3  # both ends of the list are inside
    assert load_boxes("tiny-imagenet", size=32, limit=2).tolist() == [[0, 16, 23, 32]] * 2
    for split in ("train", "validation"):
        assert len(load_boxes("tiny-imagenet", split)) == len(load_images("tiny-imagenet", split).images)


def voc(root):
    base = root / "VOCdevkit/VOC2012"
    sides = "<size><width>40</width><height>20</height></size>"
    item = "<bndbox><xmax>{}</xmax><xmin>{}</xmin><ymin>{}</ymin><ymax>{}</ymax></bndbox>"
    item = f"<object><name>{{}}</name>{item}</object>"
    for k in range(13):
        picture(base / f"JPEGImages/2007_{k}.jpg", (40, 20), k)
        (base / "Annotations").mkdir(exist_ok=True)
        objects = item.format("cat", 4, 2, 1, 3) + item.format("dog", 30, 12, 4, 18)
        (base / f"Annotations/2007_{k}.xml").write_text(f"<annotation>{sides}{objects}</annotation>")
    (base / "ImageSets/Main").mkdir(parents=True)
    (base / "ImageSets/Main/train.txt").write_text("".join(f"2007_{k}\n" for k in range(12)))
    (base / "ImageSets/Main/val.txt").write_text("2007_12\n")
    return base


def test_voc_labels_and_boxes_are_those_of_the_largest_object(root):
    base = voc(root)
    found = load_images("voc2012", "test", size=10)
    assert found.classes[found.labels[0]] == "dog" and len(found.classes) == 20
    # 40 x 20 becomes 20 x 10, of which columns 5..15 stay: x 11..30 -> 5..15 -> 0..10, y 3..18 -> 1..9
    assert load_boxes("voc2012", "test", size=10).tolist() == [[0, 1, 10, 9]]
    whole = Image.open(base / "JPEGImages/2007_12.jpg").resize((20, 10), Image.Resampling.BILINEAR)
    assert np.array_equal(found.images[0], np.asarray(whole)[:, 5:15])
    assert sum(len(load_images("voc2012", split, size=10).images) for split in ("train", "validation")) == 12


def test_voc_says_all_that_is_seen_but_what_is_difficult(root):
    base = voc(root)
    hard = "<object><name>sheep</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>1</ymin>"
    hard += "<xmax>3</xmax><ymax>3</ymax></bndbox></object></annotation>"
    path = base / "Annotations/2007_12.xml"
    path.write_text(path.read_text().replace("</annotation>", hard))
    found, classes = load_presence("voc2012", "test"), load_images("voc2012", "test", size=10).classes
    assert found.shape == (1, 20) and [classes[k] for k in np.flatnonzero(found[0])] == ["cat", "dog"]
    assert load_presence("voc2012", "all", limit=5).shape == (5, 20)
    with pytest.raises(ValueError, match="'menagerie' has one class a picture; valid is voc2012"):
        load_presence("menagerie")


def test_caltech256_lies_in_numbered_folders(root):
    class_folders(root / "256_ObjectCategories", ("001.ak47", "002.american-flag", "257.clutter"), count=5)
    found = load_images("caltech256", "all", size=24)
    assert found.classes == ("001.ak47", "002.american-flag", "257.clutter")
    assert np.bincount(found.labels).tolist() == [5, 5, 5] and found.images.shape == (15, 24, 24, 3)


def test_class_folders_divide_once_and_class_by_class(root):
    class_folders(root / "101_ObjectCategories", count=20)
    parts = {split: load_images("caltech101", split, size=24) for split in ("train", "validation", "test")}
    whole = load_images("caltech101", "all", size=24)
    assert [np.bincount(part.labels).tolist() for part in parts.values()] == [[12, 12], [4, 4], [4, 4]]
    turns = parts["train"].labels.reshape(12, 2)
    assert (turns.sum(1) == 1).all() and turns[:, 0].std() > 0  # every first part holds both classes
    rows = {part.images[k].tobytes() for part in parts.values() for k in range(len(part.images))}
    assert len(rows) == 40 == len(whole.images)  # disjoint, and together everything


def test_resizing_takes_the_short_side_and_the_centre(root):
    pixels = picture(root / "own/a.png", (60, 31))
    square = load_images(f"folder:{root / 'own'}", "all", size=31)
    assert square.classes == ("",) and np.array_equal(square.images[0], pixels[:, 14:45])
    tall = picture(root / "tall/a.png", (20, 50))
    assert np.array_equal(load_images(f"folder:{root / 'tall'}", "all", size=20).images[0], tall[15:35])
    flat = np.full((64, 64), 77, np.uint8)
    Image.fromarray(flat).save(root / "tall/a.png")
    assert (load_images(f"folder:{root / 'tall'}", "all", size=9).images == 77).all()


def test_folder_with_splits_keeps_them(root):
    for split, count in (("train", 10), ("val", 3), ("test", 2)):
        class_folders(root / "own" / split, count=count, size=(8, 8))
    name = f"folder:{root / 'own'}"
    assert [len(load_images(name, split, 8).images) for split in ("train", "validation", "test")] == [20, 6, 4]
    for path in (root / "own/test").rglob("*.png"):
        path.unlink()
    assert [len(load_images(name, split, 8).images) for split in ("train", "validation", "test")] == [18, 2, 6]


def cifar_rows(seed, count):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def test_cifar10_in_its_three_forms(root):
    rows = cifar_rows(0, 20)
    subset = root / "cifar10-subset-1000"
    subset.mkdir()
    Image.fromarray(rows.reshape(20, 1024, 3)).save(subset / "cifar10_batch_0.png")
    lines = [f"{k}\t{k % 10}\tname\n" for k in range(20)]
    (subset / "labels.tsv").write_text("index\tclass_index\tname\n" + "".join(lines))
    packed(root, subset.name, "cifar10-subset-1000.tar")
    whole = load_images("cifar10", "all")
    assert sorted(whole.labels) == sorted([*range(10)] * 2) and whole.classes[6] == "frog"
    assert {i.tobytes() for i in whole.images} == {i.tobytes() for i in rows}
    matched = [np.flatnonzero((rows == image).all((1, 2, 3)))[0] % 10 for image in whole.images]
    assert matched == whole.labels.tolist()

    binary = root / "cifar-10-batches-bin"
    binary.mkdir()
    for number, file in enumerate(["test_batch.bin", *(f"data_batch_{k}.bin" for k in range(1, 6))]):
        planes = cifar_rows(number, 10).transpose(0, 3, 1, 2).reshape(10, -1)
        np.hstack([np.arange(10, dtype=np.uint8)[:, None], planes]).tofile(binary / file)
    test = load_images("cifar10", "test")
    assert np.array_equal(test.images, cifar_rows(0, 10)[test.labels])
    assert len(load_images("cifar10", "train").images) + len(load_images("cifar10", "validation").images) == 50

    class_folders(root / "cifar10/train", layouts.CIFAR10, 2, size=(32, 32))
    class_folders(root / "cifar10/test", layouts.CIFAR10, 1, size=(32, 32))
    assert sorted(load_images("cifar10", "test").labels) == list(range(10))


def classes_file(root):
    (root / "imagenet-classes.tsv").write_text("".join(f"{k}\tn{k:08}\tthing {k}\n" for k in range(1000)))


def test_imagenet_labels_are_positions_in_the_list_of_1000(root):
    classes_file(root)
    for wnid in ("n00000700", "n00000003"):
        picture(root / f"imagenet/train/{wnid}/{wnid}_1.JPEG")
        picture(root / f"imagenet/val/{wnid}/x.JPEG", mode="CMYK")
        picture(root / f"imagenet-samples/{wnid}_a.JPEG")
    lines = "file\tclass_index\twnid\tname\nn00000700_a.JPEG\t700\tn\tx\nn00000003_a.JPEG\t3\tn\tx\n"
    (root / "imagenet-samples/labels.tsv").write_text(lines)
    for name, split in (("imagenet", "test"), ("imagenet-samples", "all")):
        found = load_images(name, split, size=16)
        assert sorted(found.labels) == [3, 700] and found.classes[700] == "thing 700" and len(found.classes) == 1000


def test_limit_is_a_prefix_and_is_not_cached(root, tmp_path):
    class_folders(root / "101_ObjectCategories")
    first = load_images("caltech101", "train", limit=5, size=16)
    assert len(first.images) == len(first.labels) == 5 and not list((tmp_path / "cache").glob("images*"))
    whole = load_images("caltech101", "train", size=16)
    assert np.array_equal(first.images, whole.images[:5]) and isinstance(whole.images, np.memmap)
    again = load_images("caltech101", "train", limit=5, size=16)
    assert isinstance(again.images, np.memmap) and np.array_equal(again.images, first.images)
    assert not list((tmp_path / "cache").glob("*.part"))


def test_a_changed_picture_or_a_cut_cache_is_decoded_anew(root, tmp_path):
    base = class_folders(root / "101_ObjectCategories")
    before = np.array(load_images("caltech101", "all", size=16).images)
    new = picture(base / "ant/image_0000.png", (16, 16), seed=77)
    after = np.array(load_images("caltech101", "all", size=16).images)
    assert any(np.array_equal(image, new) for image in after) and not np.array_equal(before, after)
    kept = max((tmp_path / "cache").glob("images*.npy"), key=lambda path: path.stat().st_mtime_ns)
    whole, other = kept.read_bytes(), io.BytesIO()
    np.save(other, after[:3])
    for damaged in (whole[:-100], whole[:20], b"not an array", other.getvalue()):
        kept.write_bytes(damaged)
        assert np.array_equal(load_images("caltech101", "all", size=16).images, after)
        assert kept.read_bytes() == whole


def refused(words, name, *arguments, load=load_images, **options):
    with pytest.raises(ValueError) as caught:
        load(name, *arguments, **options)
    said = str(caught.value)
    assert "\n" not in said and all(word in said for word in words), said
    kept = files.cache_dir()
    assert not (kept.exists() and [*kept.glob("images-*"), *kept.glob("*.part")])  # nothing half-written


def test_unknown_names_and_values(root):
    refused(["'mnist'", "menagerie", "caltech101", "folder:PATH"], "mnist")
    refused(["'val'", "train, validation, test, all"], "caltech101", "val")
    refused(["'all'", "train, validation, test"], "menagerie", "all")
    refused(["size 0"], "caltech101", size=0)
    refused(["size 64.0"], "caltech101", size=64.0)
    refused(["limit -1"], "caltech101", limit=-1)
    refused(["caltech101", "no boxes", "voc2012"], "caltech101", load=load_boxes)


def test_a_set_that_is_not_there(root, monkeypatch):
    refused(["101_ObjectCategories", "caltech101-small.tar.xz", str(root), "ZFKIT_DATA"], "caltech101")
    refused(["no folder", "/no/such"], "folder:/no/such")
    (root / "empty").mkdir()
    refused(["no picture for split test", "empty"], f"folder:{root / 'empty'}")
    monkeypatch.delenv("ZFKIT_DATA")
    refused(["ZFKIT_DATA is not set", "VOCdevkit"], "voc2012")


@pytest.mark.parametrize("mode, size", [("RGBA", (9, 9)), ("LA", (9, 9))])
def test_an_alpha_channel_is_refused_by_file_name(root, mode, size):
    picture(root / "own/c/see through.png", size, mode=mode)
    refused(["see through.png", "alpha", "RGB and grey"], f"folder:{root / 'own'}", "all")


def lying(path, orientation):
    """A JPEG of four grey quarters, stored turned, that its EXIF orientation sets upright."""
    quarters = np.kron([[0, 80], [160, 240]], np.ones((32, 32))).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(quarters).save(path, exif=exif, quality=95)
    return quarters


# what a viewer has to do to the stored rows, after the EXIF standard's table of orientations
UPRIGHT = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.T, 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].T, 8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_phone_photographs_stand_upright(root, orientation):
    stored = lying(root / "own/c/0.jpg", orientation)
    image = load_images(f"folder:{root / 'own'}", "all", size=64).images[0]
    assert abs(image[..., 0].astype(int) - UPRIGHT[orientation](stored)).mean() < 2
    assert np.array_equal(load_image(root / "own/c/0.jpg", 64), image)


def test_pictures_with_boxes_stay_as_their_boxes_count(root):
    base = tiny_imagenet(root)
    stored = lying(base / "val/images/val_0.JPEG", 6)
    images, labels, _ = load_images("tiny-imagenet-100")
    assert abs(images[labels == 0][0][..., 0].astype(int) - stored).mean() < 2


def test_a_picture_of_ones_own_is_checked_as_those_of_a_set(root, monkeypatch):
    pixels = picture(root / "own/c/a.png", (40, 30))
    assert np.array_equal(load_image(root / "own/c/a.png"), pixels)
    square = load_image(root / "own/c/a.png", 24)
    assert np.array_equal(square, load_images(f"folder:{root / 'own'}", "all", size=24).images[0])
    assert square.dtype == np.uint8 and square.flags.writeable
    shutil.rmtree(files.cache_dir())
    monkeypatch.chdir(root / "own")
    assert np.array_equal(load_image("c/a.png"), pixels)
    picture(root / "own/c/clear.png", mode="RGBA")
    (root / "own/poem.jpg").write_text("roses are red")
    for path, words in {
        "c/clear.png": ["clear.png", "alpha", "RGB and grey"],
        "poem.jpg": ["poem.jpg", "no usable picture"],
        "none.jpg": [str(root.resolve() / "own/none.jpg"), "No such file"],
        "c": ["own/c", "directory"],
    }.items():
        refused(words, path, load=load_image)
    refused(["size 0", "4096"], "c/a.png", 0, load=load_image)


def test_a_palette_with_a_transparent_colour_is_refused(root):
    (root / "own").mkdir()
    colours = Image.fromarray(np.zeros((9, 9), np.uint8)).convert("P")
    colours.save(root / "own/a.png")
    assert load_images(f"folder:{root / 'own'}", "all", size=9).images.shape == (1, 9, 9, 3)
    shutil.rmtree(files.cache_dir())
    colours.save(root / "own/a.png", transparency=0)
    refused(["a.png", "alpha"], f"folder:{root / 'own'}", "all")


def test_pictures_that_are_none(root):
    picture(root / "own/c/a.jpg")
    (root / "own/c/b.jpg").write_text("a poem")
    (root / "own/c/notes.txt").write_text("not a picture, and not taken for one")
    refused(["own: c/b.jpg"], f"folder:{root / 'own'}", "all")
    (root / "own/c/b.jpg").write_bytes((root / "own/c/a.jpg").read_bytes()[:500])
    refused(["own: c/b.jpg", "runcated"], f"folder:{root / 'own'}", "all")
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(root / "own/c/b.png")
    (root / "own/c/b.jpg").unlink()
    refused(["b.png", "I;16"], f"folder:{root / 'own'}", "all")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("suffix, mode", [("tar.xz", "w:xz"), ("tar.gz", "w:gz"), ("tar", "w")])
def test_a_truncated_archive_is_refused(root, monkeypatch, share, suffix, mode):
    base = tiny_imagenet(root)
    packed(root, base.name, f"tiny-imagenet-100.{suffix}", mode)
    places, layout, size = datasets.DATASETS["tiny-imagenet-100"]
    monkeypatch.setitem(datasets.DATASETS, "tiny-imagenet-100", ([f"tiny-imagenet-100.{suffix}"], layout, size))
    path = root / f"tiny-imagenet-100.{suffix}"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(["tiny-imagenet-100", path.name, "damaged"], "tiny-imagenet-100", "train")


@pytest.mark.parametrize("member", ["/etc/evil.png", "../evil.png", "set/../../evil.png"])
def test_members_outside_of_the_archive_are_refused(root, member):
    classes_file(root)
    with tarfile.open(root / "imagenet-samples.tar", "w") as tar:
        for name, data in ((member, b"x"), ("imagenet-samples/labels.tsv", b"file\n")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    refused([member, "outside", "imagenet-samples.tar"], "imagenet-samples", "all")


def test_a_list_that_names_what_is_not_there(root):
    base = tiny_imagenet(root)
    (base / "val/images/val_1.JPEG").unlink()
    refused(["val/images/val_1.JPEG", "missing"], "tiny-imagenet-100")
    (base / "wnids.txt").write_text("n77\n")
    refused(["tiny-imagenet-100", "n77"], "tiny-imagenet-100")


def test_a_full_disk_is_named_before_work_starts(root, monkeypatch):
    class_folders(root / "101_ObjectCategories", count=2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: os.terminal_size((0, 0)) and type("U", (), {"free": 10}))
    refused(["free on its disk"], "caltech101", "all", size=16)


def test_menagerie_by_name(root):
    images, labels, classes = load_images("menagerie", "validation", size=32, limit=20)
    assert images.shape == (20, 32, 32, 3) and images.dtype == np.uint8 and len(classes) == 16
    assert labels.tolist() == [k % 16 for k in range(20)] and labels.dtype == np.int64
    other = load_images("menagerie", "test", size=32, limit=20).images
    assert not np.array_equal(images, other)
    assert load_images("menagerie", "test", limit=1).images.shape == (1, 80, 80, 3)


@needs_data
def test_the_real_archives(monkeypatch, tmp_path):
    monkeypatch.setenv("ZFKIT_CACHE", str(tmp_path))
    sizes = {"cifar10": (1000, 32), "imagenet-samples": (210, 256), "imagenet-val-samples": (300, 227)}
    if any((files.data_root() / f"{name}.tar").is_file() for name in ("imagenet-samples",)):
        for name, (count, side) in sizes.items():
            found = load_images(name, "all")
            assert found.images.shape == (count, side, side, 3) and found.labels.max() < len(found.classes)
            assert 60 < found.images.mean() < 180 and found.images.std() > 40
    samples = load_images("imagenet-samples", "all", size=32)
    names = [samples.classes[label] for label in samples.labels]
    assert all(any(word in name for name in names) for word in ("Pomeranian", "car wheel", "Afghan hound"))
    assert np.array_equal(
        np.sort(load_images("cifar10", "all").labels),
        np.sort(np.repeat(range(10), [102, 112, 99, 92, 99, 85, 107, 102, 99, 103])),
    )


@needs_data
def test_the_real_tiny_imagenet_100(monkeypatch, tmp_path):
    monkeypatch.setenv("ZFKIT_CACHE", str(tmp_path))
    found, boxes = load_images("tiny-imagenet-100", limit=150), load_boxes("tiny-imagenet-100", limit=150)
    assert found.images.shape == (150, 64, 64, 3) and len(found.classes) == 100
    assert sorted(found.labels[:100]) == list(range(100)) and "lemon" in found.classes
    assert (boxes[:, :2] < boxes[:, 2:]).all() and boxes.min() >= 0 and boxes.max() == 64
    assert np.bincount(load_images("tiny-imagenet-100", "train", limit=1000).labels).tolist() == [10] * 100


def test_scenes_and_masks_belong_to_the_images():
    images = load_images("menagerie", "validation", 64, 4).images
    scenes = load_scenes("menagerie", "validation", 64, 4)
    assert all((scene.image == image).all() for scene, image in zip(scenes, images, strict=True))
    masks = load_masks("menagerie", "validation", 64, 4)
    assert masks.dtype == bool and masks.shape == (4, 64, 64) and (masks == [scene.visible for scene in scenes]).all()


def test_sets_without_scenes_or_masks_are_refused(root):
    for load in (load_scenes, load_masks):
        refused(["caltech101", "menagerie"], "caltech101", load=load)


def test_boxes_stand_in_for_masks(monkeypatch):
    boxes = np.array([[0, 32, 45, 63], [5, 5, 5, 9]])
    monkeypatch.setattr("zfkit.datasets.load_boxes", lambda *_: boxes)
    masks = load_masks("tiny-imagenet", "test")
    assert masks.shape == (2, 64, 64) and masks[0, 32:63, :45].all() and masks[0].sum() == 45 * 31
    assert not masks[1].any()


def card_of(*classes, **record):
    return SimpleNamespace(classes=classes, record=record)


def trained(name):
    return card_of(config=dict(dataset=name))


FOREIGN = card_of(source="https://example.org/weights.pth", config=dict(size=224))


@pytest.mark.parametrize(
    "card, name, split",
    [
        (trained("menagerie"), "menagerie", "test"),
        (trained("menagerie"), "menagerie-hard", "test"),  # which has no "all"
        (trained("menagerie"), "caltech101", "all"),
        (trained("menagerie"), "tiny-imagenet", "all"),
        (trained("tiny-imagenet"), "menagerie", "test"),
        (trained("tiny-imagenet"), "tiny-imagenet", "test"),
        (trained("tiny-imagenet"), "tiny-imagenet-100", "test"),  # a part of it
        (trained("tiny-imagenet-100"), "tiny-imagenet", "test"),
        (trained("tiny-imagenet"), "imagenet", "test"),
        (trained("tiny-imagenet"), "cifar10", "all"),
        (trained("cifar10"), "cifar10", "test"),
        (FOREIGN, "tiny-imagenet", "test"),
        (FOREIGN, "imagenet", "test"),
        (FOREIGN, "imagenet-val-samples", "all"),
        (FOREIGN, "voc2012", "all"),
        (card_of(), "caltech101", "test"),  # nobody knows
    ],
)
def test_unseen_is_the_split_that_the_training_left(card, name, split):
    assert unseen(card, name) == split


def test_unseen_of_folders(root, monkeypatch):
    for name in ("one", "two"):
        picture(root / name / "c" / "a.png")
    monkeypatch.chdir(root)
    card = trained(f"folder:{root / 'one'}")
    assert unseen(card, "folder:one") == "test" and unseen(card, "folder:two") == "all"
    assert unseen(trained("folder:gone"), "folder:one") == "all"
    with pytest.raises(ValueError, match="'mnist': valid are menagerie"):
        unseen(card, "mnist")


def test_unseen_knows_the_cards_of_the_shipped_networks():
    for name in ("zfnet-menagerie", "zfnet-photos", "shuffled-labels", "untrained"):
        card = zfkit.load_network(name)[1]
        assert unseen(card, "menagerie") == "test", name
        assert unseen(card, "tiny-imagenet-100") == ("test" if "photos" in name else "all"), name


@needs_data
def test_the_unseen_of_tiny_imagenet_are_no_training_pictures():
    card = zfkit.load_network("zfnet-photos")[1]
    names = datasets.file_names("tiny-imagenet-100", unseen(card, "tiny-imagenet-100"))
    assert len(names) == 5000 and all(name.startswith("val/") for name in names)


def test_labels_by_name_whatever_the_order_and_the_spelling():
    card = card_of("ant", "sea lion", "tench", "T-shirt")
    classes = ("Tench, Tinca tinca", "SEA_LION", "wasp", "t shirt", " ant")
    found = labels_for(card, classes, [0, 1, 2, 3, 4, 0])
    assert found.tolist() == [2, 1, -1, 3, 0, 2] and found.dtype == np.int64
    assert labels_for(card_of(), classes, [0, 1]).tolist() == [-1, -1]  # no class scores
    assert labels_for(card, classes, []).tolist() == []
    for bad in ([5], [-1]):
        with pytest.raises(ValueError, match="valid are 0 to 4"):
            labels_for(card, classes, bad)


def test_labels_where_several_classes_have_one_name():
    card = card_of("Cardigan", "crane", "x", "cardigan", "crane", "missile", "Missile")
    assert labels_for(card, ("cardigan", "Cardigan"), [0, 1]).tolist() == [3, 0]  # as written
    assert labels_for(card, ("a", "crane, a bird", "b", "c", "crane"), [1, 4]).tolist() == [1, 4]
    assert labels_for(card, ("crane", "MISSILE"), [0, 1]).tolist() == [-1, -1]  # which one?


@needs_data
def test_labels_of_imagenet_and_of_its_parts(root, monkeypatch):
    monkeypatch.setenv("ZFKIT_DATA", REAL)
    net, card = zfkit.load_network("squeezenet-imagenet")
    samples = load_images("imagenet-samples", "all", size=227, limit=70)
    assert np.array_equal(labels_for(card, samples.classes, samples.labels), samples.labels)
    for image, label in zip(samples.images, samples.labels, strict=True):  # case 34: the same as a folder
        folder = root / "own" / samples.classes[label].partition(",")[0].replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{label}.png")
    own = load_images(f"folder:{root / 'own'}", "all", size=227)
    right = [int(Path(name).stem) for name in datasets.file_names(f"folder:{root / 'own'}", "all")]
    numbers = labels_for(card, own.classes, own.labels)
    assert (numbers == right)[numbers >= 0].all() and (numbers >= 0).sum() >= 69
    with torch.no_grad():
        p = net(card.normalize(own.images)).softmax(1)[range(len(numbers)), numbers]
    assert p.mean() > 0.3  # by the folder's own numbers it is 1e-5
