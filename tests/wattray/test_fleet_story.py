"""docs/stories/fleet.md: a log with column names of its own, limits, today's fleet and tenants, in one command."""

import json
import resource
import runpy
from pathlib import Path
from typing import Any

import pytest
from tests_support import ROOT
from typer.testing import CliRunner

from wattray.cli_simulate import app

write_log = runpy.run_path(str(ROOT / "benchmarks" / "simulator" / "month_log.py"))["write_log"]


def answered(folder: Path, requests: int, days: float) -> tuple[dict[str, Any], str]:
    write_log(folder / "log.csv", requests, days)
    words = f"""simulate --trace {folder}/log.csv --slo ttft=1.0,tpot=0.06 --baseline 8xTP4 --tariff 0.12 --carbon 400
        --columns time=ts,input=prompt_tokens,output=completion_tokens,tenant=team
        --report {folder}/page.html --json {folder}/out.json"""
    done = CliRunner().invoke(app, words.split(), env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return json.loads((folder / "out.json").read_text()), done.output


def check(folder: Path, results: dict[str, Any], told: str) -> None:
    assert [step["why"] for step in results["waterfall"]] == ["today", "right-sizing", "clocks", "the rest"]
    for policy, month in results["monthly"].items():
        mine = [cost for cost in results["tenants"] if cost["policy"] == policy]
        assert {cost["tenant"] for cost in mine} == {"search", "support", "research"}
        assert sum(cost["cost"] for cost in mine) == pytest.approx(month["cost"])
        assert sum(cost["energy_kwh"] for cost in mine) == pytest.approx(month["energy_kwh"])
    tables = [line for line in told.splitlines() if line.startswith((" ", "│", "┃", "┏", "┡", "└", "├"))]
    assert max(map(len, tables)) <= 80
    page = (folder / "page.html").read_text()
    assert len(page) < 1_000_000
    assert all(part in page for part in ("log.csv", "llama2-70b-h100", "SLO: TTFT 1 / 1 / 1 s", "Tenants", "wattray 0"))


def test_part_of_a_day_in_one_command(tmp_path: Path) -> None:
    check(tmp_path, *answered(tmp_path, 1500, 0.02))


@pytest.mark.soak
def test_a_month_of_four_million_requests_in_one_command(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF)
    results, told = answered(tmp_path, 4_000_000, 30)
    spent = resource.getrusage(resource.RUSAGE_SELF)
    print(f"{spent.ru_utime + spent.ru_stime - before.ru_utime - before.ru_stime:.0f} CPU s\n{told}")
    check(tmp_path, results, told)
    assert "at night" in told
