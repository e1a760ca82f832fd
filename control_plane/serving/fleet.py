"""All of wattray's serving policies as one object, for virtual time: what the actors do together, without actors."""

from collections.abc import Hashable, Sequence

from control_plane.actions import Action, SetGpuBudget, SetReplicas, Step
from control_plane.domain import (
    ClassLoad,
    ClusterSnapshot,
    InputClass,
    Load,
    PoolName,
    PoolSnapshot,
    ReplicaId,
    ReplicaView,
)
from control_plane.ports import EnergyProfile
from control_plane.serving.controller import ClusterController, PoolController
from control_plane.serving.length_predictor import LengthTable
from control_plane.serving.load_forecast import Arrival, WindowForecaster
from control_plane.serving.routing import Candidate, RouterLedger, route
from control_plane.settings import Settings

MAX_TOKENS = 4096
"""What clients ask for at most when they do not say."""


class ServingFleet:
    """Cluster and pool controllers, forecaster, length table and router ledger, stepped together."""

    def __init__(
        self,
        settings: Settings,
        profile: EnergyProfile,
        gpus: int,
        idle_gpu_w: float,
        context_gpu_w: float,
        first_load: Load | None = None,
    ) -> None:
        self._settings = settings
        self._gpus = gpus
        self._cluster = ClusterController(settings, profile, idle_gpu_w)
        self._pools = {
            pool.pool: PoolController(pool, settings, profile, idle_gpu_w, context_gpu_w) for pool in settings.pools
        }
        self._budgets: dict[PoolName, int] = {}
        self._forecaster = WindowForecaster(settings.forecast, first_load or Load(), 0.0)
        self._lengths = LengthTable()
        self.ledger = RouterLedger()
        self._first_load = first_load or Load()
        self._next_cluster_s = 0.0
        self._slo = settings.slo.slo()
        self._grouped: Sequence[Candidate] = ()
        self._by_pool: dict[PoolName, list[Candidate]] = {}

    def first_replicas(self) -> Sequence[SetReplicas]:
        """What to start warm: the plan for ``first_load``."""
        self._share(0.0, self._first_load)
        actions: list[SetReplicas] = []
        for pool in self._settings.pools:
            load = self._first_load.only(pool.input_classes)
            seen = PoolSnapshot(0.0, pool.pool, self._budgets[pool.pool], Load(), load, ())
            actions += [a for a in self._pools[pool.pool].step(seen).actions if isinstance(a, SetReplicas)]
        return actions

    def route(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> tuple[PoolName, ReplicaId] | None:
        expected = self._lengths.expected_tokens(input_tokens, MAX_TOKENS)
        self._forecaster.observe(Arrival(now_s, input_tokens, expected))
        if candidates is not self._grouped:
            self._grouped, self._by_pool = candidates, {}
            for candidate in candidates:
                self._by_pool.setdefault(candidate.pool, []).append(candidate)
        chosen = route(self._settings, self._slo, self.ledger, self._by_pool, input_tokens)
        if chosen is None:
            return None
        self.ledger.assigned(request_id, chosen.replica_id, input_tokens)
        return chosen.pool, chosen.replica_id

    def first_token(self, request_id: Hashable, replica_id: ReplicaId) -> None:
        self.ledger.first_token(request_id, replica_id)

    def ended(self, request_id: Hashable, replica_id: ReplicaId, input_tokens: int, output_tokens: int) -> None:
        self.ledger.ended(request_id, replica_id)
        self._lengths.learn(input_tokens, output_tokens)

    def dropped(self, request_id: Hashable, replica_id: ReplicaId) -> None:
        """The replica failed with the request on it, which will be routed anew; no length is learnt from it."""
        self.ledger.ended(request_id, replica_id)

    def step(self, now_s: float, replicas: Sequence[tuple[PoolName, ReplicaView]]) -> Step:
        actions: list[Action] = []
        if now_s >= self._next_cluster_s:
            actions += self._share(now_s, self._forecaster.predict(now_s))
        reactive = self._forecaster.reactive(now_s)
        forecast = self._forecaster.predict(now_s)
        for pool in self._settings.pools:
            views = tuple(view for name, view in replicas if name == pool.pool)
            seen = PoolSnapshot(
                now_s,
                pool.pool,
                self._budgets[pool.pool],
                reactive.only(pool.input_classes),
                forecast.only(pool.input_classes),
                views,
            )
            actions += self._pools[pool.pool].step(seen).actions
        return Step(tuple(actions), now_s + self._settings.cadence.frequency_s)

    def _share(self, now_s: float, forecast: Load) -> list[Action]:
        by_pool = {pool.pool: forecast.only(pool.input_classes) for pool in self._settings.pools}
        step = self._cluster.step(ClusterSnapshot(now_s, self._gpus, by_pool, self._budgets))
        for action in step.actions:
            if isinstance(action, SetGpuBudget):
                self._budgets[action.pool] = action.gpus
        self._next_cluster_s = step.wake_at_s
        return list(step.actions)


def load_of(requests: Sequence[tuple[int, int]], duration_s: float) -> Load:
    """The load of (input tokens, output tokens) pairs spread over a time."""
    parts: dict[InputClass, ClassLoad] = {}
    for input_tokens, output_tokens in requests:
        one = ClassLoad(1 / duration_s, input_tokens, output_tokens)
        name = InputClass.of(input_tokens)
        parts[name] = parts[name] + one if name in parts else one
    return Load(parts)
