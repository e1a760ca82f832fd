"""Request traces in the formats people have: Azure's CSV, Mooncake's JSONL, load curves. Checked at the edge: every
fault names the file, the line and the field."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.domain import Request
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.simulation.synthetic import (
    CONVERSATION_RPS,
    CONVERSATION_SHARES,
    demo_shape,
    synthetic_conversation,
    synthetic_trace,
)
from control_plane.simulation.trace import Trace
from control_plane.simulation.trace_reader import MOST_TOKENS, LeftOut, Row, TraceReader
from control_plane.simulation.trace_times import LONGEST_TRACE_DAYS, PS_PER_UNIT, Layout, TraceError, iso_ticks
from control_plane.text_edges import csv_rows, number, parse_json

__all__ = [
    "CONVERSATION_RPS",
    "CONVERSATION_SHARES",
    "LONGEST_TRACE_DAYS",
    "PS_PER_UNIT",
    "LengthPercentiles",
    "TraceError",
    "azure_trace",
    "burstgpt_trace",
    "demo_shape",
    "load_curve_trace",
    "mooncake_trace",
    "read_azure",
    "synthetic_conversation",
    "synthetic_trace",
    "vidur_trace",
    "window",
]


COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOST_REQUESTS = 200_000_000
"""A trace's columns would fill more memory than a large server has."""
_TICKS_PER_S = 10**7
_BLOCK = 1 << 20
"""Requests worked on at a time: what lies in between stays small beside a week's trace."""


def read_azure(text: str, source: str = "trace") -> tuple[Request, ...]:
    """Requests of an Azure LLM inference trace as objects; see ``azure_trace``."""
    return azure_trace(io.StringIO(text), source).requests()


AZURE = Layout(*COLUMNS)
BURSTGPT = Layout("Timestamp", "Request tokens", "Response tokens", unit="s", iso=False, drops_failed=True)
BURSTGPT_RENAMED = Layout(*COLUMNS, unit="s", iso=False, drops_failed=True)
VIDUR = Layout("arrived_at", "num_prefill_tokens", "num_decode_tokens", unit="s", iso=False)
MOONCAKE = Layout("timestamp", "input_length", "output_length", iso=False, whole_ms=True)


def azure_trace(lines: Iterable[str], source: str = "trace", skipped: list[int] | None = None) -> Trace:
    """An Azure LLM inference trace (2023, 2024), arrival times from the first one on.

    Columns TIMESTAMP (ISO, up to seven decimals, an offset allowed), ContextTokens, GeneratedTokens in any order,
    others ignored. Requests without an answer have failed: where ``skipped`` is given they are left out, and their
    lines added to it. Raises TraceError for a missing column, an empty file, unparsable or unsorted times, and token
    counts that are not positive integers.
    """
    return _one(csv_requests(lines, AZURE, source), replace(AZURE, drops_failed=skipped is not None), source, skipped)


def burstgpt_trace(lines: Iterable[str], source: str = "trace", skipped: list[int] | None = None) -> Trace:
    """A BurstGPT trace: CSV with Timestamp in seconds, Request tokens and Response tokens, others ignored.

    Requests that failed have no response tokens: they are left out and their lines added to ``skipped``. Raises
    TraceError.
    """
    return _one(csv_requests(lines, BURSTGPT, source), BURSTGPT, source, skipped)


def vidur_trace(lines: Iterable[str], source: str = "trace") -> Trace:
    """A vidur trace: CSV with arrived_at in seconds, num_prefill_tokens and num_decode_tokens. Raises TraceError."""
    return _one(csv_requests(lines, VIDUR, source), VIDUR, source, None)


def mooncake_trace(lines: Iterable[str], source: str = "trace", unit: str | None = None) -> Trace:
    """A Mooncake trace: one JSON object a line with ``timestamp``, ``input_length`` and ``output_length``; other fields
    (``hash_ids``) are ignored.

    Times are whole milliseconds; fractions may as well be seconds, so they are refused unless ``unit`` says "s", "ms"
    or "us". Raises TraceError as ``azure_trace`` does.
    """
    return _one(json_requests(lines, MOONCAKE, source), replace(MOONCAKE, unit=unit), source, None)


