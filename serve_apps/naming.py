"""Names of the Ray Serve applications: one per pool and tensor parallelism, and the router."""

from collections.abc import Iterable

from control_plane.domain import PoolName
from control_plane.settings import Settings

REPLICA_DEPLOYMENT = "ModelReplica"
ROUTER_APP = "router"


def pool_app(pool: PoolName, tp: int) -> str:
    return f"{pool}-tp{tp}"


def app_names(settings: Settings, tps: Iterable[int]) -> set[str]:
    """Every application that a control plane with these settings may deploy."""
    return {ROUTER_APP} | {pool_app(pool.pool, tp) for pool in settings.pools for tp in tps}
