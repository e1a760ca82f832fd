"""`wattray simulate` and `wattray bound`: policies side by side on a trace, in virtual time."""

import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from control_plane.domain import IdleGpus
from control_plane.text_edges import printable
from wattray.faults import faults_explained
from wattray.output_files import STDOUT, check_folder, check_outputs, json_text, write_text

if TYPE_CHECKING:
    from control_plane.hardware.machine_profile import MachineProfile
    from control_plane.simulation.outcome import Simulated
    from control_plane.simulation.trace_reader import LeftOut, ReadTrace
    from wattray.trace_files import TraceRequest

Told = Callable[[str, float], None]
"""What is being done, and the share of it that is done."""


TraceOption = Annotated[
    list[str],
    typer.Option("--trace", help="A file (again for further ones, merged by time), synthetic:conv or synthetic:code."),
]
FormatOption = Annotated[
    str | None,
    typer.Option("--trace-format", help="azure, mooncake, burstgpt, vidur, openai or rpm; told from the file."),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option("--columns", help="Your own names: time=ts,input=prompt_tokens,output=completion_tokens,tenant=team."),
]
SortOption = Annotated[bool, typer.Option("--sort", help="Sort each file by time instead of refusing disorder.")]
SkipBadOption = Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that cannot be read; they are told.")]
ScaleOption = Annotated[float, typer.Option(help="This many times as many requests in the same time.")]
HoursOption = Annotated[float, typer.Option(help="Length of a synthetic trace.")]
SeedOption = Annotated[int, typer.Option(help="Of synthetic traces, load curves and --scale.")]
UnitOption = Annotated[str | None, typer.Option("--time-unit", help="Of times that are numbers: s, ms or us.")]
SloOption = Annotated[
    str | None, typer.Option("--slo", help="Limits in seconds, such as ttft=1.0,tbt=0.06 or ttft_short=0.3.")
]
AttainmentOption = Annotated[float, typer.Option("--attainment", help="Share of the requests that hold the SLO.")]
LengthsOption = Annotated[
    str, typer.Option(help="Token counts along an rpm curve: conv, code or in:0=1,…,1=8000;out:0=1,…,1=900.")
]
ProfileOption = Annotated[
    str | None, typer.Option(help="Energy profile: a name or a file; default: the settings' or llama2-70b-h100.")
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file of settings, as for `up`: its SLO, profile, policy, gpu.count and rules."),
]
GpusOption = Annotated[int | None, typer.Option(min=1, help="GPUs there are; as many as wanted by default.")]
IdleOption = Annotated[IdleGpus, typer.Option(help="What GPUs cost that no replica holds: nothing, or idle power.")]


