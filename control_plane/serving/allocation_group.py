"""One group of pools at a price per GPU: the instances that carry its load at the least watts plus price.

Of all instances at most one lies between the knots of the power curves: two of one line could shift load to each other
without a change until one of them reaches a knot. So the group is an unbounded knapsack of knots and one free instance.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from control_plane.serving.allocation import Group, Placement, PowerCurve
from control_plane.serving.allocation_kernel import cheapest_covers, covers_by_gpus

Floats = NDArray[np.float64]
CELLS, FINE_CELLS = 16_384, 6_000
"""Cells into which a group's load is cut, and where plans are made for every number of GPUs."""
MOST_EXACT, KEPT_EXACT = 80.0, 64
"""A group of more instances than the first has all but so many of the best kind taken for granted."""
FREE_LEVELS = 257
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Instances for one group: ``watts`` in all, without the price of their GPUs."""

    placements: tuple[Placement, ...]
    watts: float
    gpus: int


Kind = tuple[int, float]
"""(tensor parallelism, load) of an instance."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A plan's watts and GPUs (``watts`` a little too high: cells round), and what makes it."""

    watts: float
    gpus: int
    make: Callable[[], GroupPlan]

    def __call__(self) -> GroupPlan:
        return self.make()


class PricedGroup:
    """Answers for one group at any price."""

    def __init__(self, group: Group) -> None:
        self.group = group
        by_tp: dict[int, list[PowerCurve]] = {}
        for curve in group.curves:
            by_tp.setdefault(curve.shape.tp, []).append(curve)
        self._by_tp = by_tp
        knots = [(tp, load) for tp, curves in by_tp.items() for load in _cheapest_knots(curves)]
        self.gpus = np.array([tp for tp, _ in knots], dtype=float)
        self.loads = np.array([load for _, load in knots])
        self.watts = np.array([self.cheapest(tp, load)[1] for tp, load in knots])

    def bound(self, gpu_w: float) -> tuple[float, float]:
        """(least watts plus price, GPUs) if instances could be split: a lower bound of every plan at this price."""
        ratios = (self.watts + gpu_w * self.gpus) / self.loads
        best = int(np.argmin(ratios))
        load = self.group.load
        return load * float(ratios[best]), load * float(self.gpus[best] / self.loads[best])

    def best_at(self, gpu_w: float) -> int:
        """The knot with the least watts plus price per load: of many instances almost all work there."""
        return int(np.argmin((self.watts + gpu_w * self.gpus) / self.loads))

    def plan(self, gpu_w: float) -> GroupPlan:
        """The cheapest instances where a GPU costs ``gpu_w`` watts more (negative: idle ones are billed)."""
        return min(_Covers(self, gpu_w).with_some(None, 0, 0), key=lambda plan: plan.watts + gpu_w * plan.gpus)()

    def mixtures(self, gpu_w: float, spare_gpus: float) -> Iterator["Draft"]:
        """Plans that need fewer GPUs than the cheapest one at this price: some instances at a knot that a higher price
        would prefer. Where there are very many, around the number that spares ``spare_gpus``."""
        best = self.best_at(gpu_w)
        dearer = {self.best_at(gpu_w + more) for more in np.geomspace(1.0, 1e6, 40).tolist()} - {best}
        few = self.group.load / self.loads[best] <= MOST_EXACT
        covers = _Covers(self, gpu_w) if few else None
        for knot in sorted(dearer):
            most = int(self.group.load / self.loads[knot])
            if covers is not None:
                yield from covers.with_some(knot, 0, most)
                continue
            each = self.gpus[best] * self.loads[knot] / self.loads[best] - self.gpus[knot]
            centre = min(most, round(spare_gpus / each)) if each > 0 else most
            fixed = max(0, centre - KEPT_EXACT // 2)
            yield from _Covers(self, gpu_w, knot, fixed).with_some(knot, 0, min(most - fixed, KEPT_EXACT))

    def by_gpus(self, gpu_w: float, most_gpus: int) -> list["Draft"]:
        """The cheapest plan with at most so many GPUs each, up to ``most_gpus``; the price says how loads are cut into
        cells. Work grows with ``most_gpus``."""
        unit = math.gcd(*self._by_tp)
        cell = self._cell(gpu_w, FINE_CELLS)
        total = math.ceil(self.group.load / cell - ROUNDING)
        cells = np.floor(self.loads / cell + ROUNDING).astype(np.int64)
        of_tp = [np.flatnonzero(self.gpus == tp) for tp in self._by_tp]
        items = np.concatenate([mine[_undominated(cells[mine], self.watts[mine])] for mine in of_tp])
        units = (self.gpus // unit).astype(np.int64)
        least, last = covers_by_gpus(cells[items], self.watts[items], units[items], total, most_gpus // unit)
        free_tps, free_loads, free_watts = self.free
        free_cells = np.floor(free_loads / cell + ROUNDING).astype(np.int64)
        free_units = (free_tps // unit).astype(np.int64)

        def made(held: int, rest: int, chosen: list[Kind]) -> GroupPlan:
            chosen = list(chosen)
            while rest > 0:
                item = items[last[held, rest]]
                chosen.append((int(self.gpus[item]), float(self.loads[item])))
                held, rest = held - int(units[item]), max(0, rest - int(cells[item]))
            return self.built(chosen, {}, self.group.load)

        drafts, cheapest = [], math.inf
        for held in range(1, most_gpus // unit + 1):
            fits = free_units <= held
            left = np.maximum(0, total - free_cells[fits])
            watts = free_watts[fits] + least[held - free_units[fits], left]
            free = int(np.argmin(watts)) if len(watts) else -1
            if free >= 0 and watts[free] < least[held, total]:
                one = (int(free_tps[fits][free]), float(free_loads[fits][free]))
                best, at = float(watts[free]), (held - one[0] // unit, int(left[free]), [one])
            else:
                best, at = float(least[held, total]), (held, total, [])
            if best < cheapest:
                cheapest = best
                drafts.append(Draft(best, held * unit, partial(made, *at)))
        return drafts

    def _cell(self, gpu_w: float, cells: int) -> float:
        """The width of a cell: the load takes about so many, and the knots that plans use most lose least by it."""
        ratios = (self.watts + gpu_w * self.gpus) / self.loads
        best = self.loads[np.argsort(ratios)[:4]]
        first = max(1.0, round(float(best[0]) * cells / self.group.load))
        parts = np.arange(first, max(first + 2, 1.25 * first))
        lost = 1.0 - np.floor(best * parts[:, None] / best[0] + ROUNDING) * best[0] / (parts[:, None] * best)
        return float(best[0] / parts[int(np.argmin(lost.max(axis=1)))])

    def _without_excess(self, chosen: list[Kind], load: float) -> list[Kind]:
        """What cells were rounded by is taken off the instance that saves most by it."""
        excess = sum(each for _, each in chosen) - load
        if excess <= 0:
            return chosen
        kinds = {kind for kind in chosen if kind[1] > excess}
        if not kinds:
            return chosen
        saved = {(tp, x): self.cheapest(tp, x)[1] - self.cheapest(tp, x - excess)[1] for tp, x in sorted(kinds)}
        tp, x = max(saved, key=lambda kind: saved[kind])
        chosen[chosen.index((tp, x))] = (tp, x - excess)
        return chosen

    def built(self, chosen: list[Kind], bulk: dict[Kind, int], left: float) -> GroupPlan:
        """``chosen`` carry ``left``, the ``bulk`` the rest."""
        counts = dict(bulk)
        for kind in self._without_excess(chosen, left):
            counts[kind] = counts.get(kind, 0) + 1
        placements = []
        for (tp, load), instances in sorted(counts.items(), reverse=True):
            curve, watts = self.cheapest(tp, load)
            placements.append(Placement(self.group, curve.shape, instances, load, watts))
        return GroupPlan(
            tuple(placements), sum(p.instances * p.watts_each for p in placements), sum(p.gpus for p in placements)
        )

    def cheapest(self, tp: int, load: float) -> tuple[PowerCurve, float]:
        """The clock at which an instance of this tensor parallelism carries the load at the least power."""
        able = [curve for curve in self._by_tp[tp] if load <= curve.most * (1 + ROUNDING)]
        watts = [float(np.interp(load, curve.loads, curve.watts)) for curve in able]
        best = min(range(len(able)), key=lambda n: (watts[n], able[n].shape.freq_mhz))
        return able[best], watts[best]

    @cached_property
    def free(self) -> tuple[Floats, Floats, Floats]:
        """(GPUs, load, watts) of the one instance that may lie between knots, on a grid."""
        tps, loads, watts = [], [], []
        for tp, curves in self._by_tp.items():
            grid = np.linspace(0.0, max(curve.most for curve in curves), FREE_LEVELS)[1:]
            of_clocks = [
                np.where(grid <= curve.most * (1 + ROUNDING), np.interp(grid, curve.loads, curve.watts), np.inf)
                for curve in curves
            ]
            tps.append(np.full(len(grid), float(tp)))
            loads.append(grid)
            watts.append(np.min(of_clocks, axis=0))
        return np.concatenate(tps), np.concatenate(loads), np.concatenate(watts)


class _Covers:
    """The cheapest covers of a group's load at a price, beside instances that are taken for granted: ``fixed`` ones at
    ``knot``, and of more than ``MOST_EXACT`` others all but ``KEPT_EXACT`` at the knot that is best."""

    def __init__(self, priced: PricedGroup, gpu_w: float, knot: int = 0, fixed: int = 0) -> None:
        self._priced, self._gpu_w = priced, gpu_w
        best = priced.best_at(gpu_w)
        step = float(priced.loads[best])
        self._bulk: dict[Kind, int] = {}
        left = priced.group.load
        if fixed:
            self._take(knot, fixed)
            left -= fixed * float(priced.loads[knot])
        if left / step > MOST_EXACT:
            bulk = int(left / step) - KEPT_EXACT
            self._take(best, bulk)
            left -= bulk * step
        self._left = left
        self._cell = step / max(1, round(step * CELLS / left))
        self._total = int(np.ceil(left / self._cell - ROUNDING))
        self._cells = self._in_cells(priced.loads)
        costs = priced.watts + gpu_w * priced.gpus
        self._items = _undominated(self._cells, costs)
        items, gpus = self._items, priced.gpus[self._items].astype(np.int64)
        self._least, self._used, self._last = cheapest_covers(self._cells[items], costs[items], gpus, self._total)

    def with_some(self, knot: int | None, first: int, last: int) -> list[Draft]:
        """The cheapest plans with ``first`` … ``last`` instances at a knot, the others as they come."""
        priced, gpu_w = self._priced, self._gpu_w
        free_tps, free_loads, free_watts = priced.free
        free_cells = np.concatenate(([0], self._in_cells(free_loads)))
        free_gpus = np.concatenate(([0], free_tps.astype(np.int64)))
        free_costs = np.concatenate(([0.0], free_watts + gpu_w * free_tps))
        each_cells, each_gpus = (0, 0) if knot is None else (int(self._cells[knot]), int(priced.gpus[knot]))
        each_cost = 0.0 if knot is None else float(priced.watts[knot]) + gpu_w * each_gpus
        bulk_gpus = sum(tp * count for (tp, _), count in self._bulk.items())
        bulk_watts = sum(priced.cheapest(*kind)[1] * count for kind, count in self._bulk.items())
        drafts = []
        for count in range(first, last + 1):
            rest = self._total - count * each_cells
            after = np.maximum(0, rest - free_cells)
            free = int(np.argmin(free_costs + self._least[after]))
            gpus = count * each_gpus + int(free_gpus[free]) + int(self._used[after[free]])
            cost = count * each_cost + float(free_costs[free] + self._least[after[free]])
            make = partial(self._made, knot, count, free - 1, int(after[free]))
            drafts.append(Draft(bulk_watts + cost - gpu_w * gpus, bulk_gpus + gpus, make))
            if rest <= 0:
                break
        return drafts

    def _made(self, knot: int | None, count: int, free: int, rest: int) -> GroupPlan:
        priced = self._priced
        chosen: list[Kind] = []
        if knot is not None:
            chosen += [self._kind(knot)] * count
        if free >= 0:
            chosen.append((int(priced.free[0][free]), float(priced.free[1][free])))
        while rest > 0:
            item = self._items[self._last[rest]]
            chosen.append(self._kind(item))
            rest -= int(self._cells[item])
        return priced.built(chosen, self._bulk, self._left)

    def _take(self, knot: int, count: int) -> None:
        kind = self._kind(knot)
        self._bulk[kind] = self._bulk.get(kind, 0) + count

    def _kind(self, knot: int) -> Kind:
        return int(self._priced.gpus[knot]), float(self._priced.loads[knot])

    def _in_cells(self, loads: Floats) -> NDArray[np.int64]:
        return np.floor(loads / self._cell + ROUNDING).astype(np.int64)


def _cheapest_knots(curves: list[PowerCurve]) -> list[float]:
    """The knots at which no other clock carries the same load for less, without the empty one."""
    kept = set()
    for curve in curves:
        loads, watts = np.array(curve.loads[1:]), np.array(curve.watts[1:])
        others = [np.where(loads <= other.most, np.interp(loads, other.loads, other.watts), np.inf) for other in curves]
        kept.update(loads[watts <= np.min(others, axis=0) * (1 + ROUNDING)].tolist())
    return sorted(kept)


def _undominated(cells: NDArray[np.int64], costs: Floats) -> NDArray[np.int64]:
    """The items that cover something and cost less than every item that covers as much."""
    order = np.lexsort((costs, -cells))
    best_before = np.concatenate(([np.inf], np.minimum.accumulate(costs[order])[:-1]))
    return order[(costs[order] < best_before) & (cells[order] > 0)]
