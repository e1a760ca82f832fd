"""When operations of a DAG run: forward and backward passes over flat arrays in compressed rows.

Every finish is max(what it waits for) + duration, in floats: the same plan always ends at the same instant.
"""

import numpy as np
from numpy.typing import NDArray

from control_plane.compiled import compiled

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@compiled
def topological_order(count: int, after_first: IntArray, after: IntArray) -> IntArray:
    """Operations so that each comes after all it waits for; what waits in a cycle is left out."""
    waits_for = np.zeros(count, np.int64)
    for then in after:
        waits_for[then] += 1
    order = np.zeros(count, np.int64)
    found = 0
    for op in range(count):
        if waits_for[op] == 0:
            order[found] = op
            found += 1
    place = 0
    while place < found:
        op = order[place]
        place += 1
        for i in range(after_first[op], after_first[op + 1]):
            then = after[i]
            waits_for[then] -= 1
            if waits_for[then] == 0:
                order[found] = then
                found += 1
    return order[:found]


@compiled
def earliest_finish(before_first: IntArray, before: IntArray, order: IntArray, durations_s: FloatArray) -> FloatArray:
    finish_s = np.zeros(len(order))
    for op in order:
        start_s = 0.0
        for i in range(before_first[op], before_first[op + 1]):
            start_s = max(start_s, finish_s[before[i]])
        finish_s[op] = start_s + durations_s[op]
    return finish_s


@compiled
def latest_finish(
    after_first: IntArray, after: IntArray, order: IntArray, durations_s: FloatArray, deadline_s: float
) -> FloatArray:
    """The latest each operation may end so that all end by the deadline."""
    finish_s = np.full(len(order), deadline_s)
    for position in range(len(order) - 1, -1, -1):
        op = order[position]
        for i in range(after_first[op], after_first[op + 1]):
            then = after[i]
            finish_s[op] = min(finish_s[op], finish_s[then] - durations_s[then])
    return finish_s
