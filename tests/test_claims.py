"""The claims as data, the verdict that their rules give, the file of a run, and the bootstrap's coverage."""

import json
import math

import numpy as np
import pytest

from zfkit import claims
from zfkit.claims import CLAIMS, bootstrap, record, start


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "_book", None)
    start("02", "menagerie", "zfnet-menagerie", 0, True, str(tmp_path))
    return tmp_path


def written(folder):
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


def test_there_are_36_claims_each_with_all_that_decides_it():
    assert list(CLAIMS) == list(range(1, 37))
    for number, claim in CLAIMS.items():
        assert claim.number == number and claim.place.startswith("sec. ")
        assert all(len(text) > 3 for text in (claim.text, claim.paper, claim.statistic, claim.control))
        assert claim.side in ("above", "below", "within") and math.isfinite(claim.bound)
        assert claim.side == "above" or claim.bound > 0
    assert len({claim.text for claim in CLAIMS.values()}) == 36


def test_bounds_are_those_of_the_fact_sheet():
    """Every number that a row of the fact sheet's claims names, and zero where it only asks for a difference."""
    named = {1: 0.75, 4: 1e-5, 5: 0.2, 12: 2, 13: 1, 14: 0.3, 15: 0.95, 16: 0.2, 24: 3, 25: 0.1, 27: 0.1, 30: 2}
    named |= {32: 0.1, 33: 10, 35: 0.9, 36: 2, 3: 0.5}
    assert {n: c.bound for n, c in CLAIMS.items() if c.bound} == named
    assert {n for n, c in CLAIMS.items() if c.side == "below"} == {4, 16}
    assert {n for n, c in CLAIMS.items() if c.side == "within"} == {27, 36}


@pytest.mark.parametrize(
    "number, value, interval, holds",
    [
        (1, 0.8, (0.76, 0.85), True),  # above 0.75
        (1, 0.8, (0.75, 0.85), False),  # touches the bound
        (1, 0.8, (0.70, 0.85), False),  # most of it above is not all of it
        (2, -0.3, (-0.4, -0.2), False),  # reversed
        (4, 2e-7, (0.0, 2e-7), True),  # below 1e-5
        (4, 2e-5, (2e-5, 2e-5), False),
        (27, -0.05, (-0.09, 0.02), True),  # within 10 % of 1
        (27, 0.05, (-0.02, 0.11), False),
        (27, -0.05, (-0.11, 0.02), False),
    ],
)
def test_the_whole_interval_must_lie_beyond_the_bound(run, number, value, interval, holds):
    verdict = record(number, value, interval)
    assert verdict.verdict == ("holds" if holds else "does not hold")
    assert str(verdict).startswith(f"claim {number} {verdict.verdict}") and "\n" not in str(verdict)
    assert written(run)["claims"][0]["verdict"] == verdict.verdict


def test_a_claim_that_cannot_be_tested_says_why(run):
    verdict = record(8, None, None, reason="a boxless set has no masks")
    assert (verdict.verdict, verdict.value, verdict.interval) == ("not testable here", None, None)
    assert "boxless" in str(verdict) and written(run)["claims"][0]["reason"] == verdict.reason
    with pytest.raises(ValueError, match="needs a reason"):
        record(9, None, None)


def test_one_file_per_run_with_its_claims_merged(run):
    record(3, 0.6, (0.55, 0.65), detail={"lift": [1.5, 1.1]})
    record(4, 0.0, (0.0, 0.0))
    record(3, 0.4, (0.35, 0.45))  # a cell run again replaces its own verdict only
    found = written(run)
    assert [(c["claim"], c["verdict"]) for c in found["claims"]] == [(3, "does not hold"), (4, "holds")]
    assert {key: found[key] for key in ("chapter", "dataset", "network", "seed", "quick")} == {
        "chapter": "02", "dataset": "menagerie", "network": "zfnet-menagerie", "seed": 0, "quick": True,
    }  # fmt: skip
    assert not list(run.glob("*.part"))


def test_runs_that_differ_in_anything_have_files_of_their_own(tmp_path):
    base = dict(chapter="02", dataset="menagerie", network="zfnet", seed=0, quick=True)
    others = dict(chapter="03", dataset="folder:/a b", network="shuffled-labels", seed=1, quick=False)
    for change in [{}, *({key: value} for key, value in others.items())]:
        start(**base | change, out=str(tmp_path))
    assert len(list(tmp_path.glob("02*.json"))) == 5 and len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize(
    "number, value, interval, words",
    [
        (37, 0.5, (0.4, 0.6), "no claim 37; valid: 1 to 36"),
        ("two", 0.5, (0.4, 0.6), "no claim 'two'"),
        (2, math.nan, (0.4, 0.6), "must be finite"),
        (2, 0.5, (0.4, math.inf), "must be finite"),
        (2, 0.3, (0.4, 0.6), "lies outside"),
        (2, 0.5, (0.6, 0.4), "lies outside"),
    ],
)
def test_what_is_no_result_is_refused_and_not_written(run, number, value, interval, words):
    before = written(run)
    with pytest.raises(ValueError, match=words) as caught:
        record(number, value, interval)
    assert "\n" not in str(caught.value) and written(run) == before


def test_record_before_start_is_refused(monkeypatch):
    monkeypatch.setattr(claims, "_book", None)
    with pytest.raises(ValueError, match="claims.start"):
        record(2, 0.5, (0.4, 0.6))


def test_bootstrap_covers_the_mean_of_a_known_distribution():
    draw = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        _, (low, high) = bootstrap(draw.exponential(2.0, 60), repeats=300, seed=trial)
        inside += low < 2.0 < high
    assert 0.87 < inside / 200 < 0.98  # 95 % nominal; a percentile interval of a skewed mean is a little short


def test_bootstrap_is_as_wide_as_the_standard_error_and_seeded():
    values = np.random.default_rng(1).normal(5, 3, 400)
    value, (low, high) = bootstrap(values)
    assert value == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert bootstrap(values) == (value, (low, high)) != bootstrap(values, seed=1)


def test_bootstrap_takes_any_statistic_of_rows_kept_together():
    pairs = np.random.default_rng(2).normal(size=(300, 2))
    pairs[:, 1] += pairs[:, 0]

    def correlation(rows):
        return np.corrcoef(rows.T)[0, 1]

    value, (low, high) = bootstrap(pairs, correlation, repeats=500)
    assert 0.6 < low < value < high < 0.8  # true: 1/sqrt(2); rows drawn apart would give about 0
    assert bootstrap(np.arange(9.0), np.median, repeats=50)[0] == 4


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan]])
def test_bootstrap_refuses_too_few_or_broken_values(values):
    with pytest.raises(ValueError, match="two or more finite rows"):
        bootstrap(values)
