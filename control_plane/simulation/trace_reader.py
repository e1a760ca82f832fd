"""Rows of a request log become the columns of a trace, a block at a time.

A block whose cells are all clean is read by numpy as a whole. Any other block is read row by row, by the rules that say
what is wrong with a row; both give the same columns (``tests/simulation/test_trace_reader.py``).
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.simulation.trace import Trace
from control_plane.simulation.trace_times import (
    LONGEST_TRACE_DAYS,
    LONGEST_TRACE_PS,
    Cell,
    Layout,
    TimeReader,
    TraceError,
    whole_numbers,
)
from control_plane.text_edges import whole_number

MOST_TOKENS = 10_000_000
"""More than any model's context: a count above it is a fault of the file."""
_BLOCK = 1 << 16
_MOST_TOLD = 1000
"""Of the rows that were left out, so many are listed; all are counted."""

Row = tuple[int, Sequence[Cell]]
"""Line number; time, input tokens, output tokens and, where there is one, tenant."""


@dataclass(slots=True)
class LeftOut:
    """What was not read: failed requests, and with ``skip_bad`` rows that cannot be read."""

    skip_bad: bool = False
    failed: list[int] = field(default_factory=list)
    """Lines of the requests that failed."""
    bad: list[str] = field(default_factory=list)
    """What is wrong with the first ones, each with its file and line."""
    bad_rows: int = 0

    def fault(self, error: TraceError) -> None:
        """Counts a bad row where bad rows are skipped; raises the error otherwise."""
        if not self.skip_bad:
            raise error
        self.bad_rows += 1
        if len(self.bad) < _MOST_TOLD:
            self.bad.append(str(error))


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """Where each request of a trace was read, by its position in the trace."""

    files: tuple[str, ...]
    file: NDArray[np.int16]
    line: NDArray[np.int32]
    tenants: tuple[str, ...]
    tenant: NDArray[np.int32]

    def take(self, chosen: Any) -> "Origin":
        return replace(self, file=self.file[chosen], line=self.line[chosen], tenant=self.tenant[chosen])


@dataclass(frozen=True, slots=True, eq=False)
class ReadTrace:
    """A trace, and where its requests were read; None for one that no file holds."""

    trace: Trace
    origin: Origin | None = None
    starts_ps: int = 0
    """The first arrival on the clock of the files: since 1970 UTC where they tell dates."""

    def take(self, chosen: Any) -> "ReadTrace":
        trace = self.trace
        part = Trace(trace.arrival_ps[chosen], trace.input_tokens[chosen], trace.output_tokens[chosen])
        return ReadTrace(part, None if self.origin is None else self.origin.take(chosen), self.starts_ps)


