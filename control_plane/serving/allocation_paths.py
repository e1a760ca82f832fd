"""Which neighbouring pools are merged, as a shortest path: a node between two pools, an edge for every group."""

from collections.abc import Mapping, Set

Edges = Mapping[int, tuple[int, int]]
"""By the group's number: its first and last pool."""


class MergePaths:
    """Ways to cover the pools 0 … ``pools`` - 1 by groups; ``skipped`` pools need no group."""

    def __init__(self, pools: int, groups: Edges, skipped: Set[int]) -> None:
        self._pools, self._groups, self._skipped = pools, groups, skipped
        self._ending: list[list[int]] = [[] for _ in range(pools)]
        for number, (_, last) in groups.items():
            self._ending[last].append(number)

    def ending_at(self, pool: int) -> list[int]:
        """The groups of which this pool is the last."""
        return self._ending[pool]

    def shortest(self, costs: Mapping[int, float]) -> tuple[float, tuple[int, ...]]:
        """(cost, groups) of the cheapest way to cover every pool."""
        best, by = self._ahead(costs)
        route, pool = [], self._pools
        while pool:
            number = by[pool]
            if number is None:
                pool -= 1
            else:
                route.append(number)
                pool = self._groups[number][0]
        return best[-1], tuple(reversed(route))

    def distances(self, costs: Mapping[int, float]) -> tuple[list[float], list[float]]:
        """Least costs of the pools before each node, and of those after it."""
        behind = [float("inf")] * self._pools + [0.0]
        for pool in reversed(range(self._pools)):
            if pool in self._skipped:
                behind[pool] = behind[pool + 1]
            for number, (first, last) in self._groups.items():
                if first == pool:
                    behind[pool] = min(behind[pool], behind[last + 1] + costs[number])
        return self._ahead(costs)[0], behind

    def _ahead(self, costs: Mapping[int, float]) -> tuple[list[float], list[int | None]]:
        best = [0.0] + [float("inf")] * self._pools
        by: list[int | None] = [None] * (self._pools + 1)
        for pool in range(self._pools):
            if pool in self._skipped:
                best[pool + 1] = best[pool]
            for number in self._ending[pool]:
                cost = best[self._groups[number][0]] + costs[number]
                if cost < best[pool + 1]:
                    best[pool + 1], by[pool + 1] = cost, number
        return best, by
