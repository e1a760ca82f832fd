"""One clock per stage for a whole iteration: what a GPU can follow however long its clock takes to change."""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from control_plane.training.dag import Dag, finish_times
from control_plane.training.profile import Choice

Setting = tuple[int, int]
"""(clock in MHz, power limit in W)."""

STEPS = (1, 2, 4, 8)
"""Settings skipped at once where the next one alone gains nothing."""
SEARCH_WORK = 20_000_000
"""Operations timed in one search upwards: about a second."""


@dataclass(frozen=True, slots=True)
class StageRow:
    """A stage at one setting: a choice per kind of operation, computing time and effective energy of all together."""

    choices: dict[int, Choice]
    busy_s: float
    effective_j: float


class _Stages:
    """One setting per stage, as an index into its menu, and when the iteration ends with them."""

    def __init__(self, dag: Dag) -> None:
        self.dag = dag
        self.ops = {stage: np.array(ops) for stage, ops in _free_operations(dag).items()}
        self.menus = {stage: _menu(dag, ops.tolist()) for stage, ops in self.ops.items()}
        self.at = dict.fromkeys(self.menus, 0)
        self.end_s = 0.0
        self.evaluations = 0
        self._times_s = dag.per_operation(c.fastest.time_s for c in dag.computations)
        self._by_kind = np.zeros(len(dag.computations))
        self.set_all(self.at)

    @property
    def effective_j(self) -> float:
        return sum(self.menus[stage][at].effective_j for stage, at in self.at.items())

    def set(self, stage: int, at: int) -> None:
        self.set_all({stage: at})

    def set_all(self, at: dict[int, int]) -> None:
        for stage, place in at.items():
            for kind, choice in self.menus[stage][place].choices.items():
                self._by_kind[kind] = choice.time_s
            ops = self.ops[stage]
            self._times_s[ops] = self._by_kind[self.dag.kind[ops]]
        self.at = {**self.at, **at}
        self.end_s = float(finish_times(self.dag, self._times_s).max())
        self.evaluations += 1

    def speed_up_until(self, deadline_s: float) -> None:
        """From the least energy on, always the step that costs least per second by which the iteration gets shorter."""
        self.set_all({stage: len(menu) - 1 for stage, menu in self.menus.items()})
        while self.end_s > deadline_s and self.evaluations * len(self.dag) < SEARCH_WORK:
            best: tuple[float, int, int] | None = None
            before_s = self.end_s
            for stage, now in tuple(self.at.items()):
                for to in (now - step for step in STEPS if step <= now):
                    self.set(stage, to)
                    gained_s = before_s - max(self.end_s, deadline_s)
                    cost_j = self.menus[stage][to].effective_j - self.menus[stage][now].effective_j
                    if gained_s > 0:
                        best = min(best or (math.inf, 0, 0), (cost_j / gained_s, stage, to))
                self.set(stage, now)
            if best is None:
                break
            self.set(best[1], best[2])
        if self.end_s > deadline_s:
            self.set_all(dict.fromkeys(self.menus, 0))

    def slow_down_within(self, deadline_s: float) -> None:
        """Always the step that saves most per second of computing, while the iteration still ends in time."""
        can_slow = set(self.menus)
        while can_slow:
            stage = max(sorted(can_slow), key=lambda s: _saved_w(self.menus[s], self.at[s]))
            now = self.at[stage]
            if now + 1 == len(self.menus[stage]):
                break
            self.set(stage, now + 1)
            if self.end_s > deadline_s:
                self.set(stage, now)
                can_slow.remove(stage)


def one_clock_per_stage(dag: Dag, deadline_s: float) -> tuple[Choice, ...] | None:
    """A choice per operation, one setting on each stage, that ends by the deadline; None where the fastest does not.

    Two searches, from the fastest settings down and from those of least energy up; the cheaper one counts. Operations
    that were measured at one setting only, such as transfers, keep it.
    """
    stages = _Stages(dag)
    if stages.end_s > deadline_s:
        return None
    stages.slow_down_within(deadline_s)
    slowed_j, slowed_at = stages.effective_j, stages.at
    stages.speed_up_until(deadline_s)
    stages.slow_down_within(deadline_s)
    at = stages.at if stages.effective_j < slowed_j else slowed_at
    chosen = [dag.computation(op).fastest for op in range(len(dag))]
    for stage, ops in stages.ops.items():
        choices = stages.menus[stage][at[stage]].choices
        for op in ops.tolist():
            chosen[op] = choices[int(dag.kind[op])]
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


def _setting(choice: Choice) -> Setting:
    return choice.freq_mhz, choice.power_limit_w
