"""The replica counts that a pool's manager wants, read by somebody who must never wait: a thread asks, the reader takes
what came last."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import ray

from actors.names import NAMESPACE, pool_manager_name
from control_plane.domain import PoolName

log = logging.getLogger(__name__)

ASK_S = 1.0
DEADLINE_S = 2.0

Counts = Mapping[tuple[int, str], int]
"""Replicas wanted, by tensor parallelism and role."""

_threads = ThreadPoolExecutor(4, "wattray-plan")


class PlanReader:
    """The last answer of somebody who may be slow or away; asking costs the caller nothing."""

    def __init__(self, ask: Callable[[], Counts], clock_s: Callable[[], float]) -> None:
        """``ask`` runs in a thread, once a second at most; what it raises leaves the last answer as it is."""
        self._ask, self._clock_s = ask, clock_s
        self._asking: Future[Counts] | None = None
        self._next_s = float("-inf")
        self._counts: Counts = {}
        self._away = False

    def counts(self) -> Counts:
        if self._asking is not None and self._asking.done():
            self._take(self._asking)
            self._asking = None
        if self._asking is None and self._clock_s() >= self._next_s:
            self._next_s = self._clock_s() + ASK_S
            self._asking = _threads.submit(self._ask)
        return self._counts

    def _take(self, asked: Future[Counts]) -> None:
        error = asked.exception()
        if error is None:
            self._counts = asked.result()
        elif not self._away:
            log.warning("no plan of replicas, the counts stay: %r", error)
        self._away = error is not None


def ask_manager(pool: PoolName) -> Counts:
    manager = ray.get_actor(pool_manager_name(pool), namespace=NAMESPACE)
    counts: Counts = ray.get(manager.wanted_replicas.remote(), timeout=DEADLINE_S)
    return counts
