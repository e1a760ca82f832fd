"""How a replica's governor has clocks held: by the node's gpud where it acts on one, else by the node's agent."""

from collections.abc import Mapping

from actors.gpu.drivers import gpud_of
from actors.gpu.scheduled_gpus import ScheduledGpus
from actors.runtime import Installation, gpu_agent_name, run_folder
from control_plane.domain import ReplicaId
from control_plane.leases import Hold
from serve_apps import governor_host
from serve_apps.control_actors import ControlActors


def clock_holder(
    deployment: Installation, node_id: str, replica_id: ReplicaId, actors: ControlActors
) -> governor_host.Hold:
    owner, gpud = f"governor:{replica_id}", gpud_of(run_folder(deployment.run_dir), node_id)
    scheduled = None if gpud is None or deployment.settings.gpu.control != "act" else ScheduledGpus(gpud, owner)

    async def hold(clocks: Mapping[str, int], ttl_s: float) -> None:
        if scheduled is not None:
            await scheduled.hold(clocks, ttl_s)
            return
        holds = {uuid: Hold(freq_mhz) for uuid, freq_mhz in clocks.items()}
        await actors.call(gpu_agent_name(node_id), "hold", owner, holds, ttl_s)

    return hold
