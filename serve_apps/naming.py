"""Names of the Ray Serve applications: one per pool, role and tensor parallelism, and the router."""

from collections.abc import Iterable

from control_plane.domain import PoolName, Role
from control_plane.settings import Settings

REPLICA_DEPLOYMENT = "ModelReplica"
ROUTER_APP = "router"
PROXY_ENVIRONMENT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_apps.proxy_shield.middlewares"}
"""What a Ray head needs in its environment so that Serve's HTTP proxy loads ``proxy_shield``."""


def pool_app(pool: PoolName, tp: int, role: Role = Role.COMBINED) -> str:
    return f"{pool}-tp{tp}" if role is Role.COMBINED else f"{pool}-{role}-tp{tp}"


def app_names(settings: Settings, tps: Iterable[int]) -> set[str]:
    """Every application that a control plane with these settings may deploy."""
    pools = {pool_app(pool.pool, tp, role) for pool in settings.pools for tp in tps for role in Role}
    return {ROUTER_APP} | pools
