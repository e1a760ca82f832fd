"""A DAG of operations as a network of events on integers; arcs carry the pieces of convex costs."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from control_plane.compiled import compiled
from control_plane.training.computation import Computation
from control_plane.training.dag import Dag, IntArray, finish_times, predecessors, successors
from control_plane.training.frontier_kernel import UNBOUNDED, HalfArray, IndexArray

TIME_RANGE = 1 << 58
"""Integer instants in the longest iteration: potentials, shifts and their sums stay below 2^62."""
FLOW_RANGE = 1 << 60
"""Sum of the steepest slopes of all operations: a finite cut stays below UNBOUNDED."""


@dataclass(frozen=True, slots=True, eq=False)
class EventGraph:
    """Arcs 0..n−1 are the DAG's operations, then precedence. Pieces: longest first, with rising slopes.

    `piece_until` is the flow at which the arc leaves a piece for the next shorter one; the last is UNBOUNDED.
    """

    nodes: int
    tail: IntArray
    head: IntArray
    piece_first: IntArray
    piece_length: IntArray
    piece_until: IntArray
    potential: IntArray
    sink: int
    time_unit_s: float
    slope_unit_w: float

    @property
    def source(self) -> int:
        return 0


@dataclass(frozen=True, slots=True, eq=False)
class HalfArcs:
    """The residual network in compressed rows: half-arcs leaving a node stand together."""

    first: HalfArray
    head: IndexArray
    mate: IndexArray
    arc: IndexArray
    is_ahead: NDArray[np.bool_]
    forward: IndexArray
    backward: IndexArray


def event_graph(dag: Dag, levels: int = 0) -> EventGraph:
    """Merge events that can coincide at no cost; scale times and slopes to integers.

    With `levels`, slopes are rounded to so many equal steps: a coarse network, whose flows are flows of the exact one.
    """
    longest_s = dag.per_operation(c.least_energy.time_s for c in dag.computations)
    t_star_s = float(finish_times(dag, longest_s).max())
    time_unit_s = t_star_s / TIME_RANGE if t_star_s > 0 else 1.0
    hulls = [_hull_on_integers(c, time_unit_s) for c in dag.computations]
    steepest_w = [_steepest_w(points, time_unit_s) for points in hulls]
    steepest_sum_w = math.fsum(dag.per_operation(steepest_w))
    slope_unit_w = steepest_sum_w / FLOW_RANGE if steepest_sum_w > 0 else 1.0
    if levels and steepest_sum_w > 0:
        slope_unit_w = max(steepest_w) / levels
    pieces = [_pieces(points, slope_unit_w, time_unit_s, 0.5 if levels else 0.0) for points in hulls]
    count = len(dag)
    entry, leave, nodes = events(count, *predecessors(dag), *successors(dag))
    between = leave[dag.edges[:, 0]] != entry[dag.edges[:, 1]]
    links = dag.edges[between]
    tail = np.concatenate([entry, leave[links[:, 0]]])
    head = np.concatenate([leave, entry[links[:, 1]]])
    piece_first, length, until = _piece_arrays(pieces, np.append(dag.kind, np.full(len(links), len(pieces))))
    longest = np.array([lengths[0] for lengths, _ in pieces], np.int64)[dag.kind]
    finish = integer_finish(*predecessors(dag), dag.order, longest)
    potential = np.zeros(nodes, np.int64)
    np.maximum.at(potential, leave, finish)
    potential[1] = finish.max()
    return EventGraph(
        nodes=nodes,
        tail=tail,
        head=head,
        piece_first=piece_first,
        piece_length=length,
        piece_until=until,
        potential=_settled(potential, entry, finish, dag),
        sink=1,
        time_unit_s=time_unit_s,
        slope_unit_w=slope_unit_w,
    )


def _piece_arrays(pieces: list[tuple[list[int], list[int]]], kind: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Pieces of every arc, one after the other; arcs of the kind after the last are precedence, of no length."""
    listed = [*pieces, ([0], [UNBOUNDED])]
    count = np.array([len(lengths) for lengths, _ in listed], np.int64)
    start = np.cumsum(count) - count
    first = np.zeros(len(kind) + 1, np.int64)
    np.cumsum(count[kind], out=first[1:])
    row = np.arange(first[-1]) - np.repeat(first[:-1] - start[kind], count[kind])
    length = np.array([x for lengths, _ in listed for x in lengths], np.int64)
    until = np.array([x for _, untils in listed for x in untils], np.int64)
    return first, length[row], until[row]


