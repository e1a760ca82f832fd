"""One pool's manager: sees its replicas, asks the pool's part of the policy, acts on Ray Serve and the GPU agents.

It holds no state that its replicas, the cluster manager and the next second would not give back after a restart.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal, assert_never

from actors import metrics
from actors.decision_log import DecisionLog
from actors.gpu.headroom import LostHeadroom
from actors.held_clocks import HeldClocks, HoldGpus
from actors.messages import Decision, Orders, PoolStatus, ReplicaReport
from actors.peers import PeerAwayError
from control_plane.actions import SetFrequency, SetGovernor, SetGpuBudget, SetPowerLimit, SetReplicas
from control_plane.domain import PoolName, ReplicaId, ReplicaState, ReplicaView, Role, Shape
from control_plane.hardware.live_correction import LiveCorrection, ReplicaReading
from control_plane.serving.advice import AdviceLog, Running
from control_plane.serving.hosting import PoolHost
from control_plane.serving.load_forecast import Forecast

log = logging.getLogger(__name__)

STALE_S = 6.0
"""A replica silent for this long is not counted any more."""

REPEAT_S = 15.0
"""An unchanged replica count is asked for again after this long."""

FORECAST_STALE_S = 60.0
"""A forecast older than this is no reason to keep a clock lowered."""


SetCount = Callable[[PoolName, int, Role, int], Awaitable[None]]
"""(pool, tp, role, replicas): how many should run."""


@dataclass(frozen=True, slots=True)
class PoolRules:
    """How the manager acts. ``settle_s``: a manager that restarted listens for this long before it acts, so that it
    knows its replicas. ``gpu_budget`` None: it waits for the cluster manager to tell it."""

    full_clock_mhz: int
    lease_ttl_s: float
    tick_s: float
    control: Literal["act", "recommend"] = "act"
    gpu_budget: int | None = None
    settle_s: float = 0.0


@dataclass(slots=True)
class _Seen:
    report: ReplicaReport
    at_s: float


class PoolManager:
    """Ports are functions, so the same class runs on Ray and in a plain test."""

    def __init__(
        self,
        pool: PoolName,
        host: PoolHost,
        rules: PoolRules,
        forecast: Callable[[], Awaitable[Forecast]],
        hold: HoldGpus,
        set_count: SetCount,
        monotonic_s: Callable[[], float],
        epoch_s: Callable[[], float],
        correction: LiveCorrection | None = None,
        advice: AdviceLog | None = None,
    ) -> None:
        """``correction``: of the profile that the host's policy plans with; None leaves it as it is. ``advice`` counts
        what acting would have saved; for a manager that only recommends."""
        self.pool = pool
        self._advice = advice
        self._correction = correction
        self._disagreed = False
        self.tick_s = rules.tick_s
        self._host, self._rules = host, rules
        self._gpu_budget = rules.gpu_budget
        self._ask_forecast, self._set_count = forecast, set_count
        self._monotonic_s = monotonic_s
        self._log = DecisionLog(f"pool_manager:{pool}", str(pool), epoch_s)
        self._started_s = monotonic_s()
        self._seen: dict[ReplicaId, _Seen] = {}
        acts = rules.control == "act"
        self._clocks = HeldClocks(
            f"pool_manager:{pool}", hold, rules.lease_ttl_s, int(epoch_s() * 1000), acts, self._log
        )
        self._orders: dict[ReplicaId, Orders] = {}
        self._asked: dict[tuple[int, Role], tuple[int, float]] = {}
        self._pending: dict[tuple[int, Role], asyncio.Task[None]] = {}
        self._wanted: dict[tuple[int, str], int] = {}
        self._forecast = Forecast()
        self._forecast_at_s = -math.inf
        self._routable: frozenset[ReplicaId] = frozenset()
        self._routable_at_s = -math.inf
        self._paused = False
        self._held_down: dict[str, LostHeadroom] = {}

    # what others tell it

    def report(self, replica: ReplicaReport) -> Orders:
        """A replica's account of itself, every second; the answer is what its governor may do."""
        self._seen[replica.replica_id] = _Seen(replica, self._monotonic_s())
        return self._orders.get(replica.replica_id, Orders())

    def set_routable(self, replica_ids: frozenset[ReplicaId]) -> None:
        """From the router, every second: the replicas Ray Serve still sends requests to. The others drain."""
        self._routable, self._routable_at_s = replica_ids, self._monotonic_s()

    def set_gpu_budget(self, gpus: int) -> None:
        self._gpu_budget = gpus

    def headroom(self, told: Mapping[str, LostHeadroom | None]) -> None:
        """From an agent: GPUs that heat or power hold below the clock they may take, and None for those that are free
        again. Replicas on them count as no faster than that, and it is noted."""
        ours = {uuid for seen in self._seen.values() for uuid in seen.report.gpu_uuids}
        for uuid, loss in told.items():
            if loss is None:
                if self._held_down.pop(uuid, None) is not None:
                    self._log.note(f"{uuid}: its clock is free again", "the agent saw it")
            elif uuid in ours:
                self._held_down[uuid] = loss
                why = ", ".join(loss.events)
                self._log.note(f"{uuid}: runs at {loss.runs_mhz} of {loss.allowed_mhz} MHz", f"held down by {why}")

    def pause(self) -> None:
        """Take no more actions: the control plane is going down."""
        self._paused = True

    # what it tells others

    def status(self) -> PoolStatus:
        return PoolStatus(
            self.pool,
            self._gpu_budget,
            tuple(seen.report for seen in self._seen.values()),
            {str(replica_id): self._observed_mhz(seen.report) for replica_id, seen in self._seen.items()},
            self._clocks.wished_mhz(),
            self._host.load_rps(self._forecast),
            self._host.plan(),
            {_shape_text(tp, role): count for (tp, role), (count, _) in self._asked.items()},
            None if self._advice is None else self._advice.advice(),
        )

    def decisions(self, last: int = 50) -> tuple[Decision, ...]:
        return self._log.last(last)

    def wanted_replicas(self) -> dict[tuple[int, str], int]:
        """Counts by tensor parallelism and role as they were ordered, for autoscalers that follow them; builtin types
        only, because Serve's controller reads them. Empty until there are some."""
        return dict(self._wanted)

    # the loop

    async def tick(self) -> None:
        """Renew first: no lease may lapse because somebody else is slow to answer."""
        if self._paused:
            return
        self._forget_silent()
        await self._clocks.renew(self._reports())
        await self._hear_forecast()
        self._correct_profile()
        self._count_advice()
        if self._may_step() and self._step():
            await self._clocks.renew(self._reports())
        metrics.pool(self.status())

    def _may_step(self) -> bool:
        now_s = self._monotonic_s()
        if self._gpu_budget is None or not self._forecast_is_fresh():
            return False
        return now_s - self._started_s >= self._rules.settle_s and self._host.due(now_s, self._gpu_budget)

    def _step(self) -> bool:
        """Ask the policy and take its actions; whether a clock or a power limit is wanted otherwise than before."""
        step = self._host.step(self._monotonic_s(), self._gpu_budget or 0, self._forecast, self._views())
        before = self._clocks.wishes()
        for action in step.actions:
            match action:
                case SetReplicas():
                    self._ask_for(action)
                case SetFrequency(replica_id, freq_mhz, why):
                    self._clocks.want_freq(replica_id, freq_mhz, why)
                case SetPowerLimit(replica_id, power_w, why):
                    self._clocks.want_power(replica_id, power_w, why)
                case SetGovernor(replica_id, floor_mhz, ceiling_mhz, why):
                    self._order(replica_id, Orders(floor_mhz, ceiling_mhz), why)
                case SetGpuBudget():
                    raise ValueError(f"pool {self.pool}: a pool's controller may not set a budget: {action}")
                case _:
                    assert_never(action)
        return before != self._clocks.wishes()

    # replicas

    def _ask_for(self, action: SetReplicas) -> None:
        """Ray Serve takes seconds to follow: an unchanged wish is repeated only after a while, and nobody waits."""
        key = (action.tp, action.role)
        asked, pending = self._asked.get(key), self._pending.get(key)
        now_s = self._monotonic_s()
        if pending is not None and not pending.done():
            return
        if asked is not None and asked[0] == action.replicas and now_s - asked[1] < REPEAT_S:
            return
        repeated = asked is not None and asked[0] == action.replicas
        if not self._may_scale():
            if not repeated:
                self._log.note(_count_text(action), action.why, "recommended")
            self._asked[key] = (action.replicas, now_s)
            return
        self._asked[key] = (action.replicas, now_s)
        self._pending[key] = asyncio.ensure_future(self._scale(action, repeated))

    def _may_scale(self) -> bool:
        """Where it only recommends, a pool that never had a replica still gets its first ones: that is what the
        operator asked for by starting it."""
        return self._rules.control == "act" or not (self._seen or self._asked)

    async def _scale(self, action: SetReplicas, repeated: bool) -> None:
        try:
            await self._set_count(action.pool, action.tp, action.role, action.replicas)
        except Exception as error:
            log.exception("pool %s: %s was not taken", self.pool, _count_text(action))
            self._asked.pop((action.tp, action.role), None)
            self._log.note(_count_text(action), action.why, f"failed: {error}")
            return
        self._wanted[(action.tp, action.role.value)] = action.replicas
        if not repeated:
            self._log.note(_count_text(action), action.why)

    def _order(self, replica_id: ReplicaId, orders: Orders, why: str) -> None:
        if self._orders.get(replica_id) != orders:
            acting = self._rules.control == "act"
            text = f"{replica_id}: governor within {orders.governor_floor_mhz}..{orders.governor_ceiling_mhz} MHz"
            self._log.note(text, why, "done" if acting else "recommended")
            if acting:
                self._orders[replica_id] = orders

    # what is seen

    def _correct_profile(self) -> None:
        """Hold the profile against what replicas measured. Where it is off by more than it states of itself, that is
        said, and plans keep more headroom."""
        correction = self._correction
        if correction is None or not self._forecast_is_fresh():
            return
        ready = [
            ReplicaReading(
                report.replica_id, Shape(report.tp, self._observed_mhz(report)), report.mean_tbt_s, report.power_w
            )
            for report in self._reports()
            # The profile's steady state is that of a replica that does both phases.
            if report.state is ReplicaState.READY and report.role is Role.COMBINED
        ]
        if correction.look(self._monotonic_s(), self._host.load(self._forecast), ready):
            self._host.ask_at_once()
        factors, apart = correction.factors, correction.disagreements()
        ratios = {"decode": factors.decode, "power": factors.power}
        metrics.correction(str(self.pool), ratios, max(apart.values(), default=0.0))
        if bool(apart) != self._disagreed:
            self._disagreed = bool(apart)
            told = ", ".join(f"{phase} by {ratio:.0%}" for phase, ratio in apart.items())
            why = f"measured times or power disagree: {told}" if apart else "measurements agree with it again"
            log.warning("pool %s: the energy profile: %s", self.pool, why)
            self._log.note("plan with more headroom" if apart else "plan with the profile's own headroom", why)

    def _count_advice(self) -> None:
        """Hold what runs beside what is wished."""
        ready = [report for report in self._reports() if report.state is ReplicaState.READY]
        if self._advice is None or not self._forecast_is_fresh() or any(r.role is not Role.COMBINED for r in ready):
            return
        wished_mhz = self._clocks.wished_mhz()
        running = []
        for report in ready:
            observed_mhz = self._observed_mhz(report)
            wish_mhz = wished_mhz.get(str(report.replica_id), observed_mhz)
            running.append(Running(Shape(report.tp, observed_mhz), report.power_w, wish_mhz))
        wished = {tp: count for (tp, _), (count, _) in self._asked.items()}
        self._advice.look(self._monotonic_s(), self._host.load(self._forecast), running, wished)

    async def _hear_forecast(self) -> None:
        try:
            self._forecast = await self._ask_forecast()
            self._forecast_at_s = self._monotonic_s()
        except PeerAwayError as error:
            log.warning("pool %s: no forecast: %r", self.pool, error)
        if not self._forecast_is_fresh() and self._clocks.wishes():
            self._log.note("full clock for every replica", f"no forecast for {FORECAST_STALE_S:.0f} s")
            self._clocks.let_go()
            self._host.ask_at_once()

    def _forecast_is_fresh(self) -> bool:
        return self._monotonic_s() - self._forecast_at_s <= FORECAST_STALE_S

    def _forget_silent(self) -> None:
        now_s = self._monotonic_s()
        for replica_id in [r for r, seen in self._seen.items() if now_s - seen.at_s > STALE_S]:
            del self._seen[replica_id]
            self._orders.pop(replica_id, None)
            self._clocks.forget(replica_id)

    def _reports(self) -> list[ReplicaReport]:
        return [seen.report for seen in self._seen.values()]

    def _views(self) -> list[ReplicaView]:
        routable_known = self._monotonic_s() - self._routable_at_s < STALE_S
        views = []
        for replica_id, seen in self._seen.items():
            report = seen.report
            leaving = report.state is ReplicaState.READY and routable_known and replica_id not in self._routable
            views.append(
                ReplicaView(
                    replica_id,
                    report.tp,
                    self._observed_mhz(report),
                    ReplicaState.DRAINING if leaving else report.state,
                    report.waiting,
                    report.running,
                    report.oldest_wait_s,
                    report.role,
                    report.kv_used_ratio,
                    report.queued_tokens,
                    report.tightest_slack_s,
                    report.power_w,
                    report.ttft_p99_s,
                    report.tbt_p99_s,
                )
            )
        return views

    def _observed_mhz(self, report: ReplicaReport) -> int:
        """The clock the replica sees; where it cannot see, what its agent says is in force; else full."""
        attainable_mhz = min(
            (self._held_down[uuid].runs_mhz for uuid in report.gpu_uuids if uuid in self._held_down),
            default=self._rules.full_clock_mhz,
        )
        if report.freq_mhz is not None:
            return min(report.freq_mhz, attainable_mhz)
        return self._clocks.in_force_mhz(report.replica_id) or attainable_mhz


def _count_text(action: SetReplicas) -> str:
    return f"{action.replicas} x {_shape_text(action.tp, action.role)}"


def _shape_text(tp: int, role: Role) -> str:
    return f"TP{tp}" if role is Role.COMBINED else f"TP{tp} {role}"
