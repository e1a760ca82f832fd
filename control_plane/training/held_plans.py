"""Plans for GPUs whose clock takes time to change: every setting is held and changes settle.

A plan begins from one setting per stage, or from the relaxed plan; stages are then chosen anew one at a time by dynamic
programming. All plans are timed with settling, and none ends after its deadline.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from control_plane.training.dag import FloatArray, IntArray
from control_plane.training.frontier import DeadlineError, Frontier
from control_plane.training.held_kernel import choose_held_within, improve_held
from control_plane.training.held_problem import BoolArray, HeldPlan, HeldProblem, timed_held
from control_plane.training.stage_clocks import SteadyClocks

BUCKETS = 48
"""Finish times kept apart per operation and setting."""
LEANINGS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Where the other stages leave the slack while one is chosen anew: late (0) to early (1)."""
WINDOW_PARTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Relaxed plans that give windows to the stages: how far between T_min and the deadline they end."""
FIRST_WORK = 60_000
"""Operations chosen anew for a plan without a library: about half a second."""
LOOK_UP_WORK = 12_000
"""The same where a library exists: a fifth of a second at 4,000 operations."""
STEADY_WORK = 300
"""Operations timed in the search for one setting per stage, for each that is chosen anew."""
MOST_SWEEPS = 24
"""Of one seed; small DAGs do not get better from more."""
TRIES = 3
"""Searches with ever less time, until the plan is in time with the change from its last setting to its first."""
LIBRARY_PLANS = 32
LIBRARY_WORK = 1_000_000
"""Operations chosen anew for a whole library: ten seconds or so."""
LOW_END = 1.5
"""Exponent of the library's deadlines: above 1 they crowd near T_min, where jobs run."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldLibrary:
    """Plans along the frontier, by rising finish, from the nearest of which any deadline's plan is improved."""

    held: HeldProblem
    frontier: Frontier
    plans: tuple[HeldPlan, ...]

    def within(self, deadline_s: float) -> HeldPlan:
        """The cheapest plan found that ends by the deadline; raises DeadlineError where none is found."""
        known = sorted(_in_time(self.plans, deadline_s), key=lambda plan: plan.effective_j)[:2]
        return held_within(self.held, self.frontier, deadline_s, known, LOOK_UP_WORK)


def held_within(
    held: HeldProblem, frontier: Frontier, deadline_s: float, known: Sequence[HeldPlan] = (), work: int = FIRST_WORK
) -> HeldPlan:
    """The cheapest plan found that ends by the deadline; raises DeadlineError where none is found. `known` are plans to
    begin from as well."""
    deadline_s = frontier.within(deadline_s).deadline_s
    clocks = SteadyClocks(held.dag)
    steady = [_steady(held, clocks)] if clocks.search(deadline_s, STEADY_WORK * work) else []
    few = held.rules.clocks_per_stage
    seeds = _in_time([*steady, *known], deadline_s)
    if few != 1:
        allowed = held.all_allowed() if not few else _most_used(held, frontier, deadline_s, work)
        start = (seeds or [timed_held(held, held.fastest_settings())])[0]
        parts = WINDOW_PARTS if 2 * len(WINDOW_PARTS) * len(held.dag) <= work else WINDOW_PARTS[-1:]
        seeds += _in_time((_windowed(held, frontier, p, deadline_s, start, allowed) for p in parts), deadline_s)
        seeds = [seed for seed in seeds if held.is_held(seed)]
    if not seeds:
        raise _too_short(held, frontier, deadline_s)
    if few == 1:
        return seeds[0]
    all_seeds = seeds
    search_s = deadline_s
    for _ in range(TRIES):
        found = _best_of(held, seeds, search_s, work)
        repeated = timed_held(held, found.setting, repeats=True)
        if repeated.finish_time_s <= deadline_s:
            return min([repeated, *steady], key=lambda plan: plan.effective_j)
        search_s -= repeated.finish_time_s - deadline_s
        seeds = _in_time(seeds, search_s)
        if not seeds:
            break
    repeated_seeds = [timed_held(held, seed.setting, repeats=True) for seed in all_seeds]
    in_time = _in_time(repeated_seeds, deadline_s)
    if not in_time:
        raise _too_short(held, frontier, deadline_s)
    return min(in_time, key=lambda plan: plan.effective_j)


