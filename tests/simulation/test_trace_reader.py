"""The reader of request logs: a clean block read as a whole and the same rows read one by one are the same."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.simulation.trace_reader import LeftOut, ReadTrace, Row, TraceReader
from control_plane.simulation.trace_times import Layout, TraceError

OWN = Layout("ts", "in", "out", "team")


class RowByRow(TraceReader):
    """The rules alone."""

    def _add_whole(self, *_: Any) -> bool:
        return False


def outcome(reader: TraceReader, rows: Sequence[Row], layout: Layout) -> Any:
    try:
        reader.read(rows, layout, "f")
        read = reader.finished()
    except TraceError as error:
        return str(error)
    origin = read.origin
    assert origin is not None
    names = [origin.tenants[code] for code in origin.tenant]
    trace = read.trace
    columns = (trace.arrival_ps, trace.input_tokens, trace.output_tokens, origin.line)
    return [column.tolist() for column in columns], names


iso = st.integers(-(86400 * 10**6), 60 * 86400 * 10**6).map(
    lambda us: (datetime.fromisoformat("2000-01-01") + timedelta(microseconds=us)).isoformat(sep=" ")
)
times = st.one_of(
    iso,
    iso.map(lambda text: text + "5"),
    st.integers(0, 10**7).map(str),
    st.decimals(0, 10**6, places=4).map(str),
    st.sampled_from(
        ["2000-02-30 00:00:00", "soon", "", " 5", "²", "2000-01-01T00:00:00Z", "2000-01-01  00:00:00", "1e3"]
    ),
    st.integers(0, 10**6),
    st.floats(0, 1e6),
    st.none(),
)
counts = st.one_of(
    st.integers(0, 10**7 + 1).map(str), st.integers(0, 99), st.sampled_from(["", "-1", "x", "1.5", "9" * 30, " 7"])
)


@given(
    st.one_of(
        st.lists(st.tuples(times, counts, counts, st.sampled_from(["a", "b", None])), min_size=1, max_size=6),
        st.lists(
            st.tuples(st.one_of(iso), st.integers(1, 99).map(str), st.integers(1, 99).map(str), st.just("a")),
            min_size=1,
            max_size=6,
        ),
    ),
    st.sampled_from([None, "s", "ms", "us"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_a_block_as_a_whole_is_the_same_as_its_rows(
    cells: list[tuple[Any, ...]], unit: str | None, sorts: bool, skips: bool, drops: bool
) -> None:
    layout = Layout("ts", "in", "out", "team", unit=unit, drops_failed=drops)
    rows = list(enumerate(cells, start=2))
    mine, theirs = LeftOut(skips), LeftOut(skips)
    assert outcome(TraceReader(mine, sorts), rows, layout) == outcome(RowByRow(theirs, sorts), rows, layout)
    assert mine == theirs


def read(rows: Sequence[tuple[Any, ...]], layout: Layout = OWN, *, sorts: bool = False) -> ReadTrace:
    reader = TraceReader(sorts=sorts)
    reader.read(list(enumerate(rows, start=2)), layout, "f")
    return reader.finished()


def test_sorted_rows_keep_their_lines_and_tenants() -> None:
    rows = [("2024-05-01 00:00:02", "1", "2", "b"), ("2024-05-01 00:00:00.5", "3", "4", "a")]
    with pytest.raises(TraceError, match=r"^f:3: ts 2024-05-01 00:00:00.5 is before the line above; .* say --sort$"):
        read(rows)
    found = read(rows, sorts=True)
    assert found.origin is not None
    assert found.trace.arrival_ps.tolist() == [0, 1_500_000_000_000]
    assert found.origin.line.tolist() == [3, 2]
    assert [found.origin.tenants[code] for code in found.origin.tenant] == ["a", "b"]


def test_epoch_times_are_exact_and_never_guessed() -> None:
    rows = [("1714521600.000001", "1", "2", ""), ("1714521600.000003", "3", "4", "")]
    with pytest.raises(TraceError, match=r"^f:2: ts '1714521600.000001' is a number; say --time-unit s, ms or us$"):
        read(rows)
    assert read(rows, Layout("ts", "in", "out", unit="s")).trace.arrival_ps.tolist() == [0, 2_000_000]
    whole = [("1714521600000000", "1", "2"), ("1714521600000003", "3", "4")]
    assert read(whole, Layout("ts", "in", "out", unit="us")).trace.arrival_ps.tolist() == [0, 3_000_000]


def test_files_are_merged_by_time() -> None:
    reader = TraceReader()
    reader.read([(2, ("2024-05-01 00:00:01", "1", "1", "a")), (3, ("2024-05-01 00:00:05", "2", "1", "b"))], OWN, "one")
    reader.read([(2, ("2024-05-01 00:00:00", "3", "1", "b")), (3, ("2024-05-01 00:00:03", "4", "1", "a"))], OWN, "two")
    found = reader.finished()
    assert found.origin is not None
    assert found.trace.input_tokens.tolist() == [3, 1, 4, 2]
    assert found.trace.arrival_ps.tolist() == [0, 10**12, 3 * 10**12, 5 * 10**12]
    assert [found.origin.files[at] for at in found.origin.file] == ["two", "one", "two", "one"]
    assert found.origin.line.tolist() == [2, 2, 3, 3]


def test_files_of_different_years_are_refused() -> None:
    reader = TraceReader()
    reader.read([(2, ("2024-05-01 00:00:00", "1", "1", ""))], OWN, "one")
    with pytest.raises(TraceError, match=r"^two:2: ts 2025-05-01 00:00:00 is more than 100 days after"):
        reader.read([(2, ("2025-05-01 00:00:00", "1", "1", ""))], OWN, "two")


def test_bad_rows_are_counted_and_listed() -> None:
    left_out = LeftOut(skip_bad=True)
    reader = TraceReader(left_out)
    rows = [("2024-05-01 00:00:00", "1", "1", ""), ("soon", "1", "1", ""), ("2024-05-01 00:00:01", "x", "1", "")]
    reader.read(list(enumerate(rows, start=2)), OWN, "f")
    assert len(reader.finished().trace) == 1
    assert left_out.bad_rows == 2
    assert left_out.bad == [
        "f:3: ts 'soon' is not a time; expected like 2023-11-16 18:15:46.6805900",
        "f:4: in 'x' is not an integer",
    ]
