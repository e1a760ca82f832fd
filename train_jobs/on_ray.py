"""How a session's lease and link reach the agent and the planner: actors on the Ray that this process has joined."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import ray

from actors.peers import PeerAwayError
from actors.runtime import PERSEUS_PLANNER, actor, gpu_agent_name
from actors.training_messages import TrainingSite
from train_jobs.claims import WAIT_MORE_S, claim
from train_jobs.job import JobError
from train_jobs.schedule_lease import CALL_TIMEOUT_S, LeaseRefusedError

log = logging.getLogger(__name__)

CLAIM_TIMEOUT_S = 15.0


def renew_at_agent(node_id: str, owner: str, uuids: Sequence[str], ttl_s: float) -> Callable[[float], bool]:
    """Asks the node's agent for the GPUs, all or none."""

    def renew(timeout_s: float) -> bool:
        agent = actor(gpu_agent_name(node_id))
        try:
            allowed: bool = ray.get(agent.hold_schedule.remote(owner, list(uuids), ttl_s), timeout=timeout_s)
        except ValueError as error:
            raise LeaseRefusedError(str(error)) from error
        return allowed

    return renew


def release_at_agent(node_id: str, owner: str, uuids: Sequence[str]) -> None:
    """The owner's leases on these GPUs end at once instead of when they lapse; those of its other GPUs go on."""
    try:
        ray.get(actor(gpu_agent_name(node_id)).release.remote(owner, list(uuids)), timeout=CALL_TIMEOUT_S)
    except (ValueError, ray.exceptions.RayError) as error:
        log.warning("the GPU agent does not answer; the lease of %s will lapse: %s", owner, error)


class AgentLeases:
    """Kept by the agent of the node where training runs."""

    def __init__(self, site: TrainingSite) -> None:
        self._site = site

    def owners(self) -> Mapping[str, str]:
        leases = ray.get(actor(gpu_agent_name(self._site.node_id)).leases.remote(), timeout=CLAIM_TIMEOUT_S)
        return {uuid: owner for uuid, (owner, _) in leases.items()}

    def take(self, owner: str, uuids: Sequence[str]) -> None:
        renew_at_agent(self._site.node_id, owner, uuids, self._site.lease_ttl_s)(CLAIM_TIMEOUT_S)

    def release(self, owner: str, uuids: Sequence[str]) -> None:
        release_at_agent(self._site.node_id, owner, uuids)


def claim_gpus(job: str, owner: str, needed: int, shape: str, site: TrainingSite) -> tuple[str, ...]:
    """GPUs for a run, leased to it from now on; ``shape`` says what it needs them for. Raises JobError where fewer are
    kept for training, LeaseRefusedError as ``claim`` does."""
    if len(site.gpu_uuids) < needed:
        raise JobError(
            f"job {job} has {shape} and needs as many GPUs; the control plane keeps "
            f"{len(site.gpu_uuids)} for training: set training.gpus to at least {needed} and start it again"
        )
    return claim(owner, needed, site.gpu_uuids, AgentLeases(site), site.lease_ttl_s + WAIT_MORE_S)


def call_planner(method: str, *args: Any) -> "Future[Any]":
    """The call goes to the planner's actor on the Ray this process has joined."""
    try:
        planner = actor(PERSEUS_PLANNER)
    except ValueError as error:
        raise PeerAwayError(f"no perseus_planner runs on this Ray: {error}") from None
    future: Future[Any] = getattr(planner, method).remote(*args).future()
    return future