def half_arcs(graph: EventGraph) -> HalfArcs:
    arcs = len(graph.tail)
    start = np.concatenate([graph.tail, graph.head])
    order = np.argsort(start, kind="stable")
    place = np.empty(2 * arcs, np.int64)
    place[order] = np.arange(2 * arcs)
    first = np.zeros(graph.nodes + 1, np.int64)
    np.cumsum(np.bincount(start, minlength=graph.nodes), out=first[1:])
    both = np.concatenate([graph.head, graph.tail])
    mate_of = np.concatenate([np.arange(arcs) + arcs, np.arange(arcs)])
    return HalfArcs(
        first=first.astype(np.uint64),
        head=both[order].astype(np.uint32),
        mate=place[mate_of[order]].astype(np.uint32),
        arc=(order % arcs).astype(np.uint32),
        is_ahead=order < arcs,
        forward=place[:arcs].astype(np.uint32),
        backward=place[arcs:].astype(np.uint32),
    )


def _pieces(
    points: list[tuple[int, float]], slope_unit_w: float, time_unit_s: float, rounding: float
) -> tuple[list[int], list[int]]:
    """Lengths, longest first, and the flow at which each is left. Slopes are rounded down (`rounding` 0), so that the
    network never charges more than the computation costs, or to the nearest unit (0.5)."""
    lengths = [points[0][0]]
    until: list[int] = []
    for (slow, slow_j), (fast, fast_j) in pairwise(points):
        flow = int((fast_j - slow_j) / ((slow - fast) * time_unit_s) / slope_unit_w + rounding)
        if flow <= (until[-1] if until else 0):
            lengths[-1] = fast
            continue
        until.append(flow)
        lengths.append(fast)
    return lengths, [*until, UNBOUNDED]


def _hull_on_integers(computation: Computation, time_unit_s: float) -> list[tuple[int, float]]:
    """(length, effective energy in J) on the lower convex hull, slowest first.

    The hull is taken again once times are integers: choices whose times nearly coincide may have become one, and
    slopes have to belong to the rounded lengths, or a short steep piece would cost more than its choices do.
    """
    cheapest: dict[int, float] = {}
    for index in computation.hull:
        choice = computation.choices[index]
        length = round(choice.time_s / time_unit_s)
        cheapest[length] = min(computation.effective_j(choice), cheapest.get(length, math.inf))
    hull: list[tuple[int, float]] = []
    for length, cost_j in sorted(cheapest.items(), reverse=True):
        while hull and (cost_j <= hull[-1][1] or (len(hull) > 1 and _is_above(hull[-2], hull[-1], (length, cost_j)))):
            hull.pop()
        hull.append((length, cost_j))
    return hull


def _is_above(slow: tuple[int, float], middle: tuple[int, float], fast: tuple[int, float]) -> bool:
    """Is the middle point on or above the line through the others?"""
    return (middle[1] - slow[1]) * (middle[0] - fast[0]) >= (fast[1] - middle[1]) * (slow[0] - middle[0])


def _steepest_w(points: list[tuple[int, float]], time_unit_s: float) -> float:
    if len(points) < 2:
        return 0.0
    (slow, slow_j), (fast, fast_j) = points[-2:]
    return (fast_j - slow_j) / ((slow - fast) * time_unit_s)


@compiled
def events(
    count: int, before_first: IntArray, before: IntArray, after_first: IntArray, after: IntArray
) -> tuple[IntArray, IntArray, int]:
    """Event where each operation starts and ends; an end and a start that only know each other are one."""
    entry = np.full(count, -1, np.int64)
    leave = np.full(count, -1, np.int64)
    nodes = 2
    for op in range(count):
        if after_first[op] == after_first[op + 1]:
            leave[op] = 1
        elif after_first[op + 1] - after_first[op] > 1:
            leave[op] = nodes
            nodes += 1
        if before_first[op] == before_first[op + 1]:
            entry[op] = 0
    for op in range(count):
        waits_for = before_first[op + 1] - before_first[op]
        if waits_for > 1 or (waits_for == 1 and leave[before[before_first[op]]] < 0):
            entry[op] = nodes
            nodes += 1
        elif waits_for == 1:
            entry[op] = leave[before[before_first[op]]]
    for op in range(count):
        if leave[op] < 0:
            leave[op] = entry[after[after_first[op]]]
    return entry, leave, nodes


@compiled
def integer_finish(before_first: IntArray, before: IntArray, order: IntArray, lengths: IntArray) -> IntArray:
    finish = np.zeros(len(order), np.int64)
    for op in order:
        start = 0
        for i in range(before_first[op], before_first[op + 1]):
            start = max(start, finish[before[i]])
        finish[op] = start + lengths[op]
    return finish


def _settled(potential: IntArray, entry: IntArray, finish: IntArray, dag: Dag) -> IntArray:
    """An event where operations start is no earlier than all they wait for."""
    if len(dag.edges):
        np.maximum.at(potential, entry[dag.edges[:, 1]], finish[dag.edges[:, 0]])
    potential[0] = 0
    return potential
