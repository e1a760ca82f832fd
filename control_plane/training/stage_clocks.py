"""One clock per stage for a whole iteration: what a GPU can follow however long its clock takes to change."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from control_plane.training.dag import Dag, predecessors
from control_plane.training.profile import Choice
from control_plane.training.switching import Setting, setting_of, stage_operations
from control_plane.training.timing import earliest_finish

STEPS = (1, 2, 4, 8)
"""Settings skipped at once where the next one alone gains nothing."""
SEARCH_WORK = 20_000_000
"""Operations timed in one search upwards: about a fifth of a second."""
MOST_FAST_SETTINGS = 4
"""Settings of a stage, fastest first, that are tried for the shortest iteration."""


@dataclass(frozen=True, slots=True)
class StageRow:
    """A stage at one setting: a choice per kind of operation, computing time and effective energy of all together."""

    setting: Setting
    choices: dict[int, Choice]
    busy_s: float
    effective_j: float


class SteadyClocks:
    """One setting per stage, as an index into its menu, and when the iteration ends with them."""

    def __init__(self, dag: Dag) -> None:
        self.dag = dag
        self.ops = {stage: np.array(ops) for stage, ops in stage_operations(dag).items()}
        menus = {stage: _menu(dag, ops.tolist()) for stage, ops in self.ops.items()}
        self.all_have_settings = all(menus.values())
        """Whether each stage has a setting that all of its operations were measured at."""
        self.menus = {stage: menu for stage, menu in menus.items() if menu}
        self.at = dict.fromkeys(self.menus, 0)
        self.end_s = 0.0
        self.evaluations = 0
        self._first, self._before = predecessors(dag)
        self._times_s = dag.per_operation(c.fastest.time_s for c in dag.computations)
        self._by_kind = np.zeros(len(dag.computations))
        self.set_all(self.at)

    def row(self, stage: int) -> StageRow:
        return self.menus[stage][self.at[stage]]

    def search(self, deadline_s: float, work: int = SEARCH_WORK) -> bool:
        """Set the stages to the cheapest settings found that end by the deadline; False where they do not even at their
        fastest. `work` limits the operations timed in the search upwards."""
        if not self.all_have_settings or not self.shorten(deadline_s):
            return False
        self.slow_down_within(deadline_s)
        slowed_j, slowed_at = self.effective_j, self.at
        self.speed_up_until(deadline_s, work)
        self.slow_down_within(deadline_s)
        if self.effective_j >= slowed_j:
            self.set_all(slowed_at)
        return True

    def shorten(self, until_s: float = 0.0) -> bool:
        """The fastest settings found, and whether the iteration then ends by an instant. A stage's settings of least
        computing time need not end soonest together: where forward and backward are fastest at different settings, the
        first or the last may count more."""
        self.set_all(dict.fromkeys(self.menus, 0))
        improved = True
        while improved and self.end_s > until_s:
            improved = False
            for stage, menu in self.menus.items():
                now, before_s = self.at[stage], self.end_s
                for to in range(min(len(menu), MOST_FAST_SETTINGS)):
                    self.set(stage, to)
                    if self.end_s < before_s:
                        now, before_s, improved = to, self.end_s, True
                self.set(stage, now)
        return self.end_s <= until_s

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
        self.end_s = float(earliest_finish(self._first, self._before, self.dag.order, self._times_s).max())
        self.evaluations += 1

    def speed_up_until(self, deadline_s: float, work: int) -> None:
        """From the least energy on, always the step that costs least per second by which the iteration gets shorter."""
        before = self.evaluations
        self.set_all({stage: len(menu) - 1 for stage, menu in self.menus.items()})
        while self.end_s > deadline_s and (self.evaluations - before) * len(self.dag) < work:
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
            self.shorten(deadline_s)

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
    """A choice per operation, one setting on each stage, that ends by the deadline; None where no such is found.

    Two searches, from the fastest settings down and from those of least energy up; the cheaper one counts. Operations
    whose clock is not ours, such as transfers, keep what they have.
    """
    stages = SteadyClocks(dag)
    if not stages.search(deadline_s):
        return None
    chosen = [dag.computation(op).fastest for op in range(len(dag))]
    for stage, ops in stages.ops.items():
        choices = stages.row(stage).choices
        for op in ops.tolist():
            chosen[op] = choices[int(dag.kind[op])]
    return tuple(chosen)


def _menu(dag: Dag, ops: list[int]) -> list[StageRow]:
    """Settings that all of a stage's operations have; each next one takes longer and costs less in all."""
    count = Counter(int(dag.kind[op]) for op in ops)
    by_kind = {kind: {setting_of(c): c for c in dag.computations[kind].measured} for kind in count}

    def row(setting: Setting) -> StageRow:
        choices = {kind: by_kind[kind][setting] for kind in count}
        busy_s = sum(count[kind] * choice.time_s for kind, choice in choices.items())
        cost_j = sum(count[kind] * dag.computations[kind].effective_j(choice) for kind, choice in choices.items())
        return StageRow(setting, choices, busy_s, cost_j)

    common = set.intersection(*(set(choices) for choices in by_kind.values()))
    rows = [row(setting) for setting in common]
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
