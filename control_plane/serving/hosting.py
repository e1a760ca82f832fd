"""The wiring of a policy's parts: what every host does around them, live or in virtual time.

A host owns the state that belongs to its place (arrivals that were not reported yet, GPU budgets, the next plan) and
hands each part exactly what ``Policy.needs`` asked for. Actors and the simulator add only their own clock and their
own way of acting on a step.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace

from control_plane.actions import SetGpuBudget, Step
from control_plane.domain import InputClass, Load, PoolName, ReplicaId, ReplicaView, Slo
from control_plane.serving.arrival_log import Answers, ArrivalLog
from control_plane.serving.length_quantiles import ANYBODY, LengthFit, LengthForecast, LengthPredictor, LengthTrees
from control_plane.serving.load_forecast import Arrival, Forecast, PortfolioForecaster, WindowForecaster
from control_plane.serving.load_members import Fit, Fitted
from control_plane.serving.policy import Needs, Policy, RoutedRequest
from control_plane.serving.routing import Candidate, Route
from control_plane.serving.rules import PhaseRule, RuledRouter
from control_plane.serving.snapshots import ClusterSnapshot, PoolSnapshot
from control_plane.settings import ForecastSettings, PoolSettings


class RouterHost:
    """The policy's router, and the arrivals that the load forecaster has not been told of yet."""

    def __init__(
        self,
        policy: Policy,
        keep_arrivals: int = 100_000,
        slo: Slo | None = None,
        lengths: LengthPredictor | None = None,
    ) -> None:
        """``keep_arrivals``: of more arrivals that nobody takes, the oldest are forgotten. ``slo``: which first tokens
        are late. ``lengths``: predicts for the policy instead of its router's table."""
        self._router = policy.router()
        self._sees_slo = policy.needs.request_slo
        self._keep_arrivals = keep_arrivals
        self._arrivals: list[Arrival] = []
        self._sees_past, self._slo = policy.needs.recent, slo or Slo()
        self._answered = self._late = 0
        self._lengths = lengths
        self._admitted: dict[Hashable, RoutedRequest] = {}

    @property
    def rule(self) -> PhaseRule | None:
        """The router's choices as data, where they follow from data."""
        return self._router.rule if isinstance(self._router, RuledRouter) else None

    def admit(self, now_s: float, request: RoutedRequest) -> float:
        """Note an arrival once it is certain that it will be served; returns its expected output tokens."""
        if self._lengths is None:
            expected_tokens = self._router.expected_tokens(request.input_tokens, request.max_tokens)
        else:
            expected_tokens = self._predicted(request, self._lengths).expected
            if request.who is not ANYBODY or request.hint_tokens is not None:
                self._admitted[request.key] = request
        self._arrivals.append(Arrival(now_s, request.input_tokens, expected_tokens))
        if len(self._arrivals) > self._keep_arrivals:
            del self._arrivals[: self._keep_arrivals // 2]
        return expected_tokens

    def take_arrivals(self) -> list[Arrival]:
        """The arrivals since the last call, oldest first."""
        taken, self._arrivals = self._arrivals, []
        return taken

    def route(self, now_s: float, request: RoutedRequest, candidates: Sequence[Candidate]) -> Route | None:
        if request.slo is not None and not self._sees_slo:
            request = request._replace(slo=None)
        if self._lengths is not None:
            request = request._replace(predicted=self._predicted(request, self._lengths))
        return self._router.route(now_s, request, candidates)

    def route_decode(
        self, now_s: float, key: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> ReplicaId | None:
        return self._router.route_decode(now_s, key, input_tokens, candidates)

    def first_token(self, key: Hashable, replica_id: ReplicaId, input_tokens: int, ttft_s: float | None) -> None:
        """The client has its first token, ``ttft_s`` after it asked; None where that is not known."""
        if self._sees_past and ttft_s is not None:
            self._answered += 1
            self._late += ttft_s > self._slo.ttft_s(InputClass.of(input_tokens))
        self._router.first_token(key, replica_id)

    def take_answers(self) -> Answers:
        """What became of requests since the last call; nothing unless the policy needs the past."""
        taken = Answers(self._answered, self._late)
        self._answered = self._late = 0
        return taken

    def ended(self, key: Hashable, replica_id: ReplicaId, input_tokens: int, output_tokens: int) -> None:
        self._router.ended(key, replica_id, input_tokens, output_tokens)
        if self._lengths is not None:
            asked = self._admitted.pop(key, None)
            who, hint = (ANYBODY, None) if asked is None else (asked.who, asked.hint_tokens)
            self._lengths.learn(who, input_tokens, output_tokens, hint)

    def dropped(self, key: Hashable, replica_id: ReplicaId) -> None:
        """It may be routed again."""
        self._router.dropped(key, replica_id)

    def gone(self, key: Hashable) -> None:
        """The request is over, whatever became of it."""
        self._admitted.pop(key, None)

    def length_fit_due(self) -> LengthFit | None:
        """A fit of the length predictor that is due: to be solved elsewhere and handed to ``adopt_lengths``."""
        return None if self._lengths is None else self._lengths.fit_due()

    def adopt_lengths(self, trees: LengthTrees) -> None:
        if self._lengths is not None:
            self._lengths.adopt(trees)

    @staticmethod
    def _predicted(request: RoutedRequest, lengths: LengthPredictor) -> LengthForecast:
        return lengths.predict(request.who, request.input_tokens, request.max_tokens, request.hint_tokens)

    def forget(self, alive: Iterable[ReplicaId]) -> None:
        self._router.forget(alive)


class LoadHost:
    """What is known of the load: the forecast of the settings, and the past where the policy needs it."""

    def __init__(self, needs: Needs, settings: ForecastSettings, first_load: Load, now_s: float) -> None:
        self._needs = needs
        kind = PortfolioForecaster if settings.method == "portfolio" and needs.forecast else WindowForecaster
        self._forecaster = kind(settings, first_load, now_s)
        self._log = ArrivalLog()

    def arrived(self, arrivals: Iterable[Arrival]) -> None:
        """In order of time, as far as routers report them so."""
        for arrival in arrivals:
            if self._needs.forecast:
                self._forecaster.observe(arrival)
            if self._needs.recent:
                self._log.add(*arrival)

    def answered(self, answers: Answers) -> None:
        self._log.answers(answers)

    def fit_due(self) -> Fit | None:
        """A fit of the forecast that is due: to be solved outside the control loop and handed to ``adopt``."""
        return self._forecaster.fit_due() if isinstance(self._forecaster, PortfolioForecaster) else None

    def adopt(self, fitted: Fitted) -> None:
        if isinstance(self._forecaster, PortfolioForecaster):
            self._forecaster.adopt(fitted)

    def forecast(self, now_s: float, with_past: bool) -> Forecast:
        """``with_past``: the cluster's controller is about to plan; the past is a copy, so nobody else is given it."""
        forecast = self._forecaster.forecast(now_s) if self._needs.forecast else Forecast()
        if with_past and self._needs.recent:
            return replace(forecast, recent=self._log.recent(now_s))
        return forecast


class PoolHost:
    """One pool's controller, shown its own part of the load and only what the policy needs to see of replicas."""

    def __init__(self, policy: Policy, pool: PoolName) -> None:
        self._settings = pool_of(policy, pool)
        self._needs = policy.needs
        self._controller = policy.pool(pool)
        self.wake_at_s = float("-inf")
        """When the controller wants to be asked again."""
        self._gpu_budget: int | None = None

    def due(self, now_s: float, gpu_budget: int) -> bool:
        """Whether to ask the controller: its time has come, or its budget is another one."""
        return now_s >= self.wake_at_s or gpu_budget != self._gpu_budget

    def step(self, now_s: float, gpu_budget: int, forecast: Forecast, replicas: Iterable[ReplicaView]) -> Step:
        """What to do now. ``replicas`` are all of the pool's, as they were observed."""
        classes = self._settings.input_classes
        self._gpu_budget = gpu_budget
        step = self._controller.step(
            PoolSnapshot(
                now_s,
                self._settings.pool,
                gpu_budget,
                forecast.reactive.only(classes),
                forecast.upper.only(classes),
                tuple(only_needed(view, self._needs) for view in replicas),
            )
        )
        self.wake_at_s = step.wake_at_s
        return step

    def ask_at_once(self) -> None:
        """What the last step was based on no longer holds: ask again without waiting."""
        self.wake_at_s = float("-inf")

    def plan(self) -> str:
        return self._controller.plan()

    def load(self, forecast: Forecast) -> Load:
        """What arrives for this pool now."""
        return forecast.reactive.only(self._settings.input_classes)

    def load_rps(self, forecast: Forecast) -> float:
        return self.load(forecast).rps


class ClusterHost:
    """The cluster's controller, when it wants to be asked next, and the GPU budgets it has given.

    ``budgets`` are those in force where a cluster is running already: a host that starts anew asks the pools.
    """

    def __init__(self, policy: Policy, budgets: Mapping[PoolName, int] | None = None) -> None:
        self._pools = tuple(policy.pools)
        self._controller = policy.cluster()
        self._budgets = dict(budgets or {})
        self.next_plan_s = float("-inf")
        """When the controller wants to be asked again."""
        self._planned_gpus: int | None = None

    @property
    def budgets(self) -> Mapping[PoolName, int]:
        return self._budgets

    def due(self, now_s: float, gpus: int) -> bool:
        """Whether a plan is due: its time has come, or GPUs came or went since the last one."""
        return now_s >= self.next_plan_s or gpus != self._planned_gpus

    def step(self, now_s: float, gpus: int, forecast: Forecast) -> Step:
        """Plan for the GPUs that are really there; ``budgets`` follow the step's actions."""
        by_pool = {pool.pool: forecast.upper.only(pool.input_classes) for pool in self._pools}
        step = self._controller.step(ClusterSnapshot(now_s, gpus, by_pool, self._budgets, forecast.recent))
        for action in step.actions:
            if isinstance(action, SetGpuBudget):
                self._budgets[action.pool] = action.gpus
        self.next_plan_s, self._planned_gpus = step.wake_at_s, gpus
        return step


def pool_of(policy: Policy, pool: PoolName) -> PoolSettings:
    """The policy's pool of this name. Raises KeyError where it has none."""
    for settings in policy.pools:
        if settings.pool == pool:
            return settings
    raise KeyError(f"the policy has no pool {pool!r}; it has {[settings.name for settings in policy.pools]}")


def only_needed(view: ReplicaView, needs: Needs) -> ReplicaView:
    """The view without what the policy did not ask for: a part must not come to depend on what one host happens to
    see and another does not."""
    return replace(
        view,
        kv_used_ratio=view.kv_used_ratio if needs.kv_use else None,
        queued_tokens=view.queued_tokens if needs.queued_tokens else None,
        tightest_slack_s=view.tightest_slack_s if needs.queued_tokens else None,
        power_w=view.power_w if needs.power else None,
        ttft_p99_s=view.ttft_p99_s if needs.latencies else None,
        tbt_p99_s=view.tbt_p99_s if needs.latencies else None,
    )
