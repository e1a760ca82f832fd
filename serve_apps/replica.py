"""One model replica on Ray Serve: an engine on its GPUs, and an account of itself to its pool's manager."""

import asyncio
import logging
from collections.abc import AsyncIterator

import ray
from ray import serve

from actors.gpu.drivers import open_charged
from actors.messages import ReplicaReport
from actors.runtime import Deployment, actor, pool_manager_name, run_folder
from control_plane.domain import PoolName, ReplicaId, ReplicaState
from serve_apps.engines.protocol import Chunk, GenerateRequest
from serve_apps.engines.simulated import SimulatedEngine

log = logging.getLogger(__name__)

REPORT_S = 1.0


class ModelReplica:
    """Runs the engine; pushes a report every second, so a pool manager that restarted knows it again at once."""

    async def __init__(self, deployment: Deployment, pool: PoolName, tp: int) -> None:  # type: ignore[misc]
        settings, profile = deployment.settings, deployment.profile
        context = ray.get_runtime_context()
        indices = [int(index) for index in context.get_accelerator_ids()["GPU"]]
        if len(indices) != tp:
            raise RuntimeError(f"TP{tp} needs {tp} GPUs, Ray gave {indices}")
        self._pool, self._tp = pool, tp
        self._node_id = context.get_node_id()
        self._replica_id = ReplicaId(serve.get_replica_context().replica_id.unique_id)
        if not settings.serve.warm_start:
            await asyncio.sleep(settings.sharding.startup_s)
        node = open_charged(settings.gpu.driver, run_folder(deployment.run_dir), self._node_id)
        self._uuids = tuple(node.uuid_of(index) for index in indices)
        self._engine = SimulatedEngine(
            profile.times(tp), profile.limits(tp), node, indices, settings.serve.stream_interval_s
        )
        self._reporting = asyncio.get_running_loop().create_task(self._report_forever())

    async def generate(self, request: GenerateRequest, replica_id: str | None = None) -> AsyncIterator[Chunk]:
        """``replica_id`` is for the request router, which has read it by now."""
        del replica_id
        async for chunk in self._engine.generate(request):
            yield chunk

    async def check_health(self) -> None:
        if not self._engine.alive():
            raise RuntimeError("the engine's loop has ended")

    async def __del__(self) -> None:
        self._reporting.cancel()
        await self._engine.shutdown()

    async def _report_forever(self) -> None:
        quiet = False
        while True:
            stats = self._engine.stats()
            report = ReplicaReport(
                self._replica_id,
                self._pool,
                self._tp,
                self._node_id,
                self._uuids,
                ReplicaState.READY,
                stats.waiting,
                stats.running,
                stats.oldest_wait_s,
            )
            try:
                await asyncio.wait_for(actor(pool_manager_name(self._pool)).report.remote(report), 2.0)
                quiet = False
            except (ValueError, ray.exceptions.RayError, TimeoutError) as error:
                if not quiet:
                    log.warning("the manager of pool %s does not hear this replica: %s", self._pool, error)
                quiet = True
            await asyncio.sleep(REPORT_S)
