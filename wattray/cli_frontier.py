"""`wattray frontier`: trace a training job's time–energy frontier from a profile; print, store or draw it."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from control_plane.text_edges import parse_json
from wattray.faults import faults_explained
from wattray.frontier_report import frontier_report, print_summary
from wattray.output_files import STDOUT, check_folder, check_outputs, json_text, write_bytes, write_text
from wattray.stage_profiles import read_profile_file, read_text

if TYPE_CHECKING:
    from control_plane.training.job_spec import JobSpec
    from control_plane.training.planner import SolvedJob
    from control_plane.training.schedules import Schedule
    from control_plane.training.switch_rules import SwitchRules

MOST_STEPS = 1_000_000
MOST_GPU_W = 3000.0
"""No GPU of today draws as much."""


def frontier_command(
    profile: Annotated[
        Path,
        typer.Option(
            help="CSV with stage, instruction, frequency, time, energy per GPU; or a file or dump folder of Zeus."
        ),
    ],
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
    deadline_s: Annotated[
        list[float] | None, typer.Option(help="Plan for an iteration of this many seconds; may be repeated.")
    ] = None,
    switch_time_s: Annotated[float, typer.Option(help="Seconds until a new clock is in force.")] = 0.0,
    min_hold_s: Annotated[
        float, typer.Option(help="Seconds of computing that a clock is held at least; never less than --switch-time-s.")
    ] = 0.0,
    clocks_per_stage: Annotated[int, typer.Option(help="Distinct clocks per stage at most; 0: any number.")] = 0,
    prepare: Annotated[bool, typer.Option(help="Prepare a library of plans first: seconds of work, better plans.")] = (
        False
    ),
    baselines: Annotated[
        bool, typer.Option("--baselines", "--compare", help="Time and energy with Zeus's and EnvPipe's clocks beside.")
    ] = False,
    max_power_w: Annotated[
        float, typer.Option(help="Most that one GPU can draw; a profile above it has a wrong unit.")
    ] = MOST_GPU_W,
    export_zeus: Annotated[
        Path | None, typer.Option(help="Write the plan here as a schedule file for Zeus's PointSolution (.py).")
    ] = None,
    time_budget_s: Annotated[float, typer.Option(help="Give up the search for the frontier after so long.")] = 600.0,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the result here as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write frontier and Gantt pictures here as one HTML file.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write the frontier's picture here as SVG.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Write every picture (SVG, PDF, CSV) into this folder.")] = None,
) -> None:
    """Trace the time–energy frontier of one training iteration and plan its clocks."""
    console = Console(stderr=True)
    with faults_explained():
        check_outputs(json=json_out, plot=plot, svg=svg, export_zeus=export_zeus)
        if figures is not None:
            check_folder(figures, "--figures")
        _check_options(straggler, deadline_s or [], time_budget_s, export_zeus)
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ) as progress:
            from control_plane.training.switch_rules import SwitchRules

            spec = _job(
                profile,
                schedule=_schedule(schedule, stages, microbatches, chunks),
                resample=resample,
                time_scale=time_scale,
                energy_scale=energy_scale,
                gpus_per_stage=gpus_per_stage,
                blocking_power_w=blocking_power_w,
                switch=SwitchRules(switch_time_s, min_hold_s, clocks_per_stage),
            )
            _refuse_wrong_units(spec.profile, spec.blocking_power_w, max_power_w * gpus_per_stage)
            solved, solve_s = _solved(progress, spec, time_budget_s, prepare)
            report, shown = frontier_report(solved, solve_s, straggler, deadline_s or [], baselines)
            page = None
            if plot is not None:
                from wattray.report.frontier_plots import frontier_page

                progress.add_task("drawing")
                page = frontier_page(solved, report)
        if export_zeus is not None:
            from control_plane.training.zeus_files import point_solution

            write_text(export_zeus, point_solution(shown.ranks))
        if json_out is not None:
            write_text(json_out, json_text(report))
        if plot is not None and page is not None:
            from wattray.report.page_file import write_page

            write_page(plot, page)
        if svg is not None or figures is not None:
            from wattray.report.figure_files import figure_picture, write_figures
            from wattray.report.frontier_plots import frontier_figures

            drawn = frontier_figures(solved, report)
            if svg is not None:
                write_bytes(svg, figure_picture(drawn["frontier"], "svg"))
            if figures is not None:
                write_figures(figures, drawn)
    print_summary(report, to_stderr=json_out == STDOUT)


def _check_options(
    straggler: float | None, deadlines_s: list[float], time_budget_s: float, export_zeus: Path | None
) -> None:
    if straggler is not None and not 1 <= straggler < math.inf:
        raise ValueError(f"--straggler {straggler}: how many times T_min the other takes, 1 or more and finite")
    for deadline_s in deadlines_s:
        if not 0 < deadline_s < math.inf:
            raise ValueError(f"--deadline-s {deadline_s}: must be positive and finite")
    if not time_budget_s > 0:
        raise ValueError(f"--time-budget-s {time_budget_s}: must be positive")
    if export_zeus is not None and export_zeus.suffix != ".py":
        raise ValueError(f"--export-zeus {export_zeus}: Zeus reads schedule files whose name ends in .py")


def _job(
    path: Path,
    *,
    schedule: "Schedule",
    resample: bool,
    time_scale: float,
    energy_scale: float,
    gpus_per_stage: int,
    blocking_power_w: float,
    switch: "SwitchRules",
) -> "JobSpec":
    from control_plane.training.job_spec import JobSpec
    from control_plane.training.profile import StageProfileError

    profile = read_profile_file(path)
    if profile.stages != schedule.stages:
        if not resample:
            raise StageProfileError(
                f"column stage: the profile has {profile.stages} stages, the schedule {schedule.stages}; "
                "add --resample to stretch the profile"
            )
        profile = profile.resampled(schedule.stages)
    profile = profile.scaled(time_scale, energy_scale, gpus_per_stage)
    return JobSpec(profile, schedule, blocking_power_w * gpus_per_stage, switch=switch)


def _solved(progress: Progress, spec: "JobSpec", time_budget_s: float, prepare: bool) -> "tuple[SolvedJob, float]":
    """The job with its frontier, and the CPU seconds that took; what is compiled once per machine is left out."""
    from control_plane.training.frontier import WalkProgress, stop_after, walk_frontier
    from control_plane.training.pipeline import build_dag, gpipe
    from control_plane.training.planner import solve
    from control_plane.training.profile import profile_of

    step = progress.add_task("loading the compiled walk")
    single = profile_of({(0, name): choices for (s, name), choices in spec.profile.choices.items() if s == 0})
    walk_frontier(build_dag(gpipe(1, 1), single)).relaxed(float("inf"))
    walking = f"walking {sum(map(len, spec.schedule.order))} computations"
    progress.update(step, description=walking)
    stop = stop_after(time_budget_s, time.monotonic)

    def watch(now: WalkProgress) -> None:
        progress.update(step, description=f"{walking}: {now.done_ratio:.0%}, {now.breakpoints} breakpoints")
        stop(now)

    started_s = time.process_time()
    solved = solve(spec, watch)
    solve_s = time.process_time() - started_s
    if prepare:
        progress.update(step, description="preparing plans")
        solved = solved.prepared()
    progress.update(step, description="choosing real clocks")
    return solved, solve_s


def _refuse_wrong_units(profile: Any, blocking_power_w: float, max_power_w: float) -> None:
    """A stage that computes draws more than one that waits, and no more than its GPUs can: where a profile says
    otherwise a unit is wrong, and savings would be invented. Raises StageProfileError."""
    from control_plane.training.profile import StageProfileError

    for (stage, instruction), choices in profile.choices.items():
        for choice in choices:
            drawn_w = choice.energy_j / choice.time_s
            if not drawn_w < blocking_power_w < math.inf and not drawn_w > max_power_w:
                continue
            setting = f"{choice.freq_mhz} MHz" if choice.freq_mhz else f"{choice.power_limit_w} W"
            side = (
                f"below the blocking power of {blocking_power_w:.4g} W"
                if drawn_w < blocking_power_w
                else f"above the most that its GPUs can draw, {max_power_w:.4g} W (--max-power-w)"
            )
            raise StageProfileError(
                f"columns time and energy: stage {stage} {instruction} at {setting} draws {drawn_w:.4g} W, {side}: a "
                "unit is probably wrong; times are in seconds and energies in joules, or name the columns time_ms, "
                "energy_mj"
            )


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
    written = parse_json(read_text(Path(name)), name, ValueError)
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


def main() -> None:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command("frontier")(frontier_command)
    app()


if __name__ == "__main__":
    main()
