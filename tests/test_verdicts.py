"""What a run writes down: verdicts, their line, files of their own, and reading them again."""

import json
import math

import numpy as np
import pytest

from zfkit import verdicts
from zfkit.claims import CLAIMS
from zfkit.intervals import Interval, interval
from zfkit.verdicts import announce, file_name, record, recorded, start

RUN = dict(DATASET="menagerie", NETWORK="zfnet-menagerie", QUICK=True, SEED=0, DEVICE="cpu", COVER=0.3)
CHAPTER = "90"  # no notebook has this number, so no cell is asked what parameters there are


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(verdicts, "_book", None)
    start(CHAPTER, RUN, str(tmp_path))
    return tmp_path


def written(folder):
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    "number, value, ends, line",
    [
        (9, 0.12, (0.10, 0.15), "claim 9 holds: 0.12 [0.10, 0.15], bound 0"),
        (1, 0.7, (0.65, 0.7489), "claim 1 contradicted: 0.700 [0.650, 0.749], bound 0.75"),
        (2, -0.3, (-0.4, -0.004), "claim 2 contradicted: -0.300 [-0.400, -0.004], bound 0"),
        (4, 2e-7, (0.0, 2e-7), "claim 4 holds: 2.0e-07 [0.0e+00, 2.0e-07], bound 1e-05"),
        (13, 1234.5, (1000, 1300), "claim 13 holds: 1234.5 [1000.0, 1300.0], bound 1"),
        (27, -0.45, (-0.4996, -0.4), "claim 27 holds: -0.4500 [-0.4996, -0.4000], bound 0.5"),
    ],
)
def test_a_verdict_prints_value_interval_and_bound(run, number, value, ends, line):
    assert str(record(number, value, ends)) == line
    assert written(run)["claims"][0]["verdict"] == line.split()[2].rstrip(":")


def test_an_undecided_verdict_says_how_many_rows_would_decide(run):
    """By hand: d = 0.1 off the bound, half of the half width, so four times the rows, less a little for t."""
    verdict = record(9, 0.1, Interval((-0.1, 0.3), 100))
    assert str(verdict) == "claim 9 undecided: 0.10 [-0.10, 0.30], bound 0; about 400 units would decide, here 100"
    assert "no number of units would decide" in str(record(9, 0.0, Interval((-0.1, 0.1), 30)))
    lopsided = record(9, 0.2, Interval((-0.05, 0.25), 20))  # the wider half counts
    assert "about 30 units" in str(lopsided) or "about 31 units" in str(lopsided)


def test_that_many_rows_do_decide(run):
    """Rows like those there, as many as the line asks for, clear the bound; a tenth fewer do not."""
    rows = np.random.default_rng(0).normal(0.3, 1, 12)
    words = record(9, *interval(rows)).reason.split()
    asked = int(words[words.index("about") + 1])

    def low(count):
        return rows.mean() - verdicts.factor(count) * rows.std(ddof=1) / math.sqrt(count)

    assert words[0] == "about" and low(asked) > 0 > low(int(0.9 * asked) - 1)


def test_fewer_than_three_rows_decide_nothing(run):
    verdict = record(21, *interval([3.0, 4.0]))
    assert str(verdict) == "claim 21 undecided: 3.5, bound 0; no interval, which takes 5 seeds"
    assert record(9, *interval([3.0])).verdict == "undecided"
    assert written(run)["claims"][0]["interval"] is None


def test_a_claim_that_cannot_be_tested_says_why(run):
    verdict = record(8, None, None, reason="a set without boxes has no masks")
    assert (verdict.verdict, verdict.value, verdict.interval) == ("not testable here", None, None)
    assert str(verdict) == "claim 8 not testable here: a set without boxes has no masks"
    assert written(run)["claims"][0]["reason"] == verdict.reason
    with pytest.raises(ValueError, match="needs a reason"):
        record(9, None, None)


