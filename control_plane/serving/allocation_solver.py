"""Solves an allocation: a price per GPU, every group a knapsack at that price, a shortest path over merged pools.

Without the limit on GPUs the groups would be independent, so the limit gets a price (Lagrange): at a given price every
group is a knapsack of its own, and which neighbours are merged is a shortest path. The price is searched for. What is
left of the gap between the plan and its bound is closed by combining the plans met on the way, and near capacity by
HiGHS on the pieces that a better plan may use (reduced costs).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from control_plane.serving.allocation import Allocation, AllocationProblem, Group, Placement, Shortfall
from control_plane.serving.allocation_group import Draft, GroupPlan, PricedGroup
from control_plane.serving.allocation_milp import Piece, milp_plan
from control_plane.serving.allocation_paths import MergePaths

Floats = NDArray[np.float64]
TOLERANCE = 3e-4
"""Relative gap at which a plan is taken for optimal."""
MILP_LIMIT_S = 3.0
MOST_PIECES = 150
"""HiGHS improves a plan only where no more pieces come into question: it is quick then."""
PRICE_STEPS = 7
FEW_GPUS, ROOM = 240, 16
"""Groups of so many GPUs are planned for every number of GPUs, up to twice ``ROOM`` more."""
SCARCE = 1e6
"""A GPU at so many times the highest watts of one: nothing but GPUs counts."""


def allocate(problem: AllocationProblem, tolerance: float = TOLERANCE) -> Allocation:
    """The least power that serves every pool within the GPUs. Where that is impossible: every pool that some shape can
    serve at the same share of its load, the largest that fits, and ``shortfalls`` says what is missing."""
    solver = _Solver(problem)
    plan = solver.best(tolerance)
    if plan is None:
        return _best_effort(problem, solver, tolerance)
    shortfalls = tuple(Shortfall(problem.pools[pool], 0.0, None) for pool in solver.unservable)
    return solver.answer(plan, shortfalls)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Placements for every pool; ``cost`` is their watts less what their GPUs would be billed for idling."""

    placements: tuple[Placement, ...]
    cost: float
    gpus: int
    bound: float
    method: str


@dataclass(frozen=True, slots=True)
class _Path:
    """A choice of groups that cover every pool, and their plans at some price."""

    groups: tuple[int, ...]
    plans: tuple[GroupPlan, ...]
    priced: float
    """Watts and price of GPUs."""

    @property
    def gpus(self) -> int:
        return sum(plan.gpus for plan in self.plans)


