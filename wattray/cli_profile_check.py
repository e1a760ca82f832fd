"""``wattray profile check`` and ``refine``: a profile beside what a load generator measured, and made to agree."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from control_plane.hardware.bench_results import BenchRun, read_runs
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.profile_correction import Compared, Factors, compare, corrected, fitted
from control_plane.hardware.profile_export import exported
from control_plane.hardware.profile_file import ProfileError, dump_profile, parse_profile
from control_plane.text_edges import printable
from wattray.faults import faults_explained
from wattray.output_files import check_outputs, json_text, write_text
from wattray.profile_files import profile_named, read_text

OUT = Console()
UNSTATED_ERROR = 0.10
"""What a profile is held to that does not state the error of its times."""

ProfileArgument = Annotated[str, typer.Argument(help="An embedded profile's name or a profile file.")]
AgainstOption = Annotated[
    list[Path], typer.Option("--against", help="JSON results of vllm bench serve, GuideLLM or AIPerf; repeatable.")
]
TpOption = Annotated[
    int | None, typer.Option(help="The server's tensor parallelism; the profile's only one if not given.")
]
ClockOption = Annotated[int | None, typer.Option(help="The clock while measuring in MHz; the highest if not given.")]


def check(
    profile: ProfileArgument,
    against: AgainstOption,
    tp: TpOption = None,
    clock: ClockOption = None,
    overhead_ms: Annotated[float, typer.Option(help="Of network and client, on a time to first token.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write the comparison as a plot to this HTML file.")] = None,
) -> None:
    """Compare a profile with measured runs: each is played as a closed loop through the replica model."""
    with faults_explained():
        check_outputs(plot=plot)
        machine = profile_named(profile)
        runs, shape = _runs(against), _shape(machine, tp, clock)
        rows = compare(machine, *shape, runs, overhead_ms / 1e3)
        if plot is not None:
            from wattray.report.page_file import write_page

            write_page(plot, _page(machine.name, rows))
        if as_json:
            sys.stdout.write(json_text(_report(machine, rows)))
            return
        _print(machine, rows)


def refine(
    profile: ProfileArgument,
    against: AgainstOption,
    out: Annotated[Path, typer.Option("-o", "--out", help="The profile file to write.")],
    tp: TpOption = None,
    clock: ClockOption = None,
    power_w: Annotated[
        float | None, typer.Option(help="Measured mean watts of the replica over the runs, to correct power too.")
    ] = None,
) -> None:
    """Bring a profile to measured runs by bounded factors on decode, prefill and power."""
    with faults_explained():
        check_outputs(out=out)
        machine = profile_named(profile)
        runs, shape = _runs(against), _shape(machine, tp, clock)
        before = compare(machine, *shape, runs)
        factors = fitted(machine, *shape, runs)
        if power_w is not None:
            factors = _with_power(machine, *shape, runs, factors, power_w)
        better = corrected(machine, factors)
        file = exported(better, f"refined on {len(runs)} measured runs", _errors(compare(better, *shape, runs)))
        text = dump_profile(file)
        parse_profile(text, str(out))
        write_text(out, text)
        told = f"decode x{factors.decode:.3f}, prefill x{factors.prefill:.3f}, power x{factors.power:.3f}"
        OUT.print(f"wrote {out}: {told}", markup=False, highlight=False)
        _print(machine, before, "before")
        _print(better, compare(better, *shape, runs), "after")


def _with_power(
    machine: MachineProfile, tp: int, clock: int, runs: Sequence[BenchRun], factors: Factors, power_w: float
) -> Factors:
    """The factor that brings the mean power of the runs, played through the model, to the measured one."""
    if not 0 < power_w < 1e6:
        raise ProfileError(f"--power-w {power_w:g} must be above 0 and finite")
    idle_w = machine.idle_power_w(tp)
    if power_w <= idle_w:
        raise ProfileError(f"--power-w {power_w:g} is not above the {idle_w:.0f} W of an idle replica: of one GPU?")
    modelled = compare_power(corrected(machine, factors), tp, clock, runs)
    return Factors(factors.decode, factors.prefill, (power_w - idle_w) / (modelled - idle_w)).bounded()


def compare_power(machine: MachineProfile, tp: int, clock: int, runs: Sequence[BenchRun]) -> float:
    """Mean watts of the replica over the runs, weighted by how long each takes."""
    rows = compare(machine, tp, clock, runs)
    return sum(row.power_w * row.lasts_s for row in rows) / sum(row.lasts_s for row in rows)


def _runs(paths: Sequence[Path]) -> list[BenchRun]:
    runs = [run for path in paths for run in read_runs(str(path), read_text(path))]
    if not runs:
        raise ProfileError("give at least one result with --against")
    return runs


def _shape(machine: MachineProfile, tp: int | None, clock: int | None) -> tuple[int, int]:
    """Raises ProfileError where it is not the profile's."""
    if tp is None and len(machine.tps) != 1:
        raise ProfileError(f"give --tp: the profile has TP {', '.join(map(str, machine.tps))}")
    if tp is not None and tp not in machine.tps:
        raise ProfileError(f"--tp {tp}: the profile has TP {', '.join(map(str, machine.tps))}")
    if clock is not None and clock not in machine.gpu.freqs_mhz:
        near = machine.gpu.supported_at_most(clock)
        raise ProfileError(f"--clock {clock}: {machine.gpu.name} has no such clock; the next lower is {near} MHz")
    return tp or machine.tps[0], clock or machine.max_freq_mhz


