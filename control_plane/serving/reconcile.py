"""The difference between a pool's plan and what runs. Make before break: the old shape serves until the new one is
ready. Repeating it, skipping it or restarting its caller does no harm."""

from control_plane.actions import SetReplicas
from control_plane.domain import PoolName, ReplicaState, ReplicaView
from control_plane.serving.pool_policy import PoolPlan


def reconcile(
    pool: PoolName, plan: PoolPlan, seen: tuple[ReplicaView, ...], gpu_budget: int, why: str
) -> tuple[SetReplicas, ...]:
    """Replica counts to set now. The overlap never takes more than ``gpu_budget`` GPUs: where the new shape does
    not fit beside the old one, the old one gives way one step at a time and never below one ready replica."""
    running = {tp: _count(seen, tp) for tp in sorted({view.tp for view in seen})}
    actions: list[SetReplicas] = []
    old = {tp: count for tp, count in running.items() if tp != plan.shape.tp and count > 0}
    old_gpus = sum(tp * count for tp, count in old.items())
    room = max(0, gpu_budget - old_gpus) // plan.shape.tp
    have = running.get(plan.shape.tp, 0)
    target = plan.replicas if not old else max(min(plan.replicas, room), min(have, plan.replicas))
    if target != have:
        actions.append(SetReplicas(pool, plan.shape.tp, target, why))
    ready = sum(view.state is ReplicaState.READY and view.tp == plan.shape.tp for view in seen)
    for tp, count in old.items():
        if ready >= plan.replicas:
            actions.append(SetReplicas(pool, tp, 0, f"TP{plan.shape.tp} is ready: drain the old shape"))
        elif target < plan.replicas and (count > 1 or ready > 0):
            actions.append(SetReplicas(pool, tp, count - 1, "no room for both shapes: make room"))
    return tuple(actions)


def _count(seen: tuple[ReplicaView, ...], tp: int) -> int:
    return sum(view.tp == tp and view.counts for view in seen)