class _Solver:
    def __init__(self, problem: AllocationProblem) -> None:
        self.problem = problem
        usable = [number for number, group in enumerate(problem.groups) if group.curves]
        alone = {g.first for g in (problem.groups[n] for n in usable) if g.first == g.last}
        pools = range(len(problem.pools))
        self.unservable = tuple(pool for pool in pools if pool not in alone)
        gone = set(self.unservable)
        self._groups = {
            number: PricedGroup(problem.groups[number])
            for number in usable
            if gone.isdisjoint(range(problem.groups[number].first, problem.groups[number].last + 1))
        }
        self._seen: dict[int, dict[int, Draft]] = {number: {} for number in self._groups}
        groups = {number: (group.group.first, group.group.last) for number, group in self._groups.items()}
        self._paths = MergePaths(len(problem.pools), groups, gone)
        self._idle_w = problem.idle_gpu_w
        self._bound = -np.inf
        """Of the cost; by linear relaxation, so whatever the cells."""
        self._price = 0.0
        """At which ``_bound`` was found."""

    # from outside

    def best(self, tolerance: float) -> _Plan | None:
        """None where the GPUs do not suffice."""
        gpus = self.problem.gpus
        if not self._relax():
            return None
        path = self._path(self._price)
        dual = path.priced - self._price * gpus
        if self._price > 0 or path.gpus > gpus:
            dual = max(dual, self._search(path))
        plan = self._combined()
        if plan is not None and plan.cost <= dual + tolerance * abs(self._with_idle(dual)):
            return plan
        pieces = self._pieces_below(np.inf if plan is None else plan.cost)
        if plan is not None and len(pieces) > MOST_PIECES:
            return plan
        return self._by_milp(plan, pieces, tolerance) or plan

    def least_gpus(self) -> int:
        """GPUs that the load needs at least, whatever the power."""
        return self._path(self._scarce()).gpus

    def answer(self, plan: _Plan, shortfalls: Sequence[Shortfall] = ()) -> Allocation:
        return Allocation(
            tuple(sorted(plan.placements, key=lambda p: (p.group.first, -p.shape.tp, -p.shape.freq_mhz))),
            plan.gpus,
            self._with_idle(plan.cost),
            self._with_idle(min(plan.cost, max(plan.bound, self._bound))),
            plan.method,
            shortfalls,
        )

    def _with_idle(self, cost: float) -> float:
        return cost + self._idle_w * self.problem.gpus

    # the relaxation: instances may be split

    def _relax(self) -> bool:
        """The price at which the relaxed GPUs suffice, and the bound; False where they never do."""
        gpus = self.problem.gpus
        low, high = 0.0, 1.0
        if self._relaxed_at(0.0) <= gpus:
            return True
        while self._relaxed_at(high) > gpus:
            low, high = high, 2 * high
            if high > self._scarce():
                return False
        for _ in range(40):
            middle = (low + high) / 2
            if self._relaxed_at(middle) > gpus:
                low = middle
            else:
                high = middle
        return True

    def _relaxed_at(self, price: float) -> float:
        """GPUs used by the relaxed plan at this price; keeps the best bound met."""
        bounds = {number: group.bound(price - self._idle_w) for number, group in self._groups.items()}
        cost, route = self._paths.shortest({number: watts for number, (watts, _) in bounds.items()})
        if cost - price * self.problem.gpus > self._bound:
            self._bound, self._price = cost - price * self.problem.gpus, price
        return sum(bounds[number][1] for number in route)

    # whole instances at a price

    def _path(self, price: float) -> _Path:
        """The cheapest groups and plans at this price. Groups are planned only where their bound puts them on the
        shortest path."""
        gpu_w = price - self._idle_w
        costs = {number: group.bound(gpu_w)[0] for number, group in self._groups.items()}
        plans: dict[int, GroupPlan] = {}
        while True:
            cost, route = self._paths.shortest(costs)
            new = [number for number in route if number not in plans]
            if not new:
                return _Path(route, tuple(plans[number] for number in route), cost)
            for number in new:
                plan = plans[number] = self._groups[number].plan(gpu_w)
                costs[number] = plan.watts + gpu_w * plan.gpus
                self._keep(number, Draft(plan.watts, plan.gpus, partial(_same, plan)))

    def _keep(self, number: int, draft: Draft) -> None:
        kept = self._seen[number].get(draft.gpus)
        if kept is None or draft.watts < kept.watts:
            self._seen[number][draft.gpus] = draft

    def _search(self, path: _Path) -> float:
        """Look at prices around the one at which the plan just fits; the best bound met."""
        gpus = self.problem.gpus
        low = high = self._price
        dual = -np.inf
        step = max(0.02 * self._price, 1.0)
        while path.gpus > gpus and high < self._scarce():
            low, high = high, high + step
            step *= 3
            path = self._path(high)
            dual = max(dual, path.priced - high * gpus)
        if low == high:
            low = 0.97 * high
        for _ in range(PRICE_STEPS):
            middle = (low + high) / 2
            path = self._path(middle)
            dual = max(dual, path.priced - middle * gpus)
            low, high = (middle, high) if path.gpus > gpus else (low, middle)
        done: set[int] = set()
        for price in dict.fromkeys((low, high)):
            path = self._path(price)
            spare = max(0, path.gpus - gpus)
            for number, plan in zip(path.groups, path.plans, strict=True):
                if plan.gpus > FEW_GPUS:
                    for draft in self._groups[number].mixtures(price - self._idle_w, spare):
                        self._keep(number, draft)
                elif number not in done:
                    done.add(number)
                    for draft in self._groups[number].by_gpus(price - self._idle_w, min(gpus, plan.gpus + 2 * ROOM)):
                        self._keep(number, draft)
        return dual

    def _scarce(self) -> float:
        return SCARCE * max(float((group.watts / group.gpus).max()) for group in self._groups.values())

    # of the plans met on the way, those that fit together

    def _combined(self) -> _Plan | None:
        """The cheapest of all combinations of plans met so far within the GPUs: cost by GPUs used, pool after pool."""
        pools, gpus = len(self.problem.pools), self.problem.gpus
        most = sum(max((g for n in self._ending_at(pool) for g in self._seen[n]), default=0) for pool in range(pools))
        size = min(gpus, most) + 1
        best = [np.zeros(size)]
        chosen: list[list[tuple[int, Draft]]] = []
        picks: list[NDArray[np.int32]] = []
        for pool in range(pools):
            least, pick = np.full(size, np.inf), np.full(size, -1, np.int32)
            options: list[tuple[int, Draft]] = []
            if pool in self.unservable:
                least = best[pool].copy()
            for number in self._ending_at(pool):
                before = best[self._groups[number].group.first]
                for plan in self._seen[number].values():
                    if plan.gpus < size:
                        costs = np.full(size, np.inf)
                        costs[plan.gpus :] = before[: size - plan.gpus] + plan.watts - self._idle_w * plan.gpus
                        better = costs < least
                        least[better], pick[better] = costs[better], len(options)
                        options.append((number, plan))
            best.append(least)
            picks.append(pick)
            chosen.append(options)
        if not np.isfinite(best[pools][-1]):
            return None
        placements: list[Placement] = []
        at, pool, used, cost = size - 1, pools, 0, 0.0
        while pool:
            option = picks[pool - 1][at]
            if option < 0:
                pool -= 1
                continue
            number, plan = chosen[pool - 1][option]
            made = plan()
            placements += made.placements
            cost += made.watts - self._idle_w * made.gpus
            at, pool, used = at - plan.gpus, self._groups[number].group.first, used + plan.gpus
        return _Plan(tuple(placements), cost, used, self._bound, "knapsack")

    def _ending_at(self, pool: int) -> list[int]:
        return self._paths.ending_at(pool)

    # HiGHS

    def _by_milp(self, plan: _Plan | None, pieces: Sequence[Piece], tolerance: float) -> _Plan | None:
        """Where HiGHS finds a better plan: that one. It is shown only the pieces that a better plan may use."""
        most = np.inf if plan is None else plan.cost
        found = milp_plan(self.problem, pieces, tolerance / 2, MILP_LIMIT_S)
        if found is None:
            return None
        bound = max(self._bound, min(most, found.bound))
        if plan is not None and found.watts >= plan.cost:
            return replace(plan, bound=bound)
        gpus = sum(placement.gpus for placement in found.placements)
        return _Plan(found.placements, found.watts, gpus, bound, "milp")

    def _pieces_below(self, most: float) -> list[Piece]:
        """Pieces that a plan cheaper than ``most`` may use: by the relaxed cost of the best path through their group
        and the reduced cost of one instance on them."""
        gpu_w = self._price - self._idle_w
        costs = {number: group.bound(gpu_w)[0] for number, group in self._groups.items()}
        ahead, behind = self._paths.distances(costs)
        pieces = []
        for number, priced in self._groups.items():
            group = priced.group
            through = ahead[group.first] + costs[number] + behind[group.last + 1] - self._price * self.problem.gpus
            if through > most:
                continue
            ratio = costs[number] / group.load
            for curve in group.curves:
                above = np.asarray(curve.watts) + gpu_w * curve.shape.tp - ratio * np.asarray(curve.loads)
                lower = np.minimum(above[:-1], above[1:])
                pieces += [Piece(number, curve, int(knot)) for knot in np.flatnonzero(through + lower <= most)]
        return pieces


def _same(plan: GroupPlan) -> GroupPlan:
    return plan


def _best_effort(problem: AllocationProblem, solver: _Solver, tolerance: float) -> Allocation:
    """Every pool at the same share of its load, the largest share that fits."""
    needed = solver.least_gpus()
    low, high = 0.0, 1.0
    plan, scaled = None, solver
    for _ in range(10):
        share = (low + high) / 2
        attempt = _Solver(_at_share(problem, share))
        if attempt.least_gpus() > problem.gpus:
            high = share
            continue
        low, scaled = share, attempt
    if low > 0:
        plan = scaled.best(tolerance)
    short = max(1, needed - problem.gpus)
    shortfalls = tuple(
        Shortfall(pool, 0.0, None) if number in solver.unservable else Shortfall(pool, low if plan else 0.0, short)
        for number, pool in enumerate(problem.pools)
    )
    if plan is None:
        plan = _Plan((), 0.0, 0, 0.0, "nothing fits")
    return scaled.answer(plan, shortfalls)


def _at_share(problem: AllocationProblem, share: float) -> AllocationProblem:
    groups: list[Group] = [replace(group, load=group.load * share) for group in problem.groups]
    return replace(problem, groups=groups)
