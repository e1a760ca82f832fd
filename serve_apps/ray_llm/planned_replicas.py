"""An autoscaling policy of Ray Serve that follows our planner: replica counts as a pool's manager wants them.

It runs in Serve's controller, and Serve may pickle this module by value: state and threads are in ``plan_reader``.
"""

from typing import Any, Protocol


class ScalingContext(Protocol):
    """What the policy reads of ``ray.serve.config.AutoscalingContext``."""

    @property
    def target_num_replicas(self) -> int: ...


class PlannedReplicas:
    """For ``AutoscalingConfig.policy`` of any Serve YAML. Until the manager has answered, and while it is away, the
    count stays as it is; so it does for a tensor parallelism that the plan does not name."""

    def __init__(self, pool: str = "", tp: int = 1, role: str = "combined") -> None:
        """Raises ValueError for arguments (``policy_kwargs``) that name no deployment of a plan."""
        if not pool:
            raise ValueError("policy_kwargs.pool: missing; name the pool whose plan this deployment follows")
        if tp < 1:
            raise ValueError(f"policy_kwargs.tp: {tp} is no tensor parallelism; it is at least 1")
        import time

        from control_plane.domain import PoolName, Role
        from serve_apps.ray_llm.plan_reader import PlanReader, ask_manager

        self._key = (tp, Role(role).value)
        self._plan = PlanReader(lambda: ask_manager(PoolName(pool)), time.monotonic)

    def __call__(self, ctx: ScalingContext) -> tuple[int, dict[str, Any]]:
        return self._plan.counts().get(self._key, ctx.target_num_replicas), {}
