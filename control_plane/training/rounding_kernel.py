"""Rounding on flat arrays: one real choice per operation, fastest first, never past a given instant."""

import numpy as np
from numpy.typing import NDArray

from control_plane.training.compiled import compiled

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@compiled
def slowest_by(
    before_first: IntArray,
    before: IntArray,
    order: IntArray,
    kind: IntArray,
    choice_first: IntArray,
    choice_time_s: FloatArray,
    finish_by_s: FloatArray,
) -> IntArray:
    """Start soonest; take the slowest choice that ends by the operation's limit, else the fastest."""
    count = len(order)
    chosen = np.zeros(count, np.int64)
    finish_s = np.zeros(count)
    for op in order:
        start_s = 0.0
        for i in range(before_first[op], before_first[op + 1]):
            start_s = max(start_s, finish_s[before[i]])
        first = choice_first[kind[op]]
        low = 0
        high = choice_first[kind[op] + 1] - first - 1
        while low < high:
            middle = (low + high + 1) // 2
            if start_s + choice_time_s[first + middle] <= finish_by_s[op]:
                low = middle
            else:
                high = middle - 1
        chosen[op] = low
        finish_s[op] = start_s + choice_time_s[first + low]
    return chosen
