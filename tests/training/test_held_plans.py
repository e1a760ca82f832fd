"""Plans that a GPU can follow whose clock takes time to change: held, in time with settling, never above one clock."""

import math
from collections import defaultdict
from dataclasses import replace
from itertools import groupby

import pytest
from training.profiles_for_tests import synthetic_profile

from control_plane.training import pipeline
from control_plane.training.frontier import DeadlineError
from control_plane.training.job_spec import JobSpec
from control_plane.training.planner import IterationPlan, run_choices, solve
from control_plane.training.profile import Choice, profile_of
from control_plane.training.stage_clocks import one_clock_per_stage
from control_plane.training.switch_rules import SwitchRules

SPEC = JobSpec(synthetic_profile(3), pipeline.one_f_one_b(3, 6), 60.0)
T_MIN_S = solve(SPEC).frontier.t_min_s


def shortest_run_s(spec: JobSpec, plan: IterationPlan) -> float:
    """By the profile alone: how long a stage computes at one setting before that changes, whole stages aside."""
    shortest_s = math.inf
    for stage, rank in enumerate(plan.ranks):
        runs = [list(run) for _, run in groupby(rank, key=lambda step: (step.freq_mhz, step.power_limit_w))]
        for run in runs if len(runs) > 1 else []:
            shortest_s = min(shortest_s, sum(choice_of(spec, stage, step).time_s for step in run))
    return shortest_s


def choice_of(spec: JobSpec, stage: int, step: object) -> Choice:
    return next(
        c
        for c in spec.profile.choices[stage, step.instruction]
        if (c.freq_mhz, c.power_limit_w) == (step.freq_mhz, step.power_limit_w)
    )


def end_with_settling_s(spec: JobSpec, plan: IterationPlan, switch_time_s: float) -> float:
    """An own simulation of 1F1B, second by second of each operation: a change asked for at an operation's start is in
    force `switch_time_s` later, and the share of the work that is done until then is done at the old setting."""
    stages = len(plan.ranks)
    ends: dict[tuple[int, str, int], float] = {}
    place = [0] * stages
    now_s = [0.0] * stages
    running = [rank[-1] for rank in plan.ranks]
    coming: list[tuple[float, object] | None] = [None] * stages
    while any(place[s] < len(plan.ranks[s]) for s in range(stages)):
        for s in range(stages):
            if place[s] == len(plan.ranks[s]):
                continue
            step = plan.ranks[s][place[s]]
            other = (s - 1, "forward") if step.instruction == "forward" else (s + 1, "backward")
            needed = (*other, step.microbatch)
            if 0 <= other[0] < stages and needed not in ends:
                continue
            started_s = max(now_s[s], ends.get(needed, 0.0))
            asked = coming[s][1] if coming[s] is not None else running[s]
            if (asked.freq_mhz, asked.power_limit_w) != (step.freq_mhz, step.power_limit_w):
                coming[s] = (switch_time_s, step)
            work, at_s = 1.0, started_s
            if coming[s] is not None:
                left_s, target = coming[s]
                old_s = choice_of(spec, s, replace_instruction(running[s], step)).time_s
                part_s = min(left_s, old_s)
                work -= part_s / old_s
                at_s += part_s
                coming[s] = (left_s - part_s, target)
                if left_s <= old_s:
                    running[s], coming[s] = target, None
            if work > 0:
                at_s += work * choice_of(spec, s, replace_instruction(running[s], step)).time_s
            now_s[s] = ends[s, step.instruction, step.microbatch] = at_s
            place[s] += 1
    return max(now_s)


def replace_instruction(setting: object, step: object) -> object:
    return step._replace(freq_mhz=setting.freq_mhz, power_limit_w=setting.power_limit_w)


@pytest.mark.parametrize("switch_time_s", [0.0, 0.4, 1.5])
@pytest.mark.parametrize("min_hold_s", [0.5, 1.5, 2.5, 8.0, 1000.0])
def test_every_clock_is_held_no_plan_is_late_and_one_clock_per_stage_is_never_cheaper(
    switch_time_s: float, min_hold_s: float
) -> None:
    rules = SwitchRules(switch_time_s, min_hold_s)
    solved = solve(replace(SPEC, switch=rules))
    for degree in (1.0, 1.05, 1.1, 1.3):
        deadline_s = degree * T_MIN_S
        plan = solved.within(deadline_s)
        assert plan.finish_time_s <= plan.deadline_s
        for settles_s in (0.0, switch_time_s / 2, switch_time_s):
            assert end_with_settling_s(SPEC, plan, settles_s) <= plan.finish_time_s * (1 + 1e-9)
        assert shortest_run_s(SPEC, plan) == plan.switches.shortest_hold_s
        assert plan.switches.shortest_hold_s >= rules.hold_s
        steady = one_clock_per_stage(solved.dag, deadline_s)
        assert steady is not None
        steady_j = run_choices(solved.dag, steady)[1] + solved.dag.blocking_power_w * plan.deadline_s
        assert plan.lower_bound_j <= plan.energy_j <= steady_j