@pytest.mark.parametrize("dataset, good, bad", [("menagerie", 5, 3), ("tiny-imagenet", 3, 5)])
def test_another_number_of_networks_than_fixed_is_refused(tmp_path, monkeypatch, dataset, good, bad):
    monkeypatch.setattr(verdicts, "_book", None)
    start(CHAPTER, RUN | dict(DATASET=dataset), str(tmp_path))
    values = np.arange(1.0, 9)
    assert record(21, *interval(values[:good])).rows == good
    with pytest.raises(ValueError, match=f"^claim 21 is over {good} seeds, fixed beforehand; got {bad}$"):
        record(21, *interval(values[:bad]))
    with pytest.raises(ValueError, match="got None"):
        record(21, 3.0, (2.0, 4.0))
    assert record(21, 3.0, (2.0, 4.0), n=good).verdict == "holds"
    assert record(9, *interval(values[:7])).rows == 7  # units: as many as the run has


@pytest.mark.parametrize(
    "number, value, ends, words",
    [
        (37, 0.5, (0.4, 0.6), "no claim 37; valid: 1 to 36"),
        ("two", 0.5, (0.4, 0.6), "no claim 'two'"),
        (2, math.nan, (0.4, 0.6), "must be finite"),
        (2, 0.5, (0.4, math.inf), "must be finite"),
        (2, 0.3, (0.4, 0.6), "lies outside"),
        (2, 0.5, (0.6, 0.4), "lies outside"),
    ],
)
def test_what_is_no_result_is_refused_and_not_written(run, number, value, ends, words):
    before = written(run)
    with pytest.raises(ValueError, match=words) as caught:
        record(number, value, ends)
    assert "\n" not in str(caught.value) and written(run) == before


@pytest.mark.parametrize("detail", [{"a": math.nan}, {"a": np.arange(3)}])
def test_a_detail_that_is_no_json_is_refused_and_not_written(run, detail):
    before = written(run)
    with pytest.raises(ValueError, match="^claim 2: detail is not JSON"):
        record(2, 0.5, (0.4, 0.6), detail=detail)
    record(9, 0.5, (0.4, 0.6))
    assert [row["claim"] for row in written(run)["claims"]] == [9] and not before["claims"]


def test_record_before_start_is_refused(monkeypatch):
    monkeypatch.setattr(verdicts, "_book", None)
    with pytest.raises(ValueError, match="verdicts.start"):
        record(2, 0.5, (0.4, 0.6))


def test_one_file_per_run_names_all_parameters_and_merges_its_claims(run):
    record(3, 0.6, (0.55, 0.65), detail={"lift": [1.5, 1.1]})
    record(4, 0.0, (0.0, 0.0))
    record(3, 0.4, (0.35, 0.45))
    found = written(run)
    assert found["chapter"] == CHAPTER and found["parameters"] == RUN
    assert {row["claim"]: row["verdict"] for row in found["claims"]} == {3: "holds", 4: "holds"}
    assert found["claims"][0]["text"] == CLAIMS[3].text and not list(run.glob("*.part"))


def test_runs_that_differ_in_anything_have_files_of_their_own(tmp_path):
    changes = [{}, dict(DATASET="a"), dict(NETWORK="b"), dict(SEED=1), dict(QUICK=False), dict(DEVICE="cuda")]
    changes += [dict(COVER=0.4), dict(DATASET="folder:/a/b"), dict(DATASET="folder:/a_b"), dict(DATASET="x" * 300)]
    changes += [dict(DATASET="x" * 301), dict(COVER="0.3"), dict(NETWORK="\U0001f98a")]
    for change in changes:
        start(CHAPTER, RUN | change, str(tmp_path))
    start("91", RUN, str(tmp_path))
    paths = list(tmp_path.glob("*.json"))
    assert len(paths) == len(changes) + 1
    assert {json.loads(path.read_text())["chapter"] for path in paths} == {"90", "91"}
    start(CHAPTER, RUN | dict(OUT="elsewhere"), str(tmp_path))  # where it is written makes no other run
    assert len(list(tmp_path.glob("*.json"))) == len(paths)