class TraceReader:
    """Growing columns of one or several files. Times must not fall inside a file unless ``sorts``; several files are
    merged by time."""

    def __init__(self, left_out: LeftOut | None = None, sorts: bool = False) -> None:
        self._left_out, self._sorts = left_out or LeftOut(), sorts
        self._times, self._inputs, self._outputs = array("q"), array("i"), array("i")
        self._lines, self._tenants = array("i"), array("i")
        self._names: dict[str, int] = {}
        self._files: list[tuple[str, int]] = []
        self._first_ps: int | None = None

    def read(self, rows: Iterable[Row], layout: Layout, source: str) -> None:
        """Adds a file's rows. Raises TraceError."""
        self._files.append((source, len(self._times)))
        clock, iterator = TimeReader(layout), iter(rows)
        while block := list(islice(iterator, _BLOCK)):
            if not self._add_whole(block, layout, clock):
                for line, cells in block:
                    try:
                        self._add_row(line, cells, layout, clock, source)
                    except TraceError as error:
                        self._left_out.fault(error)

    def finished(self) -> ReadTrace:
        """Raises TraceError where no request was read."""
        if not self._times:
            left = self._left_out
            told = f"; the first of {left.bad_rows} bad rows: {left.bad[0]}" if left.bad else ""
            raise TraceError(f"{self._files[0][0]}: the trace has a header and no requests{told}")
        times = np.frombuffer(self._times, np.int64)
        ends = [start for _, start in self._files[1:]] + [len(times)]
        counts = np.diff([0, *ends])
        file = np.repeat(np.arange(len(counts), dtype=np.int16), counts)
        inputs, outputs = np.frombuffer(self._inputs, np.int32), np.frombuffer(self._outputs, np.int32)
        lines, tenant = np.frombuffer(self._lines, np.int32), np.frombuffer(self._tenants, np.int32)
        names = tuple(source for source, _ in self._files)
        starts_ps = (self._first_ps or 0) + int(times.min())
        if (times[1:] < times[:-1]).any() or times[0]:
            order = np.argsort(times, kind="stable")
            first, last = int(order[0]), int(order[-1])
            if int(times[last]) - int(times[first]) > LONGEST_TRACE_PS:
                ends_at = [f"{names[file[at]]}:{lines[at]}" for at in (first, last)]
                raise TraceError(f"{ends_at[1]} is more than {LONGEST_TRACE_DAYS} days after {ends_at[0]}")
            times, inputs, outputs = times[order] - times[first], inputs[order], outputs[order]
            file, lines, tenant = file[order], lines[order], tenant[order]
        origin = Origin(names, file, lines, tuple(self._names), tenant)
        return ReadTrace(Trace(times, inputs, outputs), origin, starts_ps)

    def _add_whole(self, block: list[Row], layout: Layout, clock: "TimeReader") -> bool:
        """False, and nothing is added, where a row may be at fault."""
        numbers = [line for line, _ in block]
        times, inputs, outputs, *tenants = zip(*(cells for _, cells in block), strict=True)
        in_tokens, out_tokens = _whole_tokens(inputs), _whole_tokens(outputs)
        if in_tokens is None or out_tokens is None:
            return False
        at_ps = clock.block(times)
        if at_ps is None:
            return False
        first_ps = self._first_ps if self._first_ps is not None else at_ps[1] + int(at_ps[0][0])
        offset_ps = at_ps[1] - first_ps
        farthest_ps = max(abs(offset_ps + int(at_ps[0].min())), abs(offset_ps + int(at_ps[0].max())))
        if farthest_ps > LONGEST_TRACE_PS:
            return False
        since_ps = at_ps[0] + offset_ps
        if not self._sorts:
            start = self._files[-1][1]
            last = self._times[-1] if len(self._times) > start else int(since_ps[0])
            if since_ps[0] < last or (since_ps[1:] < since_ps[:-1]).any():
                return False
        self._first_ps = first_ps
        self._times.frombytes(since_ps.tobytes())
        self._inputs.frombytes(in_tokens.tobytes())
        self._outputs.frombytes(out_tokens.tobytes())
        self._lines.extend(numbers)
        names = [_name(cell) for cell in tenants[0]] if tenants else [""] * len(block)
        self._tenants.extend([self._names.setdefault(name, len(self._names)) for name in names])
        return True

    def _add_row(self, line: int, cells: Sequence[Cell], layout: Layout, clock: "TimeReader", source: str) -> None:
        where = f"{source}:{line}"
        stamp, inputs, outputs = cells[:3]
        if layout.drops_failed and _is_none(outputs):
            self._left_out.failed.append(line)
            return
        at_ps = clock.ps(stamp, where)
        in_tokens = _tokens(inputs, layout.inputs, where)
        out_tokens = _tokens(outputs, layout.outputs, where)
        field = f"{layout.time} {stamp}"
        if self._first_ps is None:
            self._first_ps = at_ps
        since_ps = at_ps - self._first_ps
        if not self._sorts and len(self._times) > self._files[-1][1] and since_ps < self._times[-1]:
            raise TraceError(f"{where}: {field} is before the line above; sort the trace by time or say --sort")
        if abs(since_ps) > LONGEST_TRACE_PS:
            side = "after" if since_ps > 0 else "before"
            raise TraceError(f"{where}: {field} is more than {LONGEST_TRACE_DAYS} days {side} the first request")
        self._times.append(since_ps)
        self._inputs.append(in_tokens)
        self._outputs.append(out_tokens)
        self._lines.append(line)
        name = _name(cells[3]) if len(cells) > 3 else ""
        self._tenants.append(self._names.setdefault(name, len(self._names)))


def _whole_tokens(cells: Sequence[Cell]) -> NDArray[np.int32] | None:
    """None unless all are token counts."""
    if isinstance(cells[0], str):
        if not all(type(cell) is str for cell in cells):
            return None
        joined = ",".join(cells)
        if joined.encode("utf-8", "replace").translate(None, b"0123456789,"):
            return None
        counts = whole_numbers(joined, len(cells))
    elif all(type(cell) is int for cell in cells):
        try:
            counts = np.array(cells, np.int64)
        except OverflowError:
            return None
    else:
        return None
    if counts is None or counts.min() < 1 or counts.max() > MOST_TOKENS:
        return None
    return counts.astype(np.int32)


def _is_none(outputs: Cell) -> bool:
    """No output tokens."""
    return outputs is None or (whole_number(outputs) == 0 if isinstance(outputs, str) else outputs == 0)


def _tokens(value: Cell, column: str, where: str) -> int:
    count = whole_number(value) if isinstance(value, str) else value
    if isinstance(count, bool) or not isinstance(count, int):
        raise TraceError(f"{where}: {column} {value!r:.60} is not an integer")
    if not 1 <= count <= MOST_TOKENS:
        raise TraceError(f"{where}: {column} {str(count)[:30]} must be at least 1 and at most {MOST_TOKENS}")
    return count


def _name(cell: Cell) -> str:
    return cell if isinstance(cell, str) else "" if cell is None else str(cell)
