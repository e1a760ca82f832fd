"""Readers: what is read, and that every fault names file, line and field."""

import numpy as np
import pytest

from control_plane.simulation.trace import Trace, scaled
from control_plane.simulation.traces import (
    WEEK_2024,
    LengthPercentiles,
    TraceError,
    azure_trace,
    load_curve_trace,
    mooncake_trace,
    read_azure,
    synthetic_trace,
)

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens"
LINE = "2023-11-16 18:15:46.6805900,374,44"


def test_azure_times_are_exact_and_start_at_zero() -> None:
    later = "2023-11-16 18:16:50.9951691,396,109"
    trace = azure_trace([HEAD, LINE, "2023-11-16 18:15:46.6805901,1,1", later], "t.csv")
    assert trace.arrival_ps.tolist() == [0, 100_000, 64_314_579_100_000]
    assert trace.input_tokens.tolist() == [374, 1, 396]


def test_azure_2024_offsets_other_columns_and_a_bom_are_read() -> None:
    lines = ["\ufeffx,GeneratedTokens,TIMESTAMP,ContextTokens", "a,5,2024-05-10 00:00:00.009930+00:00,2"]
    lines.append("b,6,2024-05-10 02:00:01.5+02:00,3")
    trace = azure_trace(lines)
    assert trace.arrival_ps.tolist() == [0, 1_490_070_000_000]
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([2, 3], [5, 6])


def test_requests_as_objects_carry_the_same_values() -> None:
    first = read_azure(f"{HEAD}\n{LINE}\n")[0]
    assert (first.request_id, first.arrival_s, first.input_tokens, first.output_tokens) == ("r0", 0.0, 374, 44)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "t.csv: the file is empty"),
        ([HEAD], "t.csv: the trace has a header and no requests"),
        (["TIMESTAMP,ContextTokens", LINE], "t.csv:1: column GeneratedTokens is missing"),
        ([HEAD, "soon,1,1"], "t.csv:2: TIMESTAMP 'soon' is not a time"),
        ([HEAD, LINE, "2023-11-16 18:15:61.0,1,1"], "t.csv:3: TIMESTAMP '2023-11-16 18:15:61.0' is not a time"),
        ([HEAD, LINE, "2023-11-16 18:15:45.0,1,1"], "t.csv:3: TIMESTAMP .* is before the line above"),
        ([HEAD, "2023-11-16 18:15:46,x,1"], "t.csv:2: ContextTokens 'x' is not an integer"),
        ([HEAD, "2023-11-16 18:15:46,1,-3"], "t.csv:2: GeneratedTokens -3 must be at least 1"),
        ([HEAD, "2023-11-16 18:15:46,1,1.5"], "t.csv:2: GeneratedTokens '1.5' is not an integer"),
        ([HEAD, "2023-11-16 18:15:46,99999999999,1"], "t.csv:2: ContextTokens 99999999999 must be"),
        ([HEAD, "2023-11-16 18:15:46,1"], "t.csv:2: 2 fields where the header has 3"),
    ],
)
def test_azure_faults_name_file_line_and_field(lines: list[str], message: str) -> None:
    with pytest.raises(TraceError, match="^" + message):
        azure_trace(lines, "t.csv")


def test_mooncake_lines_are_read() -> None:
    trace = mooncake_trace(['{"timestamp": 5, "input_length": 6758, "output_length": 500, "hash_ids": [0]}'] * 2)
    assert trace.arrival_ps.tolist() == [0, 0]
    assert trace.input_tokens.tolist() == [6758] * 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "m:1: not JSON"),
        ("[1]", "m:1: (this is one JSON array|expected an object)"),
        ('{"timestamp": 1, "input_length": 2}', "m:1: field output_length is missing"),
        ('{"timestamp": "a", "input_length": 2, "output_length": 1}', "m:1: timestamp 'a' is not a number"),
        ('{"timestamp": 1, "input_length": 2.5, "output_length": 1}', "m:1: input_length 2.5 is not an integer"),
        ('{"timestamp": 1, "input_length": true, "output_length": 1}', "m:1: input_length True is not an integer"),
        ('{"timestamp": 1, "input_length": 2, "output_length": 0}', "m:1: output_length 0 must be at least 1"),
    ],
)
def test_mooncake_faults_name_file_line_and_field(line: str, message: str) -> None:
    with pytest.raises(TraceError, match="^" + message):
        mooncake_trace([line], "m")


CURVE = ["time_utc,rpm_min,rpm_mid,rpm_max"]
CURVE += [f"2024-05-10 00:{minute:02d}:00.000000000,0,{rpm},0" for minute, rpm in ((0, 60), (20, 600), (40, 60))]


def test_a_load_curve_is_followed_and_seeded() -> None:
    lengths = LengthPercentiles(((0, 10), (1, 20)), ((0, 1), (1, 5)))
    trace = load_curve_trace(CURVE, lengths, scale=10, seed=4)
    assert len(trace) == pytest.approx(40 * 330 * 10, rel=0.02)
    middle = trace.between(19 * 60, 21 * 60)
    assert len(middle) == pytest.approx(2 * 585 * 10, rel=0.05)
    assert trace.input_tokens.min() >= 10
    assert trace.output_tokens.max() <= 5
    again = load_curve_trace(CURVE, lengths, scale=10, seed=4)
    np.testing.assert_array_equal(trace.arrival_ps, again.arrival_ps)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,b"], "c:1: column time_utc is missing"),
        (CURVE[:2], "c: a load curve needs at least two points"),
        ([*CURVE[:2], CURVE[1]], "c:3: time_utc .* is not after"),
        ([CURVE[0], "2024-05-10 00:00:00,0,nan,0"], "c:2: rpm_mid nan must be a finite"),
        ([CURVE[0], "2024-05-10 00:00:00,0,much,0"], "c:2: rpm_mid 'much' is not a number"),
    ],
)
def test_load_curve_faults_name_file_line_and_field(lines: list[str], message: str) -> None:
    with pytest.raises(TraceError, match="^" + message):
        load_curve_trace(lines, WEEK_2024["conv"], source="c")


def test_percentiles_must_rise() -> None:
    with pytest.raises(ValueError, match="output percentiles must rise"):
        LengthPercentiles(((0, 1), (1, 2)), ((0, 1), (0.5, 2)))


@pytest.mark.parametrize(
    ("kind", "rps", "median_in", "median_out"), [("conv", 5.53, 1020, 129), ("code", 2.57, 1469, 13)]
)
def test_the_generator_has_the_published_statistics(kind: str, rps: float, median_in: int, median_out: int) -> None:
    trace = synthetic_trace(kind, hours=6.0, scale=8.0, seed=1)
    assert len(trace) == pytest.approx(rps * 8 * 6 * 3600, rel=0.05 if kind == "conv" else 0.35)
    assert np.median(trace.input_tokens) == pytest.approx(median_in, rel=0.08)
    assert np.median(trace.output_tokens) == pytest.approx(median_out, rel=0.25)


def test_scaling_keeps_the_span_and_the_order() -> None:
    trace = synthetic_trace("conv", hours=0.2, seed=1)
    for factor in (0.25, 1, 2.5, 8):
        more = scaled(trace, factor)
        assert len(more) == pytest.approx(len(trace) * factor, rel=0.05)
        assert more.duration_s <= trace.duration_s
    assert scaled(trace, 1) is trace


def test_a_trace_out_of_order_is_refused() -> None:
    with pytest.raises(ValueError, match="in order of time"):
        Trace(np.array([2, 1]), np.array([1, 1], np.int32), np.array([1, 1], np.int32))
