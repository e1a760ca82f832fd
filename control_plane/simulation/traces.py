"""Request traces in the formats people have: Azure's CSV, Mooncake's JSONL, load curves. Checked at the edge: every
fault names the file, the line and the field."""

import io
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

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
from control_plane.text_edges import csv_rows, number, parse_json, whole_number

__all__ = [
    "CONVERSATION_RPS",
    "CONVERSATION_SHARES",
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


class TraceError(ValueError):
    """A trace cannot be used; the message names the file, the line and the field."""


COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOST_TOKENS = 10_000_000
"""More than any model's context: a count above it is a fault of the file."""
LONGEST_TRACE_DAYS = 100
LONGEST_TRACE_PS = LONGEST_TRACE_DAYS * 86400 * 10**12
MOST_REQUESTS = 200_000_000
"""A trace's columns would fill more memory than a large server has."""
_TICKS_PER_S = 10**7
_PS_PER_TICK = 10**5
_BLOCK = 1 << 20
"""Requests worked on at a time: what lies in between stays small beside a week's trace."""


def read_azure(text: str, source: str = "trace") -> tuple[Request, ...]:
    """Requests of an Azure LLM inference trace as objects; see ``azure_trace``."""
    return azure_trace(io.StringIO(text), source).requests()


def azure_trace(lines: Iterable[str], source: str = "trace", skipped: list[int] | None = None) -> Trace:
    """An Azure LLM inference trace (2023, 2024), arrival times from the first one on.

    Columns TIMESTAMP (ISO, up to seven decimals, an offset allowed), ContextTokens, GeneratedTokens in any order,
    others ignored. Requests without an answer have failed: where ``skipped`` is given they are left out, and their
    lines added to it. Raises TraceError for a missing column, an empty file, unparsable or unsorted times, and token
    counts that are not positive integers.
    """
    columns = _Columns(source)
    clock = _StampReader()
    for line, (stamp, inputs, outputs) in csv_rows(lines, COLUMNS, source, TraceError):
        where = f"{source}:{line}"
        if skipped is not None and whole_number(outputs) == 0:
            skipped.append(line)
            continue
        columns.add(
            line,
            clock.ticks(stamp, where) * _PS_PER_TICK,
            _tokens(inputs, "ContextTokens", where),
            _tokens(outputs, "GeneratedTokens", where),
            f"TIMESTAMP {stamp}",
        )
    return columns.trace()


BURSTGPT_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")
VIDUR_COLUMNS = ("arrived_at", "num_prefill_tokens", "num_decode_tokens")
PS_PER_UNIT = {"s": 10**12, "ms": 10**9, "us": 10**6}
"""Picoseconds of the units a trace's times may have."""


def burstgpt_trace(
    lines: Iterable[str],
    source: str = "trace",
    skipped: list[int] | None = None,
    names: Sequence[str] = BURSTGPT_COLUMNS,
) -> Trace:
    """A BurstGPT trace: CSV with Timestamp in seconds, Request tokens and Response tokens, others ignored; ``names``
    where the columns were renamed.

    Requests that failed have no response tokens: they are left out and their lines added to ``skipped``. Raises
    TraceError.
    """
    return _in_seconds(lines, names, source, skipped)


def vidur_trace(lines: Iterable[str], source: str = "trace") -> Trace:
    """A vidur trace: CSV with arrived_at in seconds, num_prefill_tokens and num_decode_tokens. Raises TraceError."""
    return _in_seconds(lines, VIDUR_COLUMNS, source, None)


def _in_seconds(lines: Iterable[str], names: Sequence[str], source: str, skipped: list[int] | None) -> Trace:
    columns = _Columns(source)
    for line, (stamp, inputs, outputs) in csv_rows(lines, names, source, TraceError):
        where = f"{source}:{line}"
        at_s = number(stamp)
        if at_s is None or not 0 <= at_s < 1e10:
            raise TraceError(f"{where}: {names[0]} {stamp!r} is not a number of seconds from 0 on")
        if skipped is not None and whole_number(outputs) == 0:
            skipped.append(line)
            continue
        columns.add(
            line,
            round(at_s * PS_PER_S),
            _tokens(inputs, names[1], where),
            _tokens(outputs, names[2], where),
            f"{names[0]} {stamp}",
        )
    return columns.trace()


def mooncake_trace(lines: Iterable[str], source: str = "trace", unit: str | None = None) -> Trace:
    """A Mooncake trace: one JSON object a line with ``timestamp``, ``input_length`` and ``output_length``; other fields
    (``hash_ids``) are ignored.

    Times are whole milliseconds; fractions may as well be seconds, so they are refused unless ``unit`` says "s", "ms"
    or "us". Raises TraceError as ``azure_trace`` does.
    """
    columns = _Columns(source)
    ps_per_unit = PS_PER_UNIT[unit or "ms"]
    for line, text in enumerate(lines, start=1):
        text = text.removeprefix("\ufeff") if line == 1 else text
        if not text.strip():
            continue
        where = f"{source}:{line}"
        if line == 1 and text.lstrip().startswith("["):
            raise TraceError(f"{where}: this is one JSON array; expected one object a line (jq -c '.[]' makes it so)")
        row = parse_json(text, where, TraceError, one_line=True)
        if not isinstance(row, dict):
            raise TraceError(f"{where}: expected an object with timestamp, input_length and output_length")
        for name in ("timestamp", "input_length", "output_length"):
            if name not in row:
                raise TraceError(f"{where}: field {name} is missing; found {','.join(map(str, row))[:200]}")
        stamp = row["timestamp"]
        if isinstance(stamp, bool) or not isinstance(stamp, int | float) or not 0 <= stamp < 1e16:
            raise TraceError(f"{where}: timestamp {stamp!r:.60} is not a number of milliseconds from 0 on")
        if unit is None and stamp != int(stamp):
            raise TraceError(
                f"{where}: timestamp {stamp} is no whole number of milliseconds; if it is in seconds, say --time-unit s"
            )
        columns.add(
            line,
            round(stamp * ps_per_unit),
            _tokens(row["input_length"], "input_length", where),
            _tokens(row["output_length"], "output_length", where),
            f"timestamp {stamp}",
        )
    return columns.trace()


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
    clock = _StampReader()
    for line, (stamp, rpm) in csv_rows(lines, RPM_COLUMNS, source, TraceError):
        where = f"{source}:{line}"
        times_s.append(clock.ticks(stamp, where, "time_utc") / _TICKS_PER_S)
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


class _Columns:
    """Growing columns of a trace that is read; times must not fall."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._times, self._inputs, self._outputs = array("q"), array("i"), array("i")
        self._first_ps = 0

    def add(self, line: int, at_ps: int, input_tokens: int, output_tokens: int, field: str) -> None:
        if not self._times:
            self._first_ps = at_ps
        elif at_ps - self._first_ps < self._times[-1]:
            raise TraceError(f"{self._source}:{line}: {field} is before the line above; sort the trace by time")
        if at_ps - self._first_ps > LONGEST_TRACE_PS:
            raise TraceError(f"{self._source}:{line}: {field} is more than 100 days after the first request")
        self._times.append(at_ps - self._first_ps)
        self._inputs.append(input_tokens)
        self._outputs.append(output_tokens)

    def trace(self) -> Trace:
        if not self._times:
            raise TraceError(f"{self._source}: the trace has a header and no requests")
        times = np.frombuffer(self._times, np.int64)
        inputs, outputs = np.frombuffer(self._inputs, np.int32), np.frombuffer(self._outputs, np.int32)
        return Trace(times, inputs, outputs)


class _StampReader:
    """Timestamps in ticks of 100 ns, exactly: Azure writes seven decimals, the standard library reads six."""

    def __init__(self) -> None:
        self._minute, self._minute_ticks = "", 0

    def ticks(self, text: str, where: str, field: str = "TIMESTAMP") -> int:
        # Almost every line shares its minute with the one above; the seconds are then all there is to read.
        if (
            text[:17] == self._minute
            and text.isascii()
            and text[17:19].isdigit()
            and (text[19:] == "" or text[19] == ".")
        ):
            decimals = text[20:]
            if len(text) == 19 or (decimals.isdigit() and decimals.isascii()):
                seconds = int(text[17:19])
                if seconds < 60:
                    return self._minute_ticks + seconds * _TICKS_PER_S + int(decimals[:7].ljust(7, "0"))
        return self._slow(text, where, field)

    def _slow(self, text: str, where: str, field: str) -> int:
        stamp = text.strip()
        if not stamp.isascii():
            raise TraceError(f"{where}: {field} {text!r} is not a time; digits are 0-9")
        whole, dot, rest = stamp.partition(".")
        digits = len(rest) - len(rest.lstrip("0123456789"))
        try:
            time = datetime.fromisoformat(f"{whole}{rest[digits:]}" if dot else stamp)
        except ValueError:
            raise TraceError(
                f"{where}: {field} {text!r} is not a time; expected like 2023-11-16 18:15:46.6805900"
            ) from None
        if time.tzinfo is None:
            time = time.replace(tzinfo=UTC)
        ticks = round((time - _EPOCH).total_seconds()) * _TICKS_PER_S
        if time.tzinfo is UTC and len(whole) == 19:
            self._minute, self._minute_ticks = text[:17], ticks - int(whole[17:19]) * _TICKS_PER_S
        return ticks + (int(rest[: min(7, digits)].ljust(7, "0")) if dot and digits else 0)


def _tokens(value: object, column: str, where: str) -> int:
    count = whole_number(value) if isinstance(value, str) else value
    if isinstance(count, bool) or not isinstance(count, int):
        raise TraceError(f"{where}: {column} {value!r:.60} is not an integer")
    if not 1 <= count <= MOST_TOKENS:
        raise TraceError(f"{where}: {column} {str(count)[:30]} must be at least 1 and at most {MOST_TOKENS}")
    return count


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
