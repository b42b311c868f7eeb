"""95 % intervals of a statistic over few rows or many: Student's t, Wilson's, BCa bootstrap."""

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

FEWEST, MANY = 3, 20  # rows below which there is no interval, and from which rows are redrawn
LEVEL, DRAWS = 0.95, 2000


class Interval(tuple):
    """(low, high) that remembers from how many rows it was made."""

    rows: int

    def __new__(cls, ends, rows: int):
        made = super().__new__(cls, (float(end) for end in ends))
        made.rows = rows
        return made


def interval(
    values, statistic: Callable = np.mean, seed: int = 0
) -> tuple[float, Interval | None]:
    """The statistic of the rows, and its 95 % interval (low, high); None below 3 rows.

    values: array whose first axis (images, units, networks or folds) is what varies; the
    columns of a row stay together. statistic(rows) -> one number. 3 to 19 rows: Student's t
    around the statistic with the jackknife's standard error, which for a mean is the classical
    interval. From 20 rows on: the BCa bootstrap (Efron 1987) of 2000 draws, at the wider level
    that Student's t asks of n rows (Hesterberg 2015); the same seed gives the same interval.
    Rows that say yes or no (1 or 0), with `share` for the statistic: Wilson's (1927).
    ValueError for no rows, or where values or statistic are not finite.

    >>> interval([0.2, 0.3, 0.4])
    (0.3, (0.0516, 0.5484))
    >>> value, ends = interval([4.0, 5.5])  # ends is None: two rows say too little
    """
    rows = np.asarray(values, float)
    if rows.ndim == 0 or not len(rows) or not np.isfinite(rows).all():
        raise ValueError(f"an interval needs finite rows, got an array of shape {rows.shape}")
    value, count = float(statistic(rows)), len(rows)
    if count < FEWEST and math.isfinite(value):
        return value, None
    way = _by_wilson if statistic is share else _by_t if count < MANY else _by_bootstrap
    low, high = way(rows, statistic, value, seed) if math.isfinite(value) else (value, value)
    if not math.isfinite(low + high):
        raise ValueError("no interval: the statistic is not finite on some of the rows")
    return value, Interval((min(low, value), max(high, value)), count)


def share(rows) -> float:
    """The share of rows that are 1, all others being 0; ValueError for any other row.

    >>> interval([1, 1, 1, 0], share)
    (0.75, (0.3006, 0.9544))
    """
    rows = np.asarray(rows, float)
    if rows.ndim != 1 or not np.isin(rows, (0, 1)).all():
        raise ValueError("a share needs rows that are 0 or 1, one number each")
    return float(rows.mean())


def factor(count: int) -> float:
    """Standard errors from the middle of a 95 % t interval over `count` rows to its end."""
    return float(stats.t.ppf((1 + LEVEL) / 2, count - 1))


def _left_out(rows, statistic) -> np.ndarray:
    """The statistic without each row in turn."""
    return np.array([statistic(np.delete(rows, k, 0)) for k in range(len(rows))], float)


def _by_t(rows, statistic, value: float, seed: int) -> tuple[float, float]:
    count = len(rows)
    error = math.sqrt((count - 1) * _left_out(rows, statistic).var())
    return value - factor(count) * error, value + factor(count) * error


def _by_wilson(rows, statistic, value: float, seed: int) -> tuple[float, float]:
    test = stats.binomtest(int(rows.sum()), len(rows))
    return tuple(test.proportion_ci(LEVEL, method="wilson"))


def _by_bootstrap(rows, statistic, value: float, seed: int) -> tuple[float, float]:
    """Quantiles of the redrawn statistic, moved for its bias and its skewness (BCa)."""
    count, rng = len(rows), np.random.default_rng(seed)
    blocks = (rng.integers(0, count, (100, count)) for _ in range(DRAWS // 100))
    drawn = np.array([statistic(rows[numbers]) for block in blocks for numbers in block], float)
    if not np.isfinite(drawn).all():
        return math.nan, math.nan
    below = ((drawn < value).sum() + (drawn == value).sum() / 2) / DRAWS
    bias = stats.norm.ppf(np.clip(below, 1 / DRAWS, 1 - 1 / DRAWS))
    skew = stats.skew(-_left_out(rows, statistic)) if np.ptp(drawn) else 0.0
    speed = np.nan_to_num(skew) / (6 * math.sqrt(count))
    wide = factor(count) * math.sqrt(count / (count - 1)) * np.array([-1, 1])
    moved = bias + (bias + wide) / (1 - speed * (bias + wide))
    low, high = np.quantile(drawn, stats.norm.cdf(moved))
    return float(low), float(high)
