"""How a request log writes its times, and how they are read: exactly, one by one or a block at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.text_edges import number


class TraceError(ValueError):
    """A trace cannot be used; the message names the file, the line and the field."""


LONGEST_TRACE_DAYS = 100
LONGEST_TRACE_PS = LONGEST_TRACE_DAYS * 86400 * 10**12
PS_PER_UNIT = {"s": 10**12, "ms": 10**9, "us": 10**6}
"""Picoseconds of the units a trace's times may have."""
_TICKS_PER_S = 10**7
_PS_PER_TICK = 10**5
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Cell = Any
"""Text of a CSV file, or a value of a JSON object; None where the object lacks the field."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of a request log, and how its times are written."""

    time: str
    inputs: str
    outputs: str
    tenant: str | None = None
    unit: str | None = None
    """Of times that are numbers: s, ms or us. None: a number is refused."""
    iso: bool = True
    """Times may be ISO 8601."""
    whole_ms: bool = False
    """Times without a unit are whole milliseconds (Mooncake)."""
    drops_failed: bool = False
    """Rows without output tokens are failed requests: left out and counted."""

    @property
    def columns(self) -> tuple[str, ...]:
        needed = (self.time, self.inputs, self.outputs)
        return needed if self.tenant is None else (*needed, self.tenant)


class TimeReader:
    """Times of one layout, exactly: Azure writes seven decimals, the standard library reads six."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._unit_ps = PS_PER_UNIT.get(layout.unit or "", PS_PER_UNIT["ms"] if layout.whole_ms else 0)

    def ps(self, cell: Cell, where: str) -> int:
        """Picoseconds since 1970 or since wherever the file counts from. Raises TraceError."""
        layout = self._layout
        text = repr(cell) if isinstance(cell, int | float) and not isinstance(cell, bool) else cell
        value = number(text) if isinstance(text, str) else None
        if value is None and layout.iso and isinstance(text, str):
            return iso_ticks(text, where, layout.time) * _PS_PER_TICK
        if value is not None and not self._unit_ps:
            raise TraceError(f"{where}: {layout.time} {cell!r:.60} is a number; say --time-unit s, ms or us")
        if value is None or not 0 <= value < 1e17 or (isinstance(cell, str) and layout.whole_ms):
            kind = {"s": "seconds", "us": "microseconds"}.get(layout.unit or "", "milliseconds")
            raise TraceError(f"{where}: {layout.time} {cell!r:.60} is not a number of {kind} from 0 on")
        if layout.whole_ms and layout.unit is None and value != int(value):
            raise TraceError(
                f"{where}: {layout.time} {cell} is no whole number of milliseconds; if it is in seconds, "
                "say --time-unit s"
            )
        return _exact_ps(text, value, self._unit_ps)

    def block(self, cells: Sequence[Cell]) -> tuple[NDArray[np.int64], int] | None:
        """Picoseconds, and the instant that they count from; None where a row may be at fault."""
        if not isinstance(cells[0], str):
            return self._numbers(cells)
        if not all(type(cell) is str for cell in cells):
            return None
        if self._unit_ps and cells[0].strip()[:5].isdigit():
            return self._number_texts(cells)
        if not self._layout.iso or not 19 <= min(map(len, cells)) <= max(map(len, cells)) <= 27:
            return None
        joined = "".join(cells)
        # A third hyphen in a cell is an offset from UTC.
        if joined.count("-") != 2 * len(cells) or joined.encode("utf-8", "replace").translate(None, b"0123456789-:. T"):
            return None
        if not all(cell[:2] == "20" and cell[4] == "-" for cell in cells):
            return None
        try:
            stamps = np.array(cells, "datetime64[ns]").astype(np.int64)
        except ValueError:
            return None
        since_ns = stamps - stamps[0]
        if np.abs(since_ns).max() > LONGEST_TRACE_PS // 1000:
            return None
        return since_ns * 1000, int(stamps[0]) * 1000

    def _numbers(self, cells: Sequence[Cell]) -> tuple[NDArray[np.int64], int] | None:
        if not self._unit_ps or not all(type(cell) is int and 0 <= cell < 10**16 for cell in cells):
            return None
        return self._since(np.array(cells, np.int64))

    def _number_texts(self, cells: Sequence[str]) -> tuple[NDArray[np.int64], int] | None:
        """Whole numbers, or seconds with decimals down to nanoseconds."""
        if max(map(len, cells)) > 20:
            return None
        joined = ",".join(cells)
        if not joined.encode("utf-8", "replace").translate(None, b"0123456789,"):
            whole = whole_numbers(joined, len(cells))
            return None if whole is None or whole.max() >= 10**16 else self._since(whole)
        parts = [cell.partition(".") for cell in cells]
        if not all(len(rest) <= 9 for _, _, rest in parts):
            return None
        # The decimals of every cell are filled up to nine, so that a cell is one whole number of billionths.
        joined = ",".join([head + rest.ljust(9, "0") for head, _, rest in parts])
        if joined.encode("utf-8", "replace").translate(None, b"0123456789,") or not all(head for head, _, _ in parts):
            return None
        billionths = whole_numbers(joined, len(cells))
        if billionths is None or billionths.max() >= 9 * 10**18:
            return None
        since = billionths - billionths[0]
        if np.abs(since).max() > LONGEST_TRACE_PS // 1000:
            return None
        scale = self._unit_ps
        if scale < 10**9:
            return None
        return since * (scale // 10**9), int(billionths[0]) * (scale // 10**9)

    def _since(self, whole: NDArray[np.int64]) -> tuple[NDArray[np.int64], int] | None:
        since = whole - whole[0]
        if np.abs(since).max() > LONGEST_TRACE_PS // self._unit_ps:
            return None
        return since * self._unit_ps, int(whole[0]) * self._unit_ps


def iso_ticks(text: str, where: str, field: str) -> int:
    """An ISO time in ticks of 100 ns since 1970; without an offset it is UTC. Raises TraceError."""
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
    return ticks + (int(rest[: min(7, digits)].ljust(7, "0")) if dot and digits else 0)


def _exact_ps(text: str, value: float, unit_ps: int) -> int:
    whole, _, rest = text.strip().partition(".")
    if whole.isdigit() and (rest.isdigit() or not rest):
        return int(whole) * unit_ps + int(rest[:12].ljust(12, "0")) * unit_ps // 10**12
    return round(value * unit_ps)


def whole_numbers(joined: str, count: int) -> NDArray[np.int64] | None:
    """Digits and commas as so many whole numbers; None where a cell is empty or has too many digits."""
    if joined.startswith(",") or joined.endswith(",") or ",," in joined:
        return None
    values = np.fromstring(joined, np.int64, sep=",")
    return values if len(values) == count else None
