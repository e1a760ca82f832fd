"""``combined``: replicas that prefill and decode, in pools by TTFT class, at the least power that holds the SLO; clocks
set by the pool's controller.

DynamoLLM's hierarchy (HPCA'25, section IV) with its nine pools merged into those of the settings: below about forty
servers nine pools cost more than they save.
"""

from collections.abc import Sequence

from control_plane.domain import PoolName, Role
from control_plane.serving.controller import LeastPowerCluster, LeastPowerPool
from control_plane.serving.ledger_router import LedgerRouter
from control_plane.serving.policy import ClusterController, Governor, Needs, PoolController, RoutedRequest, Router, Site
from control_plane.serving.routing import Candidate, Route, route
from control_plane.settings import PoolSettings, Settings


class CombinedPolicy:
    """Implements ``Policy`` for engines that hand nothing over."""

    needs = Needs()
    splits_phases = False
    takes_quickest = False

    def __init__(self, site: Site) -> None:
        self._site = site

    @property
    def pools(self) -> Sequence[PoolSettings]:
        return self._site.settings.pools

    def router(self) -> Router:
        return ClassRouter(self._site.settings)

    def governor(self, pool: PoolName, tp: int, role: Role) -> Governor | None:
        del pool, tp, role
        return None

    def pool(self, pool: PoolName) -> PoolController:
        site = self._site
        settings = site.settings
        return LeastPowerPool(
            settings.pool_settings(pool), settings, site.profile, site.idle_gpu_w, site.profile.gpu.context_w
        )

    def cluster(self) -> ClusterController:
        return LeastPowerCluster(self._site.settings, self._site.profile, self._site.idle_gpu_w)


class ClassRouter(LedgerRouter):
    """A request goes to the pool of its input class, and elsewhere only where that pool has no room for it."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings, self._slo = settings, settings.slo.slo()
        self._grouped: Sequence[Candidate] = ()
        self._by_pool: dict[PoolName, list[Candidate]] = {}

    def route(self, now_s: float, request: RoutedRequest, candidates: Sequence[Candidate]) -> Route | None:
        del now_s
        if candidates is not self._grouped:
            self._grouped, self._by_pool = candidates, {}
            for candidate in candidates:
                self._by_pool.setdefault(candidate.pool, []).append(candidate)
        chosen = route(self._settings, self._slo, self._ledger, self._by_pool, request.input_tokens)
        if chosen is not None:
            self._ledger.assigned(request.key, chosen.replica_id, request.input_tokens)
        return chosen
