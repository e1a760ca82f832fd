"""A user's own request logs: other names, units, compressions, several files, tenants and what each of them used."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from control_plane.simulation.traces import TraceError
from wattray.cli_simulate import app
from wattray.cli_usage import app as usage_app
from wattray.trace_files import TraceRequest, read_requests, trace_request

COLUMNS = "time=ts,input=prompt_tokens,output=completion_tokens,tenant=team"
ROWS = [(f"2024-05-01 00:{i // 60:02d}:{i % 60:02d}.25", "ab"[i % 2], 200 + 37 * i, 10 + i) for i in range(90)]
CSV = "ts,team,prompt_tokens,completion_tokens\n" + "".join(",".join(map(str, row)) + "\n" for row in ROWS)


def lengths(path: Path, **options: object) -> list[int]:
    wanted = trace_request([str(path)], columns=COLUMNS, **options)  # type: ignore[arg-type]
    return [int(tokens) for tokens in read_requests(wanted)[0].trace.input_tokens]


def test_every_packing_brings_the_same_requests(tmp_path: Path) -> None:
    plain, zipped, zstd = tmp_path / "a.csv", tmp_path / "a.csv.gz", tmp_path / "a.csv.zst"
    plain.write_text(CSV)
    zipped.write_bytes(gzip.compress(CSV.encode()))
    frames = [pyarrow.compress(part.encode(), "zstd", asbytes=True) for part in (CSV[:500], CSV[500:])]
    zstd.write_bytes(b"".join(frames))
    jsonl = tmp_path / "a.jsonl"
    names = ("ts", "team", "prompt_tokens", "completion_tokens")
    jsonl.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in ROWS))
    parquet = tmp_path / "a.parquet"
    stamps = pyarrow.array([row[0] for row in ROWS]).cast(pyarrow.timestamp("ms"))
    others = {name: [row[at] for row in ROWS] for at, name in enumerate(names) if at}
    pyarrow.parquet.write_table(pyarrow.table({"ts": stamps, **others}), parquet)
    expected = [row[2] for row in ROWS]
    for path in (plain, zipped, zstd, jsonl, parquet):
        assert lengths(path) == expected, path.name


def test_openai_responses_are_read_and_failed_ones_left_out(tmp_path: Path) -> None:
    body = {"created": 1714521600, "usage": {"prompt_tokens": 30, "completion_tokens": 7, "total_tokens": 37}}
    lines = [
        {"response": {"status_code": 200, "body": body}},
        {"response": {"status_code": 500, "body": {"created": 1}}},
    ]
    path = tmp_path / "batch.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    read, left_out = read_requests(TraceRequest(str(path)))
    assert (read.trace.input_tokens.tolist(), read.trace.output_tokens.tolist()) == ([30], [7])
    assert left_out.failed == [2]


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        (CSV.replace("team", "group"), {}, "t.csv:1: column team is missing; found ts,group"),
        (
            CSV.replace("2024-05-01 00:00:03.25", "1714521603.25"),
            {},
            "t.csv:5: ts '1714521603.25' is a number; say",
        ),
        (CSV.replace(",311,", ",3.11,"), {}, "t.csv:5: prompt_tokens '3.11' is not an integer"),
        (CSV, {"time_unit": "h"}, "--time-unit 'h': there are s, ms, us"),
        (CSV, {"columns": "time=ts,inputs=x"}, "--columns 'inputs=x': expected each of time, input, output, tenant"),
    ],
)
def test_a_fault_is_one_line_with_file_line_field_and_value(
    tmp_path: Path, content: str, options: dict[str, str], told: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(TraceError) as error:
        read_requests(trace_request([str(path)], **{"columns": COLUMNS, **options}))  # type: ignore[arg-type]
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_tenants_are_billed_for_all_that_the_meter_read(tmp_path: Path) -> None:
    first, second, run = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "run"
    head, *lines = CSV.splitlines(keepends=True)
    first.write_text(head + "".join(lines[:50]) + "2024-05-01 00:00:50.25,a,many,3\n2024-05-01 00:00:51,a,3\n")
    second.write_text(head + "".join(lines[50:]))
    words = ["simulate", "--trace", str(first), "--trace", str(second), "--columns", COLUMNS, "--run", str(run)]
    result = CliRunner().invoke(app, [*words, "--policies", "single-pool", "--skip-bad"])
    assert result.exit_code == 0, result.output
    assert "2 bad rows are left out" in " ".join(result.output.split())
    results = json.loads((run / "results.json").read_text())
    assert results["input"]["bad_rows"] == 2
    records = pyarrow.parquet.read_table(run / "single-pool-requests.parquet").to_pydict()
    assert records["line"] == [*range(2, 52), *range(2, 42)]
    assert records["file"][49:51] == [str(first), str(second)]
    out = tmp_path / "use.json"
    words = ["--run", str(run), "--by", "tenant", "--tariff", "0.5", "--json", str(out)]
    told = CliRunner().invoke(usage_app, words)
    assert told.exit_code == 0, told.output
    uses = json.loads(out.read_text())
    assert {use["name"] for use in uses} == {"a", "b"}
    assert sum(use["requests"] for use in uses) == 90
    spent_j = results["policies"]["single-pool"]["energy_j"]
    assert sum(use["energy_j"] for use in uses) == pytest.approx(spent_j)
    assert sum(use["cost"] for use in uses) == pytest.approx(spent_j / 3.6e6 * 0.5)
    by = CliRunner().invoke(usage_app, ["--run", str(run), "--by", "colour"])
    assert (by.exit_code, "has no such column; there are tenant, type, replica, file" in by.output) == (2, True)
