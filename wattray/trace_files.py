"""Trace files as people have them, in one of the known formats or with columns of their own, or made on the spot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from control_plane.simulation.trace import Trace, scaled_rows
from control_plane.simulation.trace_reader import LeftOut, ReadTrace, TraceReader
from control_plane.simulation.traces import (
    LONGEST_TRACE_DAYS,
    MOST_REQUESTS,
    PS_PER_UNIT,
    WEEK_2024,
    LengthPercentiles,
    TraceError,
    csv_requests,
    json_requests,
    load_curve_trace,
    synthetic_trace,
)
from control_plane.text_edges import number
from wattray.trace_layouts import FORMATS, guessed_format, layout_of, read_columns
from wattray.trace_sources import is_jsonl, is_parquet, opened_lines, parquet_requests

MOST_HOURS = 24.0 * LONGEST_TRACE_DAYS
SYNTHETIC = "synthetic:"


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """What was asked for on the command line. ``source``: a file, or ``synthetic:conv`` or ``synthetic:code``;
    ``more``: further files, merged with it by time."""

    source: str
    format: str | None = None
    scale: float = 1.0
    hours: float = 1.0
    seed: int = 0
    time_unit: str | None = None
    lengths: LengthPercentiles = WEEK_2024["conv"]
    more: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    """The user's own names of time, input, output and tenant."""
    sorts: bool = False
    skip_bad: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        return (self.source, *self.more)


def trace_request(
    traces: Sequence[str],
    form: str | None = None,
    scale: float = 1.0,
    hours: float = 1.0,
    seed: int = 0,
    time_unit: str | None = None,
    lengths: str = "conv",
    columns: str | None = None,
    *,
    sort: bool = False,
    skip_bad: bool = False,
) -> TraceRequest:
    """From the options of a command. Raises TraceError."""
    percentiles, names = read_percentiles(lengths, "--lengths"), read_columns(columns)
    first, *more = traces
    return TraceRequest(first, form, scale, hours, seed, time_unit, percentiles, tuple(more), names, sort, skip_bad)


def load_trace(wanted: TraceRequest, skipped: list[int] | None = None) -> Trace:
    """As ``read_requests``, the trace alone; ``skipped`` takes the lines of requests that failed and are left out."""
    read, left_out = read_requests(wanted)
    if skipped is not None:
        skipped += left_out.failed
    return read.trace


def read_requests(wanted: TraceRequest) -> tuple[ReadTrace, LeftOut]:
    """The requests, where each was read, and what was left out. Raises TraceError with file, line and field for
    anything that cannot be used."""
    _check(wanted)
    left_out = LeftOut(wanted.skip_bad)
    if wanted.source.startswith(SYNTHETIC):
        kind = wanted.source.removeprefix(SYNTHETIC)
        try:
            trace = synthetic_trace(kind, wanted.hours, wanted.scale, wanted.seed)
        except ValueError as error:
            raise TraceError(str(error)) from None
        return ReadTrace(_not_empty(trace, wanted)), left_out
    reader = TraceReader(left_out, wanted.sorts)
    for name in wanted.files:
        path = Path(name)
        form = wanted.format or guessed_format(path, wanted.columns)
        if form == "rpm":
            if len(wanted.files) > 1:
                raise TraceError(f"{name}: a load curve is read alone, not beside other traces")
            with opened_lines(path) as lines:
                curve = load_curve_trace(lines, wanted.lengths, wanted.scale, wanted.seed, name)
            return ReadTrace(curve), left_out
        layout = layout_of(form, wanted.columns, wanted.time_unit)
        if is_parquet(path):
            reader.read(parquet_requests(path, layout), layout, name)
        else:
            rows = json_requests if is_jsonl(path) or form in ("mooncake", "openai") else csv_requests
            with opened_lines(path) as lines:
                reader.read(rows(lines, layout, name, left_out), layout, name)
    read = reader.finished()
    if len(read.trace) * wanted.scale > MOST_REQUESTS:
        raise TraceError(f"--scale {wanted.scale:g} of {len(read.trace):,} requests; at most {MOST_REQUESTS:,} fit")
    trace, picked = scaled_rows(read.trace, wanted.scale, wanted.seed)
    origin = read.origin if picked is None or read.origin is None else read.origin.take(picked)
    return ReadTrace(_not_empty(trace, wanted), origin, read.starts_ps), left_out


def _check(wanted: TraceRequest) -> None:
    if not 0 < wanted.scale < 1e6:
        raise TraceError(f"--scale {wanted.scale:g} must be above 0 and below a million")
    if not 0 < wanted.hours <= MOST_HOURS:
        raise TraceError(f"--hours {wanted.hours:g} must be above 0 and at most {MOST_HOURS:g}")
    if wanted.time_unit is not None and wanted.time_unit not in PS_PER_UNIT:
        raise TraceError(f"--time-unit {wanted.time_unit!r}: there are {', '.join(PS_PER_UNIT)}")
    if wanted.format is not None and wanted.format not in FORMATS:
        raise TraceError(f"unknown trace format {wanted.format!r}; there are {', '.join(FORMATS)}")
    made = [name for name in wanted.files if name.startswith(SYNTHETIC)]
    if made and len(wanted.files) > 1:
        raise TraceError(f"--trace {made[0]} is made on the spot and stands alone")


def without_what_never_fits(read: ReadTrace, most_tokens: int, source: str) -> tuple[ReadTrace, int]:
    """The requests whose prompt and answer fit a KV cache of ``most_tokens``, and how many do not. Raises TraceError
    where none does."""
    trace = read.trace
    fits = trace.input_tokens.astype(np.int64) + trace.output_tokens <= most_tokens
    left_out = int(len(trace) - fits.sum())
    if left_out == len(trace):
        raise TraceError(f"{source}: no request fits any replica: prompt and answer exceed {most_tokens:,} KV tokens")
    return (read, 0) if left_out == 0 else (read.take(fits), left_out)


def read_percentiles(text: str, where: str) -> LengthPercentiles:
    """``conv``, ``code``, or ``in:share=tokens,…;out:share=tokens,…`` with shares from 0 to 1."""
    if text in WEEK_2024:
        return WEEK_2024[text]
    try:
        parts = dict(part.split(":", 1) for part in text.split(";"))
        knots = {}
        for name in ("in", "out"):
            pairs = [pair.split("=", 1) for pair in parts[name].split(",")]
            knots[name] = tuple((_number(share), _number(tokens)) for share, tokens in pairs)
        return LengthPercentiles(knots["in"], knots["out"])
    except (KeyError, ValueError) as error:
        raise TraceError(
            f"{where} {text!r} is not {', '.join(WEEK_2024)} or in:0=1,0.5=900,1=8000;out:0=1,1=500 ({error})"
        ) from None


def _number(text: str) -> float:
    value = number(text)
    if value is None:
        raise ValueError(f"{text!r} is not a number")
    return value


def _not_empty(trace: Trace, wanted: TraceRequest) -> Trace:
    if not len(trace):
        raise TraceError(f"{wanted.source}: nothing is left at --scale {wanted.scale:g}")
    return trace
