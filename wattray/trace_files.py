"""Trace files as people have them: plain or gzipped, in one of three formats, or made on the spot."""

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from control_plane.simulation.trace import Trace, scaled
from control_plane.simulation.traces import (
    WEEK_2024,
    LengthPercentiles,
    TraceError,
    azure_trace,
    load_curve_trace,
    mooncake_trace,
    synthetic_trace,
)

FORMATS = ("azure", "mooncake", "rpm")
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
    lengths: LengthPercentiles = WEEK_2024["conv"]


def load_trace(wanted: TraceRequest) -> Trace:
    """Raises TraceError with file, line and field for anything that cannot be used."""
    if not 0 < wanted.scale < 1e6:
        raise TraceError(f"--scale {wanted.scale:g} must be above 0 and below a million")
    if wanted.source.startswith(SYNTHETIC):
        kind = wanted.source.removeprefix(SYNTHETIC)
        try:
            trace = synthetic_trace(kind, wanted.hours, wanted.scale, wanted.seed)
        except ValueError as error:
            raise TraceError(str(error)) from None
        return _not_empty(trace, wanted)
    path = Path(wanted.source)
    with _lines(path) as lines:
        match wanted.format or _guess(path):
            case "azure":
                return _not_empty(scaled(azure_trace(lines, str(path)), wanted.scale, wanted.seed), wanted)
            case "mooncake":
                return _not_empty(scaled(mooncake_trace(lines, str(path)), wanted.scale, wanted.seed), wanted)
            case "rpm":
                return load_curve_trace(lines, wanted.lengths, wanted.scale, wanted.seed, str(path))
            case other:
                raise TraceError(f"unknown trace format {other!r}; there are {', '.join(FORMATS)}")


def read_percentiles(text: str, where: str) -> LengthPercentiles:
    """``conv``, ``code``, or ``in:share=tokens,…;out:share=tokens,…`` with shares from 0 to 1."""
    if text in WEEK_2024:
        return WEEK_2024[text]
    try:
        parts = dict(part.split(":", 1) for part in text.split(";"))
        knots = {}
        for name in ("in", "out"):
            pairs = [pair.split("=", 1) for pair in parts[name].split(",")]
            knots[name] = tuple((float(share), float(tokens)) for share, tokens in pairs)
        return LengthPercentiles(knots["in"], knots["out"])
    except (KeyError, ValueError) as error:
        raise TraceError(
            f"{where} {text!r} is not {', '.join(WEEK_2024)} or in:0=1,0.5=900,1=8000;out:0=1,1=500 ({error})"
        ) from None


def _not_empty(trace: Trace, wanted: TraceRequest) -> Trace:
    if not len(trace):
        raise TraceError(f"{wanted.source}: nothing is left at --scale {wanted.scale:g}")
    return trace


def _guess(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson", ".json")):
        return "mooncake"
    with _lines(path) as lines:
        return "rpm" if "rpm_mid" in next(iter(lines), "") else "azure"


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
    except (EOFError, gzip.BadGzipFile) as error:
        raise TraceError(f"{path}: the gzip file is damaged: {error}") from None


def _unzipped(raw: BinaryIO) -> BinaryIO:
    magic = raw.read(2)
    raw.seek(0)
    if magic == _GZIP_MAGIC:
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    return raw
