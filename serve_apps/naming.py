"""Names of the Ray Serve applications: one per pool and tensor parallelism, and the router."""

from control_plane.domain import PoolName

REPLICA_DEPLOYMENT = "ModelReplica"
ROUTER_APP = "router"


def pool_app(pool: PoolName, tp: int) -> str:
    return f"{pool}-tp{tp}"
