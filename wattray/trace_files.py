"""Trace files as people have them: plain or gzipped, in one of the known formats, or made on the spot."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np

from control_plane.simulation.trace import Trace, scaled
from control_plane.simulation.traces import (
    BURSTGPT_COLUMNS,
    COLUMNS,
    LONGEST_TRACE_DAYS,
    MOST_REQUESTS,
    PS_PER_UNIT,
    RPM_COLUMNS,
    VIDUR_COLUMNS,
    WEEK_2024,
    LengthPercentiles,
    TraceError,
    azure_trace,
    burstgpt_trace,
    load_curve_trace,
    mooncake_trace,
    synthetic_trace,
    vidur_trace,
)
from control_plane.text_edges import csv_header, number

FORMATS = ("azure", "mooncake", "burstgpt", "vidur", "rpm")
MOST_HOURS = 24.0 * LONGEST_TRACE_DAYS
_GZIP_MAGIC = b"\x1f\x8b"
SYNTHETIC = "synthetic:"


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """What was asked for on the command line. ``source``: a file, or ``synthetic:conv`` or ``synthetic:code``."""

    source: str
    format: str | None = None
    scale: float = 1.0
    hours: float = 1.0
    seed: int = 0
    time_unit: str | None = None
    lengths: LengthPercentiles = WEEK_2024["conv"]


def load_trace(wanted: TraceRequest, skipped: list[int] | None = None) -> Trace:
    """``skipped`` takes the lines of requests that failed and are left out. Raises TraceError with file, line and field
    for anything that cannot be used."""
    if not 0 < wanted.scale < 1e6:
        raise TraceError(f"--scale {wanted.scale:g} must be above 0 and below a million")
    if not 0 < wanted.hours <= MOST_HOURS:
        raise TraceError(f"--hours {wanted.hours:g} must be above 0 and at most {MOST_HOURS:g}")
    if wanted.time_unit is not None and wanted.time_unit not in PS_PER_UNIT:
        raise TraceError(f"--time-unit {wanted.time_unit!r}: there are {', '.join(PS_PER_UNIT)}")
    if wanted.format is not None and wanted.format not in FORMATS:
        raise TraceError(f"unknown trace format {wanted.format!r}; there are {', '.join(FORMATS)}")
    if wanted.source.startswith(SYNTHETIC):
        kind = wanted.source.removeprefix(SYNTHETIC)
        try:
            trace = synthetic_trace(kind, wanted.hours, wanted.scale, wanted.seed)
        except ValueError as error:
            raise TraceError(str(error)) from None
        return _not_empty(trace, wanted)
    path = Path(wanted.source)
    form = wanted.format or _guess(path)
    if wanted.time_unit is not None and form != "mooncake":
        raise TraceError(f"--time-unit is for mooncake traces; {form} traces say their unit")
    with _lines(path) as lines:
        match form:
            case "azure":
                trace = azure_trace(lines, str(path), skipped)
            case "mooncake":
                trace = mooncake_trace(lines, str(path), wanted.time_unit)
            case "burstgpt":
                trace = burstgpt_trace(lines, str(path), skipped)
            case "burstgpt, renamed":
                trace = burstgpt_trace(lines, str(path), skipped, COLUMNS)
            case "vidur":
                trace = vidur_trace(lines, str(path))
            case _:
                return load_curve_trace(lines, wanted.lengths, wanted.scale, wanted.seed, str(path))
    if len(trace) * wanted.scale > MOST_REQUESTS:
        raise TraceError(f"--scale {wanted.scale:g} of {len(trace):,} requests; at most {MOST_REQUESTS:,} fit")
    return _not_empty(scaled(trace, wanted.scale, wanted.seed), wanted)


def without_what_never_fits(trace: Trace, most_tokens: int, source: str) -> tuple[Trace, int]:
    """The requests whose prompt and answer fit a KV cache of ``most_tokens``, and how many do not. Raises TraceError
    where none does."""
    fits = trace.input_tokens.astype(np.int64) + trace.output_tokens <= most_tokens
    left_out = int(len(trace) - fits.sum())
    if left_out == len(trace):
        raise TraceError(f"{source}: no request fits any replica: prompt and answer exceed {most_tokens:,} KV tokens")
    if left_out == 0:
        return trace, 0
    return Trace(trace.arrival_ps[fits], trace.input_tokens[fits], trace.output_tokens[fits]), left_out


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


def _guess(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson", ".json")):
        return "mooncake"
    with _lines(path) as lines:
        header = csv_header(lines, str(path), TraceError)
    for form, columns in (("burstgpt", BURSTGPT_COLUMNS), ("vidur", VIDUR_COLUMNS), ("rpm", RPM_COLUMNS)):
        if set(columns) <= set(header):
            return form
    # BurstGPT's own further column under Azure's names: times are still seconds.
    return "burstgpt, renamed" if {*COLUMNS, "Log Type"} <= set(header) else "azure"


@contextmanager
def _lines(path: Path) -> Iterator[TextIO]:
    try:
        with path.open("rb") as raw:
            yield io.TextIOWrapper(_unzipped(raw), encoding="utf-8-sig", newline="")
    except FileNotFoundError:
        raise TraceError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise TraceError(f"{path}: this is a folder, not a trace") from None
    except PermissionError:
        raise TraceError(f"{path}: may not be read") from None
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: not UTF-8 text at byte {error.start}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TraceError(f"{path}: the gzip file is damaged: {error}") from None
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from None


def _unzipped(raw: BinaryIO) -> BinaryIO:
    magic = raw.read(2)
    raw.seek(0)
    if magic == _GZIP_MAGIC:
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    return raw
