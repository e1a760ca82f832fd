"""The control plane of the Ray that a worker belongs to, as a place for a user's rank (see ``planes``)."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.training_messages import job_of_owner
from train_jobs.schedule_lease import ScheduleLease

if TYPE_CHECKING:
    from actors.training_messages import TrainingSite
    from train_jobs.planes import Call, RankGpu


def belongs_to_ray() -> bool:
    """Whether this process is a worker or a driver of a Ray; Ray is not imported to find out."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@dataclass(frozen=True, slots=True)
class RayPlane:
    """``site`` is where training runs."""

    site: "TrainingSite"

    @classmethod
    def find(cls) -> "RayPlane | None":
        """None where this Ray has no planner."""
        from train_jobs.job import NoPlannerError
        from train_jobs.training_run import training_site

        try:
            return cls(training_site())
        except NoPlannerError:
            return None

    @property
    def has_real_gpus(self) -> bool:
        return self.site.driver != "simulated"

    def claim(self, owner: str, ranks: int) -> tuple[str, ...]:
        from train_jobs.on_ray import claim_gpus

        return claim_gpus(job_of_owner(owner) or owner, owner, ranks, f"{ranks} ranks", self.site)

    def open(self, owner: str, uuid: str) -> "RankGpu":
        from actors.gpu.drivers import open_charged
        from actors.gpu.simulated import SimulatedNode
        from actors.runtime import run_folder
        from train_jobs.charged_gpu import ChargedGpu
        from train_jobs.on_ray import release_at_agent, renew_at_agent
        from train_jobs.planes import RankGpu

        site = self.site
        if self.has_real_gpus:
            return self._open_real(owner, uuid)
        node = open_charged(site.driver, run_folder(site.run_dir), site.node_id, owner)
        lease = ScheduleLease(renew_at_agent(site.node_id, owner, [uuid], site.lease_ttl_s), site.lease_ttl_s)
        charged = ChargedGpu(node, node.index_of(uuid))

        def release() -> None:
            charged.close()
            release_at_agent(site.node_id, owner, [uuid])

        return RankGpu(uuid, charged, lease, not isinstance(node, SimulatedNode), release)

    def _open_real(self, owner: str, uuid: str) -> "RankGpu":
        """On a real GPU the agent gives the lease and gpud sets the clock."""
        from actors.gpu.drivers import gpud_of
        from actors.runtime import run_folder
        from train_jobs.claims import WAIT_MORE_S, claim
        from train_jobs.on_ray import AgentLeases, release_at_agent, renew_at_agent
        from train_jobs.planes import GpudClock, RankGpu

        site = self.site
        claim(owner, 1, (uuid,), AgentLeases(site), site.lease_ttl_s + WAIT_MORE_S)
        lease = ScheduleLease(renew_at_agent(site.node_id, owner, [uuid], site.lease_ttl_s), site.lease_ttl_s)
        client = gpud_of(run_folder(site.run_dir), site.node_id)
        control = None
        if client is not None:
            control = GpudClock(client, owner, uuid, client.read(max_age_s=3600.0)["gpus"])
        return RankGpu(uuid, None, lease, True, lambda: release_at_agent(site.node_id, owner, [uuid]), control)

    def planner(self) -> "tuple[Call, Callable[[], None]]":
        from train_jobs.on_ray import call_planner

        return call_planner, lambda: None
