"""`wattray simulate` and `wattray bound` as a person runs them."""

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wattray.cli_simulate import app

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
POLICY_KEYS = {
    "energy_j",
    "energy_saved_ratio",
    "slo_attainment",
    "lost",
    "ttft_p50_s",
    "ttft_p99_s",
    "tbt_p99_s",
    "gpu_hours",
    "instances_peak",
    "reconfigurations",
    "by_class",
}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    lines = [
        f"2023-11-16 18:{15 + i // 60}:{i % 60:02d}.5,{200 + 37 * i % 2500},{10 + 7 * i % 200}" for i in range(120)
    ]
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(("\ufeff" + HEAD + "\n".join(lines) + "\n").encode()))
    return path


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


def test_a_gzipped_trace_gives_json_report_and_records(trace: Path, tmp_path: Path) -> None:
    out, report, run = tmp_path / "out.json", tmp_path / "out.html", tmp_path / "run"
    code, text = invoke("simulate", "--trace", trace, "--json", out, "--report", report, "--run", run)
    assert code == 0, text
    results = json.loads(out.read_text())
    for name in ("wattray", "single-pool"):
        assert set(results["policies"][name]) >= POLICY_KEYS
        by_class = results["policies"][name]["by_class"]
        assert sum(line["requests"] for line in by_class.values()) == 120
        spent_j = sum(line["energy_j"] for line in by_class.values())
        assert spent_j == pytest.approx(results["policies"][name]["energy_j"])
        assert (run / f"{name}-decisions.jsonl").exists()
        assert list(run.glob(f"{name}-requests.*"))
        last = (run / f"{name}-samples.csv").read_text().splitlines()[-1].split(",")
        assert float(last[2]) == pytest.approx(results["policies"][name]["energy_j"])
    assert set(results["simulator"]) >= {"requests", "cpu_s", "policy_cpu_s", "requests_per_cpu_s"}
    assert results["simulator"]["requests"] == 120
    assert 0 < results["bound_energy_j"] <= results["policies"]["single-pool"]["energy_j"]
    assert 'src="http' not in report.read_text()


def test_charged_idle_gpus_cost_more(trace: Path, tmp_path: Path) -> None:
    energies = {}
    for idle in ("released", "charged"):
        out = tmp_path / f"{idle}.json"
        code, text = invoke(
            "simulate", "--trace", trace, "--policies", "single-pool", "--gpus", 64, "--idle", idle, "--json", out
        )
        assert code == 0, text
        energies[idle] = json.loads(out.read_text())["policies"]["single-pool"]["energy_j"]
    assert energies["charged"] > energies["released"]


def test_the_bound_stands_alone(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "bound.json"
    code, text = invoke("bound", "--trace", trace, "--json", out)
    assert code == 0, text
    assert json.loads(out.read_text())["bound_energy_j"] > 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("--policies", "watray"),
            "unknown policy 'watray' (did you mean wattray?); there are wattray, combined, phases-apart",
        ),
        (("--profile", "h900"), "unknown profile 'h900'; known are llama2-70b-h100, "),
        (
            ("--gpus", "4"),
            "4 GPUs are too few: single-pool holds the SLO for 99% of this trace with 1 × TP8, so at least 8",
        ),
        (
            ("--trace-format", "xls"),
            "unknown trace format 'xls'; there are azure, mooncake, burstgpt, vidur, openai",
        ),
        (("--scale", "-1"), "--scale -1 must be above 0"),
        (("--lengths", "short"), "--lengths 'short' is not conv, code or in:"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(trace: Path, arguments: tuple[str, ...], told: str) -> None:
    code, text = invoke("simulate", "--trace", trace, *arguments)
    assert code == 2
    assert told in text


def test_a_fault_of_the_file_names_file_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(HEAD + "2023-11-16 18:15:46,10,none\n")
    code, text = invoke("simulate", "--trace", path)
    assert code == 2
    assert f"{path}:2: GeneratedTokens 'none' is not an integer".replace(" ", "") in text.replace(" ", "")


def test_a_missing_and_a_damaged_file_are_said(tmp_path: Path) -> None:
    assert "there is no such file" in invoke("bound", "--trace", tmp_path / "none.csv")[1]
    damaged = tmp_path / "t.csv.gz"
    damaged.write_bytes(gzip.compress(b"x" * 9999)[:30])
    code, text = invoke("bound", "--trace", damaged)
    assert (code, "gzip file is damaged" in text) == (2, True)
