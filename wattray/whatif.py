"""What the options `--baseline`, `--tariff` and `--carbon` of `wattray simulate` ask, and what is told of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from control_plane.domain import Slo
from control_plane.simulation.comparison import Answer, Question
from control_plane.simulation.monthly import Hourly, Monthly, monthly
from control_plane.simulation.recommendation import fleet_in_words
from control_plane.simulation.waterfall import Level, waterfall
from control_plane.text_edges import csv_rows, decoded, number, whole_number


class PriceError(ValueError):
    """A tariff or a carbon intensity cannot be used; the message names option or file, line and value."""


_MOST_HOURS = 366 * 24


@dataclass(frozen=True, slots=True)
class Prices:
    """Per kWh: money, and grams of CO2; ``starts_s`` is the trace's first arrival in seconds after midnight UTC."""

    tariff: Hourly | None = None
    carbon: Hourly | None = None
    starts_s: float = 0.0


def hourly(text: str | None, option: str) -> Hourly | None:
    """A number for every hour, or a CSV file with columns ``hour`` (0, 1, ... from midnight UTC) and ``value``, which
    repeats after its last hour. Raises PriceError."""
    if text is None:
        return None
    value = number(text)
    if value is not None:
        return Hourly((_checked(value, text, option),))
    path = Path(text)
    try:
        content = decoded(path.read_bytes(), text, PriceError)
    except OSError as error:
        raise PriceError(f"{option} {text}: no number, and no file to read: {error.strerror}") from None
    values: list[float] = []
    for line, (hour, cell) in csv_rows(content.splitlines(), ("hour", "value"), text, PriceError):
        if whole_number(hour) != len(values) or len(values) >= _MOST_HOURS:
            raise PriceError(f"{text}:{line}: hour {hour!r}: expected {len(values)}, counting every hour from 0")
        read = number(cell)
        if read is None:
            raise PriceError(f"{text}:{line}: value {cell!r} is not a number")
        values.append(_checked(read, cell, f"{text}:{line}: value"))
    if not values:
        raise PriceError(f"{text}: the file has a header and no hours")
    return Hourly(tuple(values))


def _checked(value: float, text: str, where: str) -> float:
    if not 0 <= value < 1e6:
        raise PriceError(f"{where} {text}: must be from 0 to a million per kWh")
    return value


def levels(answer: Answer, question: Question) -> list[Level]:
    return waterfall(answer.scores, question.policies, question.attainment, answer.today)


def by_month(answer: Answer, prices: Prices) -> Mapping[str, Monthly]:
    return {
        name: monthly(curve.samples, prices.tariff, prices.carbon, prices.starts_s)
        for name, curve in answer.curves.items()
    }


def limits_in_words(slo: Slo, attainment: float) -> str:
    limits = f"{slo.ttft_short_s:g} / {slo.ttft_medium_s:g} / {slo.ttft_long_s:g} s"
    return (
        f"SLO: TTFT {limits} (inputs below 256, below 1024, longer), mean TBT {slo.tbt_s * 1000:g} ms, "
        f"held by {attainment:.4g} of the requests"
    )


def whatif_json(answer: Answer, question: Question, prices: Prices) -> dict[str, Any]:
    """What `--json` says beside the scores; monthly values are for 30 days like the trace."""
    return {
        "limits": {**asdict(question.slo), "attainment": question.attainment},
        "monthly": {name: asdict(month) for name, month in by_month(answer, prices).items()},
        "costs": {
            "tariff": _plain(prices.tariff),
            "carbon_g_per_kwh": _plain(prices.carbon),
        },
        "waterfall": [asdict(level) for level in levels(answer, question)],
        "today": answer.today,
        "fleets_in_words": {
            name: fleet_in_words(curve.samples, prices.starts_s) for name, curve in answer.curves.items()
        },
    }


def _plain(rates: Hourly | None) -> float | list[float] | None:
    return None if rates is None else rates.values[0] if len(rates.values) == 1 else list(rates.values)


def month_table(answer: Answer, prices: Prices) -> Table:
    table = Table(title=Text("30 days like this trace, simulated"))
    table.add_column("policy")
    for column in ("MWh", "peak kW", "cost", "kg CO2"):
        table.add_column(column, justify="right")
    for name, month in by_month(answer, prices).items():
        table.add_row(
            Text(name if answer.holds(name) else f"{name} (SLO missed)"),
            f"{month.energy_kwh / 1000:,.2f}",
            f"{month.peak_kw:,.1f}",
            "" if month.cost is None else f"{month.cost:,.0f}",
            "" if month.co2_kg is None else f"{month.co2_kg:,.0f}",
        )
    return table


def fleets_told(answer: Answer, prices: Prices) -> list[str]:
    """A line per policy, such as "wattray runs 6 x TP4 at night, 11 x TP4 by day; mean clock 990-1590 MHz"."""
    return [f"{name} runs {fleet_in_words(curve.samples, prices.starts_s)}" for name, curve in answer.curves.items()]


def waterfall_told(steps: list[Level]) -> list[str]:
    """A line per step, such as "right-sizing: 8xTP4 to single-pool saves 42.0% of the energy of 8xTP4"."""
    told = []
    for before, after in pairwise(steps):
        share = (before.energy_j - after.energy_j) / steps[0].energy_j if steps[0].energy_j > 0 else 0.0
        missed = "" if after.holds else f"; {after.policy} misses the SLO, so this is no saving at equal service"
        change = f"saves {share:.1%}" if share >= 0 else f"costs {-share:.1%}"
        told.append(
            f"{after.why}: {before.policy} to {after.policy} {change} of the energy of {steps[0].policy}{missed}"
        )
    return told
