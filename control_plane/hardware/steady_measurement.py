"""When a series of samples is steady, and how sure its mean is: what a measurement may claim.

Power sensors of A100 and H100 look for only about a quarter of the time (arXiv 2312.02741), in a fixed rhythm: a load
with the same rhythm is seen at the same phase again and again. Windows are therefore begun at shifted phases, and the
spread over the windows, not over the samples in one, is the uncertainty.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

SENSOR_PERIOD_S = 0.1
"""Power, energy counter and clock of an H100 change every 100 ms."""
STEADY_RATIO = 0.03
"""The halves of a steady stretch differ by no more than this, or by no more than their own noise."""

_T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)
"""Student's t for 95 %, by degrees of freedom from 1."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with the half-width of its 95 % confidence interval, over ``count`` values."""

    mean: float
    half_width: float
    count: int

    @property
    def ratio(self) -> float:
        """The half-width as a share of the mean."""
        return math.inf if self.mean == 0 else abs(self.half_width / self.mean)


def estimate(values: Sequence[float]) -> Estimate:
    """Of independent values; the interval of fewer than two is infinite. Raises ValueError where there is none."""
    if not values:
        raise ValueError("nothing was measured")
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Estimate(mean, math.inf, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    freedom = len(values) - 1
    t95 = _T95[freedom - 1] if freedom <= len(_T95) else 1.96 + 2.4 / freedom
    return Estimate(mean, t95 * math.sqrt(variance / len(values)), len(values))


def steady_from(samples: Sequence[float], least: int = 8) -> int | None:
    """The first sample from which on the series is steady; None where it is not yet. The start is moved on until the
    means of both halves of the rest agree within ``STEADY_RATIO`` or twice their standard errors."""
    for start in range(0, max(0, len(samples) - least + 1), max(1, len(samples) // 20)):
        rest = samples[start:]
        first, second = estimate(rest[: len(rest) // 2]), estimate(rest[len(rest) // 2 :])
        apart = abs(first.mean - second.mean)
        noise = math.hypot(first.half_width, second.half_width)
        if apart <= STEADY_RATIO * abs(second.mean) or apart <= noise / 2:
            return start
    return None


def phase_shifts_s(windows: int, period_s: float = SENSOR_PERIOD_S) -> tuple[float, ...]:
    """How much later than its turn each window begins: the golden ratio spreads any number of them evenly over the
    sensor's period."""
    golden = (math.sqrt(5) - 1) / 2
    return tuple((number * golden % 1.0) * period_s for number in range(windows))


def integral_j(times_s: Sequence[float], powers_w: Sequence[float]) -> float:
    """Energy of power samples, by trapezoids. Times ascend."""
    pairs = zip(times_s, times_s[1:], powers_w, powers_w[1:], strict=False)
    return math.fsum((later - earlier) * (first + second) / 2 for earlier, later, first, second in pairs)
