"""The claims as data, and what their rules make of an interval."""

import math

import pytest

from zfkit.claims import CLAIMS, Claim


def test_there_are_36_claims_each_with_all_that_decides_it():
    assert list(CLAIMS) == list(range(1, 37))
    for number, claim in CLAIMS.items():
        assert claim.number == number and claim.place.startswith("sec. ")
        assert all(len(text) > 3 for text in (claim.text, claim.paper, claim.statistic, claim.control, claim.unit))
        assert claim.side in ("above", "below", "within") and math.isfinite(claim.bound)
        assert claim.side == "above" or claim.bound > 0
        said = claim.statistic.rpartition("over ")[2].split()[0].rstrip(";.")
        assert "; over " not in claim.statistic or said == claim.unit, number
    assert len({claim.text for claim in CLAIMS.values()}) == 36


def test_bounds_are_those_written_down():
    named = {1: 0.75, 3: 0.5, 4: 1e-5, 5: 0.2, 8: 0.5, 12: 2, 13: 1, 14: 0.3, 15: 0.95, 16: 0.2, 24: 3, 25: 0.1}
    named |= {27: 0.5, 30: 2, 32: 0.1, 33: 10, 35: 0.9, 36: 2}
    assert {n: c.bound for n, c in CLAIMS.items() if c.bound} == named
    assert {n for n, c in CLAIMS.items() if c.side == "below"} == {3, 4, 16}
    assert {n for n, c in CLAIMS.items() if c.side == "within"} == {27, 36}


def test_numbers_of_networks_and_folds_are_fixed():
    drawn = {n: c.needed(True) for n, c in CLAIMS.items() if c.needed(True)}
    assert drawn == dict.fromkeys((11, 12, 28, 29, 30, 31), 3) | dict.fromkeys((*range(18, 22), *range(32, 37)), 5)
    assert {n for n, c in CLAIMS.items() if c.needed(True) != c.needed(False)} == set(range(18, 22))
    assert CLAIMS[21].needed(False) == 3
    assert {c.unit for c in CLAIMS.values() if c.fixed is None} == {"units", "images", "faces"}


ABOVE = [
    (0.76, 0.85, "holds"),
    (0.75, 0.85, "undecided"),  # touches the bound
    (0.70, 0.85, "undecided"),  # most of it is not all of it
    (0.60, 0.74, "contradicted"),
    (0.60, 0.75, "undecided"),
]
WITHIN = [
    (-0.09, 0.09, "holds"),
    (-0.02, 0.11, "undecided"),
    (-0.11, 0.11, "undecided"),
    (0.11, 0.2, "contradicted"),
    (-0.2, -0.11, "contradicted"),
    (-0.2, -0.1, "undecided"),
]


@pytest.mark.parametrize("low, high, verdict", ABOVE)
def test_the_whole_interval_must_lie_beyond_the_bound(low, high, verdict):
    assert Claim(1, *"abcde", 0.75, "units").decide(low, high) == verdict
    assert Claim(1, *"abcde", -0.75, "units", "below").decide(-high, -low) == verdict


@pytest.mark.parametrize("low, high, verdict", WITHIN)
def test_within_means_between_both_bounds(low, high, verdict):
    assert Claim(1, *"abcde", 0.1, "units", "within").decide(low, high) == verdict


def test_margin_is_the_way_to_the_nearest_bound():
    assert CLAIMS[27].margin(0.4) == pytest.approx(0.1) and CLAIMS[27].margin(-0.7) == pytest.approx(0.2)
    assert CLAIMS[1].margin(0.5) == 0.25


def test_rules_are_said_in_words():
    assert CLAIMS[16].rule.startswith("holds if the whole 95 % interval lies below 0.2, contradicted if all of it")
    assert "closer to 0 than 0.5" in CLAIMS[27].rule and CLAIMS[27].rule.endswith("otherwise undecided")
