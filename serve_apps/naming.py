"""Names of the Ray Serve applications: one per pool, role and tensor parallelism, and the router."""

from control_plane.domain import PoolName, Role

REPLICA_DEPLOYMENT = "ModelReplica"
ROUTER_APP = "router"


def pool_app(pool: PoolName, tp: int, role: Role = Role.COMBINED) -> str:
    return f"{pool}-tp{tp}" if role is Role.COMBINED else f"{pool}-{role}-tp{tp}"
