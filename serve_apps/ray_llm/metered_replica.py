"""One ray.serve.llm replica under wattray: every request metered, the replica reported to its pool's manager, its clock
moved by the policy's governor. The engine is seen only through what it answers."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from actors import runtime
from actors.runtime import Installation
from control_plane.domain import PoolName, QueueView, ReplicaId, ReplicaState, Role
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.serving.energy_shares import prompt_token_work
from control_plane.serving.hosting import RouterHost
from control_plane.serving.policy import Needs, RoutedRequest
from serve_apps.clock_holds import clock_holder
from serve_apps.control_actors import ControlActors
from serve_apps.engines.protocol import GenerateRequest
from serve_apps.governor_host import ClockRange, GovernorHost
from serve_apps.latencies import Latencies
from serve_apps.ray_llm.llm_messages import tokens_of, usage_of, with_usage
from serve_apps.ray_llm.open_requests import OpenRequests, Pace
from serve_apps.replica import ReplicaAccount, ReplicaReports, Seat
from serve_apps.replica_directory import ReplicaDirectory
from serve_apps.replica_energy import LOOK_S, ReplicaEnergy
from serve_apps.replica_gpus import ReplicaGpus
from serve_apps.reporting import RouterReports
from serve_apps.usage_ledger import UsageLedger, Used

log = logging.getLogger(__name__)


@asynccontextmanager
async def reported_as_starting(
    deployment: Installation, pool: PoolName, tp: int, replica_id: ReplicaId, node_id: str
) -> AsyncIterator[None]:
    """The pool's manager is told of the replica while its engine starts inside."""
    seat = Seat(replica_id, pool, tp, Role.COMBINED, node_id, ())
    queue = OpenRequests(tp, deployment.profile.limits(tp).kv_tokens, Pace(0.0, 0.0, 1.0), time.monotonic)
    account = ReplicaAccount(seat, queue, (), Needs(), Latencies(time.monotonic))
    reports = ReplicaReports(account, pool, ControlActors(runtime.actor), None)
    task = asyncio.get_running_loop().create_task(reports.run())
    try:
        yield
    finally:
        task.cancel()


class MeteredReplica:
    """Made in the replica's event loop once its engine runs."""

    def __init__(
        self, deployment: Installation, pool: PoolName, tp: int, replica_id: ReplicaId, given: ReplicaGpus
    ) -> None:
        settings, profile, policy = deployment.settings, deployment.profile, deployment.policy()
        actors, times, top_mhz = ControlActors(runtime.actor), profile.times(tp), profile.max_freq_mhz
        token_s, base_s = times.token_ps[top_mhz] / PS_PER_S, times.base_ps[top_mhz] / PS_PER_S
        self._open = OpenRequests(tp, profile.limits(tp).kv_tokens, Pace(token_s, base_s, base_s), time.monotonic)
        self._latencies = Latencies(time.monotonic)
        self._energy = ReplicaEnergy(given.gpus, prompt_token_work(times.alpha_ps(top_mhz)), time.monotonic)
        self._host, self._ledger = RouterHost(policy, slo=settings.slo.slo()), UsageLedger()
        seat = Seat(replica_id, pool, tp, Role.COMBINED, given.node_id, given.uuids)
        account = ReplicaAccount(seat, self._open, given.gpus, policy.needs, self._latencies)
        account.state = ReplicaState.READY
        governor = policy.governor(pool, tp, Role.COMBINED)
        self._governor: GovernorHost | None = None
        if governor is not None:

            def queue() -> QueueView:
                return self._open.queue(account.freq_mhz() or top_mhz)

            hold = clock_holder(deployment, given.node_id, replica_id, actors)
            clocks = ClockRange(tuple(profile.freqs_mhz), settings.gpu.lease_ttl_s)
            self._governor = GovernorHost(governor, queue, hold, given.uuids, clocks, time.monotonic)
        loops = [
            ReplicaReports(account, pool, actors, self._governor).run(),
            RouterReports(self._host, ReplicaDirectory({}), actors, self._ledger).run(),
            self._follow_silent(),
            *(() if self._governor is None else (self._governor.run(),)),
        ]
        self._tasks = [asyncio.get_running_loop().create_task(each) for each in loops]

    async def metered(
        self, request: GenerateRequest, items: AsyncGenerator[Any, None], *, streams: bool, arrived: bool
    ) -> AsyncGenerator[Any, None]:
        """The engine's answer as it comes, with energy and tenant in its usage. ``arrived``: nobody has told the
        forecaster of this request yet."""
        key, began_s = request.request_id, time.monotonic()
        input_tokens, tokens, energy_j, first_s = request.input_tokens, 0, None, None
        if arrived:
            self._host.admit(began_s, RoutedRequest(key, request.input_tokens, request.max_tokens, request.own_limits))
        self._open.began(request, streams)
        self._energy.began(request)
        if self._governor is not None:
            self._governor.arrived()
        try:
            async with aclosing(items):
                async for item in items:
                    fresh = tokens_of(item)
                    tokens += fresh
                    if streams and fresh:
                        first_s = first_s or time.monotonic()
                        self._progressed(key, fresh)
                    used = usage_of(item)
                    if used is not None:
                        input_tokens, tokens = used
                        energy_j = self._energy.ended(key) if energy_j is None else energy_j
                        told = None if energy_j is None else round(energy_j, 3)
                        item = with_usage(item, {"energy_j": told, "tenant": request.tenant})
                    yield item
        finally:
            self._open.ended(key)
            energy_j = self._energy.ended(key) if energy_j is None else energy_j
            self._ledger.add(Used(request.tenant, input_tokens, tokens, energy_j))
        if first_s is not None:
            mean_tbt_s = (time.monotonic() - first_s) / (tokens - 1) if tokens > 1 else None
            self._latencies.ended(first_s - began_s, mean_tbt_s)

    def check_health(self) -> None:
        """Raises RuntimeError where the replica reports nothing any more: Serve replaces it then."""
        if any(task.done() for task in self._tasks):
            raise RuntimeError("a loop of the replica's reports has ended")

    def end(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _progressed(self, key: str, tokens: float) -> None:
        self._open.progressed(key, tokens)
        self._energy.progressed(key, tokens)

    async def _follow_silent(self) -> None:
        while True:
            for key, tokens in self._open.silent_progress().items():
                self._energy.progressed(key, tokens)
            self._energy.look()
            await asyncio.sleep(LOOK_S)
