"""`wattray forecast` as a person runs it."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from wattray.cli_forecast import app
from wattray.forecast_peers import dynamo_predictors

WEEKS = Path(__file__).parents[3] / "shared/data/traces"


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def curve(tmp_path: Path) -> Path:
    """Four days, a point every ten minutes."""
    rows = ["time_utc,rpm_mid"]
    for at in range(4 * 144):
        day, minute = divmod(at * 10, 1440)
        rpm = 30 + 20 * np.sin(2 * np.pi * minute / 1440)
        rows.append(f"2024-05-{10 + day:02d} {minute // 60:02d}:{minute % 60:02d}:00,{rpm:.1f}")
    path = tmp_path / "curve.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_backtest_sets_the_portfolio_beside_others(curve: Path, tmp_path: Path) -> None:
    out, page, figures = tmp_path / "out.json", tmp_path / "page.html", tmp_path / "figures"
    code, text = invoke(
        "--trace",
        curve,
        "--backtest",
        "--bin-s",
        1800,
        "--horizon",
        24,
        "--json",
        out,
        "--plot",
        page,
        "--figures",
        figures,
    )
    assert code == 0, text
    assert "Dynamo ARIMA" in text
    assert "Upper bound, nominal 90%" in text
    found = json.loads(out.read_text())
    scores = found["predictors"]
    assert {"wattray", "last value", "ridge", "Dynamo constant", "Dynamo ARIMA", "Dynamo Kalman"} <= set(scores)
    assert scores["last value"]["wape"] == scores["Dynamo constant"]["wape"] == scores["wattray"]["last_wape"]
    assert scores["wattray"]["wape_gain"] > 0.05
    assert len(found["series"]["rate_rps"]) == len(found["series"]["upper_rps"]) == 191
    assert ("Dynamo Prophet" in scores) != any("Prophet" in line for line in found["missing"])
    assert "plotly" in page.read_text()
    assert {path.name for path in figures.iterdir()} == {
        f"{name}.{ending}" for name in ("peak", "errors") for ending in ("svg", "pdf", "csv")
    }


def test_a_steady_load_is_known_and_nobody_is_better_than_the_last_value(tmp_path: Path) -> None:
    steady = tmp_path / "steady.csv"
    rows = "".join(f"2023-11-16 18:{i // 60:02d}:{i % 60:02d},300,20\n" for i in range(240))
    steady.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    out = tmp_path / "out.json"
    code, text = invoke("--trace", steady, "--backtest", "--bin-s", 10, "--horizon", 3, "--json", out)
    assert code == 0, text
    scores = json.loads(out.read_text())["predictors"]
    assert (scores["last value"]["wape"], scores["wattray"]["wape_gain"]) == pytest.approx((0.0, 0.0), abs=1e-6)


def test_without_a_backtest_it_tells_what_comes_next(curve: Path) -> None:
    code, text = invoke("--trace", curve, "--bin-s", 1800, "--horizon", 4, "--json", "-")
    assert code == 0, text
    said = json.loads(text[text.index("{") : text.rindex("}") + 1])
    assert len(said["mean_rps"]) == 4
    assert 0 < said["peak_rps"] <= said["upper_rps"]
    # The curve's fifth day begins at half of its range and rises.
    assert said["mean_rps"][3] > said["mean_rps"][0] > 0.4


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--quantile", 1.5), "--quantile 1.5"),
        (("--bin-s", 0), "--bin-s 0"),
        (("--bin-s", 86400), "lower --bin-s or --horizon"),
        (("--plot", "page.html"), "add --backtest"),
        (("--backtest", "--json", "/nowhere/out.json"), "--json /nowhere/out.json"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(curve: Path, arguments: tuple[object, ...], told: str) -> None:
    code, text = invoke("--trace", curve, *arguments)
    assert code == 2
    assert told in text


@pytest.mark.parametrize("name", ["Dynamo constant", "Dynamo ARIMA", "Dynamo Kalman"])
def test_dynamos_predictors_follow_a_straight_line(name: str) -> None:
    """A line is what a local trend and ARIMA with a difference continue, and what a constant does not."""
    predictor = dynamo_predictors(60.0, 5)[0][name]
    for at in range(60):
        predictor.add(10.0 + at)
        said = predictor.predict()
    assert said is not None
    assert len(said) == 6
    expected = 69.0 if name == "Dynamo constant" else 74.0
    assert said[-1] == pytest.approx(expected, rel=0.03)


@pytest.mark.skipif(not WEEKS.exists(), reason="needs the shared traces")
@pytest.mark.parametrize("kind", ["conv", "code"])
def test_on_the_real_hours_it_is_never_worse_than_the_last_value(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    code, text = invoke("--trace", WEEKS / f"azure2023_{kind}.csv", "--backtest", "--no-peers", "--json", out)
    assert code == 0, text
    mine = json.loads(out.read_text())["predictors"]["wattray"]
    assert mine["wape_gain"] > -0.02
    assert mine["peak_gain"] > 0.1
