"""What clocks that change slowly leave of the saving: percent saved by deadline and minimum hold, and gaps to a bound.

python -m benchmarks.frontier.switching [--switch-time-s 0.02] [--small]

Eight stages, 24 micro-batches, profiles at the scale they were published in (computations of 0.05 to 0.17 s on A100).
All plans are timed again here, operation by operation, with settling. `--small` compares with a mixed-integer program.
"""

import time
from itertools import pairwise
from typing import Annotated

import highspy
import numpy as np
import typer

from benchmarks.frontier.measured import DATA, PROFILES, Measured
from control_plane.training import pipeline
from control_plane.training.dag import Dag, finish_times
from control_plane.training.frontier import DeadlineError, walk_frontier
from control_plane.training.held_plans import held_within, prepare_held, steady_within
from control_plane.training.held_problem import HeldProblem, choices_of, held_problem
from control_plane.training.planner import all_max, run_choices
from control_plane.training.profile import Choice, Profile, profile_of, read_profile
from control_plane.training.rounding import prepare, rounding_problem
from control_plane.training.switch_rules import SwitchRules
from control_plane.training.switching import setting_of, stage_operations, switches_of

DEGREES = (1.0, 1.02, 1.05, 1.1, 1.2, 1.3)
HOLDS_S = (0.02, 0.05, 0.1, 0.2, 0.5)
MILP_LIMIT_S = 20.0


def main(
    switch_time_s: Annotated[float, typer.Option(help="Seconds until a new clock is in force.")] = 0.0,
    small: Annotated[bool, typer.Option(help="Compare small cases with a mixed-integer program.")] = False,
    library: Annotated[bool, typer.Option(help="Prepare libraries, as the live planner does.")] = False,
) -> None:
    if small:
        _small_cases()
    else:
        _table(switch_time_s, library)


def _table(switch_time_s: float, library: bool) -> None:
    print(
        f"| settling {switch_time_s} s | T/T_min | no switch time | " + " | ".join(f"{h:g} s" for h in HOLDS_S), end=""
    )
    print(" | one clock per stage | slowest plan, CPU s |\n|" + "---|" * (len(HOLDS_S) + 5))
    overruns = violations = under_one_clock = 0
    for m in _profiles():
        dag = pipeline.build_dag(pipeline.one_f_one_b(8, 24), _as_published(m), m.blocking_power_w)
        frontier, problem, highest = walk_frontier(dag), rounding_problem(dag), all_max(dag)
        free = prepare(problem, frontier)
        helds = [held_problem(problem, SwitchRules(switch_time_s, hold_s)) for hold_s in HOLDS_S]
        libraries = [prepare_held(held, frontier) if library else None for held in helds]
        for degree in DEGREES:
            deadline_s = degree * frontier.t_min_s
            all_max_j = highest.energy_until_j(deadline_s)
            waits_j = dag.blocking_power_w * deadline_s
            steady = steady_within(helds[0], deadline_s)
            unhindered = run_choices(dag, free.within(deadline_s).choices(dag))[1]
            found_j, slowest_s = [unhindered], 0.0
            for held, prepared in zip(helds, libraries, strict=True):
                started_s = time.process_time()
                try:
                    plan = prepared.within(deadline_s) if prepared else held_within(held, frontier, deadline_s)
                except DeadlineError:
                    found_j.append(float("nan"))
                    continue
                slowest_s = max(slowest_s, time.process_time() - started_s)
                choices = choices_of(held, plan)
                end_s, effective_j = settled(dag, choices, switch_time_s)
                overruns += end_s > deadline_s
                violations += switches_of(dag, choices).shortest_hold_s < held.rules.hold_s
                under_one_clock += steady is not None and effective_j > steady.effective_j * (1 + 1e-12)
                found_j.append(effective_j)
            found_j.append(steady.effective_j if steady else float("nan"))
            *cells, one = (100 * (1 - (effective_j + waits_j) / all_max_j) for effective_j in found_j)
            shown = [f"{cells[0]:.1f}", *(f"{c:.1f} ({100 * c / cells[0]:.0f})" for c in cells[1:]), f"{one:.1f}"]
            print(f"| {m.name} | {degree} | " + " | ".join(shown) + f" | {slowest_s:.2f} |", flush=True)
    print(
        f"\n{overruns} overruns, {violations} holds too short, {under_one_clock} plans dearer than one clock per stage"
    )


def settled(dag: Dag, choices: tuple[Choice, ...], switch_time_s: float) -> tuple[float, float]:
    """When an iteration ends and its effective energy, where a change asked for at an operation's start is in force
    `switch_time_s` later and the old setting runs until then; written apart from the planner's own timing."""
    times_s = np.array([choice.time_s for choice in choices])
    costs_j = [dag.computation(op).effective_j(choice) for op, choice in enumerate(choices)]
    for ops in stage_operations(dag).values():
        left_s, old = 0.0, setting_of(choices[ops[-1]])
        for before, op in pairwise([ops[-1], *ops]):
            if setting_of(choices[op]) != setting_of(choices[before]):
                left_s, old = switch_time_s, setting_of(choices[before])
            if left_s > 0:
                slow = next(c for c in dag.computation(op).measured if setting_of(c) == old)
                share = min(1.0, left_s / slow.time_s)
                costs_j[op] = share * dag.computation(op).effective_j(slow) + (1 - share) * costs_j[op]
                times_s[op] = share * slow.time_s + (1 - share) * times_s[op]
                left_s = max(0.0, left_s - slow.time_s)
    return float(finish_times(dag, times_s).max()), sum(costs_j)


