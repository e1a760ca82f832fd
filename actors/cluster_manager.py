"""The cluster's manager: shares the GPUs among the pools, and answers for the whole control plane."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import PackageNotFoundError, version

from actors import metrics
from actors.messages import ControlPlaneStatus, Decision, Forecast, GpuReading, PoolStatus
from control_plane.actions import SetGpuBudget
from control_plane.domain import ClusterSnapshot, Load, PoolName
from control_plane.serving.controller import ClusterController
from control_plane.settings import Settings

log = logging.getLogger(__name__)


class ClusterManager:
    """Every tick it repeats the budgets to the pool managers, so that one which restarted has its own again."""

    def __init__(
        self,
        settings: Settings,
        controller: ClusterController,
        budgets: Mapping[PoolName, int],
        forecast: Callable[[], Awaitable[Forecast]],
        set_budget: Callable[[PoolName, int], Awaitable[None]],
        pool_status: Callable[[PoolName], Awaitable[PoolStatus]],
        pool_decisions: Callable[[PoolName, int], Awaitable[tuple[Decision, ...]]],
        gpu_readings: Callable[[], Awaitable[tuple[GpuReading, ...]]],
        monotonic_s: Callable[[], float],
        epoch_s: Callable[[], float],
    ) -> None:
        self.tick_s = settings.cadence.frequency_s
        self._settings, self._controller = settings, controller
        self._budgets = dict(budgets)
        self._forecast, self._set_budget = forecast, set_budget
        self._pool_status, self._pool_decisions, self._gpu_readings = pool_status, pool_decisions, gpu_readings
        self._monotonic_s, self._epoch_s = monotonic_s, epoch_s
        self._next_plan_s = monotonic_s() + settings.cadence.cluster_s
        self._decisions: deque[Decision] = deque(maxlen=1000)

    def settings(self) -> Settings:
        return self._settings

    async def status(self) -> ControlPlaneStatus:
        pools, gpus = await asyncio.gather(
            asyncio.gather(*(self._pool_status(pool.pool) for pool in self._settings.pools)), self._gpu_readings()
        )
        try:
            installed = version("wattray")
        except PackageNotFoundError:
            installed = "not installed"
        return ControlPlaneStatus(
            installed,
            self._settings.gpu.control,
            tuple(pools),
            gpus,
            sum(reading.energy_j for reading in gpus),
            sum(reading.power_w for reading in gpus),
        )

    async def explain(self, last: int = 50) -> tuple[Decision, ...]:
        """The last decisions of every manager, oldest first."""
        pools = await asyncio.gather(*(self._pool_decisions(pool.pool, last) for pool in self._settings.pools))
        merged = [decision for decisions in pools for decision in decisions] + list(self._decisions)
        return tuple(sorted(merged, key=lambda decision: decision.at_s)[-last:])

    async def tick(self) -> None:
        now_s = self._monotonic_s()
        if now_s >= self._next_plan_s:
            upper = (await self._forecast()).upper
            forecast = {pool.pool: upper.only(pool.input_classes) for pool in self._settings.pools}
            self._next_plan_s = self._plan(now_s, forecast)
        answers = await asyncio.gather(
            *(self._set_budget(pool, gpus) for pool, gpus in self._budgets.items()), return_exceptions=True
        )
        for pool, answer in zip(self._budgets, answers, strict=True):
            if isinstance(answer, BaseException):
                log.warning("pool manager %s does not take its budget: %r", pool, answer)

    def _plan(self, now_s: float, forecast: Mapping[PoolName, Load]) -> float:
        seen = ClusterSnapshot(now_s, self._settings.serving_gpus, forecast, self._budgets)
        step = self._controller.step(seen)
        for action in step.actions:
            if isinstance(action, SetGpuBudget):
                self._budgets[action.pool] = action.gpus
                text = f"{action.pool}: {action.gpus} GPUs"
                number = len(self._decisions) + 1
                self._decisions.append(
                    Decision(f"cluster-{number}", self._epoch_s(), "cluster_manager", text, action.why)
                )
                metrics.decision("cluster_manager")
        return step.wake_at_s
