"""Names of the Ray Serve applications: one per pool, role and tensor parallelism, and the router."""

from collections.abc import Iterable

from control_plane.domain import PoolName, Role

REPLICA_DEPLOYMENT = "ModelReplica"
ROUTER_APP = "router"
PROXY_ENVIRONMENT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_apps.proxy_shield.middlewares"}
"""What a Ray head needs in its environment so that Serve's HTTP proxy loads ``proxy_shield``."""


def pool_app(pool: PoolName, tp: int, role: Role = Role.COMBINED) -> str:
    return f"{pool}-tp{tp}" if role is Role.COMBINED else f"{pool}-{role}-tp{tp}"


def app_names(pools: Iterable[PoolName], tps: Iterable[int]) -> set[str]:
    """Every application that a control plane with these pools may deploy."""
    return {ROUTER_APP} | {pool_app(pool, tp, role) for pool in pools for tp in tps for role in Role}