def _one(rows: Iterable[Row], layout: Layout, source: str, skipped: list[int] | None) -> Trace:
    left_out = LeftOut()
    reader = TraceReader(left_out)
    reader.read(rows, layout, source)
    if skipped is not None:
        skipped += left_out.failed
    return reader.finished().trace


def csv_requests(lines: Iterable[str], layout: Layout, source: str, left_out: LeftOut | None = None) -> Iterator[Row]:
    """The rows of a CSV file with a header, for ``TraceReader``. Raises TraceError."""
    at_fault = None
    if left_out is not None and left_out.skip_bad:
        at_fault = _counted(left_out)
    return csv_rows(lines, layout.columns, source, TraceError, at_fault=at_fault)


def _counted(left_out: LeftOut) -> Callable[[ValueError], None]:
    return lambda error: left_out.fault(TraceError(str(error)))


def json_requests(lines: Iterable[str], layout: Layout, source: str, left_out: LeftOut | None = None) -> Iterator[Row]:
    """The objects of a JSONL file, for ``TraceReader``; a column such as ``usage.prompt_tokens`` is a field of the
    object in ``usage``. Raises TraceError."""
    columns = [(name, tuple(name.split("."))) for name in layout.columns]
    left_out = left_out or LeftOut()
    for line, text in enumerate(lines, start=1):
        text = text.removeprefix("\ufeff") if line == 1 else text
        if not text.strip():
            continue
        where = f"{source}:{line}"
        if line == 1 and text.lstrip().startswith("["):
            raise TraceError(f"{where}: this is one JSON array; expected one object a line (jq -c '.[]' makes it so)")
        try:
            row = parse_json(text, where, TraceError, one_line=True)
            if not isinstance(row, dict):
                raise TraceError(f"{where}: expected an object with {' and '.join(layout.columns)}")
            cells = [row[name] if name in row else _inside(row, path) for name, path in columns]
            for at, (name, _) in enumerate(columns[:3]):
                if cells[at] is None and not (layout.drops_failed and at):
                    raise TraceError(f"{where}: field {name} is missing; found {','.join(map(str, row))[:200]}")
            if layout.drops_failed and cells[1] is None:
                cells[2] = None
        except TraceError as error:
            left_out.fault(error)
            continue
        yield line, cells


def _inside(row: dict[str, Any], path: tuple[str, ...]) -> Any:
    found: Any = row
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found


