"""The knapsack of one pool, compiled: the cheapest instances that carry a load together."""

import numpy as np
from numpy.typing import NDArray

from control_plane.compiled import compiled

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@compiled
def cheapest_covers(cells: Integers, costs: Floats, gpus: Integers, total: int) -> tuple[Floats, Integers, Integers]:
    """(cost, GPUs, last item) of the cheapest multiset of items that covers 0 … ``total`` cells.

    ``cells``, ``costs`` and ``gpus`` are those of one item each, [items], cells above 0. O(total * items).
    """
    least = np.empty(total + 1)
    used = np.zeros(total + 1, np.int64)
    last = np.full(total + 1, -1, np.int64)
    least[0] = 0.0
    for covered in range(1, total + 1):
        best = np.inf
        for item in range(len(cells)):
            rest = covered - cells[item]
            cost = costs[item] if rest <= 0 else least[rest] + costs[item]
            if cost < best:
                best = cost
                last[covered] = item
        least[covered] = best
        used[covered] = gpus[last[covered]] + used[max(0, covered - cells[last[covered]])]
    return least, used, last


@compiled
def covers_by_gpus(
    cells: Integers, watts: Floats, gpus: Integers, total: int, most_gpus: int
) -> tuple[Floats, Integers]:
    """(watts, last item) of the cheapest multiset of items with at most b GPUs that covers c cells, [b, c] for b up to
    ``most_gpus`` and c up to ``total``; infinite where none does. O(total * most_gpus * items)."""
    least = np.full((most_gpus + 1, total + 1), np.inf)
    last = np.full((most_gpus + 1, total + 1), -1, np.int64)
    least[:, 0] = 0.0
    for held in range(1, most_gpus + 1):
        for covered in range(1, total + 1):
            best = np.inf
            which = -1
            for item in range(len(cells)):
                if gpus[item] <= held:
                    rest = max(0, covered - cells[item])
                    cost = watts[item] + least[held - gpus[item], rest]
                    if cost < best:
                        best = cost
                        which = item
            least[held, covered] = best
            last[held, covered] = which
    return least, last
