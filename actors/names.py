"""Names of the control actors, for processes that must not load more than that."""

from control_plane.domain import PoolName

NAMESPACE = "wattray"


def pool_manager_name(pool: PoolName) -> str:
    return f"pool_manager:{pool}"
