"""What `wattray frontier` says of a solved job: as JSON, and as a table in the terminal."""

import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from control_plane.training.planner import AllMax, IterationPlan, SolvedJob

POINTS = 25
LOWER_PART = 0.4
"""The points lie in this share of the frontier from its shortest iteration on, where jobs run."""

BASELINES = {"zeus_global": "Zeus, one clock", "zeus_stage": "Zeus, per stage", "envpipe": "EnvPipe"}


def frontier_report(
    solved: "SolvedJob", solve_s: float, straggler: float | None, deadlines_s: Sequence[float], baselines: bool
) -> "tuple[dict[str, Any], IterationPlan]":
    """The report, and the plan it shows: for the straggler, else for the first deadline, else the shortest."""
    from control_plane.training.planner import all_max

    frontier = solved.frontier
    highest = all_max(solved.dag)
    plans = list(_points(solved))
    shown = plans[0]
    report: dict[str, Any] = {
        "t_min_s": frontier.t_min_s,
        "t_star_s": frontier.t_star_s,
        "t_star_energy_j": solved.within(max(frontier.t_star_s, solved.shortest_s), refine=False).energy_j,
        "all_max_time_s": highest.time_s,
        "all_max_energy_j": highest.energy_j,
        "saved_at_t_min_ratio": 1 - shown.energy_j / highest.energy_until_j(shown.deadline_s),
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
    if deadlines_s:
        asked = [solved.within(deadline_s) for deadline_s in deadlines_s]
        shown = asked[0]
        report["plans_at"] = [
            _plan_at(deadline_s, plan, highest) for deadline_s, plan in zip(deadlines_s, asked, strict=True)
        ]
    if straggler is not None:
        shown = solved.with_straggler(straggler)
        report["straggler_time_s"] = straggler * frontier.t_min_s
        report["straggler_energy_j"] = shown.energy_j
        report["saved_ratio"] = 1 - shown.energy_j / highest.energy_until_j(shown.deadline_s)
    # What the pictures show, and what the table says of it, are counted until one moment.
    until_s = max(shown.deadline_s, highest.time_s)
    report["shown"] = {
        "until_s": until_s,
        "deadline_s": shown.deadline_s,
        "energy_j": shown.energy_j + solved.dag.blocking_power_w * (until_s - shown.deadline_s),
        "all_max_energy_j": highest.energy_until_j(until_s),
    }
    if baselines:
        report["baselines"] = _baselines(solved, highest)
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
    return report, shown


def _points(solved: "SolvedJob") -> "Iterator[IterationPlan]":
    shortest_s, t_star_s = solved.shortest_s, solved.frontier.t_star_s
    span_s = max(0.0, t_star_s - shortest_s) * LOWER_PART
    for i in range(POINTS):
        yield solved.within(shortest_s + span_s * i / (POINTS - 1), refine=False)


def _plan_at(deadline_s: float, plan: "IterationPlan", highest: "AllMax") -> dict[str, Any]:
    hold_s = plan.switches.shortest_hold_s
    return {
        "deadline_s": deadline_s,
        "finish_time_s": plan.finish_time_s,
        "energy_j": plan.energy_j,
        "lower_bound_j": plan.lower_bound_j,
        "saved_ratio": 1 - plan.energy_j / highest.energy_until_j(plan.deadline_s),
        "switches": plan.switches.count,
        "shortest_hold_s": hold_s if math.isfinite(hold_s) else None,
    }


def _baselines(solved: "SolvedJob", highest: "AllMax") -> dict[str, Any]:
    """What others pay when the iteration may take as long as at all-max clocks."""
    from control_plane.baselines.training import EnvPipe, ZeusGlobal, ZeusPerStage
    from control_plane.training.planner import run_choices

    dag, until_s = solved.dag, highest.time_s
    compared = {}
    for name, policy in (("zeus_global", ZeusGlobal()), ("zeus_stage", ZeusPerStage()), ("envpipe", EnvPipe())):
        end_s, effective_j = run_choices(dag, policy.choices(dag, until_s))
        energy_j = effective_j + dag.blocking_power_w * max(end_s, until_s)
        compared[name] = {
            "finish_time_s": end_s,
            "energy_j": energy_j,
            "saved_ratio": 1 - energy_j / highest.energy_until_j(max(end_s, until_s)),
        }
    return compared


def print_summary(report: dict[str, Any], to_stderr: bool = False) -> None:
    table = Table(title="Training iteration, least energy by time", title_justify="left")
    table.add_column("")
    table.add_column("time [s]", justify="right")
    table.add_column("energy [J]", justify="right")
    table.add_column("saved", justify="right")
    fastest = report["points"][0]

    def row(name: str, time_s: float, energy_j: float | None, saved_ratio: float | None) -> None:
        energy = "" if energy_j is None else f"{energy_j:,.0f}"
        table.add_row(name, f"{time_s:.3f}", energy, "" if saved_ratio is None else f"{saved_ratio:.2%}")

    row("all clocks at maximum", report["all_max_time_s"], report["all_max_energy_j"], None)
    for name, other in report.get("baselines", {}).items():
        row(BASELINES[name], other["finish_time_s"], other["energy_j"], other["saved_ratio"])
    row("T_min", report["t_min_s"], None, None)
    row("shortest plan", fastest["finish_time_s"], fastest["energy_j"], report["saved_at_t_min_ratio"])
    for plan in report.get("plans_at", []):
        row(f"by {plan['deadline_s']:g} s", plan["finish_time_s"], plan["energy_j"], plan["saved_ratio"])
    if "straggler_time_s" in report:
        row("straggler", report["straggler_time_s"], report["straggler_energy_j"], report["saved_ratio"])
    row("T*", report["t_star_s"], report["t_star_energy_j"], None)
    shown = report["shown"]
    if shown["until_s"] > report["all_max_time_s"] * (1 + 1e-9):
        row("all clocks at maximum, then waiting", shown["until_s"], shown["all_max_energy_j"], None)
    console = Console(file=sys.stderr if to_stderr else sys.stdout)
    console.print(table)
    console.print(f"{report['breakpoints']} breakpoints in {report['solve_s']:.3f} CPU s", highlight=False)