def _errors(rows: Sequence[Compared]) -> dict[str, float]:
    """Median errors of the runs that the KV cache did not limit."""
    free = [row for row in rows if not row.kv_bound] or list(rows)
    return {
        "time": round(_median([abs(row.tpot_error) for row in free]), 4),
        "ttft": round(_median([abs(row.ttft_error) for row in free]), 4),
    }


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _report(machine: MachineProfile, rows: Sequence[Compared]) -> dict[str, Any]:
    return {
        "profile": machine.name,
        "stated_errors": dict(machine.evidence.errors),
        "median_errors": _errors(rows),
        "agrees": not _warnings(machine, rows),
        "runs": [
            {
                "name": row.run.name,
                "tool": row.run.tool,
                "concurrency": row.run.concurrency,
                "prompt_tokens": row.run.prompt_tokens,
                "answer_tokens": row.run.answer_tokens,
                "ttft_s": {"measured": row.run.ttft_s, "modelled": row.ttft_s},
                "tpot_s": {"measured": row.run.tpot_s, "modelled": row.tpot_s},
                "kv_bound": row.kv_bound,
            }
            for row in rows
        ],
    }


def _warnings(machine: MachineProfile, rows: Sequence[Compared]) -> list[str]:
    stated, found = machine.evidence.errors.get("time", UNSTATED_ERROR), _errors(rows)["time"]
    if found <= stated:
        return []
    return [
        f"the profile is {found:.0%} off in TPOT where it states {stated:.0%}: plan with more headroom "
        "(sharding.headroom_ratio), or correct it with `wattray profile refine`"
    ]


def _print(machine: MachineProfile, rows: Sequence[Compared], when: str = "") -> None:
    table = Table(title=f"{machine.name} {when}: measured and modelled".replace(" :", ":"))
    for column in ("run", "in flight", "tokens", "TPOT ms", "model", "error", "TTFT ms", "model", "error"):
        table.add_column(column, justify="right", overflow="fold")
    for row in rows:
        run = row.run
        table.add_row(
            printable(Path(run.name).name) + (" (KV-bound)" if row.kv_bound else ""),
            f"{run.concurrency:.0f}",
            f"{run.prompt_tokens:.0f}+{run.answer_tokens:.0f}",
            f"{run.tpot_s * 1e3:.1f}",
            f"{row.tpot_s * 1e3:.1f}",
            f"{row.tpot_error:+.0%}",
            f"{run.ttft_s * 1e3:.0f}",
            f"{row.ttft_s * 1e3:.0f}",
            f"{row.ttft_error:+.0%}",
        )
    OUT.print(table, markup=False)
    errors = _errors(rows)
    OUT.print(f"median error: TPOT {errors['time']:.1%}, TTFT {errors['ttft']:.1%}", highlight=False)
    for warning in _warnings(machine, rows):
        OUT.print(f"warning: {warning}", markup=False, highlight=False)


def _page(name: str, rows: Sequence[Compared]) -> str:
    """Modelled over measured, with a line where both are equal and two where they are 20 % apart."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=2, subplot_titles=("TPOT (ms)", "TTFT (ms)"))
    for place, (measured, modelled) in enumerate(
        (
            ([row.run.tpot_s * 1e3 for row in rows], [row.tpot_s * 1e3 for row in rows]),
            ([row.run.ttft_s * 1e3 for row in rows], [row.ttft_s * 1e3 for row in rows]),
        ),
        start=1,
    ):
        labels = [Path(row.run.name).name for row in rows]
        figure.add_scatter(
            x=measured, y=modelled, text=labels, mode="markers", name="runs", showlegend=place == 1, row=1, col=place
        )
        ends = [min(*measured, *modelled) * 0.9, max(*measured, *modelled) * 1.1]
        for factor, style in ((1.0, "solid"), (0.8, "dot"), (1.2, "dot")):
            line = {"color": "grey", "dash": style}
            y = [end * factor for end in ends]
            figure.add_scatter(x=ends, y=y, mode="lines", line=line, showlegend=False, row=1, col=place)
        figure.update_xaxes(title_text="measured", type="log", row=1, col=place)
        figure.update_yaxes(title_text="modelled", type="log", row=1, col=place)
    figure.update_layout(title=f"{name}: modelled over measured")
    return str(figure.to_html(full_html=True, include_plotlyjs="directory"))
