"""What an operator asks: today's fleet beside the sized one, a month's bill, and where the saving comes from."""

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from control_plane.simulation.monthly import Hourly, monthly
from control_plane.simulation.outcome import Sample
from control_plane.simulation.recommendation import fleet_in_words
from wattray.cli_simulate import app
from wattray.whatif import PriceError, hourly

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    lines = [f"2023-11-16 18:{i // 60:02d}:{i % 60:02d},{200 + 37 * i % 2500},{10 + 7 * i % 200}" for i in range(120)]
    path.write_text(HEAD + "\n".join(lines) + "\n")
    return path


def simulated(trace: Path, *words: object) -> tuple[dict[str, Any], str]:
    out = trace.parent / "out.json"
    arguments = ["simulate", "--trace", trace, "--json", out, *words]
    result = CliRunner().invoke(app, [str(word) for word in arguments])
    assert result.exit_code == 0, result.output
    return json.loads(out.read_text()), " ".join(result.output.split())


def test_todays_fleet_stands_beside_and_the_waterfall_adds_up(trace: Path) -> None:
    page = trace.parent / "page.html"
    words = ("--baseline", "8xTP4@1980", "--tariff", "0.12", "--carbon", 400, "--slo", "ttft=2,tbt=0.2")
    files = ("--report", page, "--figures", trace.parent / "figures")
    results, told = simulated(trace, *words, *files)
    policies, steps = results["policies"], results["waterfall"]
    assert [step["policy"] for step in steps] == ["8xTP4@1980", "single-pool", "clock-only", "wattray"]
    assert [step["energy_j"] for step in steps] == [policies[step["policy"]]["energy_j"] for step in steps]
    assert steps[0]["energy_j"] > steps[1]["energy_j"]
    month = results["monthly"]["8xTP4@1980"]
    assert month["cost"] == pytest.approx(month["energy_kwh"] * 0.12)
    assert month["co2_kg"] == pytest.approx(month["energy_kwh"] * 0.4)
    assert results["limits"]["ttft_long_s"] == 2.0
    assert "SLO: TTFT 2 / 2 / 2 s" in told
    assert "right-sizing: 8xTP4@1980 to single-pool saves" in told
    assert results["fleets_in_words"]["8xTP4@1980"].startswith("8 x TP4; mean clock 1980")
    assert "waterfall" in page.read_text()
    assert page.stat().st_size < 1_000_000
    assert (trace.parent / "plotly.min.js").stat().st_size > 1_000_000
    names = {"waterfall", "load", "gpus", "clocks", "power", "slo", "in-flight", "energy"}
    written = {file.name for file in (trace.parent / "figures").iterdir()}
    assert written == {f"{name}.{ending}" for name in names for ending in ("svg", "pdf", "csv")}
    rows = list(csv.reader((trace.parent / "figures" / "waterfall.csv").open()))
    drawn_j = [float(row[2]) * 3.6e6 for row in rows[1:]]
    assert drawn_j == pytest.approx([*(step["energy_j"] for step in steps), steps[-1]["energy_j"]])
    ElementTree.parse(trace.parent / "figures" / "slo.svg")


def test_a_lower_clock_draws_less_and_a_fleet_that_is_none_is_refused(trace: Path) -> None:
    fleets = {}
    for fleet in ("2xTP8", "2xTP8@990"):
        results, _ = simulated(trace, "--policies", "single-pool", "--baseline", fleet)
        fleets[fleet] = results["policies"][fleet]["energy_j"]
    assert fleets["2xTP8@990"] < fleets["2xTP8"]
    for fleet, told in (
        ("8 TP4", "expected like 8xTP4"),
        ("8xTP3", "has no TP3"),
        ("8xTP4@7", "no clock of 7 MHz"),
    ):
        result = CliRunner().invoke(app, ["simulate", "--trace", str(trace), "--baseline", fleet])
        assert (result.exit_code, told in " ".join(result.output.split())) == (2, True), result.output


powers = st.lists(st.floats(0, 1e5), min_size=1, max_size=60)


@given(
    powers,
    st.floats(1, 4000),
    st.lists(st.just(0.0) | st.floats(1e-6, 1e3), min_size=1, max_size=24),
    st.floats(0, 86400),
)
def test_a_month_is_the_run_repeated_and_priced_by_the_hour(
    watts: list[float], step_s: float, rates: list[float], starts_s: float
) -> None:
    energy_j = np.concatenate(([0.0], np.cumsum(np.array(watts) * step_s)))
    samples = [Sample(at * step_s, 0.0, float(joules), 8, 1, 1980.0, 0) for at, joules in enumerate(energy_j)]
    month = monthly(samples, Hourly(tuple(rates)), None, starts_s)
    assert month.energy_kwh == pytest.approx(energy_j[-1] / 3.6e6 * 30 * 86400 / (step_s * len(watts)))
    assert month.cost is not None
    assert min(rates) * month.energy_kwh * (1 - 1e-9) <= month.cost <= max(rates) * month.energy_kwh * (1 + 1e-9)
    assert np.mean(watts) / 1000 * (1 - 1e-6) - 1e-9 <= month.peak_kw <= max(watts) / 1000 * (1 + 1e-6) + 1e-6
    assert month.co2_kg is None


def test_a_fleet_is_told_by_night_and_by_day() -> None:
    def at(hour: int) -> Sample:
        busy = 8 <= hour % 24 < 20
        return Sample(hour * 3600.0, 0.0, 0.0, 44 if busy else 24, 11 if busy else 6, 1590.0 if busy else 990.0, 0)

    assert fleet_in_words([at(hour) for hour in range(49)]) == (
        "6 x TP4 at night, 11 x TP4 by day; mean clock 990-1590 MHz"
    )


def test_prices_come_as_a_number_or_by_the_hour(tmp_path: Path) -> None:
    assert hourly("0.12", "--tariff") == Hourly((0.12,))
    path = tmp_path / "prices.csv"
    path.write_text("hour,value\n0,0.1\n1,0.2\n")
    assert hourly(str(path), "--tariff") == Hourly((0.1, 0.2))
    for content, told in (
        ("hour,value\n0,0.1\n2,0.2\n", "prices.csv:3: hour '2': expected 1"),
        ("hour,value\n0,dear\n", "prices.csv:2: value 'dear' is not a number"),
        ("hour,value\n", "has a header and no hours"),
    ):
        path.write_text(content)
        with pytest.raises(PriceError, match=told):
            hourly(str(path), "--tariff")
    with pytest.raises(PriceError, match="--carbon cheap: no number, and no file to read"):
        hourly("cheap", "--carbon")
