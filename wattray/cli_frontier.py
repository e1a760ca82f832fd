"""`wattray frontier`: trace a training job's time–energy frontier from a profile; print, store or draw it."""

import math
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from control_plane.text_edges import decoded, parse_json
from wattray.faults import faults_explained
from wattray.output_files import check_outputs, json_text, write_text

POINTS = 25
MOST_STEPS = 1_000_000
LOWER_PART = 0.4


def frontier_command(
    profile: Annotated[Path, typer.Option(help="CSV with stage, instruction, frequency, time, energy per GPU.")],
    stages: Annotated[int, typer.Option(help="Pipeline stages.")],
    microbatches: Annotated[int, typer.Option(help="Micro-batches per iteration.")],
    blocking_power_w: Annotated[float, typer.Option(help="Power of one GPU that waits, in watts.")],
    schedule: Annotated[
        str,
        typer.Option(help="1f1b, gpipe, interleaved-1f1b, early-recompute-1f1b, zero-bubble, or FILE.json."),
    ] = "1f1b",
    chunks: Annotated[int, typer.Option(help="Model chunks per stage (interleaved-1f1b).")] = 1,
    gpus_per_stage: Annotated[
        int, typer.Option(help="GPUs of one stage; energy and blocking power are multiplied by it.")
    ] = 1,
    time_scale: Annotated[float, typer.Option(help="Factor on every time of the profile.")] = 1.0,
    energy_scale: Annotated[float, typer.Option(help="Factor on every energy of the profile.")] = 1.0,
    resample: Annotated[bool, typer.Option(help="Stretch the profile's stages over another pipeline depth.")] = False,
    straggler: Annotated[
        float | None, typer.Option(help="Another pipeline takes this many times T_min: plan for it.")
    ] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the result here as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write frontier and Gantt pictures here as one HTML file.")] = None,
) -> None:
    """Trace the exact time–energy frontier of one training iteration."""
    console = Console(stderr=True)
    with faults_explained():
        check_outputs(json=json_out, plot=plot)
        if straggler is not None and not 1 <= straggler < math.inf:
            raise ValueError(f"--straggler {straggler}: how many times T_min the other takes, 1 or more and finite")
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ) as progress:
            report, solved = _solve(
                progress,
                profile_text=_read(profile),
                schedule=schedule,
                stages=stages,
                microbatches=microbatches,
                chunks=chunks,
                blocking_power_w=blocking_power_w,
                gpus_per_stage=gpus_per_stage,
                time_scale=time_scale,
                energy_scale=energy_scale,
                resample=resample,
                straggler=straggler,
            )
            page = None
            if plot is not None:
                from wattray.report.frontier_plots import frontier_page

                progress.add_task("drawing")
                page = frontier_page(solved, report, straggler)
        if json_out is not None:
            write_text(json_out, json_text(report))
        if plot is not None and page is not None:
            write_text(plot, page)
    _print_summary(report)


def _solve(progress: Progress, *, profile_text: str, schedule: str, straggler: float | None, **options: Any) -> Any:
    from control_plane.training.frontier import walk_frontier
    from control_plane.training.job_spec import JobSpec
    from control_plane.training.pipeline import build_dag, gpipe
    from control_plane.training.planner import solve
    from control_plane.training.profile import StageProfileError, profile_of, read_profile

    stages, microbatches = options["stages"], options["microbatches"]
    order = _schedule(schedule, stages, microbatches, options["chunks"])
    profile = read_profile(profile_text)
    if profile.stages != order.stages:
        if not options["resample"]:
            raise StageProfileError(
                f"column stage: the profile has {profile.stages} stages, the schedule {order.stages}; "
                "add --resample to stretch the profile"
            )
        profile = profile.resampled(order.stages)
    gpus = options["gpus_per_stage"]
    profile = profile.scaled(options["time_scale"], options["energy_scale"], gpus)
    spec = JobSpec(profile, order, options["blocking_power_w"] * gpus)
    _warn_of_units(progress.console, profile, spec.blocking_power_w)

    step = progress.add_task("loading the compiled walk")
    single = profile_of({(0, name): choices for (s, name), choices in profile.choices.items() if s == 0})
    walk_frontier(build_dag(gpipe(1, 1), single)).relaxed(float("inf"))
    progress.update(step, description=f"walking {sum(map(len, order.order))} computations")
    started_s = time.process_time()
    solved = solve(spec)
    solve_s = time.process_time() - started_s
    progress.update(step, description="rounding to real clocks")
    solved = solved.prepared()
    return _report(solved, solve_s, straggler), solved


def _warn_of_units(console: Console, profile: Any, blocking_power_w: float) -> None:
    """A GPU that computes draws more than one that waits: where it does not, a unit is probably wrong."""
    for (stage, instruction), choices in profile.choices.items():
        for choice in choices:
            drawn_w = choice.energy_j / choice.time_s
            if drawn_w < blocking_power_w:
                console.print(
                    f"warning: stage {stage} {instruction} draws {drawn_w:.3g} W at setting {choice.freq_mhz}, below "
                    f"the blocking power of {blocking_power_w:.3g} W: are times in seconds and energies in joules?",
                    markup=False,
                )
                return


