"""Request traces: Azure's CSV format, checked at the edge, and a seeded generator with the published statistics."""

import csv
import io
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from random import Random

from control_plane.domain import REQUEST_TYPES, InputClass, OutputClass, Request, RequestType


class TraceError(ValueError):
    """A trace cannot be used; the message names the file, the line and the field."""


COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read_azure(text: str, source: str = "trace") -> tuple[Request, ...]:
    """Requests of an Azure LLM inference trace, arrival times from the first one on, in seconds.

    Columns TIMESTAMP (ISO, up to seven decimals, an offset allowed), ContextTokens, GeneratedTokens in any order,
    others ignored. Raises TraceError for a missing column, an empty file, unparsable or unsorted times, and token
    counts that are not positive integers.
    """
    rows = csv.reader(io.StringIO(text.removeprefix("\ufeff")))
    header = next(rows, None)
    if not header or not any(header):
        raise TraceError(f"{source}: the file is empty; expected a header line {','.join(COLUMNS)}")
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise TraceError(f"{source}:1: column {missing[0]} is missing; found {','.join(header)}")
    at, inputs, outputs = (header.index(name) for name in COLUMNS)
    requests: list[Request] = []
    first_s = last_s = 0.0
    for line, row in enumerate(rows, start=2):
        if not row:
            continue
        if len(row) < len(header):
            raise TraceError(f"{source}:{line}: {len(row)} fields where the header has {len(header)}")
        time_s = _time_s(row[at], f"{source}:{line}")
        if not requests:
            first_s = last_s = time_s
        if time_s < last_s:
            raise TraceError(f"{source}:{line}: TIMESTAMP {row[at]} is before the line above; sort the trace by time")
        last_s = time_s
        requests.append(
            Request(
                f"r{len(requests)}",
                round(time_s - first_s, 7),
                _tokens(row[inputs], "ContextTokens", f"{source}:{line}"),
                _tokens(row[outputs], "GeneratedTokens", f"{source}:{line}"),
            )
        )
    if not requests:
        raise TraceError(f"{source}: the trace has a header and no requests")
    return tuple(requests)


def window(requests: Sequence[Request], from_s: float, duration_s: float) -> tuple[Request, ...]:
    """The requests that arrive in [from_s, from_s + duration_s), their times from the window's start."""
    chosen = [r for r in requests if from_s <= r.arrival_s < from_s + duration_s]
    return tuple(replace(r, arrival_s=r.arrival_s - from_s) for r in chosen)


def _time_s(text: str, where: str) -> float:
    stamp = text.strip()
    # Seven decimals are Azure's; the standard library reads six.
    whole, dot, rest = stamp.partition(".")
    digits = len(rest) - len(rest.lstrip("0123456789"))
    shortened = f"{whole}{dot}{rest[: min(6, digits)]}{rest[digits:]}" if dot else stamp
    try:
        time = datetime.fromisoformat(shortened)
    except ValueError:
        raise TraceError(
            f"{where}: TIMESTAMP {text!r} is not a time; expected like 2023-11-16 18:15:46.6805900"
        ) from None
    if time.tzinfo is None:
        seconds = (time - datetime(1970, 1, 1)).total_seconds()  # noqa: DTZ001 - naive minus naive
    else:
        seconds = time.timestamp()
    lost = rest[6:digits]
    return seconds + (int(lost) * 10.0 ** -(6 + len(lost)) if lost else 0.0)


def _tokens(text: str, column: str, where: str) -> int:
    try:
        count = int(text)
    except ValueError:
        raise TraceError(f"{where}: {column} {text!r} is not an integer") from None
    if count < 1:
        raise TraceError(f"{where}: {column} {count} must be at least 1")
    return count


# The seeded generator.

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
    """A working day in two minutes: quiet, a ramp, a peak 3.75 times the quiet hours, quiet again; mean about 0.8.
    (The Azure 2024 week has 2:1 in conversation and 10:1 in code.)"""
    points = ((0.0, 0.4), (0.2, 0.4), (0.4, 1.5), (0.65, 1.5), (0.8, 0.5), (1.0, 0.4))
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


def total_tokens(requests: Iterable[Request]) -> int:
    return sum(r.input_tokens + r.output_tokens for r in requests)
