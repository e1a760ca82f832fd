"""A job's lease on the clock of its GPU, renewed in the background; when renewing fails the right to lower it ends."""

import logging
import threading
import time
from collections.abc import Callable

import ray

from actors.runtime import actor, gpu_agent_name

log = logging.getLogger(__name__)

RENEWALS_PER_TTL = 3
CALL_TIMEOUT_S = 5.0


class ScheduleLease:
    """``renew()`` asks the agent and returns whether clocks may be set. A refusal in the first call is raised."""

    def __init__(
        self, renew: Callable[[], bool], ttl_s: float, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._renew, self._ttl_s, self._monotonic_s = renew, ttl_s, monotonic_s
        self._until_s = float("-inf")
        self._stop = threading.Event()
        self.renew_once()
        self._renewing = threading.Thread(target=self._renew_forever, name="schedule-lease", daemon=True)
        self._renewing.start()

    def may_lower(self) -> bool:
        return self._monotonic_s() < self._until_s

    def renew_once(self) -> None:
        asked_s = self._monotonic_s()
        if self._renew():
            self._until_s = asked_s + self._ttl_s

    def end(self) -> None:
        self._stop.set()
        self._renewing.join(timeout=2 * CALL_TIMEOUT_S)

    def _renew_forever(self) -> None:
        while not self._stop.wait(self._ttl_s / RENEWALS_PER_TTL):
            try:
                self.renew_once()
            except (ValueError, ray.exceptions.RayError) as error:
                log.warning("the GPU agent does not renew the lease (full clock when it lapses): %s", error)


def renew_at_agent(node_id: str, owner: str, uuid: str, ttl_s: float) -> Callable[[], bool]:
    """Asks the node's agent for the GPU. Raises ValueError where another owner has it."""

    def renew() -> bool:
        agent = actor(gpu_agent_name(node_id))
        allowed: bool = ray.get(agent.hold_schedule.remote(owner, [uuid], ttl_s), timeout=CALL_TIMEOUT_S)
        return allowed

    return renew


def release_at_agent(node_id: str, owner: str, uuid: str) -> None:
    """The owner's lease on this GPU ends at once instead of when it lapses; those of its other GPUs go on."""
    try:
        ray.get(actor(gpu_agent_name(node_id)).release.remote(owner, [uuid]), timeout=CALL_TIMEOUT_S)
    except (ValueError, ray.exceptions.RayError) as error:
        log.warning("the GPU agent does not answer; the lease of %s will lapse: %s", owner, error)
