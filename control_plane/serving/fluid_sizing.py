"""How many servers a stretch of recorded arrivals needs, by replaying it as a fluid.

A replica is a server that works off tokens at a steady rate; ``n`` of them work n times as fast. The backlog that a
request meets is Lindley's: the work that came since the queue was last empty, less what was worked off meanwhile. That
sees bursts as they were, where a mean rate with a margin for Poisson noise does not.
"""

import math
from dataclasses import dataclass
from heapq import heapreplace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def backlog(at_s: Floats, work: Floats, rate: float) -> Floats:
    """The work that each arrival finds in the system, where ``rate`` units a second are worked off. Arrivals in order
    of time."""
    before = np.cumsum(work) - work - rate * at_s
    return before - np.minimum.accumulate(before)


@dataclass(frozen=True, slots=True)
class Demand:
    """Arrivals of one kind and what they are promised."""

    at_s: Floats
    work: Floats
    """Of each request, in tokens."""
    wait_limit_s: Floats | float
    """How long a request may wait for those before it."""
    late_share: float
    """Of the requests, so many may take longer."""
    max_use: float
    """Of a server's time, so much may be used on average."""


def fewest_servers(demand: Demand, rate: float, at_least: int = 1, at_most: int = 100_000) -> int:
    """The fewest servers of ``rate`` work units a second each, such that no more than ``late_share`` of the requests
    wait longer than they may and the mean use is at most ``max_use``.

    Later is never better: with more servers every backlog is smaller and is worked off sooner, so bisection finds it.
    Returns ``at_most`` where even so many are too few.
    """
    if len(demand.at_s) == 0:
        return at_least
    span_s = max(float(demand.at_s[-1] - demand.at_s[0]), 1.0)
    used = math.ceil(float(demand.work.sum()) / span_s / (rate * demand.max_use) - 1e-9)
    low = max(at_least, used) - 1
    high = low + 1
    step = 1
    while high < at_most and not _holds(demand, high * rate):
        low, high, step = high, min(at_most, high + step), step * 2
    while high - low > 1:
        middle = (low + high) // 2
        if _holds(demand, middle * rate):
            high = middle
        else:
            low = middle
    return high


def _holds(demand: Demand, rate: float) -> bool:
    waits_s = backlog(demand.at_s, demand.work, rate) / rate
    late = np.count_nonzero(waits_s > demand.wait_limit_s)
    return bool(late <= demand.late_share * len(demand.at_s))


def waits_s(at_s: Floats, service_s: Floats, servers: int) -> Floats:
    """Exactly how long each request waits for the first of ``servers`` that is free, in order of arrival: what a fluid
    of few servers cannot tell, for whom one long request makes a difference. Arrivals in order of time."""
    free_s = [-math.inf] * servers
    waits = []
    for now_s, takes_s in zip(at_s.tolist(), service_s.tolist(), strict=True):
        begins_s = max(now_s, free_s[0])
        heapreplace(free_s, begins_s + takes_s)
        waits.append(begins_s - now_s)
    return np.array(waits)


def dispersion(at_s: Floats, work: Floats, bin_s: float = 30.0, block_s: float = 600.0) -> float:
    """The index of dispersion of the work that arrives, over that of a Poisson stream of the same requests: 1 for
    independent arrivals, more for bursts. The mean over blocks, so that a slow change of the load does not count; 1
    where there is next to nothing."""
    if len(at_s) < 2:
        return 1.0
    span_s = float(at_s[-1] - at_s[0])
    blocks = max(1, math.floor(span_s / block_s))
    bins = round(min(block_s, span_s) / bin_s)
    if bins < 2:
        return 1.0
    start_s = float(at_s[-1]) - blocks * bins * bin_s
    ages = ((at_s - start_s) / bin_s).astype(np.int64)
    inside = (at_s > start_s) & (ages < blocks * bins)
    sums = np.bincount(ages[inside], work[inside], minlength=blocks * bins).reshape(blocks, bins)
    sums = sums[sums.sum(axis=1) > 0]
    if not len(sums):
        return 1.0
    of_one = float(np.mean(work * work) / np.mean(work))
    means = sums.mean(axis=1)
    return float(np.mean(sums.var(axis=1) / (means * of_one)))


def peak_rate(at_s: Floats, work: Floats, bin_s: float) -> float:
    """The most work per second that came in any ``bin_s``."""
    if len(at_s) == 0:
        return 0.0
    sums = np.bincount(((at_s - at_s[0]) / bin_s).astype(np.int64), work)
    return float(sums.max()) / bin_s