def _too_short(held: HeldProblem, frontier: Frontier, deadline_s: float) -> DeadlineError:
    return DeadlineError(
        f"no plan is found that ends by {deadline_s} s and holds every clock for {held.rules.hold_s} s; one clock "
        f"per stage takes {shortest_steady_s(held)} s, any clock for any computation {frontier.t_min_s} s"
    )


def steady_within(held: HeldProblem, deadline_s: float) -> HeldPlan | None:
    """One setting per stage; None where no such plan is found that ends by the deadline."""
    clocks = SteadyClocks(held.dag)
    return _steady(held, clocks) if clocks.search(deadline_s) else None


def prepare_held(held: HeldProblem, frontier: Frontier) -> HeldLibrary:
    """Plans at deadlines from the shortest to T*; each also begins from the one before it."""
    plans: list[HeldPlan] = []
    shortest_s = max(frontier.t_min_s, min(shortest_steady_s(held), frontier.t_star_s))
    ends_s = shortest_s + (frontier.t_star_s - shortest_s) * np.linspace(0, 1, LIBRARY_PLANS) ** LOW_END
    for deadline_s in ends_s.tolist():
        try:
            plans.append(held_within(held, frontier, deadline_s, plans[-1:], LIBRARY_WORK // LIBRARY_PLANS))
        except DeadlineError:
            continue  # Under the shortest iteration with held clocks nothing is prepared.
    return HeldLibrary(held, frontier, tuple(plans))


def shortest_steady_s(held: HeldProblem) -> float:
    """The shortest iteration with one setting per stage; infinite where some stage has none for all its operations."""
    clocks = SteadyClocks(held.dag)
    clocks.shorten()
    return clocks.end_s if clocks.all_have_settings else float("inf")


def _best_of(held: HeldProblem, seeds: Sequence[HeldPlan], deadline_s: float, work: int) -> HeldPlan:
    """Search on from the cheapest seeds, and on from the best of these while it gets cheaper."""
    count = len(held.dag)
    seeds = sorted(seeds, key=lambda plan: plan.effective_j)[: max(1, min(4, work // (2 * count)))]
    sweeps = min(MOST_SWEEPS, max(1, work // (2 * count * len(seeds))))
    best = min((_improved(held, seed, deadline_s, sweeps) for seed in seeds), key=lambda plan: plan.effective_j)
    for _ in range(work // (2 * count * len(LEANINGS))):
        better = _improved(held, best, deadline_s, len(LEANINGS))
        if better.effective_j >= best.effective_j:
            break
        best = better
    return best


def _in_time(plans: Iterable[HeldPlan], deadline_s: float) -> list[HeldPlan]:
    return [plan for plan in plans if plan.finish_time_s <= deadline_s]


def _steady(held: HeldProblem, clocks: SteadyClocks) -> HeldPlan:
    setting = np.zeros(len(held.dag), np.int64)
    for place, (stage, menu) in enumerate(zip(held.stages, held.menus, strict=True)):
        setting[held.stage(place)] = menu.index(clocks.row(stage).setting)
    return timed_held(held, setting)


def _windowed(
    held: HeldProblem, frontier: Frontier, part: float, deadline_s: float, start: HeldPlan, allowed: BoolArray
) -> HeldPlan:
    """Each stage chosen at its best between the times of a relaxed plan that ends earlier, stretched to the deadline.
    A stage with nothing that fits keeps its settings in `start`; the plan may then be late."""
    inner_s = frontier.t_min_s + part * (deadline_s - frontier.t_min_s)
    relaxed = frontier.relaxed(inner_s)
    ends_s = float(relaxed.finish_s.max())
    stretch = deadline_s / ends_s if ends_s > 0 else 1.0
    setting = start.setting.copy()
    choose_held_within(
        held.problem.before_first,
        held.problem.before,
        held.problem.after_first,
        held.problem.after,
        held.first,
        held.ops,
        held.menu_sizes,
        held.row,
        held.table_time_s,
        held.table_cost_j,
        allowed,
        relaxed.start_s * stretch,
        relaxed.finish_s * stretch,
        0.5,
        held.rules.switch_time_s,
        held.rules.hold_s,
        deadline_s,
        BUCKETS,
        setting,
    )
    return timed_held(held, setting)


def _improved(held: HeldProblem, plan: HeldPlan, deadline_s: float, sweeps: int) -> HeldPlan:
    stages = np.arange(len(held.menus) - 1, -1, -1)
    leanings = np.resize(LEANINGS, sweeps)
    if not held.rules.clocks_per_stage:
        visits = np.tile(stages, sweeps)
        return _searched(held, plan, deadline_s, held.all_allowed(), visits, visits, np.repeat(leanings, len(stages)))
    for lean in leanings.tolist():
        for stage in stages.tolist():
            masks = _swaps(held, plan, stage)
            visits = np.full(len(masks), stage)
            plan = _searched(held, plan, deadline_s, masks, visits, np.arange(len(masks)), np.full(len(masks), lean))
    return plan


def _searched(
    held: HeldProblem,
    plan: HeldPlan,
    deadline_s: float,
    allowed: BoolArray,
    visits: IntArray,
    masks: IntArray,
    leanings: FloatArray,
) -> HeldPlan:
    setting, time_s = plan.setting.copy(), plan.time_s.copy()
    changed = improve_held(
        held.problem.before_first,
        held.problem.before,
        held.problem.after_first,
        held.problem.after,
        held.dag.order,
        held.first,
        held.ops,
        held.menu_sizes,
        held.row,
        held.table_time_s,
        held.table_cost_j,
        allowed,
        visits,
        masks,
        leanings,
        held.rules.switch_time_s,
        held.rules.hold_s,
        deadline_s,
        BUCKETS,
        time_s,
        setting,
    )
    return timed_held(held, setting) if changed else plan


def _swaps(held: HeldProblem, plan: HeldPlan, stage: int) -> BoolArray:
    """Sets of settings that a stage may try next where it may use only a few: what it uses with one more or, where that
    is too many, with another in the place of one."""
    size = len(held.menus[stage])
    used = np.unique(plan.setting[held.stage(stage)])
    kept = [used] if len(used) < held.rules.clocks_per_stage else [np.delete(used, i) for i in range(len(used))]
    masks = np.zeros((len(kept) * size, int(held.menu_sizes.max())), np.bool_)
    for i, others in enumerate(kept):
        for setting in range(size):
            masks[i * size + setting, others] = True
            masks[i * size + setting, setting] = True
    return masks


def _most_used(held: HeldProblem, frontier: Frontier, deadline_s: float, work: int) -> BoolArray:
    """Per stage, as many settings as it may use: those in the middle of equal shares of its computing time in a plan
    that may use any number."""
    any_number = replace(held, rules=replace(held.rules, clocks_per_stage=0))
    plan = held_within(any_number, frontier, deadline_s, work=work // 2)
    allowed = np.zeros((len(held.menus), int(held.menu_sizes.max())), np.bool_)
    few = held.rules.clocks_per_stage
    for stage in range(len(held.menus)):
        ops = held.stage(stage)
        ops = ops[np.argsort(plan.setting[ops], kind="stable")]
        ends_s = np.cumsum(plan.time_s[ops])
        middles = np.searchsorted(ends_s, ends_s[-1] * (np.arange(few) + 0.5) / few)
        allowed[stage, plan.setting[ops[middles]]] = True
    return allowed
