"""Interquartile means and bootstrap intervals over seeds (Agarwal et al. 2021, "Deep RL at the edge of the statistical
precipice"), in numpy alone."""

import numpy as np
import numpy.typing as npt


def iqm(scores: npt.ArrayLike) -> float:
    """Mean of the middle half; entries that straddle a quartile count in part."""
    x = np.sort(np.asarray(scores, dtype=np.float64))
    n = len(x)
    edges = np.arange(n + 1) / n
    weight = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    return float((weight * x).sum() / weight.sum())


def interval(scores: npt.ArrayLike, level: float = 0.95, resamples: int = 10_000) -> tuple[float, float]:
    """Percentile bootstrap interval of the interquartile mean."""
    x = np.asarray(scores, dtype=np.float64)
    rng = np.random.default_rng(0)
    means = [iqm(rng.choice(x, len(x))) for _ in range(resamples)]
    tail = 50 * (1 - level)
    return float(np.percentile(means, tail)), float(np.percentile(means, 100 - tail))


def summary(scores: npt.ArrayLike) -> str:
    """`IQM [low, high]`."""
    low, high = interval(scores)
    return f"{iqm(scores):.1f} [{low:.1f}, {high:.1f}]"
