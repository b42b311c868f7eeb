"""Intervals: against the classical one, against scipy, and by how often they cover what is true."""

import numpy as np
import pytest
from scipy import stats

from zfkit import intervals
from zfkit.intervals import interval, share


def test_three_rows_by_hand():
    value, ends = interval([1.0, 2.0, 6.0])  # mean 3, standard error sqrt(7 / 3), t factor 4.3027
    assert value == 3 and ends == pytest.approx((3 - 4.302653 * 1.527525, 3 + 4.302653 * 1.527525))
    assert ends.rows == 3


@pytest.mark.parametrize("count", [3, 7, 19])
def test_of_a_mean_over_few_rows_it_is_the_classical_interval(count):
    values = np.random.default_rng(count).normal(5, 3, count)
    other = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval(values)[1] == pytest.approx((other.low, other.high), rel=1e-12)


@pytest.mark.parametrize("right, count", [(3, 3), (0, 4), (9, 10), (20, 20), (38, 40)])
def test_of_a_share_it_is_wilsons(right, count):
    rows, z = np.arange(count) < right, stats.norm.ppf(0.975)
    value, ends = interval(rows, share)
    middle = (right + z * z / 2) / (count + z * z)
    half = z / (count + z * z) * np.sqrt(right * (count - right) / count + z * z / 4)
    assert value == right / count
    assert ends == pytest.approx((max(0, middle - half), min(1, middle + half)), abs=1e-12)


@pytest.mark.parametrize("count, least", [(3, 0.87), (6, 0.93), (12, 0.9), (20, 0.92), (40, 0.92)])
def test_a_share_is_covered(count, least):
    rng, true = np.random.default_rng(1), np.linspace(0.1, 0.9, 9)
    ends = {right: interval(np.arange(count) < right, share)[1] for right in range(count + 1)}
    found = [ends[right] for right in rng.binomial(count, np.repeat(true, 400))]
    low, high = np.array(found).T
    assert ((low <= np.repeat(true, 400)) & (np.repeat(true, 400) <= high)).mean() >= least


def test_a_share_is_said_and_never_guessed():
    rows = [1, 0, 1, 1, 0]  # differences that happen to be 0 or 1
    assert interval(rows)[1][0] < 0 < interval(rows, share)[1][0]
    for wrong in ([0, 1, 2], [[0], [1], [1]]):
        with pytest.raises(ValueError, match="0 or 1"):
            interval(wrong, share)
    with pytest.raises(ValueError, match="not finite"):
        interval([1.0, 2.0], lambda rows: np.nan)


def test_of_many_rows_it_is_as_wide_as_the_standard_error_and_seeded():
    values = np.random.default_rng(1).normal(5, 3, 400)
    value, (low, high) = interval(values)
    assert value == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert interval(values) == (value, (low, high)) != interval(values, seed=1)
    assert interval(values)[1].rows == 400


@pytest.mark.parametrize("law, count, near", [("normal", 8, 0.03), ("normal", 40, 0.04), ("exponential", 40, 0.04)])
def test_of_many_rows_it_is_what_scipy_makes_of_them(monkeypatch, law, count, near):
    """At the level of Student's t, which shows where rows are few: "many" begins at three here."""
    monkeypatch.setattr(intervals, "MANY", 3)
    monkeypatch.setattr(intervals, "DRAWS", 20_000)
    rows = getattr(np.random.default_rng(3), law)(size=count)
    level = 2 * stats.norm.cdf(stats.t.ppf(0.975, count - 1) * np.sqrt(count / (count - 1))) - 1
    rng = np.random.default_rng(5)
    other = stats.bootstrap((rows,), np.mean, n_resamples=20_000, confidence_level=level, rng=rng)
    ends = interval(rows)[1]
    assert ends == pytest.approx((other.confidence_interval.low, other.confidence_interval.high), abs=near)


def test_columns_of_a_row_stay_together():
    pairs = np.random.default_rng(2).normal(size=(300, 2))
    pairs[:, 1] += pairs[:, 0]

    def correlation(rows):
        return np.corrcoef(rows.T)[0, 1]

    value, (low, high) = interval(pairs, correlation)
    assert 0.6 < low < value < high < 0.8  # true: 1/sqrt(2); rows drawn apart would give about 0
    value, (low, high) = interval(pairs[:12], correlation)
    assert low < value < high


def test_two_rows_have_a_value_and_no_interval():
    assert interval([1.0, 2.0]) == (1.5, None) and interval([4.0]) == (4.0, None)


@pytest.mark.parametrize("count", [5, 30])
def test_rows_that_agree_have_an_interval_of_no_width(count):
    assert interval(np.full(count, 0.25)) == (0.25, (0.25, 0.25))


def test_a_median_of_ties_has_an_interval():
    """No row alone moves such a median, so that the acceleration of BCa is 0 / 0."""
    rows = np.repeat([0.0, 1.0, 2.0], [5, 20, 5])
    value, (low, high) = interval(rows, np.median)
    assert value == 1 and 0 <= low <= 1 <= high <= 2


@pytest.mark.parametrize("values", [[], 3.0, [1.0, np.nan, 2.0], [np.inf] * 4])
def test_what_are_no_rows_is_refused(values):
    with pytest.raises(ValueError, match="finite rows"):
        interval(values)


@pytest.mark.parametrize("count", [4, 30])
def test_a_statistic_that_fails_on_some_rows_is_refused(count):
    rows = np.zeros((count, 2))
    rows[:2, 0] = 1  # groups of two and more: drawn or left out, one of them may lose its rows
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="not finite on some"):
        interval(rows, lambda r: r[:, 1].sum() / (r[:, 0].sum() - (1 if count == 4 else 0)))


# 95 % are claimed. A t interval over a few rows of a lopsided law covers less: known, and so bounded here.
LAWS = {"normal": (lambda rng, shape: rng.normal(size=shape), 0.0)}
LAWS["skewed"] = lambda rng, shape: rng.exponential(size=shape), 1.0
CLAIMED = {("normal", n): 0.95 for n in (3, 5, 10, 30)} | {("skewed", 3): 0.89, ("skewed", 5): 0.88}
CLAIMED |= {("skewed", 10): 0.90, ("skewed", 30): 0.93}


def coverage(law, count: int, trials: int, seed: int = 0) -> float:
    """Share of trials whose interval holds the mean of the law."""
    draw, true = LAWS[law]
    ends = [interval(rows)[1] for rows in draw(np.random.default_rng(seed), (trials, count))]
    return np.mean([low <= true <= high for low, high in ends])


@pytest.mark.parametrize("law, count", CLAIMED)
def test_intervals_cover_what_they_claim(law, count):
    trials = 200 if count >= 20 else 1000
    claimed = CLAIMED[law, count]
    error = np.sqrt(claimed * (1 - claimed) / trials)
    assert coverage(law, count, trials) > claimed - 3 * error
