"""`wattray simulate` and `wattray bound`: policies side by side on a trace, in virtual time."""

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from control_plane.simulation.outcome import Simulated
    from control_plane.simulation.trace import Trace
    from wattray.trace_files import TraceRequest

Told = Callable[[str, float], None]
"""What is being done, and the share of it that is done."""


class Idle(StrEnum):
    """What GPUs cost that no replica holds."""

    RELEASED = "released"
    CHARGED = "charged"


TraceOption = Annotated[str, typer.Option("--trace", help="A file, or synthetic:conv or synthetic:code.")]
FormatOption = Annotated[
    str | None, typer.Option("--trace-format", help="azure, mooncake or rpm; guessed from the file by default.")
]
ScaleOption = Annotated[float, typer.Option(help="This many times as many requests in the same time.")]
HoursOption = Annotated[float, typer.Option(help="Length of a synthetic trace.")]
SeedOption = Annotated[int, typer.Option(help="Of synthetic traces, load curves and --scale.")]
LengthsOption = Annotated[
    str, typer.Option(help="Token counts along an rpm curve: conv, code or in:0=1,…,1=8000;out:0=1,…,1=900.")
]
ProfileOption = Annotated[str, typer.Option(help="Energy profile: a name or a file.")]
GpusOption = Annotated[int | None, typer.Option(min=1, help="GPUs there are; as many as wanted by default.")]
IdleOption = Annotated[Idle, typer.Option(help="What GPUs cost that no replica holds: nothing, or idle power.")]


def simulate_command(
    trace: TraceOption,
    trace_format: FormatOption = None,
    gpus: GpusOption = None,
    scale: ScaleOption = 1.0,
    profile: ProfileOption = "llama2-70b-h100-current",
    policies: Annotated[str, typer.Option(help="Comma-separated names.")] = "wattray,single-pool",
    idle: IdleOption = Idle.RELEASED,
    run: Annotated[Path | None, typer.Option(help="Keep every decision and request record here.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report with plots here.")] = None,
    hours: HoursOption = 1.0,
    seed: SeedOption = 0,
    lengths: LengthsOption = "conv",
) -> None:
    """Play a trace against policies in virtual time and compare energy and SLO with the sized static baseline."""
    from control_plane.settings import Settings
    from control_plane.simulation import comparison
    from control_plane.simulation.policies import check_policy_names
    from wattray.run_files import write_policy_run, write_results
    from wattray.simulation_results import as_json, named_profile, result_table
    from wattray.trace_files import TraceRequest, read_percentiles

    console = Console(stderr=True)
    with _faults_explained(console), _uncollected():
        names = tuple(name.strip() for name in policies.split(",") if name.strip())
        check_policy_names(names)
        machine = named_profile(profile)
        wanted = TraceRequest(trace, trace_format, scale, hours, seed, read_percentiles(lengths, "--lengths"))
        with _progress(console) as told:
            requests = _loaded(wanted, told)
            question = comparison.Question(requests, machine, Settings(), names, gpus, comparison.Idle(idle.value))
            keep = partial(write_policy_run, run) if run is not None else _nothing_kept
            answer = comparison.compare(question, time.process_time, told, keep)
        results = as_json(answer, names, requests)
        Console(width=_width()).print(result_table(answer, names, requests))
        if json_out is not None:
            json_out.write_text(json.dumps(results, indent=2) + "\n")
        if run is not None:
            write_results(run, results)
        if report is not None:
            from wattray.report.simulation_report import write_report

            write_report(report, answer, question)


def bound_command(
    trace: TraceOption,
    trace_format: FormatOption = None,
    gpus: GpusOption = None,
    scale: ScaleOption = 1.0,
    profile: ProfileOption = "llama2-70b-h100-current",
    idle: IdleOption = Idle.RELEASED,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    hours: HoursOption = 1.0,
    seed: SeedOption = 0,
    lengths: LengthsOption = "conv",
) -> None:
    """The least energy any policy could spend on a trace and hold the SLO for 99 % of it."""
    from rich.table import Table

    from control_plane.hardware.shape_tables import ShapeTables
    from control_plane.serving.policies.registry import GpuBudgetError
    from control_plane.settings import Settings
    from control_plane.simulation.bound import energy_bound
    from control_plane.simulation.comparison import SETTLE_S
    from wattray.simulation_results import named_profile
    from wattray.trace_files import TraceRequest, read_percentiles

    console = Console(stderr=True)
    with _faults_explained(console):
        machine = named_profile(profile)
        if idle is Idle.CHARGED and gpus is None:
            raise GpuBudgetError("--idle charged needs --gpus here: how many GPUs are billed?")
        wanted = TraceRequest(trace, trace_format, scale, hours, seed, read_percentiles(lengths, "--lengths"))
        tables = {tp: ShapeTables.of(machine, tp) for tp in machine.tps}
        billed = gpus if idle is Idle.CHARGED and gpus is not None else 0
        with _progress(console) as told:
            requests = _loaded(wanted, told)
            until_s = requests.duration_s + SETTLE_S
            bound = energy_bound(
                requests,
                tables,
                Settings().slo.slo(),
                idle_gpus=billed,
                until_s=until_s,
                progress=lambda share: told("bound", share),
            )
        table = Table(title=f"bound on {trace}")
        for column in ("requests", "hours", "bound kWh", "mean kW", "J per request"):
            table.add_column(column, justify="right")
        table.add_row(
            f"{len(requests):,}",
            f"{requests.duration_s / 3600:.2f}",
            f"{bound.energy_j / 3.6e6:,.2f}",
            f"{bound.energy_j / until_s / 1000:,.2f}",
            f"{bound.energy_j / len(requests):,.1f}",
        )
        Console(width=_width()).print(table)
        if json_out is not None:
            result = {"bound_energy_j": bound.energy_j, "idle_energy_j": bound.idle_energy_j, "requests": len(requests)}
            json_out.write_text(json.dumps(result, indent=2) + "\n")


def _loaded(wanted: "TraceRequest", told: "Told") -> "Trace":
    from wattray.trace_files import load_trace

    told("reading the trace", 0.0)
    requests = load_trace(wanted)
    told("reading the trace", 1.0)
    return requests


def _nothing_kept(_policy: str, _outcome: "Simulated") -> None:
    """Without --run."""


def _width() -> int:
    """The table needs room even where output is no terminal."""
    return max(118, Console().width)


@contextmanager
def _progress(console: Console) -> Iterator[Told]:
    """A bar per run; it redraws four times a second, whatever the simulator's pace."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=console, refresh_per_second=4, transient=True) as progress:
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
def _faults_explained(console: Console) -> Iterator[None]:
    from control_plane.hardware.profile_file import ProfileError
    from control_plane.serving.policies.registry import GpuBudgetError, UnknownPolicyError
    from control_plane.simulation.sizing import SloUnreachableError
    from control_plane.simulation.traces import TraceError

    try:
        yield
    except (TraceError, ProfileError, UnknownPolicyError, GpuBudgetError, SloUnreachableError, OSError) as fault:
        console.print(f"[red]error:[/red] {fault}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


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
