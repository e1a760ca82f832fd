"""`wattray simulate` and `wattray bound`: policies side by side on a trace, in virtual time."""

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.settings import Settings
from control_plane.simulation.bound import energy_bound
from control_plane.simulation.comparison import SETTLE_S, Answer, Idle, Question, compare
from control_plane.simulation.policies import GpuBudgetError, UnknownNameError, check_policy_names, unknown_name
from control_plane.simulation.sizing import SloUnreachableError
from control_plane.simulation.trace import Trace
from control_plane.simulation.traces import TraceError
from wattray.run_files import write_run
from wattray.trace_files import TraceRequest, load_trace, read_percentiles

DEFAULT_PROFILE = "llama2-70b-h100-current"
PROFILES: dict[str, Callable[[], RooflineProfile]] = {DEFAULT_PROFILE: RooflineProfile}
_KNOWN_FAULTS = (TraceError, UnknownNameError, GpuBudgetError, SloUnreachableError)

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
    profile: ProfileOption = DEFAULT_PROFILE,
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
    console = Console(stderr=True)
    with _faults_explained(console), _uncollected():
        names = tuple(name.strip() for name in policies.split(",") if name.strip())
        check_policy_names(names)
        machine = _profile(profile)
        wanted = TraceRequest(trace, trace_format, scale, hours, seed, read_percentiles(lengths, "--lengths"))
        requests = load_trace(wanted)
        question = Question(requests, machine, Settings(), names, gpus, idle)
        with _progress(console) as told:
            answer = compare(question, time.process_time, told)
        Console().print(_table(answer, names, requests))
        if json_out is not None:
            json_out.write_text(json.dumps(as_json(answer, names, requests), indent=2) + "\n")
        if run is not None:
            write_run(run, answer, as_json(answer, names, requests))
        if report is not None:
            from wattray.report.simulation_report import write_report

            write_report(report, answer, question)


def bound_command(
    trace: TraceOption,
    trace_format: FormatOption = None,
    gpus: GpusOption = None,
    scale: ScaleOption = 1.0,
    profile: ProfileOption = DEFAULT_PROFILE,
    idle: IdleOption = Idle.RELEASED,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    hours: HoursOption = 1.0,
    seed: SeedOption = 0,
    lengths: LengthsOption = "conv",
) -> None:
    """The least energy any policy could spend on a trace and hold the SLO for 99 % of it."""
    console = Console(stderr=True)
    with _faults_explained(console):
        machine = _profile(profile)
        if idle is Idle.CHARGED and gpus is None:
            raise GpuBudgetError("--idle charged needs --gpus here: how many GPUs are billed?")
        wanted = TraceRequest(trace, trace_format, scale, hours, seed, read_percentiles(lengths, "--lengths"))
        requests = load_trace(wanted)
        tables = {tp: ShapeTables.of(machine, tp) for tp in machine.tps}
        billed = gpus if idle is Idle.CHARGED and gpus is not None else 0
        until_s = requests.duration_s + SETTLE_S
        bound = energy_bound(requests, tables, Settings().slo.slo(), idle_gpus=billed, until_s=until_s)
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
        Console().print(table)
        if json_out is not None:
            result = {"bound_energy_j": bound.energy_j, "idle_energy_j": bound.idle_energy_j, "requests": len(requests)}
            json_out.write_text(json.dumps(result, indent=2) + "\n")


def as_json(answer: Answer, names: tuple[str, ...], requests: Trace) -> dict[str, Any]:
    """The results as written by --json; energies in joules, times in seconds."""
    effort = answer.effort
    return {
        "policies": {
            name: {**asdict(answer.scores[name]), "energy_saved_ratio": answer.saved_ratio(name)}
            for name in _shown(answer, names)
        },
        "simulator": {
            "requests": len(requests),
            "cpu_s": effort.cpu_s,
            "policy_cpu_s": effort.policy_cpu_s,
            "sizing_cpu_s": effort.sizing_cpu_s,
            "requests_per_cpu_s": len(requests) / effort.cpu_s if effort.cpu_s > 0 else None,
        },
        "bound_energy_j": answer.bound.energy_j,
        "single_pool": {"replicas": answer.single_pool.replicas, "sizing_runs": answer.single_pool.runs},
        "gpus": answer.gpus,
        "idle_gpus_billed": answer.idle_gpus,
    }


def _shown(answer: Answer, names: tuple[str, ...]) -> list[str]:
    return [*dict.fromkeys((*names, *answer.scores))]


def _profile(name: str) -> RooflineProfile:
    if name not in PROFILES:
        raise UnknownNameError(unknown_name("profile", name, tuple(PROFILES)))
    return PROFILES[name]()


def _table(answer: Answer, names: tuple[str, ...], requests: Trace) -> Table:
    hours = requests.duration_s / 3600
    table = Table(title=f"{len(requests):,} requests in {hours:.2f} h")
    table.add_column("policy")
    for column in (
        "energy kWh",
        "saved",
        "SLO held",
        "lost",
        "TTFT p50 / p99",
        "TBT p99",
        "GPU h",
        "replicas",
        "changes",
    ):
        table.add_column(column, justify="right")
    for name in _shown(answer, names):
        line = answer.scores[name]
        table.add_row(
            name,
            f"{line.energy_j / 3.6e6:,.2f}",
            f"{answer.saved_ratio(name):.1%}",
            f"{line.slo_attainment:.2%}",
            f"{line.lost:,}",
            f"{line.ttft_p50_s * 1000:,.0f} / {line.ttft_p99_s * 1000:,.0f} ms",
            f"{line.tbt_p99_s * 1000:,.0f} ms",
            f"{line.gpu_hours:,.1f}",
            f"{line.instances_peak:,}",
            f"{line.reconfigurations:,}",
        )
    baseline_j = answer.scores["single-pool"].energy_j
    table.add_row(
        "bound", f"{answer.bound.energy_j / 3.6e6:,.2f}", f"{1 - answer.bound.energy_j / baseline_j:.1%}", style="dim"
    )
    return table


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, float], None]]:
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
    try:
        yield
    except _KNOWN_FAULTS as fault:
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
