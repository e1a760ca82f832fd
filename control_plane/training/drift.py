"""Whether a stage became slow at once or goes on becoming slower: a step, or a drift such as heat or a fan that fails.

Both are fitted to the stage's last reports (logarithms of ratios): a level that changes once, and a level from which
a line rises. Each has three parameters, so their residuals compare directly (generalised likelihood ratio).
"""

from collections.abc import Sequence

import numpy as np

MOST_REPORTS = 48
"""Reports that are looked at: a drift of 0.1 % a report has made 5 % meanwhile."""
FEWEST_REPORTS = 8
LOG_LIKELIHOOD_RATIO = 4.0
"""By which a drift must fit better than a step, in natural logarithms."""


def is_drift(log_ratios: Sequence[float], sigma: float) -> bool:
    """Whether a rising line explains the reports, oldest first, better than one step does; `sigma` is the standard
    deviation of one report. Too few reports, or a fall, are no drift."""
    values = np.asarray(log_ratios[-MOST_REPORTS:], dtype=np.float64)
    count = len(values)
    if count < FEWEST_REPORTS:
        return False
    drift, slope = _rising_line(values)
    return slope > 0 and (_step(values) - drift) / (2 * sigma**2) > LOG_LIKELIHOOD_RATIO


def _step(values: np.ndarray) -> float:
    """Least residual sum of squares of a level that changes once."""
    count = len(values)
    before = np.arange(1, count)
    sums, squares = np.cumsum(values), float(values @ values)
    explained = sums[:-1] ** 2 / before + (sums[-1] - sums[:-1]) ** 2 / (count - before)
    return squares - float(explained.max())


def _rising_line(values: np.ndarray) -> tuple[float, float]:
    """Least residual sum of squares of a level that a line leaves at some report, and that line's slope."""
    count = len(values)
    bends = np.arange(-1, count - 3)
    ramps = np.maximum(0, np.arange(count)[None, :] - bends[:, None]).astype(np.float64)
    ramps -= ramps.mean(axis=1, keepdims=True)
    centred = values - values.mean()
    slopes = ramps @ centred / (ramps**2).sum(axis=1)
    residuals = float(centred @ centred) - slopes * (ramps @ centred)
    best = int(residuals.argmin())
    return float(residuals[best]), float(slopes[best])
