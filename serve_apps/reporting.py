"""What the router tells the control actors every second: arrivals to the load forecaster, routable replicas to the pool
managers. No request waits for it, and nothing ends it."""

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable

from actors.messages import TenantUsage
from actors.peers import PeerAwayError
from actors.runtime import CLUSTER_MANAGER, LOAD_FORECASTER, pool_manager_name
from control_plane.domain import PoolName, ReplicaId
from control_plane.serving.arrival_log import Answers
from control_plane.serving.hosting import RouterHost
from control_plane.serving.load_forecast import Arrival
from serve_apps.control_actors import CallFailedError, ControlActors
from serve_apps.replica_directory import ReplicaDirectory
from serve_apps.usage_ledger import UsageLedger

log = logging.getLogger(__name__)

REPORT_S = 1.0
ARRIVALS_KEPT = 20_000
"""Arrivals kept for a forecaster that is away; of more the oldest are dropped. Ten minutes of 33 requests a second."""


class RouterReports:
    """Arrivals that the forecaster did not get are sent again with the next report."""

    def __init__(
        self,
        host: RouterHost,
        directory: ReplicaDirectory,
        actors: ControlActors,
        ledger: UsageLedger,
        clock_s: Callable[[], float] = time.monotonic,
        kept: int = ARRIVALS_KEPT,
    ) -> None:
        self._host, self._directory, self._actors, self._clock_s = host, directory, actors, clock_s
        self._ledger, self._epoch = ledger, uuid.uuid4().hex
        self._told_usage: dict[str, TenantUsage] = {}
        self._arrivals: deque[Arrival] = deque(maxlen=kept)
        self._answers = Answers()
        self._away: set[str] = set()

    async def run(self) -> None:
        """For ever. Whatever goes wrong costs one report."""
        while True:
            try:
                await self.report()
            except Exception:
                log.exception("a report failed; the next one follows")
            await asyncio.sleep(REPORT_S)

    async def report(self) -> None:
        by_pool = self._directory.by_pool()
        self._host.forget(replica_id for ids in by_pool.values() for replica_id in ids)
        self._arrivals.extend(self._host.take_arrivals())
        self._answers += self._host.take_answers()
        await asyncio.gather(
            self._tell_arrivals(),
            self._tell_answers(),
            self._tell_usage(),
            *(self._tell_routable(pool, ids) for pool, ids in by_pool.items()),
        )

    async def _tell_arrivals(self) -> None:
        if not self._arrivals:
            return
        sent, now_s = list(self._arrivals), self._clock_s()
        self._arrivals.clear()
        aged = [(now_s - arrival.at_s, arrival.input_tokens, arrival.expected_output_tokens) for arrival in sent]
        try:
            await self._actors.call(LOAD_FORECASTER, "observe", aged)
            self._heard(LOAD_FORECASTER)
        except CallFailedError as error:
            if not error.delivered:
                kept = [*sent, *self._arrivals]
                self._arrivals.clear()
                self._arrivals.extend(kept)
            self._not_heard(LOAD_FORECASTER, error)

    async def _tell_answers(self) -> None:
        sent, self._answers = self._answers, Answers()
        if sent == Answers():
            return
        try:
            await self._actors.call(LOAD_FORECASTER, "answered", sent)
        except CallFailedError as error:
            if not error.delivered:
                self._answers = sent + self._answers
            self._not_heard(LOAD_FORECASTER, error)

    async def _tell_usage(self) -> None:
        """All that was used since this router started, so that a manager which restarted misses nothing."""
        used = self._ledger.by_tenant()
        if used == self._told_usage:
            return
        try:
            await self._actors.call(CLUSTER_MANAGER, "used", self._epoch, used)
            self._told_usage = used
            self._heard(CLUSTER_MANAGER)
        except PeerAwayError as error:
            self._not_heard(CLUSTER_MANAGER, error)

    async def _tell_routable(self, pool: PoolName, ids: frozenset[ReplicaId]) -> None:
        name = pool_manager_name(pool)
        try:
            await self._actors.call(name, "set_routable", ids)
            self._heard(name)
        except PeerAwayError as error:
            self._not_heard(name, error)

    def _heard(self, name: str) -> None:
        if name in self._away:
            log.info("%s answers again", name)
            self._away.discard(name)

    def _not_heard(self, name: str, error: Exception) -> None:
        """Say it once, not every second."""
        if name not in self._away:
            log.warning("%s; requests go on", error)
            self._away.add(name)
