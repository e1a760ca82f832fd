"""How a session's lease and link reach the agent and the planner: actors on the Ray that this process has joined."""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import ray

from actors.peers import PeerAwayError
from actors.runtime import PERSEUS_PLANNER, actor, gpu_agent_name
from train_jobs.schedule_lease import CALL_TIMEOUT_S, LeaseRefusedError

log = logging.getLogger(__name__)


def renew_at_agent(node_id: str, owner: str, uuid: str, ttl_s: float) -> Callable[[float], bool]:
    """Asks the node's agent for the GPU."""

    def renew(timeout_s: float) -> bool:
        agent = actor(gpu_agent_name(node_id))
        try:
            allowed: bool = ray.get(agent.hold_schedule.remote(owner, [uuid], ttl_s), timeout=timeout_s)
        except ValueError as error:
            raise LeaseRefusedError(str(error)) from error
        return allowed

    return renew


def release_at_agent(node_id: str, owner: str, uuid: str) -> None:
    """The owner's lease on this GPU ends at once instead of when it lapses; those of its other GPUs go on."""
    try:
        ray.get(actor(gpu_agent_name(node_id)).release.remote(owner, [uuid]), timeout=CALL_TIMEOUT_S)
    except (ValueError, ray.exceptions.RayError) as error:
        log.warning("the GPU agent does not answer; the lease of %s will lapse: %s", owner, error)


def call_planner(method: str, *args: Any) -> "Future[Any]":
    """The call goes to the planner's actor on the Ray this process has joined."""
    try:
        planner = actor(PERSEUS_PLANNER)
    except ValueError as error:
        raise PeerAwayError(f"no perseus_planner runs on this Ray: {error}") from None
    future: Future[Any] = getattr(planner, method).remote(*args).future()
    return future