def test_a_shorter_hold_saves_more_and_a_library_is_no_worse_than_a_first_plan() -> None:
    energies_j = []
    for hold_s in (0.5, 1.5, 2.5, 1000.0):
        solved = solve(replace(SPEC, switch=SwitchRules(0.0, hold_s)))
        first_j = solved.within(1.06 * T_MIN_S).energy_j
        plan = solved.prepared().within(1.06 * T_MIN_S)
        assert plan.finish_time_s <= 1.06 * T_MIN_S
        assert plan.energy_j <= first_j * 1.003
        energies_j.append(min(plan.energy_j, first_j))
    assert energies_j == sorted(energies_j)
    assert energies_j[0] < 0.98 * energies_j[-1]


@pytest.mark.parametrize("few", [1, 2, 3])
def test_a_stage_uses_only_as_many_clocks_as_it_may(few: int) -> None:
    plan = solve(replace(SPEC, switch=SwitchRules(0.0, 0.5, few))).within(1.05 * T_MIN_S)
    assert plan.finish_time_s <= plan.deadline_s
    used = defaultdict(set)
    for stage, rank in enumerate(plan.ranks):
        used[stage] |= {step.freq_mhz for step in rank}
    assert max(map(len, used.values())) == few


def test_more_clocks_per_stage_cost_no_more() -> None:
    deadline_s = 1.05 * T_MIN_S
    energies_j = [solve(replace(SPEC, switch=SwitchRules(0.0, 0.5, n))).within(deadline_s).energy_j for n in (1, 2, 4)]
    assert energies_j == sorted(energies_j, reverse=True)
    assert energies_j[1] < energies_j[0]


def test_where_held_clocks_cannot_reach_t_min_the_shortest_time_is_told() -> None:
    """The forward is fastest at one clock and the backward at another: T_min needs a change, which may not be made."""
    profile = profile_of(
        {
            (0, "forward"): [Choice(1400, 1.0, 500.0), Choice(1300, 1.5, 400.0)],
            (0, "backward"): [Choice(1400, 2.5, 900.0), Choice(1300, 2.0, 800.0)],
        }
    )
    spec = JobSpec(profile, pipeline.one_f_one_b(1, 3), 10.0, switch=SwitchRules(0.0, 10.0))
    solved = solve(spec)
    assert solved.frontier.t_min_s == 9.0
    assert solved.shortest_s == 10.5
    with pytest.raises(DeadlineError, match=r"ends by 9\.0 s and holds.*takes 10\.5 s"):
        solved.within(9.0)
    plan = solved.within(10.5)
    assert plan.switches.count == 0
    assert {step.freq_mhz for step in plan.ranks[0]} <= {1300, 1400}


def test_power_limits_are_held_like_clocks() -> None:
    choices = {
        (stage, name): [Choice(0, t * (1 + k / 10), t * (300 - 25 * k), 300 - 25 * k) for k in range(5)]
        for stage in range(3)
        for name, t in (("forward", 1.0), ("backward", 2.0 + stage))
    }
    spec = JobSpec(profile_of(choices), pipeline.one_f_one_b(3, 6), 50.0, switch=SwitchRules(0.1, 4.0))
    solved = solve(spec)
    plan = solved.within(1.05 * solved.frontier.t_min_s)
    assert plan.finish_time_s <= plan.deadline_s
    assert shortest_run_s(spec, plan) >= 4.0
    assert plan.switches.count > 0


def test_a_stage_without_a_setting_for_all_its_computations_is_named() -> None:
    profile = profile_of({(0, "forward"): [Choice(1400, 1.0, 5.0)], (0, "backward"): [Choice(1300, 2.0, 8.0)]})
    with pytest.raises(ValueError, match="stage 0: no setting is measured for all"):
        solve(JobSpec(profile, pipeline.one_f_one_b(1, 3), 1.0, switch=SwitchRules(0.1)))


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ({"switch_time_s": -1.0}, "switch_time_s"),
        ({"min_hold_s": math.nan}, "min_hold_s"),
        ({"clocks_per_stage": -1}, "clocks_per_stage"),
    ],
)
def test_rules_that_cannot_be_are_refused(rules: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SwitchRules(**rules)
