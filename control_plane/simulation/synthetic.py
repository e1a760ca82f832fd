"""The embedded seeded generator: requests with the published statistics of Azure's 2023 traces."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

import numpy as np
from numpy.typing import NDArray

from control_plane.domain import REQUEST_TYPES, InputClass, OutputClass, Request, RequestType
from control_plane.simulation.trace import Trace

INPUT_BORDERS, OUTPUT_BORDERS = (256, 1024), (100, 350)

CONVERSATION_RPS = 5.53
CONVERSATION_SHARES: Mapping[str, float] = {
    "SS": 3.6, "SM": 9.8, "SL": 0.05,
    "MS": 19.0, "MM": 10.4, "ML": 7.7,
    "LS": 15.1, "LM": 8.8, "LL": 25.6,
}  # fmt: skip
"""Percent of requests by type, mean rate: Azure 2023 conversation hour."""

_INPUT_QUANTILES = ((0.0, 10), (0.134, 256), (0.505, 1024), (0.9, 2734), (0.99, 4142), (1.0, 6800))
_OUTPUT_QUANTILES = ((0.0, 8), (0.377, 100), (0.5, 129), (0.667, 350), (0.9, 424), (0.99, 601), (1.0, 1000))
"""Published percentiles, with the class borders at the shares above."""


def synthetic_conversation(
    duration_s: float, seed: int = 0, scale: float = 1.0, shape: Callable[[float], float] = lambda _: 1.0
) -> tuple[Request, ...]:
    """Requests like the Azure 2023 conversation hour: its type mix, length percentiles and rate, Poisson arrivals
    (its coefficient of variation is 1.09). ``shape(share of the duration)`` modulates the rate around its mean."""
    if duration_s <= 0 or scale <= 0:
        raise ValueError(f"duration_s and scale must be positive, got {duration_s} and {scale}")
    random = Random(seed)
    weights = [CONVERSATION_SHARES[str(t)] for t in REQUEST_TYPES]
    peak = max(shape(step / 200) for step in range(201))
    requests: list[Request] = []
    now_s = 0.0
    while True:
        now_s += random.expovariate(CONVERSATION_RPS * scale * peak)
        if now_s >= duration_s:
            return tuple(requests)
        if random.random() * peak > shape(now_s / duration_s):
            continue
        kind = random.choices(REQUEST_TYPES, weights)[0]
        requests.append(Request(f"r{len(requests)}", now_s, _input_tokens(random, kind), _output_tokens(random, kind)))


def demo_shape(share: float) -> float:
    """A working day in two minutes: quiet, a ramp, a peak 3.5 times the quiet hours, quiet again; mean about 0.8.
    (The Azure 2024 week has 2:1 in conversation and 10:1 in code.)"""
    points = ((0.0, 0.4), (0.2, 0.4), (0.5, 1.4), (0.7, 1.4), (0.85, 0.5), (1.0, 0.4))
    for (x0, y0), (x1, y1) in pairwise(points):
        if share <= x1:
            return y0 + (y1 - y0) * (share - x0) / (x1 - x0)
    return points[-1][1]


def _input_tokens(random: Random, kind: RequestType) -> int:
    borders = {
        InputClass.SHORT: (0.0, 0.134),
        InputClass.MEDIUM: (0.134, 0.505),
        InputClass.LONG: (0.505, 1.0),
    }
    return _at_quantile(_INPUT_QUANTILES, random.uniform(*borders[kind.input]))


def _output_tokens(random: Random, kind: RequestType) -> int:
    borders = {
        OutputClass.SHORT: (0.0, 0.377),
        OutputClass.MEDIUM: (0.377, 0.667),
        OutputClass.LONG: (0.667, 1.0),
    }
    return _at_quantile(_OUTPUT_QUANTILES, random.uniform(*borders[kind.output]))


def _at_quantile(knots: Sequence[tuple[float, int]], quantile: float) -> int:
    upper = min(bisect_right([q for q, _ in knots], quantile), len(knots) - 1)
    (q0, v0), (q1, v1) = knots[upper - 1], knots[upper]
    value = v0 + (v1 - v0) * (quantile - q0) / (q1 - q0)
    return max(1, min(int(value), v1 - 1))


# The same statistics a column at a time, for the command line: hours and weeks in seconds.


def synthetic_trace(kind: str, hours: float, scale: float = 1.0, seed: int = 0) -> Trace:
    """``conv``: the conversation hour's type mix, percentiles and rate, Poisson. ``code``: the coding hour's, in
    bursts (gamma gaps, coefficient of variation 13.2 natively; ``scale`` superposes so many independent streams)."""
    if hours <= 0 or scale <= 0:
        raise ValueError(f"hours and scale must be positive, got {hours} and {scale}")
    if kind not in STATISTICS:
        raise ValueError(f"synthetic trace {kind!r} is not one of {sorted(STATISTICS)}")
    statistics = STATISTICS[kind]
    random = np.random.default_rng(seed)
    arrivals = _arrivals_s(random, statistics, hours * 3600.0, scale)
    shares = np.array([statistics.shares[str(t)] for t in REQUEST_TYPES])
    kinds = random.choice(len(REQUEST_TYPES), len(arrivals), p=shares / shares.sum())
    inputs = _lengths(random, kinds // 3, statistics.input_quantiles, INPUT_BORDERS)
    outputs = _lengths(random, kinds % 3, statistics.output_quantiles, OUTPUT_BORDERS)
    return Trace.at(arrivals, inputs, outputs)


def _arrivals_s(
    random: np.random.Generator, statistics: "Statistics", duration_s: float, scale: float
) -> NDArray[np.float64]:
    streams = max(1, round(scale)) if statistics.gap_cv > 1.2 else 1
    rate = statistics.rps * scale / streams
    shape = 1.0 / statistics.gap_cv**2
    parts = []
    for _ in range(streams):
        # A bursty stream starts anywhere in its life: throw away an hour.
        times = np.zeros(1)
        while times[-1] < 3600.0 + duration_s:
            more = max(1000, int(rate * duration_s * 0.3))
            times = np.concatenate((times, times[-1] + np.cumsum(random.gamma(shape, 1 / (rate * shape), more))))
        times = times[(times >= 3600.0) & (times < 3600.0 + duration_s)] - 3600.0
        parts.append(times)
    return np.sort(np.concatenate(parts))


def _lengths(
    random: np.random.Generator,
    rows: NDArray[np.int64],
    quantiles: Sequence[tuple[float, int]],
    borders: tuple[int, int],
) -> NDArray[np.int32]:
    """Lengths of each class, between its borders, by the quantile curve inside them."""
    shares, values = (np.array(column, float) for column in zip(*quantiles, strict=True))
    edges = np.interp(borders, values, shares)
    low, high = np.concatenate(([0.0], edges)), np.concatenate((edges, [1.0]))
    drawn = np.interp(random.uniform(low[rows], high[rows]), shares, values)
    least = np.array([1, *borders])[rows]
    most = np.array([*(border - 1 for border in borders), int(values[-1])])[rows]
    tokens: NDArray[np.int32] = np.clip(drawn, least, most).astype(np.int32)
    return tokens


@dataclass(frozen=True, slots=True)
class Statistics:
    """Rate, burstiness, percent by type and length percentiles of a published trace."""

    rps: float
    gap_cv: float
    shares: Mapping[str, float]
    input_quantiles: Sequence[tuple[float, int]]
    output_quantiles: Sequence[tuple[float, int]]


CODE_SHARES: Mapping[str, float] = {
    "SS": 15.4, "SM": 0.5, "SL": 0.1,
    "MS": 20.7, "MM": 1.0, "ML": 0.1,
    "LS": 59.4, "LM": 2.4, "LL": 0.4,
}  # fmt: skip

STATISTICS: Mapping[str, Statistics] = {
    "conv": Statistics(CONVERSATION_RPS, 1.0, CONVERSATION_SHARES, _INPUT_QUANTILES, _OUTPUT_QUANTILES),
    "code": Statistics(
        2.57,
        13.2,
        CODE_SHARES,
        ((0.0, 4), (0.16, 256), (0.378, 1024), (0.5, 1469), (0.9, 5187), (0.99, 7436), (1.0, 7437)),
        ((0.0, 1), (0.5, 13), (0.9, 55), (0.955, 100), (0.99, 251), (0.994, 350), (1.0, 1900)),
    ),
}
"""Azure 2023 hours: DynamoLLM's classes over the public traces."""
