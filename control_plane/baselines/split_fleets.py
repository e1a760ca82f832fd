"""Phases apart with hindsight: a fleet that never changes, and one that knows the load of the next minutes.

Routers and governors are those of the policy ``phases-apart``; only who decides on the number of replicas differs.
"""

from collections.abc import Callable, Mapping

from control_plane.actions import Action, SetGpuBudget, Step
from control_plane.domain import PoolName
from control_plane.serving.arrival_log import Arrivals
from control_plane.serving.policies.phases_apart import PhasesApart
from control_plane.serving.policy import ClusterController, HandOver, Needs, Site
from control_plane.serving.sized_fleet import BurstRule, Sizer
from control_plane.serving.snapshots import ClusterSnapshot

KNOWN_S = 480.0
"""How far a clairvoyant sees: somewhat longer than a cold start."""
LATELY_S = 60.0
"""What came so lately may still be queued."""
EVERY_S = 60.0

Future = Callable[[float, float], Arrivals]
"""(from, to) in s -> what arrives in between, with true output lengths."""


class StaticSplit(PhasesApart):
    """So many replicas of each pool, never changed."""

    needs = Needs(forecast=False)

    def __init__(self, site: Site, hand_over: HandOver, replicas: Mapping[PoolName, int]) -> None:
        super().__init__(site, hand_over)
        self._replicas = replicas

    @property
    def tps(self) -> Mapping[PoolName, int]:
        """Tensor parallelism by pool."""
        return {pool: sized.tp for pool, sized in self._sized.items()}

    def cluster(self) -> ClusterController:
        return _Budgets(self._gpus(self._replicas))

    def _gpus(self, replicas: Mapping[PoolName, int]) -> dict[PoolName, int]:
        return {pool: replicas[pool] * sized.tp for pool, sized in self._sized.items()}


class Clairvoyant(StaticSplit):
    """Sized every minute for what comes in the next ``KNOWN_S`` seconds, taken for ``margin`` times as fast. It pays
    its starts: replicas take as long to come as everybody's."""

    def __init__(self, site: Site, hand_over: HandOver, future: Future, margin: float = 1.0) -> None:
        super().__init__(site, hand_over, {})
        self._future, self._margin = future, margin

    def cluster(self) -> ClusterController:
        sizer = self.sizer(BurstRule(1.0, 0.0, 1.0), decode_factor=1.0)
        return _Foreseeing(self._future, sizer, self._margin, self._gpus)


class _Budgets:
    def __init__(self, gpus: Mapping[PoolName, int]) -> None:
        self._gpus = gpus

    def step(self, seen: ClusterSnapshot) -> Step:
        return Step(_changes(self._gpus, seen, "static"), seen.now_s + 3600.0)


class _Foreseeing:
    def __init__(
        self,
        future: Future,
        sizer: Sizer,
        margin: float,
        gpus: Callable[[Mapping[PoolName, int]], Mapping[PoolName, int]],
    ) -> None:
        self._future, self._sizer, self._margin, self._gpus = future, sizer, margin, gpus

    def step(self, seen: ClusterSnapshot) -> Step:
        now_s = seen.now_s
        known = self._future(now_s - LATELY_S, now_s + KNOWN_S)
        budgets = self._gpus(self._sizer(known, now_s, self._margin))
        return Step(_changes(budgets, seen, f"what comes until {now_s + KNOWN_S:.0f} s is known"), now_s + EVERY_S)


def _changes(budgets: Mapping[PoolName, int], seen: ClusterSnapshot, why: str) -> tuple[Action, ...]:
    changed = [(pool, gpus) for pool, gpus in budgets.items() if gpus != seen.gpu_budgets.get(pool)]
    return tuple(SetGpuBudget(pool, gpus, why) for pool, gpus in changed)