def simulate_command(
    trace: TraceOption,
    trace_format: FormatOption = None,
    columns: ColumnsOption = None,
    sort: SortOption = False,
    skip_bad: SkipBadOption = False,
    gpus: GpusOption = None,
    scale: ScaleOption = 1.0,
    profile: ProfileOption = None,
    config: ConfigOption = None,
    policies: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated names; your own as module:Class. Default: wattray (or the settings' policy) and "
            "single-pool; with --baseline also clock-only."
        ),
    ] = None,
    idle: IdleOption = IdleGpus.RELEASED,
    run: Annotated[Path | None, typer.Option(help="Keep every decision and request record here.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report with plots here.")] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Write every figure of the report as SVG, PDF and CSV into this folder.")
    ] = None,
    hours: HoursOption = 1.0,
    seed: SeedOption = 0,
    lengths: LengthsOption = "conv",
    time_unit: UnitOption = None,
    slo: SloOption = None,
    attainment: AttainmentOption = 0.99,
    baseline: Annotated[
        str | None, typer.Option(help="The fleet that runs today, to be set beside: 8xTP4 or 8xTP4@1980 (MHz).")
    ] = None,
    tariff: Annotated[str | None, typer.Option(help="Price of a kWh: a number, or a CSV file of hour,value.")] = None,
    carbon: Annotated[str | None, typer.Option(help="Grams of CO2 per kWh: a number, or such a file.")] = None,
) -> None:
    """Play a trace against policies in virtual time and compare energy and SLO with the sized static baseline."""
    from control_plane.baselines.static_fleet import static_fleet
    from control_plane.simulation import comparison
    from control_plane.simulation.policies import check_policy_names
    from wattray.run_files import write_policy_run, write_results
    from wattray.simulation_results import (
        as_json,
        checked_attainment,
        input_json,
        named_profile,
        result_table,
        settings_for,
    )
    from wattray.tenant_costs import TenantBook, tenant_table
    from wattray.trace_files import trace_request
    from wattray.whatif import (
        Prices,
        by_month,
        fleets_told,
        hourly,
        levels,
        limits_in_words,
        month_table,
        waterfall_told,
        whatif_json,
    )

    console = Console(stderr=True)
    with faults_explained(), _uncollected():
        check_outputs(json=json_out, report=report)
        if run is not None:
            check_folder(run, "--run")
        if figures is not None:
            check_folder(figures, "--figures")
        given = _checked_config(config)
        gpus = _gpus(gpus, given)
        names = _policy_names(policies, given, baseline)
        if any(":" in name for name in names):
            # A policy of the user's own may be a file beside where the command is called.
            sys.path.append(str(Path.cwd()))
        check_policy_names(names)
        machine = named_profile(profile, given)
        settings = settings_for(machine, slo, given)
        share = checked_attainment(attainment)
        today = None if baseline is None else static_fleet(baseline, machine)
        rates = hourly(tariff, "--tariff"), hourly(carbon, "--carbon")
        wanted = trace_request(
            trace, trace_format, scale, hours, seed, time_unit, lengths, columns, sort=sort, skip_bad=skip_bad
        )
        with progress_bars(console) as told:
            read, left_out = _loaded(wanted, machine, told, console)
            requests = read.trace
            question = comparison.Question(requests, machine, settings, names, gpus, idle, share, today=today)
            book = TenantBook(read.origin)

            def keep(policy: str, outcome: "Simulated") -> None:
                book.keep(policy, outcome)
                if run is not None:
                    write_policy_run(run, read.origin, policy, outcome)

            answer = comparison.compare(question, time.process_time, told, keep)
        prices = Prices(*rates, read.starts_ps // 10**12 % 86400)
        tenants = book.costs(by_month(answer, prices))
        results = {
            **as_json(answer, names, requests),
            **whatif_json(answer, question, prices),
            "tenants": [asdict(cost) for cost in tenants],
            "input": input_json(wanted.files, left_out),
        }
        out = Console(stderr=json_out == STDOUT)
        out.print(result_table(answer, names, requests))
        out.print(limits_in_words(question.slo, share), markup=False, soft_wrap=True)
        out.print(month_table(answer, prices))
        for line in fleets_told(answer, prices):
            out.print(line, markup=False, soft_wrap=True)
        if tenants:
            out.print(tenant_table(tenants))
        for line in waterfall_told(levels(answer, question)):
            out.print(line, markup=False, soft_wrap=True)
        if json_out is not None:
            write_text(json_out, json_text(results))
        if run is not None:
            write_results(run, results)
        if report is not None:
            from wattray.report.page_file import write_page
            from wattray.report.simulation_report import report_page

            write_page(report, report_page(answer, question, prices, wanted.source, tenants))
        if figures is not None:
            from wattray.report.figure_files import write_figures
            from wattray.report.simulation_report import report_figures

            write_figures(figures, report_figures(answer, question))


def bound_command(
    trace: TraceOption,
    trace_format: FormatOption = None,
    columns: ColumnsOption = None,
    sort: SortOption = False,
    skip_bad: SkipBadOption = False,
    gpus: GpusOption = None,
    scale: ScaleOption = 1.0,
    profile: ProfileOption = None,
    config: ConfigOption = None,
    idle: IdleOption = IdleGpus.RELEASED,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    hours: HoursOption = 1.0,
    seed: SeedOption = 0,
    lengths: LengthsOption = "conv",
    time_unit: UnitOption = None,
    slo: SloOption = None,
    attainment: AttainmentOption = 0.99,
) -> None:
    """The least energy any policy could spend on a trace and hold the SLO for 99 % of it."""
    from rich.table import Table
    from rich.text import Text

    from control_plane.hardware.shape_tables import ShapeTables
    from control_plane.serving.policy import GpuBudgetError
    from control_plane.simulation.bound import energy_bound
    from control_plane.simulation.comparison import SETTLE_S
    from wattray.simulation_results import checked_attainment, named_profile, settings_for
    from wattray.trace_files import trace_request
    from wattray.whatif import limits_in_words

    console = Console(stderr=True)
    with faults_explained():
        check_outputs(json=json_out)
        given = _checked_config(config)
        gpus = _gpus(gpus, given)
        machine = named_profile(profile, given)
        settings = settings_for(machine, slo, given)
        share = checked_attainment(attainment)
        if idle is IdleGpus.CHARGED and gpus is None:
            raise GpuBudgetError("--idle charged needs --gpus here: how many GPUs are billed?")
        wanted = trace_request(
            trace, trace_format, scale, hours, seed, time_unit, lengths, columns, sort=sort, skip_bad=skip_bad
        )
        tables = {tp: ShapeTables.of(machine, tp) for tp in machine.tps}
        billed = gpus if idle is IdleGpus.CHARGED and gpus is not None else 0
        with progress_bars(console) as told:
            requests = _loaded(wanted, machine, told, console)[0].trace
            until_s = requests.duration_s + SETTLE_S
            bound = energy_bound(
                requests,
                tables,
                settings.slo.slo(),
                idle_gpus=billed,
                until_s=until_s,
                attainment=share,
                progress=lambda share: told("bound", share),
            )
        console_out = Console(stderr=json_out == STDOUT)
        table = Table(title=Text(f"bound on {printable(', '.join(trace))}"))
        for column in ("requests", "hours", "bound kWh", "mean kW", "J per request"):
            table.add_column(column, justify="right")
        table.add_row(
            f"{len(requests):,}",
            f"{requests.duration_s / 3600:.2f}",
            f"{bound.energy_j / 3.6e6:,.2f}",
            f"{bound.energy_j / until_s / 1000:,.2f}",
            f"{bound.energy_j / len(requests):,.1f}",
        )
        console_out.print(table)
        console_out.print(limits_in_words(settings.slo.slo(), share), markup=False, soft_wrap=True)
        if json_out is not None:
            result = {"bound_energy_j": bound.energy_j, "idle_energy_j": bound.idle_energy_j, "requests": len(requests)}
            write_text(json_out, json_text(result))


def _checked_config(path: Path | None) -> dict[str, Any]:
    """What the settings file says, once it is known that it says nothing wrong."""
    from control_plane.settings import parse_settings
    from wattray.config_file import read_config

    given = read_config(path)
    parse_settings(given, f"--config {path}")
    return given


def _gpus(gpus: int | None, given: Mapping[str, Any]) -> int | None:
    """GPUs for serving: the command line's, else the settings file's, less those it keeps for training."""
    if gpus is not None or "count" not in given.get("gpu", {}):
        return gpus
    return int(given["gpu"]["count"]) - int(given.get("training", {}).get("gpus", 0))


def _policy_names(policies: str | None, given: Mapping[str, Any], baseline: str | None) -> tuple[str, ...]:
    if policies is not None:
        return tuple(name.strip() for name in policies.split(",") if name.strip())
    from control_plane.simulation.policies import SINGLE_POOL
    from control_plane.simulation.waterfall import CLOCK_ONLY

    beside = (SINGLE_POOL,) if baseline is None else (CLOCK_ONLY, SINGLE_POOL)
    return tuple(dict.fromkeys((given.get("policy", "wattray"), *beside)))


def _loaded(
    wanted: "TraceRequest", machine: "MachineProfile", told: "Told", console: Console
) -> "tuple[ReadTrace, LeftOut]":
    """The trace without what no replica can ever hold; what was left out is said."""
    from wattray.trace_files import read_requests, without_what_never_fits

    told("reading the trace", 0.0)
    read, left_out = read_requests(wanted)
    for line in left_out_told(left_out):
        console.print(line, markup=False, soft_wrap=True)
    most_tokens = max(machine.limits(tp).kv_tokens for tp in machine.tps)
    read, too_long = without_what_never_fits(read, most_tokens, wanted.source)
    if too_long:
        console.print(
            f"{too_long} requests are longer than any replica's KV cache ({most_tokens:,} tokens) and are left out of "
            "policies and bound alike",
            markup=False,
        )
    told("reading the trace", 1.0)
    return read, left_out


def left_out_told(left_out: "LeftOut") -> list[str]:
    """A line for the failed requests and one for the bad rows, where there are any."""
    told = []
    if left_out.failed:
        lines = ", ".join(map(str, left_out.failed[:5])) + (", …" if len(left_out.failed) > 5 else "")
        told.append(f"{len(left_out.failed)} failed requests without an answer are left out (lines {lines})")
    if left_out.bad_rows:
        more = f"; and {left_out.bad_rows - 5} more" if left_out.bad_rows > 5 else ""
        told.append(f"{left_out.bad_rows} bad rows are left out: {'; '.join(left_out.bad[:5])}{more}")
    return told


@contextmanager
def progress_bars(console: Console) -> Iterator[Told]:
    """A bar per run; it redraws four times a second, whatever the simulator's pace."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    bars: dict[str, TaskID] = {}
    with Progress(
        *columns, console=console, refresh_per_second=4, transient=True, disable=not console.is_terminal
    ) as progress:
        shown_s = 0.0

        def told(name: str, share: float) -> None:
            nonlocal shown_s
            if name not in bars:
                bars[name] = progress.add_task(name, total=1.0)
            elif share < 1 and time.monotonic() - shown_s < 0.25:
                return
            shown_s = time.monotonic()
            progress.update(bars[name], completed=share)

        yield told


@contextmanager
def _uncollected() -> Iterator[None]:
    """A run makes no reference cycles: looking for them would cost a fifth of its time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


app = typer.Typer(add_completion=False, no_args_is_help=True)
app.command("simulate")(simulate_command)
app.command("bound")(bound_command)

if __name__ == "__main__":
    sys.exit(app())