def _report(solved: Any, solve_s: float, straggler: float | None) -> dict[str, Any]:
    from control_plane.training.planner import all_max

    frontier = solved.frontier
    highest = all_max(solved.dag)
    t_min_s, t_star_s = frontier.t_min_s, frontier.t_star_s
    deadlines_s = [t_min_s + (t_star_s - t_min_s) * LOWER_PART * i / (POINTS - 1) for i in range(POINTS)]
    plans = [solved.within(deadline_s) for deadline_s in deadlines_s]
    shown = plans[0]
    report: dict[str, Any] = {
        "t_min_s": t_min_s,
        "t_star_s": t_star_s,
        "all_max_time_s": highest.time_s,
        "all_max_energy_j": highest.energy_j,
        "saved_at_t_min_ratio": 1 - plans[0].energy_j / highest.energy_j,
        "breakpoints": frontier.breakpoints,
        "solve_s": solve_s,
        "points": [
            {
                "iteration_time_s": plan.deadline_s,
                "finish_time_s": plan.finish_time_s,
                "energy_j": plan.energy_j,
                "lower_bound_j": plan.lower_bound_j,
            }
            for plan in plans
        ],
    }
    if straggler is not None:
        shown = solved.with_straggler(straggler)
        report["straggler_time_s"] = straggler * t_min_s
        report["saved_ratio"] = 1 - shown.energy_j / highest.energy_until_j(shown.deadline_s)
    chunked = solved.spec.schedule.chunks > 1
    report["plan"] = [
        {
            "stage": stage,
            "instruction": step.instruction,
            "microbatch": step.microbatch,
            "freq_mhz": step.freq_mhz,
            **({"chunk": step.chunk} if chunked else {}),
            **({"power_limit_w": step.power_limit_w} if step.power_limit_w else {}),
        }
        for stage, steps in enumerate(shown.ranks)
        for step in steps
    ]
    return report


def _schedule(name: str, stages: int, microbatches: int, chunks: int) -> Any:
    from control_plane.training.pipeline import Instruction, schedule_named, user_order

    if not name.endswith(".json"):
        return schedule_named(name, stages, microbatches, chunks)
    order = [[Instruction(*step) for step in program] for program in _written_order(name)]
    schedule = user_order(order, Path(name).stem)
    for what, asked, found in (
        ("stages", stages, schedule.stages),
        ("microbatches", microbatches, schedule.microbatches),
    ):
        if asked != found:
            raise ValueError(f"{name}: the order has {found} {what}, the command asks for {asked}")
    return schedule


def _written_order(name: str) -> list[list[tuple[str, int, int]]]:
    """The order in a JSON file, each step checked. Raises ValueError, naming the step."""
    written = parse_json(_read(Path(name)), name, ValueError)
    expected = 'expected one list per stage of ["instruction", micro-batch, chunk]'
    if not isinstance(written, list) or not all(isinstance(program, list) for program in written):
        raise ValueError(f"{name}: {expected}")
    order = []
    for stage, program in enumerate(written):
        if not program:
            raise ValueError(f"{name}: stage {stage} runs nothing; {expected}")
        steps = []
        for position, step in enumerate(program):
            where = f"{name}: stage {stage}, position {position}"
            if not isinstance(step, list) or not 2 <= len(step) <= 3 or not isinstance(step[0], str):
                raise ValueError(f"{where}: {step!r:.80}; {expected}")
            for what, value in zip(("micro-batch", "chunk"), step[1:], strict=False):
                if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_STEPS:
                    raise ValueError(f"{where}: {what} {value!r:.40} is no whole number from 0 to {MOST_STEPS}")
            steps.append((step[0], step[1], step[2] if len(step) == 3 else 0))
        order.append(steps)
    return order


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    return decoded(content, str(path), ValueError)


def _print_summary(report: dict[str, Any]) -> None:
    table = Table(title="Training iteration, least energy by time", title_justify="left")
    table.add_column("")
    table.add_column("time [s]", justify="right")
    table.add_column("energy [J]", justify="right")
    table.add_column("saved", justify="right")
    all_max_j = report["all_max_energy_j"]
    fastest = report["points"][0]
    table.add_row("all clocks at maximum", f"{report['all_max_time_s']:.3f}", f"{all_max_j:,.0f}", "")
    table.add_row(
        "T_min",
        f"{report['t_min_s']:.3f}",
        f"{fastest['energy_j']:,.0f}",
        f"{report['saved_at_t_min_ratio']:.2%}",
    )
    if "straggler_time_s" in report:
        table.add_row("straggler", f"{report['straggler_time_s']:.3f}", "", f"{report['saved_ratio']:.2%}")
    table.add_row("T*", f"{report['t_star_s']:.3f}", "", "")
    console = Console(file=sys.stdout)
    console.print(table)
    console.print(f"{report['breakpoints']} breakpoints in {report['solve_s']:.3f} CPU s", highlight=False)


def main() -> None:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command("frontier")(frontier_command)
    app()


if __name__ == "__main__":
    main()
