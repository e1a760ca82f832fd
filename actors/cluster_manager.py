"""The cluster's manager: shares the GPUs among the pools, and answers for the whole control plane."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

from actors import metrics
from actors.decision_log import DecisionLog
from actors.messages import ControlPlaneStatus, Decision, GpuReading, PoolStatus, TenantUsage
from actors.peers import PeerAwayError
from actors.usage_book import UsageBook
from control_plane.actions import SetGpuBudget
from control_plane.domain import PoolName
from control_plane.serving.hosting import ClusterHost
from control_plane.serving.load_forecast import Forecast
from control_plane.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ClusterPorts:
    """What the manager needs of other actors; every call may raise PeerAwayError.

    ``forecast`` has the past on a clock that is 0 now. ``serving_gpus`` says how many GPUs are there for serving now,
    and sees to it that every node has its agent; ``gpu_readings`` also names the agents that did not answer.
    """

    forecast: Callable[[], Awaitable[Forecast]]
    set_budget: Callable[[PoolName, int], Awaitable[None]]
    pool_status: Callable[[PoolName], Awaitable[PoolStatus]]
    pool_decisions: Callable[[PoolName, int], Awaitable[tuple[Decision, ...]]]
    gpu_readings: Callable[[], Awaitable[tuple[tuple[GpuReading, ...], tuple[str, ...]]]]
    serving_gpus: Callable[[], Awaitable[int]]


class ClusterManager:
    """Every tick it repeats the budgets to the pool managers, so that one which restarted has its own again; one that
    restarts itself asks them for theirs first."""

    def __init__(
        self,
        settings: Settings,
        new_host: Callable[[Mapping[PoolName, int]], ClusterHost],
        pools: tuple[PoolName, ...],
        ports: ClusterPorts,
        monotonic_s: Callable[[], float],
        epoch_s: Callable[[], float],
        usage: UsageBook | None = None,
    ) -> None:
        """``new_host`` builds the policy's host from the budgets that are in force."""
        self.tick_s = settings.cadence.frequency_s
        self._settings, self._new_host, self._pools, self._ports = settings, new_host, pools, ports
        self._monotonic_s = monotonic_s
        self._log = DecisionLog("cluster_manager", "cluster", epoch_s)
        self._host: ClusterHost | None = None
        self._gpus = settings.serving_gpus
        self._usage = usage or UsageBook(None, monotonic_s)

    def settings(self) -> Settings:
        return self._settings

    async def status(self) -> ControlPlaneStatus:
        """What answers; those that do not are named."""
        pools, missing = await self._of_every_pool(self._ports.pool_status)
        try:
            gpus, away = await self._ports.gpu_readings()
        except PeerAwayError as error:
            log.warning("no GPU readings: %r", error)
            gpus, away = (), ("gpu agents",)
        return ControlPlaneStatus(
            _installed_version(),
            self._settings.gpu.control,
            tuple(pools.values()),
            gpus,
            sum(reading.energy_j for reading in gpus),
            sum(reading.power_w for reading in gpus),
            (*missing, *away),
        )

    async def explain(self, last: int = 50) -> tuple[Decision, ...]:
        """The last decisions of every manager that answers, oldest first."""

        async def decisions(pool: PoolName) -> tuple[Decision, ...]:
            return await self._ports.pool_decisions(pool, last)

        pools, _ = await self._of_every_pool(decisions)
        merged = [decision for noted in pools.values() for decision in noted] + list(self._log.last(last))
        return tuple(sorted(merged, key=lambda decision: decision.at_s)[-last:]) if last > 0 else ()

    async def used(self, router: str, by_tenant: dict[str, TenantUsage]) -> None:
        """All that was used through a router since it started."""
        self._usage.used(router, by_tenant)

    async def usage(self) -> dict[str, TenantUsage]:
        """By tenant, since the control plane came up."""
        return self._usage.by_tenant()

    async def tick(self) -> None:
        if self._host is None:
            self._host = self._new_host(await self._budgets_in_force())
        await self._count_gpus()
        metrics.cluster(self._gpus + self._settings.training.gpus, self._settings.gpu.control)
        if self._host.due(self._monotonic_s(), self._gpus):
            await self._plan(self._host)
        budgets = dict(self._host.budgets)
        answers = await asyncio.gather(
            *(self._ports.set_budget(pool, gpus) for pool, gpus in budgets.items()), return_exceptions=True
        )
        for pool, answer in zip(budgets, answers, strict=True):
            if isinstance(answer, BaseException):
                log.warning("pool manager %s does not take its budget: %r", pool, answer)

    async def _plan(self, host: ClusterHost) -> None:
        """Plan with the forecast; without one the budgets stay, and the next tick asks again."""
        try:
            forecast = await self._ports.forecast()
        except PeerAwayError as error:
            log.warning("no forecast, the budgets stay: %r", error)
            return
        now_s = self._monotonic_s()
        forecast = replace(forecast, recent=forecast.recent.later(now_s))
        for action in host.step(now_s, self._gpus, forecast).actions:
            if not isinstance(action, SetGpuBudget):
                raise ValueError(f"the cluster's controller may only set budgets, not {action}")
            self._log.note(f"{action.pool}: {action.gpus} GPUs", action.why)

    async def _count_gpus(self) -> None:
        try:
            self._gpus = await self._ports.serving_gpus()
        except PeerAwayError as error:
            log.warning("the nodes could not be counted, still %d GPUs: %r", self._gpus, error)

    async def _budgets_in_force(self) -> dict[PoolName, int]:
        pools, _ = await self._of_every_pool(self._ports.pool_status)
        return {pool: status.gpu_budget for pool, status in pools.items() if status.gpu_budget is not None}

    async def _of_every_pool(
        self, ask: Callable[[PoolName], Awaitable[T]]
    ) -> tuple[dict[PoolName, T], tuple[str, ...]]:
        answers = await asyncio.gather(*(ask(pool) for pool in self._pools), return_exceptions=True)
        given: dict[PoolName, T] = {}
        missing = []
        for pool, answer in zip(self._pools, answers, strict=True):
            if isinstance(answer, BaseException):
                log.warning("the manager of pool %s does not answer: %r", pool, answer)
                missing.append(f"pool_manager:{pool}")
            else:
                given[pool] = answer
        return given, tuple(missing)


def _installed_version() -> str:
    try:
        return version("wattray")
    except PackageNotFoundError:
        return "not installed"
