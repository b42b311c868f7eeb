"""The marked faces: they lie where eyes and noses lie, and belong to files of the set."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from zfkit import datasets, files

FACES = json.loads((files.repo_root() / "data" / "faces.json").read_text())["faces"]
HELD = (Path(os.environ.get("ZFKIT_DATA", "")) / "caltech101-small.tar.xz").is_file()


def test_marks_are_those_of_upright_faces():
    assert len(FACES) >= 20
    for file, face in FACES.items():
        left, right, nose = (np.array(face[part]) * (face["aspect"], 1) for part in ("left_eye", "right_eye", "nose"))
        apart = np.linalg.norm(right - left)
        assert 0.1 < apart < 0.3 and abs(right[1] - left[1]) < apart / 3, file
        down = (nose - (left + right) / 2) / apart
        assert abs(down[0]) < 0.4 and 0.3 < down[1] < 1, file


@pytest.mark.skipif(not HELD, reason="ZFKIT_DATA holds no caltech101-small.tar.xz")
def test_every_mark_has_its_file_and_names_go_with_images():
    names = datasets.file_names("caltech101", "all")
    assert set(FACES) <= set(names)
    images, labels, classes = datasets.load_images("caltech101", "all", 32, limit=200)
    assert [name.partition("/")[0] for name in names[:200]] == [classes[label] for label in labels]
    assert names[:7] == datasets.file_names("caltech101", "all", 7)


def test_a_rendered_set_has_no_file_names():
    with pytest.raises(ValueError, match="'menagerie' is drawn"):
        datasets.file_names("menagerie")
