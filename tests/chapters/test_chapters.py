"""Every chapter on another seed and another network or data set than the committed ones, and on real photographs.

Strict nbval of the committed notebooks is part of the same pytest run (pyproject.toml, testpaths and addopts).
"""

import json
import os
from pathlib import Path

import pytest

from zfkit import book

CHAPTERS = {path.stem[:2]: path for path in book.chapters()}
ROOT_DATA = Path(os.environ.get("ZFKIT_DATA", ""))
# the claims that a chapter must decide
HELD = {"02": range(1, 5), "03": range(5, 11), "04": range(11, 14), "05": range(14, 18)}
HELD |= {"06": range(18, 22), "07": range(22, 26), "08": range(26, 28)}
ONE_NETWORK = {"04"}  # chapters that need what only one network has: another data set instead
REAL = [  # chapter, network, data set: real networks on real photographs
    ("02", "alexnet-imagenet", "imagenet-samples"),
    ("02", "squeezenet-imagenet", "imagenet-samples"),
    ("03", "alexnet-imagenet", "caltech101"),
    ("03", "squeezenet-imagenet", "imagenet-samples"),
    ("05", "squeezenet-imagenet", "imagenet-samples"),
    ("06", "alexnet-imagenet", "menagerie"),
    ("06", "squeezenet-imagenet", "tiny-imagenet-100"),
    ("07", "squeezenet-imagenet", "imagenet-samples"),
    ("07", "zfnet-photos", "tiny-imagenet-100"),
    ("08", "alexnet-imagenet", "caltech101"),
    ("04", "zfnet-photos", "tiny-imagenet-100"),
    ("05", "zfnet-photos", "tiny-imagenet-100"),
    ("08", "zfnet-photos", "caltech101"),
    ("03", "zfnet-photos-small", "tiny-imagenet-100"),  # trained on the spot, then kept
]
pytestmark = pytest.mark.slow


def other(number: str) -> dict:
    """Parameters that differ from the committed ones: the seed, and the network or else the data set."""
    known = book.parameters(CHAPTERS[number])
    network = None if number in ONE_NETWORK else known["NETWORK"][1]
    changed = {"zfnet-menagerie": "zfnet-menagerie-lrn", "zfnet-menagerie-lrn": "zfnet-menagerie"}.get(network)
    return {"SEED": known["SEED"][1] + 1} | ({"NETWORK": changed} if changed else {"DATASET": "menagerie-hard"})


def run(number: str, folder: Path, values: dict) -> tuple[book.Run, dict[int, dict]]:
    """One run of a chapter with its results in a folder of their own; the results by claim."""
    values = values | {"OUT": str(folder / "results")}
    done = book.run_chapter(CHAPTERS[number], folder / CHAPTERS[number].name, values, threads=1, timeout=1200)
    assert not done.error, done.error
    wanted = list(HELD.get(number, []))
    assert len(done.results) == 1 or not wanted, "one run, one file of results"
    records = [json.loads(path.read_text()) for path in done.results]
    asked = {name.lower(): value for name, value in values.items() if name != "OUT"}
    for record in records:
        assert {name: record[name] for name in asked} == asked
    found = {claim["claim"]: claim for record in records for claim in record["claims"]}
    assert sorted(found) == wanted
    return done, found


def committed(number: str) -> dict[int, dict]:
    """The results in data/results of a chapter as committed, by claim."""
    known = book.parameters(CHAPTERS[number])
    for path in sorted((book.ROOT / "data" / "results").glob(f"{number}*.json")):
        record = json.loads(path.read_text())
        wanted = {name.lower(): known[name][1] for name in ("DATASET", "NETWORK", "SEED", "QUICK")}
        if {name: record[name] for name in wanted} == wanted:
            return {claim["claim"]: claim for claim in record["claims"]}
    if not HELD.get(number):
        return {}
    pytest.fail(f"data/results holds no results of chapter {number} as committed; make chapters writes them")


@pytest.mark.parametrize("number", sorted(CHAPTERS))
def test_another_seed_and_network_give_other_numbers(tmp_path, number):
    values = other(number)
    done, found = run(number, tmp_path, values)
    before = committed(number)
    assert sorted(before) == sorted(found)
    measured = [n for n in found if found[n]["value"] is not None and before[n]["value"] is not None]
    # an identity such as "mirror equals gradient" may give the same number, a measurement does not
    assert not measured or any(found[n]["value"] != before[n]["value"] for n in measured), "the parameters did nothing"
    for claim in found.values():
        assert claim["verdict"] in ("holds", "does not hold", "not testable here")


@pytest.mark.parametrize("number, network, dataset", [row for row in REAL if row[0] in CHAPTERS])
@pytest.mark.skipif(not (ROOT_DATA / "imagenet-samples.tar").is_file(), reason="ZFKIT_DATA holds no imagenet-samples")
def test_chapters_run_on_real_networks_and_photographs(tmp_path, number, network, dataset):
    run(number, tmp_path, dict(NETWORK=network, DATASET=dataset))


@pytest.mark.parametrize("number", sorted(CHAPTERS))
@pytest.mark.parametrize("pair", ["NETWORK=no-such-net", "DATASET=no-such-set"])
def test_an_unknown_network_or_data_set_is_named_in_one_line(tmp_path, number, pair):
    values = book.settings([CHAPTERS[number]], [pair])[CHAPTERS[number]] | {"OUT": str(tmp_path / "results")}
    done = book.run_chapter(CHAPTERS[number], tmp_path / "x.ipynb", values)
    assert "ValueError" in done.error and pair.split("=")[1] in done.error and "menagerie" in done.error


@pytest.mark.parametrize(
    "number, pair, words",
    [
        ("04", "NETWORK=shuffled-labels", "snapshots"),
        ("06", "LIVE=5x5/2", "valid are 7x7/2, 11x11/4"),
        ("07", "SQUARE=500", "valid are 16 to 120"),
        ("08", "DATASET=imagenet-samples", "no known faces"),
        ("08", "COVER=0.9", "valid are shares"),
    ],
)
def test_what_a_chapter_cannot_work_with_is_named_in_one_line(tmp_path, number, pair, words):
    values = book.settings([CHAPTERS[number]], [pair])[CHAPTERS[number]] | {"OUT": str(tmp_path / "results")}
    done = book.run_chapter(CHAPTERS[number], tmp_path / "x.ipynb", values)
    assert "ValueError" in done.error and words in done.error and pair.split("=")[1] in done.error
