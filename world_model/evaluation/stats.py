"""Means with intervals: the percentile bootstrap, resampling whole episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model.types import DataError

RESAMPLES = 1000
Summary = dict[str, Any]
"""mean, low, high (95 %; None where there is one episode alone), n, episodes: ready for JSON."""


def mean_interval(values: Any, groups: Sequence[str], seed: int = 0) -> Summary:
    """Mean of values (N,) and its 95 % percentile-bootstrap interval.

    Episodes (`groups`, one name per value), not values, are drawn with replacement, because windows of
    one episode are alike. One episode alone says nothing of others: it has a mean and no interval. Raises
    DataError for no values or for one that is not finite.
    """
    values = np.asarray(values, np.float64)
    return ratio_interval(values, np.ones_like(values), groups, seed)


def ratio_interval(above: Any, below: Any, groups: Sequence[str], seed: int = 0) -> Summary:
    """sum(above) / sum(below) with the interval of `mean_interval`: a ratio of means."""
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    if not len(above):
        raise DataError("nothing was measured: no value to take a mean of")
    if not (np.isfinite(above).all() and np.isfinite(below).all()):
        raise DataError("a measured value is NaN or infinite; the frames that gave it are broken")
    sums = _by_group(above, groups), _by_group(below, groups)
    total = max(float(below.sum()), 1e-12)
    low, high = _bounds(*sums, seed) if len(sums[0]) > 1 else (None, None)
    return {
        "mean": round(float(above.sum()) / total, 4),
        "low": low,
        "high": high,
        "n": len(above),
        "episodes": len(sums[0]),
    }


def _bounds(above: NDArray[np.float64], below: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """The interval of a ratio of sums, from the sums of each episode."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(above), size=(RESAMPLES, len(above)))
    draws = above[picks].sum(1) / np.maximum(below[picks].sum(1), 1e-12)
    low, high = np.percentile(draws, [2.5, 97.5])
    return round(float(low), 4), round(float(high), 4)


def _by_group(values: NDArray[np.float64], names: Sequence[str]) -> NDArray[np.float64]:
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    sums = np.zeros(len(order))
    np.add.at(sums, [order[name] for name in names], values)
    return sums
