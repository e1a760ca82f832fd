"""An iteration as a DAG of computations: values only, checked once for cycles, ready for every solver."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from control_plane.training.computation import Computation, computation_of
from control_plane.training.profile import Choice
from control_plane.training.timing import earliest_finish, topological_order

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


class CycleError(ValueError):
    """The order cannot be executed: some operation waits for itself."""


class Task(NamedTuple):
    """What one operation of the DAG is. `chunk` counts model chunks on a stage (interleaved schedules)."""

    stage: int
    instruction: str
    microbatch: int
    chunk: int = 0

    def __str__(self) -> str:
        chunk = f" chunk {self.chunk}" if self.chunk else ""
        return f"stage {self.stage} {self.instruction} {self.microbatch}{chunk}"


@dataclass(frozen=True, slots=True, eq=False)
class Dag:
    """Operations 0..n−1 and who waits for whom.

    Operations of one kind share one `Computation`; `blocking_power_w` is what all stages together draw while
    they wait, paid until the iteration ends. `order` is a topological order.
    """

    tasks: tuple[Task, ...]
    computations: tuple[Computation, ...]
    kind: IntArray
    edges: IntArray
    order: IntArray
    blocking_power_w: float

    def __len__(self) -> int:
        return len(self.tasks)

    def computation(self, op: int) -> Computation:
        return self.computations[int(self.kind[op])]

    def per_operation(self, per_kind: Iterable[float]) -> FloatArray:
        """Spread one number per kind over the operations."""
        return np.asarray(tuple(per_kind), dtype=np.float64)[self.kind]


def dag_of(
    tasks: Sequence[Task],
    computations: Sequence[Computation],
    kind: Sequence[int],
    edges: Iterable[tuple[int, int]],
    blocking_power_w: float = 0.0,
) -> Dag:
    """Check the pieces and put them together; raises CycleError with the cycle spelled out."""
    if not tasks:
        raise ValueError("the DAG has no operation")
    if len(kind) != len(tasks):
        raise ValueError(f"{len(tasks)} operations but {len(kind)} kinds")
    edge_array = np.array(list(edges), dtype=np.int64).reshape(-1, 2)
    outside = ((edge_array < 0) | (edge_array >= len(tasks))).any(axis=1)
    if outside.any():
        before, after = edge_array[outside][0].tolist()
        raise ValueError(f"edge ({before}, {after}) names an operation outside 0..{len(tasks) - 1}")
    edge_array = np.unique(edge_array[:, 0] * len(tasks) + edge_array[:, 1])
    edge_array = np.stack([edge_array // len(tasks), edge_array % len(tasks)], axis=1)
    order = topological_order(len(tasks), *_grouped(edge_array[:, 0], edge_array[:, 1], len(tasks)))
    if len(order) < len(tasks):
        raise CycleError(f"the operations wait in a cycle: {_spell_cycle(tasks, edge_array, set(order.tolist()))}")
    return Dag(
        tasks=tuple(tasks),
        computations=tuple(computations),
        kind=np.array(kind, dtype=np.int64),
        edges=edge_array,
        order=order,
        blocking_power_w=blocking_power_w,
    )


def dag_of_nodes(
    nodes: Mapping[Hashable, Computation | Sequence[Choice]],
    edges: Iterable[tuple[Hashable, Hashable]],
    blocking_power_w: float = 0.0,
) -> Dag:
    """Any DAG, given as named nodes and edges; a node's choices may be raw points or a Computation."""
    names = list(nodes)
    index = {name: i for i, name in enumerate(names)}
    pairs: list[tuple[int, int]] = []
    for before, after in edges:
        for name in (before, after):
            if name not in index:
                raise ValueError(f"edge ({before!r}, {after!r}) names {name!r}, which is not a node")
        pairs.append((index[before], index[after]))
    kinds: dict[Computation, int] = {}
    kind: list[int] = []
    for name in names:
        node = nodes[name]
        computation = node if isinstance(node, Computation) else computation_of(node)
        kind.append(kinds.setdefault(computation, len(kinds)))
    tasks = [Task(0, str(name), 0) for name in names]
    return dag_of(tasks, tuple(kinds), kind, pairs, blocking_power_w)


def finish_times(dag: Dag, durations_s: FloatArray) -> FloatArray:
    """When each operation ends if each starts as soon as all it waits for is done."""
    return earliest_finish(*predecessors(dag), dag.order, durations_s)


def predecessors(dag: Dag) -> tuple[IntArray, IntArray]:
    """Compressed rows: what operation i waits for is `ids[first[i]:first[i + 1]]`."""
    return _grouped(dag.edges[:, 1], dag.edges[:, 0], len(dag))


def successors(dag: Dag) -> tuple[IntArray, IntArray]:
    """Compressed rows: what waits for operation i."""
    return _grouped(dag.edges[:, 0], dag.edges[:, 1], len(dag))


def _grouped(keys: IntArray, values: IntArray, count: int) -> tuple[IntArray, IntArray]:
    by_key = np.argsort(keys, kind="stable")
    first = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(np.bincount(keys, minlength=count), out=first[1:])
    return first, np.ascontiguousarray(values[by_key])


def _spell_cycle(tasks: Sequence[Task], edges: IntArray, done: set[int]) -> str:
    waited_for: dict[int, int] = {}
    for before, then in edges.tolist():
        if before not in done and then not in done:
            waited_for[then] = before
    op = next(iter(waited_for))
    seen: list[int] = []
    while op not in seen:
        seen.append(op)
        op = waited_for[op]
    cycle = [*seen[seen.index(op) :], op]
    shown = cycle if len(cycle) <= 8 else [*cycle[:4], *cycle[-3:]]
    names = [str(tasks[i]) for i in shown]
    if shown is not cycle:
        names.insert(4, f"… {len(cycle) - 7} more …")
    return " waits for ".join(names)
