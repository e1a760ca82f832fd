"""The allocation as a mixed-integer linear programme for HiGHS: the peer of our solver, and its fallback.

Per straight piece of every power curve: how many instances work on it (an integer), and what they carry together
(a real, between so many times the piece's ends). Instances on one piece can share their load in any way, so this is
exact for any curve, convex or not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from control_plane.serving.allocation import AllocationProblem, Group, Placement, PowerCurve


@dataclass(frozen=True, slots=True)
class Piece:
    """A straight piece of a power curve: between the knots ``knot`` and ``knot`` + 1."""

    group: int
    curve: PowerCurve
    knot: int

    @property
    def slope(self) -> float:
        x, w, at = self.curve.loads, self.curve.watts, self.knot
        return (w[at + 1] - w[at]) / (x[at + 1] - x[at])

    @property
    def intercept(self) -> float:
        return self.curve.watts[self.knot] - self.slope * self.curve.loads[self.knot]


@dataclass(frozen=True, slots=True)
class MilpPlan:
    """``watts`` of the instances less what their GPUs would be billed for idling, and a bound on that."""

    placements: tuple[Placement, ...]
    watts: float
    bound: float


def all_pieces(problem: AllocationProblem) -> list[Piece]:
    return [
        Piece(number, curve, knot)
        for number, group in enumerate(problem.groups)
        for curve in group.curves
        for knot in range(len(curve.loads) - 1)
    ]


def milp_plan(
    problem: AllocationProblem, pieces: Sequence[Piece], gap: float = 0.0, limit_s: float | None = None
) -> MilpPlan | None:
    """The least power with these pieces, to a relative ``gap``; None where HiGHS found no plan (in ``limit_s``).

    Variables: [instances of each piece, load share of each piece, whether each group is served].
    """
    groups = sorted({piece.group for piece in pieces})
    served = {group: 2 * len(pieces) + at for at, group in enumerate(groups)}
    count, size = len(pieces), 2 * len(pieces) + len(groups)
    loads = np.array([problem.groups[piece.group].load for piece in pieces])
    least = np.array([piece.curve.loads[piece.knot] for piece in pieces]) / loads
    most = np.array([piece.curve.loads[piece.knot + 1] for piece in pieces]) / loads
    tps = np.array([piece.curve.shape.tp for piece in pieces], dtype=float)
    idle_w = problem.idle_gpu_w * tps
    cost = np.concatenate(
        (
            np.array([piece.intercept for piece in pieces]) - idle_w,
            np.array([piece.slope for piece in pieces]) * loads,
            np.zeros(len(groups)),
        )
    )
    rows = _Rows(size)
    for at in range(count):
        rows.add({count + at: 1.0, at: -float(least[at])}, 0.0, np.inf)
        rows.add({count + at: 1.0, at: -float(most[at])}, -np.inf, 0.0)
    for group, column in served.items():
        mine = {count + at: 1.0 for at, piece in enumerate(pieces) if piece.group == group}
        rows.add({**mine, column: -1.0}, 0.0, np.inf)
    for pool in range(len(problem.pools)):
        able = {served[g]: 1.0 for g in groups if problem.groups[g].first <= pool <= problem.groups[g].last}
        if able:
            rows.add(able, 1.0, 1.0)
    rows.add(dict(enumerate(tps.tolist())), -np.inf, float(problem.gpus))
    upper = np.concatenate((np.floor(problem.gpus / tps), np.full(count, np.inf), np.ones(len(groups))))
    whole = np.concatenate((np.ones(count), np.zeros(count), np.ones(len(groups)))).astype(np.int64)
    found = milp(
        cost,
        integrality=whole,
        bounds=Bounds(0.0, upper),
        constraints=rows.constraint(),
        options={"mip_rel_gap": gap, "time_limit": math.inf if limit_s is None else limit_s},
    )
    if found.x is None:
        return None
    placements = _placements(
        problem.groups, pieces, found.x[:count].tolist(), (found.x[count : 2 * count] * loads).tolist()
    )
    watts = sum(p.instances * (p.watts_each - problem.idle_gpu_w * p.shape.tp) for p in placements)
    return MilpPlan(placements, watts, float(found.mip_dual_bound))


def _placements(
    groups: Sequence[Group], pieces: Sequence[Piece], instances: Sequence[float], loads: Sequence[float]
) -> tuple[Placement, ...]:
    placed = []
    for piece, real, load in zip(pieces, instances, loads, strict=True):
        number = round(real)
        if number:
            each = min(max(load / number, piece.curve.loads[piece.knot]), piece.curve.loads[piece.knot + 1])
            watts = piece.intercept + piece.slope * each
            placed.append(Placement(groups[piece.group], piece.curve.shape, number, float(each), float(watts)))
    return tuple(placed)


class _Rows:
    """Constraints, row by row."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._at: list[tuple[int, int]] = []
        self._values: list[float] = []
        self._bounds: list[tuple[float, float]] = []

    def add(self, row: dict[int, float], low: float, high: float) -> None:
        number = len(self._bounds)
        self._at += [(number, column) for column in row]
        self._values += row.values()
        self._bounds.append((low, high))

    def constraint(self) -> LinearConstraint:
        at = np.array(self._at, dtype=np.int32).T
        matrix = coo_array((np.array(self._values), (at[0], at[1])), shape=(len(self._bounds), self._columns))
        low, high = np.array(self._bounds).T
        return LinearConstraint(matrix.tocsr(), low, high)
