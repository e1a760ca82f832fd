"""A DAG's stages with the settings that each may use, and the timing of a plan whose changes take time to settle."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from control_plane.training.dag import Dag, FloatArray, IntArray
from control_plane.training.held_kernel import run_stage
from control_plane.training.profile import Choice
from control_plane.training.rounding import RoundingProblem
from control_plane.training.switch_rules import SwitchRules
from control_plane.training.switching import Setting, setting_of, stage_operations, switches_of
from control_plane.training.timing import earliest_finish

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class HeldProblem:
    """The stages of a DAG with the settings that each may use. Row `row[op] + k` of the tables is operation `op` at the
    k-th setting of its stage, infinite where that was not measured; `fixed_s` is for operations without a setting."""

    problem: RoundingProblem
    rules: SwitchRules
    stages: tuple[int, ...]
    menus: tuple[tuple[Setting, ...], ...]
    first: IntArray
    ops: IntArray
    row: IntArray
    table_time_s: FloatArray
    table_cost_j: FloatArray
    table_choice: tuple[Choice | None, ...]
    fixed_s: FloatArray
    fixed_j: float

    @property
    def dag(self) -> Dag:
        return self.problem.dag

    def stage(self, place: int) -> IntArray:
        """Operations of a stage that has settings, in execution order."""
        return self.ops[self.first[place] : self.first[place + 1]]

    @property
    def menu_sizes(self) -> IntArray:
        return np.array([len(menu) for menu in self.menus], np.int64)

    def all_allowed(self) -> BoolArray:
        sizes = self.menu_sizes
        return np.arange(int(sizes.max()))[None, :] < sizes[:, None]

    def fastest_settings(self) -> IntArray:
        """Per stage the setting of least computing time."""
        setting = np.zeros(len(self.dag), np.int64)
        for place, menu in enumerate(self.menus):
            ops = self.stage(place)
            busy_s = self.table_time_s[self.row[ops][:, None] + np.arange(len(menu))].sum(axis=0)
            setting[ops] = int(np.argmin(busy_s))
        return setting

    def is_held(self, plan: "HeldPlan") -> bool:
        """Whether a plan keeps to the rules."""
        switches = switches_of(self.dag, choices_of(self, plan))
        return switches.shortest_hold_s >= self.rules.hold_s


@dataclass(frozen=True, slots=True, eq=False)
class HeldPlan:
    """One setting per operation, timed with settling. `setting` is a place in the menu of the operation's stage."""

    setting: IntArray
    time_s: FloatArray
    finish_time_s: float
    effective_j: float


def held_problem(problem: RoundingProblem, rules: SwitchRules) -> HeldProblem:
    """Raises ValueError where a stage has no setting that could be held."""
    dag = problem.dag
    by_stage = stage_operations(dag)
    row = np.zeros(len(dag), np.int64)
    fixed_s = dag.per_operation(c.fastest.time_s for c in dag.computations)
    times: list[float] = []
    costs: list[float] = []
    choices: list[Choice | None] = []
    menus = []
    for stage, ops in by_stage.items():
        kinds = sorted({int(dag.kind[op]) for op in ops})
        menu = _menu(dag, kinds)
        if rules.hold_s > 0 and not any(_runs_all(dag, kinds, setting) for setting in menu):
            raise ValueError(f"stage {stage}: no setting is measured for all of its computations: none can be held")
        menus.append(menu)
        for kind in kinds:
            by_setting = {setting_of(c): c for c in dag.computations[kind].measured}
            row[[op for op in ops if dag.kind[op] == kind]] = len(times)
            for setting in menu:
                choice = by_setting.get(setting)
                choices.append(choice)
                times.append(choice.time_s if choice else math.inf)
                costs.append(dag.computations[kind].effective_j(choice) if choice else math.inf)
    listed = [np.array(ops, np.int64) for ops in by_stage.values()]
    free = np.concatenate(listed) if listed else np.zeros(0, np.int64)
    is_fixed = np.ones(len(dag), bool)
    is_fixed[free] = False
    fixed = [dag.computation(int(op)) for op in np.flatnonzero(is_fixed)]
    fixed_j = sum((computation.effective_j(computation.fastest) for computation in fixed), 0.0)
    first = np.zeros(len(listed) + 1, np.int64)
    np.cumsum([len(ops) for ops in listed], out=first[1:])
    return HeldProblem(
        problem=problem,
        rules=rules,
        stages=tuple(by_stage),
        menus=tuple(menus),
        first=first,
        ops=free,
        row=row,
        table_time_s=np.array(times),
        table_cost_j=np.array(costs),
        table_choice=tuple(choices),
        fixed_s=fixed_s,
        fixed_j=fixed_j,
    )


def _menu(dag: Dag, kinds: Sequence[int]) -> tuple[Setting, ...]:
    """Settings that no other beats in every kind of operation, highest first."""
    rows: dict[Setting, list[float]] = {}
    for place, kind in enumerate(kinds):
        for choice in dag.computations[kind].measured:
            row = rows.setdefault(setting_of(choice), [math.inf] * 2 * len(kinds))
            row[2 * place : 2 * place + 2] = choice.time_s, dag.computations[kind].effective_j(choice)
    kept = [
        setting
        for setting, row in rows.items()
        if not any(other != row and all(a <= b for a, b in zip(other, row, strict=True)) for other in rows.values())
    ]
    kept.sort(reverse=True)
    return tuple(kept)


def _runs_all(dag: Dag, kinds: Sequence[int], setting: Setting) -> bool:
    return all(setting in map(setting_of, dag.computations[kind].measured) for kind in kinds)


def timed_held(held: HeldProblem, setting: IntArray, repeats: bool = False) -> HeldPlan:
    """Time a plan with settling; where it repeats, the first change settles within the iteration too."""
    problem, dag = held.problem, held.dag
    time_s = held.fixed_s.copy()
    cost_j = held.fixed_j
    for stage in range(len(held.menus)):
        ops, switch_s = held.stage(stage), held.rules.switch_time_s
        cost_j += run_stage(ops, held.row, held.table_time_s, held.table_cost_j, setting, switch_s, repeats, time_s)
    finish_s = earliest_finish(problem.before_first, problem.before, dag.order, time_s)
    return HeldPlan(setting.copy(), time_s, float(finish_s.max()), cost_j)


def choices_of(held: HeldProblem, plan: HeldPlan) -> tuple[Choice, ...]:
    chosen = [held.dag.computation(op).fastest for op in range(len(held.dag))]
    for op in held.ops.tolist():
        choice = held.table_choice[int(held.row[op] + plan.setting[op])]
        assert choice is not None
        chosen[op] = choice
    return tuple(chosen)
