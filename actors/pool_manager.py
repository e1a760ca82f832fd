"""One pool's manager: sees its replicas, asks the pool's controller, acts on Ray Serve and the GPU agents.

It holds no state that its replicas, the cluster manager and the next second would not give back after a restart.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from actors import metrics
from actors.messages import Decision, Forecast, PoolStatus, ReplicaReport
from control_plane.actions import SetFrequency, SetReplicas
from control_plane.domain import Load, PoolName, PoolSnapshot, ReplicaId, ReplicaState, ReplicaView
from control_plane.serving.controller import PoolController

log = logging.getLogger(__name__)

STALE_S = 6.0
"""A replica silent for this long is not counted any more."""

REPEAT_S = 15.0
"""An unchanged replica count is asked for again after this long."""

HoldClocks = Callable[[str, str, Mapping[str, int], float], Awaitable[Mapping[str, int]]]
"""(node id, owner, clocks by UUID, TTL in seconds) → clocks in force."""
SetCount = Callable[[PoolName, int, int], Awaitable[None]]
"""(pool, tp, replicas): how many should run."""


@dataclass(slots=True)
class _Seen:
    report: ReplicaReport
    at_s: float


class PoolManager:
    """Ports are functions, so the same class runs on Ray and in a plain test."""

    def __init__(
        self,
        pool: PoolName,
        controller: PoolController,
        gpu_budget: int,
        lease_ttl_s: float,
        tick_s: float,
        forecast: Callable[[], Awaitable[Forecast]],
        hold_clocks: HoldClocks,
        set_count: SetCount,
        monotonic_s: Callable[[], float],
        epoch_s: Callable[[], float],
    ) -> None:
        self.pool = pool
        self.tick_s = tick_s
        self._controller = controller
        self._gpu_budget = gpu_budget
        self._lease_ttl_s = lease_ttl_s
        self._forecast, self._hold_clocks, self._set_count = forecast, hold_clocks, set_count
        self._monotonic_s, self._epoch_s = monotonic_s, epoch_s
        self._seen: dict[ReplicaId, _Seen] = {}
        self._clocks_mhz: dict[ReplicaId, int] = {}
        self._asked: dict[int, tuple[int, float]] = {}
        self._pending: dict[int, asyncio.Future[None]] = {}
        self._decisions: deque[Decision] = deque(maxlen=1000)
        self._decided = 0
        self._load = Forecast(Load(), Load())
        self._routable: frozenset[ReplicaId] = frozenset()
        self._routable_at_s = float("-inf")
        self._paused = False

    # what others tell it

    def report(self, replica: ReplicaReport) -> None:
        """A replica's account of itself, every second."""
        self._seen[replica.replica_id] = _Seen(replica, self._monotonic_s())

    def set_routable(self, replica_ids: frozenset[ReplicaId]) -> None:
        """From the router, every second: the replicas Ray Serve still sends requests to. The others drain."""
        self._routable, self._routable_at_s = replica_ids, self._monotonic_s()

    def set_gpu_budget(self, gpus: int) -> None:
        self._gpu_budget = gpus

    def pause(self) -> None:
        """Take no more actions: the control plane is going down."""
        self._paused = True

    # what it tells others

    def status(self) -> PoolStatus:
        plan = self._controller.plan
        return PoolStatus(
            self.pool,
            self._gpu_budget,
            tuple(seen.report for seen in self._seen.values()),
            {str(replica_id): freq for replica_id, freq in self._clocks_mhz.items()},
            self._load.reactive.only(self._controller.input_classes).rps,
            "none yet" if plan is None else f"{plan.replicas} x {plan.shape}",
        )

    def decisions(self, last: int = 50) -> tuple[Decision, ...]:
        return tuple(self._decisions)[-last:]

    # the loop

    async def tick(self) -> None:
        if self._paused:
            return
        self._load = await self._forecast()
        step = self._controller.step(self._snapshot())
        counts = [action for action in step.actions if isinstance(action, SetReplicas)]
        for action in step.actions:
            if isinstance(action, SetFrequency):
                self._clocks_mhz[action.replica_id] = action.freq_mhz
                self._note(f"{action.replica_id} → {action.freq_mhz} MHz", action.why)
        for count in counts:
            self._ask_for(count)
        await self._renew_clocks()
        metrics.pool(self.status())

    def _ask_for(self, action: SetReplicas) -> None:
        """Ray Serve takes seconds to follow: an unchanged wish is repeated only after a while, and nobody waits."""
        asked = self._asked.get(action.tp)
        now_s = self._monotonic_s()
        pending = self._pending.get(action.tp)
        if pending is not None and not pending.done():
            return
        if asked is not None and asked[0] == action.replicas and now_s - asked[1] < REPEAT_S:
            return
        if asked is None or asked[0] != action.replicas:
            self._note(f"{action.replicas} x TP{action.tp}", action.why)
        self._asked[action.tp] = (action.replicas, now_s)
        task = asyncio.ensure_future(self._set_count(self.pool, action.tp, action.replicas))
        task.add_done_callback(self._count_set)
        self._pending[action.tp] = task

    def _count_set(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("pool %s: Ray Serve did not take a replica count: %r", self.pool, task.exception())

    async def _renew_clocks(self) -> None:
        """Send every clock of the pool to its node's agent again: that renews the leases."""
        by_node: dict[str, dict[str, int]] = {}
        for replica_id, seen in self._seen.items():
            freq_mhz = self._clocks_mhz.get(replica_id)
            clocks = by_node.setdefault(seen.report.node_id, {})
            if freq_mhz is not None and seen.report.state is ReplicaState.READY:
                clocks.update(dict.fromkeys(seen.report.gpu_uuids, freq_mhz))
        owner = f"pool_manager:{self.pool}"
        nodes = list(by_node.items())
        answers = await asyncio.gather(
            *(self._hold_clocks(node, owner, clocks, self._lease_ttl_s) for node, clocks in nodes),
            return_exceptions=True,
        )
        for (node, _), answer in zip(nodes, answers, strict=True):
            if isinstance(answer, BaseException):
                log.warning("pool %s: the agent of node %s does not answer: %r", self.pool, node, answer)

    def _snapshot(self) -> PoolSnapshot:
        now_s = self._monotonic_s()
        for replica_id in [r for r, seen in self._seen.items() if now_s - seen.at_s > STALE_S]:
            del self._seen[replica_id]
            self._clocks_mhz.pop(replica_id, None)
        routable_known = now_s - self._routable_at_s < STALE_S
        draining = ReplicaState.DRAINING
        views = []
        for replica_id, seen in self._seen.items():
            report = seen.report
            freq_mhz = self._clocks_mhz.get(replica_id, self._controller.full_clock_mhz)
            views.append(
                ReplicaView(
                    replica_id,
                    report.tp,
                    freq_mhz,
                    draining if routable_known and replica_id not in self._routable else report.state,
                    report.waiting,
                    report.running,
                    report.oldest_wait_s,
                )
            )
        classes = self._controller.input_classes
        return PoolSnapshot(
            now_s,
            self.pool,
            self._gpu_budget,
            self._load.reactive.only(classes),
            self._load.upper.only(classes),
            tuple(views),
        )

    def _note(self, action: str, why: str) -> None:
        self._decided += 1
        source = f"pool_manager:{self.pool}"
        self._decisions.append(Decision(f"{self.pool}-{self._decided}", self._epoch_s(), source, action, why))
        metrics.decision(source)