@dataclass(frozen=True, slots=True)
class LengthPercentiles:
    """(share, tokens) knots of the input and output lengths, drawn independently and interpolated in between."""

    inputs: Sequence[tuple[float, float]]
    outputs: Sequence[tuple[float, float]]

    def __post_init__(self) -> None:
        for name, knots in (("input", self.inputs), ("output", self.outputs)):
            shares, tokens = [share for share, _ in knots], [count for _, count in knots]
            if len(knots) < 2 or shares[0] != 0 or shares[-1] != 1 or shares != sorted(set(shares)):
                raise ValueError(f"{name} percentiles must rise from share 0 to share 1, got {shares}")
            if not tokens[0] >= 1 or tokens != sorted(tokens):
                raise ValueError(f"{name} percentiles must be at least 1 token and not fall, got {tokens}")
            if not tokens[-1] <= MOST_TOKENS:
                raise ValueError(f"{name} percentiles go up to {tokens[-1]:g} tokens; at most {MOST_TOKENS} are taken")

    def draw(self, random: np.random.Generator, count: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return _drawn(random, count, self.inputs), _drawn(random, count, self.outputs)


def _drawn(random: np.random.Generator, count: int, knots: Sequence[tuple[float, int | float]]) -> NDArray[np.int32]:
    shares, tokens = (np.array(column, float) for column in zip(*knots, strict=True))
    lengths = np.empty(count, np.int32)
    for start in range(0, count, _BLOCK):
        part = lengths[start : start + _BLOCK]
        part[:] = np.interp(random.random(len(part)), shares, tokens)
    return lengths


WEEK_2024 = {
    "conv": LengthPercentiles(
        ((0, 1), (0.5, 928), (0.9, 3830), (0.99, 6683), (1, 8000)),
        ((0, 1), (0.5, 41), (0.9, 342), (0.99, 694), (1, 1500)),
    ),
    "code": LengthPercentiles(
        ((0, 1), (0.5, 1930), (0.9, 6251), (0.99, 7685), (1, 8000)),
        ((0, 1), (0.5, 8), (0.9, 43), (0.99, 271), (1, 1500)),
    ),
}
"""Azure 2024 weeks: published p50, p90 and p99; the ends are ours."""

RPM_COLUMNS = ("time_utc", "rpm_mid")


def load_curve_trace(
    lines: Iterable[str], lengths: LengthPercentiles, scale: float = 1.0, seed: int = 0, source: str = "trace"
) -> Trace:
    """Requests that follow a load curve: CSV with time_utc and rpm_mid (requests per minute) at ascending times.

    Poisson arrivals at ``scale`` times the curve, linear between its points and level before the first; lengths are
    drawn from percentiles. The same seed gives the same trace.
    """
    times_s: list[float] = []
    rates: list[float] = []
    for line, (stamp, rpm) in csv_rows(lines, RPM_COLUMNS, source, TraceError):
        where = f"{source}:{line}"
        times_s.append(iso_ticks(stamp, where, "time_utc") / _TICKS_PER_S)
        if len(times_s) > 1 and times_s[-1] <= times_s[-2]:
            raise TraceError(f"{where}: time_utc {stamp} is not after the line above")
        rate = number(rpm)
        if rate is None and rpm.lower().strip(" +-") not in ("nan", "inf", "infinity"):
            raise TraceError(f"{where}: rpm_mid {rpm!r} is not a number")
        if rate is None or rate < 0:
            raise TraceError(f"{where}: rpm_mid {rpm} must be a finite number from 0 on")
        rates.append(rate / 60.0)
        if times_s[-1] - times_s[0] > LONGEST_TRACE_DAYS * 86400:
            raise TraceError(f"{where}: time_utc {stamp} is more than {LONGEST_TRACE_DAYS} days after the first point")
    if len(times_s) < 2:
        raise TraceError(f"{source}: a load curve needs at least two points, found {len(times_s)}")
    return _along_curve(np.array(times_s) - times_s[0], np.array(rates) * scale, lengths, seed, source)


def _along_curve(
    times_s: NDArray[np.float64], rates: NDArray[np.float64], lengths: LengthPercentiles, seed: int, source: str
) -> Trace:
    random = np.random.default_rng(seed)
    expected = np.concatenate(([0.0], np.cumsum((rates[1:] + rates[:-1]) / 2 * np.diff(times_s))))
    if not expected[-1] <= MOST_REQUESTS:
        raise TraceError(
            f"{source}: a load curve of {expected[-1]:.3g} requests; at most {MOST_REQUESTS:,} fit: lower --scale"
        )
    count = int(random.poisson(expected[-1]))
    if count == 0:
        raise TraceError(f"{source}: a load curve of {expected[-1]:.2f} requests brought none; raise --scale")
    # Given their number, Poisson arrivals are independent draws from the curve; sorted uniforms, then its inverse.
    marks = random.random(count)
    marks.sort()
    marks *= expected[-1]
    arrival_ps = np.empty(count, np.int64)
    for first in range(0, count, _BLOCK):
        block = marks[first : first + _BLOCK]
        piece = np.clip(np.searchsorted(expected, block, side="right") - 1, 0, len(times_s) - 2)
        rest = block - expected[piece]
        width, start = np.diff(times_s)[piece], rates[piece]
        slope = (rates[piece + 1] - start) / width
        root = np.sqrt(np.maximum(0.0, start**2 + 2 * slope * rest))
        arrival_s = times_s[piece] + np.minimum(width, 2 * rest / np.maximum(start + root, 1e-300))
        arrival_ps[first : first + _BLOCK] = np.rint(arrival_s * PS_PER_S)
    del marks
    inputs, outputs = lengths.draw(random, count)
    return Trace(np.maximum.accumulate(arrival_ps, out=arrival_ps), inputs, outputs)


def window(requests: Sequence[Request], from_s: float, duration_s: float) -> tuple[Request, ...]:
    """The requests that arrive in [from_s, from_s + duration_s), their times from the window's start."""
    chosen = [r for r in requests if from_s <= r.arrival_s < from_s + duration_s]
    return tuple(replace(r, arrival_s=r.arrival_s - from_s) for r in chosen)
