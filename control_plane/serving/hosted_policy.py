"""One policy's parts in virtual time: the hosts of ``control_plane.serving.hosting``, stepped together.

Live, each host lives in a process of its own (router, pool managers, cluster manager, load forecaster); here they
share one thread and hear of each other at the control steps.
"""

from collections.abc import Hashable, Sequence

from control_plane.actions import Action, SetReplicas, Step
from control_plane.domain import Load, PoolName, ReplicaId, ReplicaView, Role, Slo
from control_plane.serving.hosting import ClusterHost, LoadHost, PoolHost, RouterHost
from control_plane.serving.length_quantiles import LengthPredictor
from control_plane.serving.load_forecast import Forecast
from control_plane.serving.policy import Governor, Needs, Policy, RoutedRequest
from control_plane.serving.routing import Candidate
from control_plane.serving.rules import PhaseRule
from control_plane.settings import ForecastSettings

MAX_TOKENS = 4096
"""What clients ask for at most when they do not say; a trace does not say."""


class HostedPolicy:
    """Implements ``simulation.fleet.Fleet`` for any policy."""

    def __init__(
        self,
        policy: Policy,
        settings: ForecastSettings,
        gpus: int,
        first_load: Load | None = None,
        slo: Slo | None = None,
        lengths: LengthPredictor | None = None,
    ) -> None:
        """``gpus`` are all that the cluster has; ``first_load`` is what it should be ready for at once."""
        self._policy, self._gpus = policy, gpus
        self._first_load = first_load or Load()
        self._router = RouterHost(policy, slo=slo, lengths=lengths)
        self._pools = {pool.pool: PoolHost(policy, pool.pool) for pool in policy.pools}
        self._cluster = ClusterHost(policy)
        self._load = LoadHost(policy.needs, settings, self._first_load, 0.0)

    @property
    def takes_quickest(self) -> bool:
        return self._policy.takes_quickest

    @property
    def needs(self) -> Needs:
        return self._policy.needs

    @property
    def splits_phases(self) -> bool:
        return self._policy.splits_phases

    def governor(self, pool: PoolName, tp: int, role: Role) -> Governor | None:
        return self._policy.governor(pool, tp, role)

    @property
    def routing_rule(self) -> PhaseRule | None:
        """None where a subclass looks at every request."""
        mine = type(self)
        looks = mine.route is not HostedPolicy.route or mine.route_decode is not HostedPolicy.route_decode
        return None if looks else self._router.rule

    def admit(self, now_s: float, input_tokens: int) -> None:
        self._router.admit(now_s, RoutedRequest(None, input_tokens, MAX_TOKENS))

    def first_replicas(self) -> Sequence[SetReplicas]:
        """What to start warm: the plan for the site's first load."""
        first = Forecast(Load(), self._first_load)
        self._cluster.step(0.0, self._gpus, first)
        actions = self._step_pools(0.0, first, ())
        return [action for action in actions if isinstance(action, SetReplicas)]

    def route(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> tuple[PoolName, ReplicaId] | None:
        request = RoutedRequest(request_id, input_tokens, MAX_TOKENS)
        self._router.admit(now_s, request)
        chosen = self._router.route(now_s, request, candidates)
        return None if chosen is None else (chosen.pool, chosen.replica_id)

    def route_decode(
        self, now_s: float, request_id: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> ReplicaId | None:
        return self._router.route_decode(now_s, request_id, input_tokens, candidates)

    def first_token(self, request_id: Hashable, replica_id: ReplicaId, input_tokens: int, ttft_s: float) -> None:
        self._router.first_token(request_id, replica_id, input_tokens, ttft_s)

    def ended(self, request_id: Hashable, replica_id: ReplicaId, input_tokens: int, output_tokens: int) -> None:
        self._router.ended(request_id, replica_id, input_tokens, output_tokens)

    def dropped(self, request_id: Hashable, replica_id: ReplicaId) -> None:
        self._router.dropped(request_id, replica_id)

    def step(self, now_s: float, replicas: Sequence[tuple[PoolName, ReplicaView]]) -> Step:
        self._load.arrived(self._router.take_arrivals())
        self._load.answered(self._router.take_answers())
        self._refit()
        forecast = self._load.forecast(now_s, self._cluster.due(now_s, self._gpus))
        actions: list[Action] = []
        if self._cluster.due(now_s, self._gpus):
            actions += self._cluster.step(now_s, self._gpus, forecast).actions
        actions += self._step_pools(now_s, forecast, replicas)
        wake_at_s = min([self._cluster.next_plan_s, *(host.wake_at_s for host in self._pools.values())])
        return Step(tuple(actions), wake_at_s)

    def _refit(self) -> None:
        """Live, fits are solved beside the loop; in virtual time they take no time."""
        load = self._load.fit_due()
        if load is not None:
            self._load.adopt(load.solve())
        lengths = self._router.length_fit_due()
        if lengths is not None:
            self._router.adopt_lengths(lengths.solve())

    def _step_pools(
        self, now_s: float, forecast: Forecast, replicas: Sequence[tuple[PoolName, ReplicaView]]
    ) -> list[Action]:
        actions: list[Action] = []
        for pool, host in self._pools.items():
            budget = self._cluster.budgets.get(pool, 0)
            if host.due(now_s, budget):
                views = [view for name, view in replicas if name == pool]
                actions += host.step(now_s, budget, forecast, views).actions
        return actions