def _small_cases() -> None:
    print("| profile | stages x micro-batches | hold, s | T/T_min | plan, J | lower bound of held plans, J | gap % |")
    print("|---|---|---|---|---|---|---|")
    gaps = []
    for m in _profiles():
        for stages, microbatches in ((2, 4), (3, 5)):
            profile = _few_clocks(_as_published(m), stages, 5)
            dag = pipeline.build_dag(pipeline.one_f_one_b(stages, microbatches), profile, m.blocking_power_w)
            frontier, problem = walk_frontier(dag), rounding_problem(dag)
            pace_s = frontier.t_min_s / (microbatches + stages - 1)
            for part in (0.4, 0.8, 1.6):
                held = held_problem(problem, SwitchRules(0.0, part * pace_s))
                for degree in (1.02, 1.05, 1.1, 1.2):
                    deadline_s = degree * frontier.t_min_s
                    waits_j = dag.blocking_power_w * deadline_s
                    plan_j = held_within(held, frontier, deadline_s).effective_j + waits_j
                    bound_j = milp_bound_j(held, deadline_s) + waits_j
                    gaps.append(100 * (plan_j / bound_j - 1))
                    print(
                        f"| {m.name} | {stages}x{microbatches} | {held.rules.hold_s:.3f} | {degree} | {plan_j:.1f} "
                        f"| {bound_j:.1f} | {gaps[-1]:.3f} |",
                        flush=True,
                    )
    print(f"\n{len(gaps)} cases: gap {np.mean(gaps):.3f} % on average, {max(gaps):.3f} % at most")


def milp_bound_j(held: HeldProblem, deadline_s: float) -> float:
    """A lower bound on the effective energy of any plan that holds its settings and changes them in no time: the bound
    that HiGHS proves of a mixed-integer program in which the start of a run obliges the operations that follow."""
    dag, model = held.dag, highspy.Highs()
    model.setOptionValue("output_flag", False)
    model.setOptionValue("time_limit", MILP_LIMIT_S)
    model.setOptionValue("mip_rel_gap", 1e-6)
    ends = [model.addVariable(0.0, deadline_s) for _ in range(len(dag))]
    took: list[object] = list(held.fixed_s)
    cost = held.fixed_j
    for place, menu in enumerate(held.menus):
        ops = held.stage(place).tolist()
        rows = [held.row[op] for op in ops]
        time_s = [[float(held.table_time_s[row + k]) for k in range(len(menu))] for row in rows]
        is_at = [[model.addBinary() for _ in menu] for _ in ops]
        for i, op in enumerate(ops):
            model.addConstr(sum(is_at[i]) == 1)
            took[op] = sum(time_s[i][k] * is_at[i][k] for k in range(len(menu)))
            cost = cost + sum(float(held.table_cost_j[rows[i] + k]) * is_at[i][k] for k in range(len(menu)))
            for k in range(len(menu)):
                begins = is_at[i][k] - is_at[i - 1][k] if i else is_at[i][k]
                held_s, then = time_s[i][k], i + 1
                while held_s < held.rules.hold_s and then < len(ops):
                    model.addConstr(is_at[then][k] >= begins)
                    held_s += time_s[then][k]
                    then += 1
                if held_s < held.rules.hold_s and i > 0:
                    model.addConstr(begins <= 0)
    for op in range(len(dag)):
        model.addConstr(ends[op] >= took[op])
    for before, after in dag.edges.tolist():
        model.addConstr(ends[after] >= ends[before] + took[after])
    model.minimize(cost)
    return float(model.getInfo().mip_dual_bound)


def _profiles() -> list[Measured]:
    """The measured profiles, and Bloom on A40 where its file is there too."""
    bloom_a40 = Measured("Bloom A40", "bloom+a40_bf16", 70.38)
    is_there = (DATA / "stage_profile" / f"{bloom_a40.file}.csv").exists()
    return [*PROFILES, bloom_a40] if is_there else list(PROFILES)


def _as_published(m: Measured) -> Profile:
    return read_profile((DATA / "stage_profile" / f"{m.file}.csv").read_text(encoding="utf-8"))


def _few_clocks(profile: Profile, stages: int, clocks: int) -> Profile:
    resampled = profile.resampled(stages)
    settings = sorted({c.freq_mhz for choices in resampled.choices.values() for c in choices})
    kept = {settings[round(i * (len(settings) - 1) / (clocks - 1))] for i in range(clocks)}
    return profile_of({key: [c for c in choices if c.freq_mhz in kept] for key, choices in resampled.choices.items()})


if __name__ == "__main__":
    typer.run(main)
