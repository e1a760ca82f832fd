"""`wattray forecast`: what will arrive next, and how well that would have been known on a trace."""

import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from control_plane.text_edges import printable
from wattray.cli_simulate import (
    ColumnsOption,
    FormatOption,
    HoursOption,
    ScaleOption,
    SeedOption,
    SkipBadOption,
    SortOption,
    TraceOption,
    UnitOption,
    left_out_told,
    progress_bars,
)
from wattray.errors import WattrayError
from wattray.faults import faults_explained
from wattray.output_files import STDOUT, check_folder, check_outputs, json_text, write_text

if TYPE_CHECKING:
    from control_plane.serving.load_portfolio import RateForecast
    from wattray.forecast_backtest import Backtest


def forecast_command(
    trace: TraceOption,
    backtest: Annotated[
        bool, typer.Option("--backtest", help="Forecast after every bin of the trace and compare with what came.")
    ] = False,
    trace_format: FormatOption = None,
    columns: ColumnsOption = None,
    sort: SortOption = False,
    skip_bad: SkipBadOption = False,
    time_unit: UnitOption = None,
    scale: ScaleOption = 1.0,
    hours: HoursOption = 1.0,
    seed: SeedOption = 0,
    bin_s: Annotated[
        float | None, typer.Option(help="Seconds per bin; by the trace's length: 300, 60, 15, 5 or 1.")
    ] = None,
    horizon: Annotated[int, typer.Option(min=1, max=500, help="Bins ahead; 12 of 300 s are an hour.")] = 12,
    quantile: Annotated[float, typer.Option(help="Share of cases whose peak stays below the upper bound.")] = 0.9,
    peers: Annotated[bool, typer.Option(help="Beside NVIDIA Dynamo's predictors; they take most of the time.")] = True,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the results here; - is stdout.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write an HTML page with plots here.")] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Write every figure as SVG, PDF and CSV into this folder.")
    ] = None,
) -> None:
    """Forecast the load after a trace, or with --backtest show how well it would have been forecast throughout."""
    from control_plane.simulation.forecast_backtest import bin_for, rates_of
    from wattray.forecast_backtest import backtest_json, forecast_at_end, run_backtest
    from wattray.trace_files import read_requests, trace_request

    console = Console(stderr=True)
    with faults_explained():
        check_outputs(json=json_out, plot=plot)
        if figures is not None:
            check_folder(figures, "--figures")
        if not backtest and (plot is not None or figures is not None):
            raise WattrayError("--plot and --figures show a backtest: add --backtest")
        if not 0.5 <= quantile < 1:
            raise WattrayError(f"--quantile {quantile:g} must be at least 0.5 and below 1")
        if bin_s is not None and not 0.1 <= bin_s <= 86400:
            raise WattrayError(f"--bin-s {bin_s:g} must be from 0.1 to 86400")
        wanted = trace_request(
            trace, trace_format, scale, hours, seed, time_unit, columns=columns, sort=sort, skip_bad=skip_bad
        )
        with progress_bars(console) as told:
            told("reading the trace", 0.0)
            read, left_out = read_requests(wanted)
            told("reading the trace", 1.0)
            for line in left_out_told(left_out):
                console.print(line, markup=False, soft_wrap=True)
            width_s = bin_s or bin_for(read.trace.duration_s)
            rates = rates_of(read.trace, width_s)
            if len(rates) < 4 * horizon:
                raise WattrayError(
                    f"--trace {trace[0]}: {len(rates)} bins of {width_s:g} s; a horizon of {horizon} needs at least "
                    f"{4 * horizon}: lower --bin-s or --horizon"
                )
            if not backtest:
                said = forecast_at_end(rates, width_s, horizon, quantile, partial(told, "forecast"))
            else:
                found = run_backtest(rates, width_s, horizon, quantile, peers, time.perf_counter, told)
        out = Console(width=max(118, Console().width), stderr=json_out == STDOUT)
        if not backtest:
            out.print(_table_of(said, width_s))
            if json_out is not None:
                write_text(json_out, json_text(_as_json(said, width_s)))
            return
        out.print(_backtest_table(found, ", ".join(trace)))
        for line in _in_words(found):
            out.print(line, markup=False, soft_wrap=True)
        if json_out is not None:
            write_text(json_out, json_text(backtest_json(found)))
        _draw(found, plot, figures)


def _draw(found: "Backtest", plot: Path | None, figures: Path | None) -> None:
    if plot is not None:
        from wattray.report.forecast_plots import forecast_page
        from wattray.report.page_file import write_page

        write_page(plot, forecast_page(found))
    if figures is not None:
        from wattray.report.figure_files import write_figures
        from wattray.report.forecast_plots import forecast_figures

        write_figures(figures, forecast_figures(found))


def _table_of(said: "RateForecast", bin_s: float) -> Table:
    table = Table(title="requests a second after the trace")
    for column in ("after the trace's end", "mean"):
        table.add_column(column, justify="right")
    for at, rate in enumerate(said.mean.tolist(), start=1):
        table.add_row(f"{at * bin_s / 60:g} min", f"{rate:,.2f}")
    table.add_section()
    table.add_row("peak", f"{said.peak:,.2f}")
    table.add_row("upper bound on the peak", f"{said.upper:,.2f}")
    return table


def _as_json(said: "RateForecast", bin_s: float) -> dict[str, Any]:
    return {
        "bin_s": bin_s,
        "mean_rps": said.mean.tolist(),
        "peak_rps": said.peak,
        "upper_rps": said.upper,
        "member": said.member,
    }


def _backtest_table(found: "Backtest", source: str) -> Table:
    table = Table(
        title=Text(f"{printable(source)}: {len(found.rates):,} bins of {found.bin_s:g} s, {found.horizon} ahead")
    )
    table.add_column("predictor", no_wrap=True)
    for column in ("WAPE", "against last value", "peak error", "against last value", "ms a bin", "at most", "origins"):
        table.add_column(column, justify="right")
    for name, one in found.scores.items():
        table.add_row(
            name,
            f"{one.wape:.1%}",
            _against(one.wape_gain),
            f"{one.peak_error:.1%}",
            _against(one.peak_gain),
            f"{one.mean_s * 1000:.2f}" if one.mean_s else "",
            f"{one.most_s * 1000:.1f}" if one.mean_s else "",
            f"{one.origins:,}",
            style="bold" if name == found.portfolio else None,
        )
    return table


def _against(gain: float) -> str:
    return f"{-gain:+.1%}" if gain else "0"


def _in_words(found: "Backtest") -> list[str]:
    from control_plane.simulation.forecast_backtest import gain

    bound, last = found.bound, found.last_bound
    return [
        f"Upper bound, nominal {found.quantile:.0%}: {bound.coverage:.1%} of the peaks stayed below it; it is "
        f"{bound.over_ratio:.2f} times the mean peak and costs {-gain(bound.decision_cost, last.decision_cost):+.0%} "
        f"against the last value with the same correction ({last.coverage:.1%}, {last.over_ratio:.2f} times).",
        f"Fits outside the loop: {found.fit_s:.2f} s at most.",
        *found.missing,
    ]


app = typer.Typer(add_completion=False)
app.command("forecast")(forecast_command)

if __name__ == "__main__":
    sys.exit(app())