def test_a_file_has_a_hash_where_its_name_does_not_say_all():
    defaults = dict(DATASET="menagerie", NETWORK="zfnet", SEED=0, QUICK=True, DEVICE="cpu", COVER=0.3, OUT="")
    assert file_name("08", defaults, defaults) == "08-menagerie-zfnet-s0-quick"
    other = defaults | dict(DATASET="caltech101", SEED=2, QUICK=False, OUT="/x")
    assert file_name("08", other, defaults) == "08-caltech101-zfnet-s2-long"
    name = file_name("08", defaults | dict(COVER=0.5), defaults)
    assert name.startswith("08-menagerie-zfnet-s0-quick-") and len(name) == len("08-menagerie-zfnet-s0-quick-") + 6
    assert file_name("08", dict(reversed((defaults | dict(COVER=0.5)).items())), defaults) == name


def test_parameters_must_be_those_of_the_chapter(tmp_path):
    known = {name: default for name, (_, default) in verdicts._parameters_of("02").items()}
    start("02", known, str(tmp_path))
    assert (tmp_path / "02-menagerie-zfnet-menagerie-s0-quick.json").exists()
    with pytest.raises(ValueError, match="^chapter 02: .* differ: DEVICE$"):
        start("02", {name: value for name, value in known.items() if name != "DEVICE"}, str(tmp_path))
    with pytest.raises(ValueError, match="differ: COVER$"):
        start("02", known | dict(COVER=1), str(tmp_path))


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, "0", True])
def test_a_bad_seed_is_refused(tmp_path, seed):
    with pytest.raises(ValueError, match="^SEED must be 0 to 4294967295, got"):
        start(CHAPTER, RUN | dict(SEED=seed), str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_recorded_reads_both_layouts(tmp_path):
    start(CHAPTER, RUN, str(tmp_path))
    record(9, 0.12, (0.10, 0.15), detail=dict(searched=9))
    start(CHAPTER, RUN | dict(QUICK=False), str(tmp_path))
    row = dict(value=0.5, interval=[0.4, 0.6], reason="", detail={})
    rows = [dict(row, claim=1, verdict="does not hold"), dict(row, claim=2, verdict="holds")]
    rows += [dict(claim=3, verdict="not testable here", value=None, interval=None, reason="x", detail={})]
    old = dict(chapter="91", dataset="tiny-imagenet", network="n", seed=0, quick=True, claims=rows)
    (tmp_path / "91-old.json").write_text(json.dumps(old))
    (tmp_path / "trainings.json").write_text('{"runs": []}')
    runs = recorded(folder=tmp_path)
    assert [(run["chapter"], run["parameters"]["QUICK"]) for run in runs] == [("90", False), ("90", True), ("91", True)]
    assert runs[1]["claims"][9]["detail"] == {"searched": 9} and runs[1]["path"].parent == tmp_path
    assert {n: row["verdict"] for n, row in runs[2]["claims"].items()} == {
        1: "contradicted", 2: "holds", 3: "not testable here"
    }  # fmt: skip
    assert runs[2]["parameters"] == dict(DATASET="tiny-imagenet", NETWORK="n", SEED=0, QUICK=True)
    assert [run["chapter"] for run in recorded("91", folder=tmp_path)] == ["91"]
    assert len(recorded(folder=tmp_path, QUICK=True)) == 2 and not recorded(folder=tmp_path, COVER=0.4)
    assert len(recorded(folder=tmp_path, DATASET=("menagerie", "tiny-imagenet"))) == 3


def test_what_is_committed_can_be_read():
    runs = recorded()
    assert runs and {run["chapter"] for run in runs} <= {f"{n:02}" for n in range(16)}
    said = {claim["verdict"] for run in runs for claim in run["claims"].values()}
    assert said <= {"holds", "contradicted", "undecided", "not testable here"}


def test_announce_says_what_will_decide(capsys):
    announce(16, 27)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 88
    words = " ".join(printed.split())
    for number in (16, 27):
        claim = CLAIMS[number]
        assert all(text in words for text in (claim.text, claim.statistic, claim.control, claim.rule))
    with pytest.raises(ValueError, match="no claim 40"):
        announce(40)
