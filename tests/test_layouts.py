"""How sets lie on disk: which files are in which split, pinned; folders as people have them."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from zfkit.datasets import file_names, load_images

SPLITS = json.loads((Path(__file__).parent / "splits.json").read_text())  # the first ten files
needs_data = pytest.mark.skipif(
    not os.environ.get("ZFKIT_DATA"), reason="ZFKIT_DATA is not set: the real archives are not tested"
)


def empty_files(folder, *names):
    """A folder of files that are listed only, not decoded; its name as a data set."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return f"folder:{folder}"


def numbers(name, split):
    """Class and number of each file of a split, as a0, b12, ..."""
    return " ".join(file.removesuffix(".png").replace("/", "")[-3:] for file in file_names(name, split))


@needs_data
@pytest.mark.parametrize("name", SPLITS)
def test_the_real_sets_divide_as_they_always_did(name):
    for split, first in SPLITS[name].items():
        assert file_names(name, split, 10) == first, split


def test_a_drawn_split_is_the_same_everywhere(tmp_path):
    name = empty_files(tmp_path, *(f"{label}/{k:02}.png" for label in "ab" for k in range(10)))
    assert numbers(name, "train") == "b06 a05 b02 a07 b03 a00 b07 a01 b01 a09 b05 a02"
    assert numbers(name, "validation") == "b04 a08 a04 b08"
    assert numbers(name, "test") == "a06 b09 a03 b00"


def test_held_out_pictures_are_the_same_everywhere(tmp_path):
    files = [f"train/{label}/{k:02}.png" for label in "ab" for k in range(10)]
    name = empty_files(tmp_path, *files, *(f"val/{label}/{k:02}.png" for label in "ab" for k in range(3)))
    assert numbers(name, "train") == "b06 a05 b02 a07 b03 a00 b07 a01 b01 a09 b05 a02 b04 a08 a04 b08 a06 b09"
    assert numbers(name, "validation") == "a03 b00"
    assert numbers(name, "test") == "b01 a02 a00 b00 b02 a01"


def counted(name):
    """Class names, and how many pictures each split has."""
    parts = {split: load_images(name, split, 8) for split in ("train", "validation", "test", "all")}
    return parts["all"].classes, [len(part.images) for part in parts.values()]


def colour(path, shade=9):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 9, 9)).save(path)


def classes_of(folder, *places, count=5):
    """Folders of so many pictures each; the name of the whole as a data set."""
    for place in places:
        for k in range(count):
            colour(folder / place / f"{k}.png", k)
    return f"folder:{folder}"


def test_hidden_files_and_folders_are_no_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("ZFKIT_CACHE", str(tmp_path / "cache"))
    name = classes_of(tmp_path / ".own" / "set", "cat", "dog")  # a hidden folder above is the user's
    litter = ".ipynb_checkpoints/0.png", "cat/.ipynb_checkpoints/0-checkpoint.png", "dog/._0.png"
    for file in (*litter, "__MACOSX/cat/0.png"):
        colour(tmp_path / ".own" / "set" / file)
    for file in (".DS_Store", "cat/.DS_Store", "cat/Thumbs.db", "dog/desktop.ini"):
        (tmp_path / ".own" / "set" / file).write_text("not a picture")
    assert counted(name) == (("cat", "dog"), [6, 2, 2, 10])


def test_a_class_may_be_called_train(tmp_path):
    name = empty_files(tmp_path, *(f"{c}/{k}.png" for c in ("bus", "car", "train", "valid") for k in range(5)))
    assert len(file_names(name, "all")) == 20
    assert {file.partition("/")[0] for file in file_names(name, "all")} == {"bus", "car", "train", "valid"}


@pytest.mark.parametrize("valid", ["val", "valid", "validation", "Valid", "VAL"])
def test_split_folders_have_many_names(tmp_path, monkeypatch, valid):
    monkeypatch.setenv("ZFKIT_CACHE", str(tmp_path / "cache"))
    places = [f"{split}/{label}" for split in ("Train", valid, "Test") for label in ("cat", "dog")]
    name = classes_of(tmp_path / "own", *places)
    assert counted(name) == (("cat", "dog"), [10, 10, 10, 30])
    assert {file.partition("/")[0] for file in file_names(name, "validation")} == {valid}


def test_train_with_one_more_split(tmp_path):
    files = [f"{label}/{k}.png" for label in ("cat", "dog") for k in range(10)]
    for number, other in enumerate(("valid", "Testing")):
        name = empty_files(tmp_path / str(number), *(f"{split}/{f}" for split in ("training", other) for f in files))
        assert [len(file_names(name, split)) for split in ("train", "validation", "test")] == [18, 2, 20]
        assert {file.partition("/")[0] for file in file_names(name, "test")} == {other}


def test_split_folders_without_classes(tmp_path):
    name = empty_files(tmp_path, *(f"{split}/{k}.jpg" for split in ("train", "test") for k in range(10)))
    assert [len(file_names(name, split)) for split in ("train", "validation", "test")] == [9, 1, 10]


def test_classes_beside_split_folders_are_refused_by_name(tmp_path):
    name = empty_files(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "bird/1.png", "cover.png")
    with pytest.raises(ValueError, match="bird lies beside.*train, .*valid.*test") as caught:
        file_names(name, "all")
    assert "\n" not in str(caught.value)
    (tmp_path / "bird/1.png").unlink()
    assert len(file_names(name, "all")) == 3  # a picture in no split belongs to none


def test_a_relative_folder_is_looked_for_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ZFKIT_CACHE", str(tmp_path / "cache"))
    classes_of(tmp_path / "photos", "cat", count=5)
    monkeypatch.chdir(tmp_path)
    here = load_images("folder:photos", "all", 8).images
    monkeypatch.chdir(tmp_path / "photos")
    assert (load_images("folder:../photos", "all", 8).images == here).all()
    with pytest.raises(ValueError, match=f"no folder {tmp_path.resolve()}/photos/photos"):
        load_images("folder:photos", "all", 8)
