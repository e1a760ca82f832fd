"""``single-pool``: one pool of equal replicas at full clock, never changed (DynamoLLM's SinglePool baseline).

As a baseline its number of replicas is found by search on the very trace (``control_plane.simulation.sizing``); live
it fills the GPUs that serving may use.
"""

from collections.abc import Sequence
from typing import Self

from control_plane.actions import Action, SetFrequency, SetGpuBudget, SetReplicas, Step
from control_plane.domain import InputClass, PoolName, ReplicaState, Role
from control_plane.serving.ledger_router import LedgerRouter
from control_plane.serving.policy import ClusterController, Governor, Needs, PoolController, RoutedRequest, Router, Site
from control_plane.serving.routing import Candidate, Route, quickest
from control_plane.serving.snapshots import ClusterSnapshot, PoolSnapshot
from control_plane.settings import PoolSettings

POOL = PoolName("single-pool")
ASK_AGAIN_S = 3600.0
SETTLING_S = 1.0
"""How soon it looks again while a replica is not ready, or not at its clock."""


class SinglePoolPolicy:
    """``replicas`` replicas of one tensor parallelism, at one clock: the highest where none is given."""

    needs = Needs()
    pools: Sequence[PoolSettings] = (PoolSettings(name=POOL, input_classes=tuple(InputClass)),)
    splits_phases = False
    takes_quickest = True

    def __init__(self, replicas: int, tp: int = 8, freq_mhz: int | None = None) -> None:
        self._replicas, self._tp, self._freq_mhz = replicas, tp, freq_mhz

    @classmethod
    def filling(cls, site: Site) -> Self:
        """As many replicas of the highest tensor parallelism that fits as the site has GPUs for."""
        tp = max((tp for tp in site.profile.tps if tp <= site.gpus), default=min(site.profile.tps))
        return cls(max(1, site.gpus // tp), tp)

    def router(self) -> Router:
        return QuickestRouter()

    def governor(self, pool: PoolName, tp: int, role: Role) -> Governor | None:
        del pool, tp, role
        return None

    def pool(self, pool: PoolName) -> PoolController:
        return StaticPool(pool, self._tp, self._replicas, self._freq_mhz)

    def cluster(self) -> ClusterController:
        return _WholeCluster()


class QuickestRouter(LedgerRouter):
    """Each request goes to the replica with the least expected time to its first token; what is learnt of output
    lengths is for the load forecaster alone."""

    def route(self, now_s: float, request: RoutedRequest, candidates: Sequence[Candidate]) -> Route | None:
        del now_s
        best = quickest(self._ledger, candidates, request.input_tokens)
        if best is None:
            return None
        ttft_s, chosen = best
        self._ledger.assigned(request.key, chosen.replica_id, request.input_tokens)
        return Route(chosen.pool, chosen.replica_id, False, ttft_s)


class StaticPool:
    """A pool's controller that keeps a number of replicas at a clock."""

    def __init__(self, pool: PoolName, tp: int, replicas: int, freq_mhz: int | None) -> None:
        self._wanted, self._freq_mhz = SetReplicas(pool, tp, replicas, "static"), freq_mhz

    def step(self, seen: PoolSnapshot) -> Step:
        running = sum(view.tp == self._wanted.tp and view.counts for view in seen.replicas)
        actions: list[Action] = [] if running == self._wanted.replicas else [self._wanted]
        if self._freq_mhz is None:
            return Step(tuple(actions), seen.now_s + ASK_AGAIN_S)
        ready = [view for view in seen.replicas if view.state is ReplicaState.READY]
        other = [view for view in ready if view.freq_mhz != self._freq_mhz]
        actions += [SetFrequency(view.replica_id, self._freq_mhz, "static") for view in other]
        settled = not other and len(ready) == self._wanted.replicas
        return Step(tuple(actions), seen.now_s + (ASK_AGAIN_S if settled else SETTLING_S))

    def plan(self) -> str:
        clock = "full clock" if self._freq_mhz is None else f"{self._freq_mhz} MHz"
        return f"{self._wanted.replicas} x TP{self._wanted.tp} at {clock}"


class _WholeCluster:
    def step(self, seen: ClusterSnapshot) -> Step:
        given = seen.gpu_budgets.get(POOL) == seen.gpus
        actions = () if given else (SetGpuBudget(POOL, seen.gpus, "the only pool has every GPU"),)
        return Step(actions, seen.now_s + ASK_AGAIN_S)
