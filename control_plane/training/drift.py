"""Whether a stage became slow at once or goes on becoming slower: a step, or a drift such as heat or a fan that fails.

Both are fitted to the stage's last reports (logarithms of ratios): a level that changes once, and a level from which
a line rises. Each has three parameters, so their residuals compare directly (generalised likelihood ratio).
"""

from collections.abc import Sequence
from itertools import accumulate
from statistics import fmean

MOST_REPORTS = 48
"""Reports that are looked at: a drift of 0.1 % a report has made 5 % meanwhile."""
FEWEST_REPORTS = 8
LOG_LIKELIHOOD_RATIO = 4.0
"""By which a drift must fit better than a step, in natural logarithms."""


def is_drift(log_ratios: Sequence[float], sigma: float) -> bool:
    """Whether a rising line explains the reports, oldest first, better than one step does; `sigma` is the standard
    deviation of one report. Too few reports, or a fall, are no drift."""
    values = list(log_ratios[-MOST_REPORTS:])
    if len(values) < FEWEST_REPORTS:
        return False
    drift, slope = _rising_line(values)
    return slope > 0 and (_step(values) - drift) / (2 * sigma**2) > LOG_LIKELIHOOD_RATIO


def _step(values: Sequence[float]) -> float:
    """Least residual sum of squares of a level that changes once."""
    count, sums = len(values), list(accumulate(values))
    explained = (sums[i - 1] ** 2 / i + (sums[-1] - sums[i - 1]) ** 2 / (count - i) for i in range(1, count))
    return sum(value * value for value in values) - max(explained)


def _rising_line(values: Sequence[float]) -> tuple[float, float]:
    """Least residual sum of squares of a level that a line leaves at some report, and that line's slope."""
    count, mean = len(values), fmean(values)
    centred = [value - mean for value in values]
    whole = sum(value * value for value in centred)
    fits = []
    for bend in range(-1, count - 3):
        ramp = [max(0, at - bend) for at in range(count)]
        middle = fmean(ramp)
        along = sum(rise * value for rise, value in zip(ramp, centred, strict=True))
        slope = along / sum((rise - middle) ** 2 for rise in ramp)
        fits.append((whole - slope * along, slope))
    return min(fits)
