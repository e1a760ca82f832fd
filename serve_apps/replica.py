"""One model replica on Ray Serve: an engine on its GPUs, an account of itself to its pool's manager, and the policy's
governor where it has one."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from ray import serve

from actors import runtime
from actors.messages import Orders, ReplicaReport
from actors.peers import PeerAwayError
from actors.runtime import Installation, pool_manager_name
from control_plane.domain import PoolName, QueueView, ReplicaId, ReplicaState, Role
from control_plane.ports import Gpu, GpuError
from control_plane.serving.energy_shares import prompt_token_work
from control_plane.serving.policy import Needs
from serve_apps.clock_holds import clock_holder
from serve_apps.control_actors import ControlActors
from serve_apps.engines.factory import make_engine
from serve_apps.engines.protocol import Chunk, EngineStats, GenerateRequest
from serve_apps.governor_host import ClockRange, GovernorHost
from serve_apps.latencies import Latencies
from serve_apps.replica_energy import ReplicaEnergy
from serve_apps.replica_gpus import gpus_given

log = logging.getLogger(__name__)

REPORT_S = 1.0
LAST_DRAIN_S = 1.0
"""Ray Serve has waited for the streams by the time it ends a replica; what is left then is cut off."""


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a replica runs and what it is."""

    replica_id: ReplicaId
    pool: PoolName
    tp: int
    role: Role
    node_id: str
    gpu_uuids: tuple[str, ...]


class _Queue(Protocol):
    def stats(self) -> EngineStats: ...


class ReplicaAccount:
    """What a replica says of itself: counts always, the rest where the policy needs it."""

    def __init__(self, seat: Seat, engine: _Queue, gpus: tuple[Gpu, ...], needs: Needs, latencies: Latencies) -> None:
        self._seat, self._engine, self._gpus = seat, engine, gpus
        self._needs, self._latencies = needs, latencies
        self.state = ReplicaState.STARTING

    def report(self) -> ReplicaReport:
        seat, stats, needs = self._seat, self._engine.stats(), self._needs
        ttft_p99_s, tbt_p99_s = self._latencies.p99() if needs.latencies else (None, None)
        return ReplicaReport(
            seat.replica_id,
            seat.pool,
            seat.tp,
            seat.node_id,
            seat.gpu_uuids,
            self.state,
            stats.waiting,
            stats.running,
            stats.oldest_wait_s,
            seat.role,
            self.freq_mhz(),
            stats.kv_used_ratio if needs.kv_use else None,
            stats.queued_tokens if needs.queued_tokens else None,
            stats.tightest_slack_s if needs.queued_tokens else None,
            self._power_w() if needs.power else None,
            ttft_p99_s,
            tbt_p99_s,
            self._latencies.mean_tbt_s(),
        )

    def freq_mhz(self) -> int | None:
        """The clock of the slowest GPU, which the others wait for; None where a GPU cannot be read, and
        before the engine has any."""
        try:
            return min((gpu.freq_mhz() for gpu in self._gpus), default=None)
        except GpuError as error:
            log.warning("the clock cannot be read: %s", error)
            return None

    def _power_w(self) -> float | None:
        try:
            return sum(gpu.power_w() for gpu in self._gpus)
        except GpuError as error:
            log.warning("the power cannot be read: %s", error)
            return None


class ReplicaReports:
    """Pushes the account every second, so a pool manager that restarted knows the replica again at once, and hands the
    manager's orders on."""

    def __init__(
        self, account: ReplicaAccount, pool: PoolName, actors: ControlActors, governor: GovernorHost | None
    ) -> None:
        self._account, self._actors, self._governor = account, actors, governor
        self._manager = pool_manager_name(pool)
        self._quiet = False

    async def run(self) -> None:
        """For ever. Whatever goes wrong costs one report."""
        while True:
            try:
                await self.report()
            except Exception:
                log.exception("a report failed; the next one follows")
            await asyncio.sleep(REPORT_S)

    async def report(self) -> None:
        try:
            orders: Orders | None = await self._actors.call(self._manager, "report", self._account.report())
            self._quiet = False
        except PeerAwayError as error:
            if not self._quiet:
                log.warning("the pool's manager does not hear this replica: %s", error)
            self._quiet = True
            return
        if self._governor is not None and orders is not None:
            self._governor.order(orders)


class ModelReplica:
    """Its constructor returns when the engine is loaded; until then it reports that it is starting."""

    async def __init__(  # type: ignore[misc]
        self, deployment: Installation, pool: PoolName, tp: int, role: Role = Role.COMBINED
    ) -> None:
        settings, profile = deployment.settings, deployment.profile
        policy, actors = deployment.policy(), ControlActors(runtime.actor)
        given = gpus_given(deployment, tp)
        replica_id = ReplicaId(serve.get_replica_context().replica_id.unique_id)
        self._engine = make_engine(settings, profile, tp, role, given.node, given.indices)
        self._latencies = Latencies(time.monotonic)
        work = prompt_token_work(profile.times(tp).alpha_ps(profile.max_freq_mhz))
        self._energy = ReplicaEnergy(given.gpus, work, time.monotonic)
        seat = Seat(replica_id, pool, tp, role, given.node_id, given.uuids)
        account = ReplicaAccount(seat, self._engine, given.gpus, policy.needs, self._latencies)
        self._governor: GovernorHost | None = None
        governor = policy.governor(pool, tp, role)
        if governor is not None:

            def queue() -> QueueView:
                return self._engine.queue(account.freq_mhz() or profile.max_freq_mhz)

            hold = clock_holder(deployment, given.node_id, replica_id, actors)
            clocks = ClockRange(tuple(profile.freqs_mhz), settings.gpu.lease_ttl_s)
            self._governor = GovernorHost(governor, queue, hold, given.uuids, clocks, time.monotonic)
        reports = ReplicaReports(account, pool, actors, self._governor)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(reports.run())]
        await self._engine.load()
        account.state = ReplicaState.READY
        if self._governor is not None:
            self._tasks.append(loop.create_task(self._governor.run()))

    async def generate(self, request: GenerateRequest, replica_id: str | None = None) -> AsyncGenerator[Chunk, None]:
        """``replica_id`` is for the request router, which has read it by now."""
        del replica_id
        began_s = time.monotonic() - request.waited_s
        first_s: float | None = None
        tokens = 0
        if self._governor is not None:
            self._governor.arrived()
        self._energy.began(request)
        try:
            async with aclosing(self._engine.generate(request)) as chunks:
                async for chunk in chunks:
                    tokens += chunk.tokens
                    if first_s is None and chunk.tokens:
                        first_s = time.monotonic()
                        if self._governor is not None:
                            self._governor.first_token(first_s - began_s, request.ttft_limit_s)
                    self._energy.progressed(request.request_id, chunk.tokens)
                    if chunk.finish_reason is not None:
                        chunk = replace(chunk, energy_j=self._energy.ended(request.request_id))
                    yield chunk
        finally:
            self._energy.ended(request.request_id)
        if first_s is not None:
            mean_tbt_s = (time.monotonic() - first_s) / (tokens - 1) if tokens > 1 else None
            self._latencies.ended(first_s - began_s, mean_tbt_s)

    async def check_health(self) -> None:
        if not self._engine.alive():
            raise RuntimeError(f"the engine has ended: {self._engine.failure()!r}")

    async def __del__(self) -> None:
        """Ray Serve awaits it when the replica has drained."""
        await self.end()

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        if not await self._engine.drain(LAST_DRAIN_S):
            log.warning("streams are cut off: they did not end while the replica drained")
        await self._engine.shutdown()
