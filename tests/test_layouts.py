"""How sets lie on disk: which files are in which split, pinned; folders as people have them."""

import json
import os
from pathlib import Path

import pytest

from zfkit.datasets import file_names

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
