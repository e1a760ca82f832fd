"""One clock per stage for a whole iteration: what a GPU can follow however long its clock takes to change."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise

from control_plane.training.dag import Dag, FloatArray, finish_times
from control_plane.training.profile import Choice

Setting = tuple[int, int]
"""(clock in MHz, power limit in W)."""


@dataclass(frozen=True, slots=True)
class StageRow:
    """A stage at one setting: a choice per kind of operation, computing time and effective energy of all together."""

    choices: dict[int, Choice]
    busy_s: float
    effective_j: float


def one_clock_per_stage(dag: Dag, deadline_s: float) -> tuple[Choice, ...] | None:
    """A choice per operation, one setting on each stage, that ends by the deadline; None where the fastest does not.

    All stages begin at the setting at which they compute for the least time. Then the step that saves most energy per
    second of computing is taken, again and again, while the iteration still ends in time. Operations that were measured
    at one setting only, such as transfers, keep it.
    """
    ops_of = _free_operations(dag)
    menus = {stage: _menu(dag, ops) for stage, ops in ops_of.items()}
    at = dict.fromkeys(menus, 0)
    times_s = dag.per_operation(c.fastest.time_s for c in dag.computations)

    def take(stage: int) -> None:
        row = menus[stage][at[stage]]
        for op in ops_of[stage]:
            times_s[op] = row.choices[int(dag.kind[op])].time_s

    for stage in menus:
        take(stage)
    if _end_s(dag, times_s) > deadline_s:
        return None
    can_slow = set(menus)
    while can_slow:
        stage = max(sorted(can_slow), key=lambda s: _saved_w(menus[s], at[s]))
        if at[stage] + 1 == len(menus[stage]):
            break
        at[stage] += 1
        take(stage)
        if _end_s(dag, times_s) > deadline_s:
            at[stage] -= 1
            take(stage)
            can_slow.remove(stage)
    chosen = [dag.computation(op).fastest for op in range(len(dag))]
    for stage, ops in ops_of.items():
        for op in ops:
            chosen[op] = menus[stage][at[stage]].choices[int(dag.kind[op])]
    return tuple(chosen)


def shortest_hold_s(dag: Dag, choices: tuple[Choice, ...]) -> float:
    """The shortest time that any stage computes at one setting before it changes; infinite where none ever changes."""
    shortest_s = float("inf")
    for ops in _free_operations(dag).values():
        starts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(ops)) if _setting(choices[a]) != _setting(choices[b]))]
        if len(starts) > 1:
            runs = [ops[a:b] for a, b in pairwise([*starts, len(ops)])]
            shortest_s = min(shortest_s, *(sum(choices[op].time_s for op in run) for run in runs))
    return shortest_s


def _free_operations(dag: Dag) -> dict[int, list[int]]:
    by_stage: dict[int, list[int]] = defaultdict(list)
    for op, task in enumerate(dag.tasks):
        if len(dag.computation(op).measured) > 1:
            by_stage[task.stage].append(op)
    return by_stage


def _menu(dag: Dag, ops: list[int]) -> list[StageRow]:
    """Settings that all of a stage's operations have; each next one takes longer and costs less in all."""
    count = Counter(int(dag.kind[op]) for op in ops)
    by_kind = {kind: {_setting(c): c for c in dag.computations[kind].measured} for kind in count}

    def row(choices: dict[int, Choice]) -> StageRow:
        busy_s = sum(count[kind] * choice.time_s for kind, choice in choices.items())
        cost_j = sum(count[kind] * dag.computations[kind].effective_j(choice) for kind, choice in choices.items())
        return StageRow(choices, busy_s, cost_j)

    common = set.intersection(*(set(choices) for choices in by_kind.values()))
    if not common:
        return [row({kind: dag.computations[kind].fastest for kind in count})]
    rows = [row({kind: by_kind[kind][setting] for kind in count}) for setting in common]
    menu: list[StageRow] = []
    for candidate in sorted(rows, key=lambda row: (row.busy_s, row.effective_j)):
        if not menu or candidate.effective_j < menu[-1].effective_j:
            menu.append(candidate)
    return menu


def _saved_w(menu: list[StageRow], at: int) -> float:
    """Energy the next step saves per second of computing; negative where there is no step."""
    if at + 1 == len(menu):
        return -1.0
    saved_j = menu[at].effective_j - menu[at + 1].effective_j
    return saved_j / max(1e-300, menu[at + 1].busy_s - menu[at].busy_s)


def _end_s(dag: Dag, times_s: FloatArray) -> float:
    return float(finish_times(dag, times_s).max())


def _setting(choice: Choice) -> Setting:
    return choice.freq_mhz, choice.power_limit_w
