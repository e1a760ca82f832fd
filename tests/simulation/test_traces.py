from collections import Counter
from pathlib import Path

import pytest

from control_plane.domain import REQUEST_TYPES
from control_plane.simulation.traces import (
    CONVERSATION_RPS,
    CONVERSATION_SHARES,
    TraceError,
    demo_shape,
    read_azure,
    synthetic_conversation,
    window,
)

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
FIRST = "2023-11-16 18:15:46.6805900,374,44\n"


def test_times_count_from_the_first_request() -> None:
    trace = read_azure(HEADER + FIRST + "2023-11-16 18:15:50.9951690,396,109\n")
    assert [(r.arrival_s, r.input_tokens, r.output_tokens) for r in trace] == [(0.0, 374, 44), (4.314579, 396, 109)]


def test_offsets_and_a_byte_order_mark_are_read() -> None:
    text = "\ufeff" + HEADER + "2024-05-10 00:00:00.009930+00:00,10,5\n2024-05-10 00:00:01+00:00,10,5\n"
    assert [r.arrival_s for r in read_azure(text)] == [0.0, pytest.approx(0.99007)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "t.csv: the file is empty"),
        (HEADER, "t.csv: the trace has a header and no requests"),
        ("TIMESTAMP,ContextTokens\n", "t.csv:1: column GeneratedTokens is missing"),
        (HEADER + FIRST + "2023-11-16 18:15:40,1,1\n", "t.csv:3: TIMESTAMP .* is before the line above"),
        (HEADER + "yesterday,1,1\n", "t.csv:2: TIMESTAMP 'yesterday' is not a time"),
        (HEADER + "2023-11-16 18:15:40,-3,1\n", "t.csv:2: ContextTokens -3 must be at least 1"),
        (HEADER + "2023-11-16 18:15:40,3,0\n", "t.csv:2: GeneratedTokens 0 must be at least 1"),
        (HEADER + "2023-11-16 18:15:40,3.5,1\n", "t.csv:2: ContextTokens '3.5' is not an integer"),
        (HEADER + "2023-11-16 18:15:40,3,many\n", "t.csv:2: GeneratedTokens 'many' is not an integer"),
        (HEADER + "2023-11-16 18:15:40,3\n", "t.csv:2: 2 fields where the header has 3"),
    ],
)
def test_a_fault_names_file_line_and_field(text: str, told: str) -> None:
    with pytest.raises(TraceError, match=told):
        read_azure(text, "t.csv")


def test_a_window_starts_at_zero() -> None:
    trace = synthetic_conversation(100, seed=3)
    cut = window(trace, 40, 20)
    assert cut
    assert all(0 <= r.arrival_s < 20 for r in cut)
    assert len(cut) == sum(40 <= r.arrival_s < 60 for r in trace)


def test_the_generator_repeats_by_seed_and_differs_between_seeds() -> None:
    assert synthetic_conversation(60, seed=5) == synthetic_conversation(60, seed=5)
    assert synthetic_conversation(60, seed=5) != synthetic_conversation(60, seed=6)


def test_the_generator_has_the_published_statistics() -> None:
    trace = synthetic_conversation(3600, seed=0)
    assert len(trace) / 3600 == pytest.approx(CONVERSATION_RPS, rel=0.03)
    inputs = sorted(r.input_tokens for r in trace)
    outputs = sorted(r.output_tokens for r in trace)
    for share, published in ((0.5, 1020), (0.9, 2734), (0.99, 4142)):
        assert inputs[int(share * len(inputs))] == pytest.approx(published, rel=0.05)
    for share, published in ((0.5, 129), (0.9, 424), (0.99, 601)):
        assert outputs[int(share * len(outputs))] == pytest.approx(published, rel=0.06)
    shares = Counter(str(r.type) for r in trace)
    for kind in REQUEST_TYPES:
        percent = 100 * shares[str(kind)] / len(trace)
        assert percent == pytest.approx(CONVERSATION_SHARES[str(kind)], abs=0.8)


def test_a_shape_moves_the_rate() -> None:
    trace = synthetic_conversation(1200, seed=1, shape=demo_shape)
    quiet = sum(r.arrival_s < 200 for r in trace) / 200
    busy = sum(520 <= r.arrival_s < 720 for r in trace) / 200
    assert busy > 2.5 * quiet


def test_the_real_trace_is_read_whole(data: Path) -> None:
    trace = read_azure((data / "traces" / "azure2023_conv.csv").read_text())
    assert len(trace) == 19366
    assert trace[-1].arrival_s == pytest.approx(3502, abs=30)
