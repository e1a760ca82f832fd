"""``dynamollm``: the published system (HPCA'25, arXiv 2408.00741), and the baselines that its paper compares it with.

Nine pools by request type; servers per pool every 30 minutes from weekly templates, sharding every 5 minutes, clocks
every 5 seconds. The baselines have the same pools and change one thing or nothing: ``multi-pool`` nothing,
``scale-inst`` servers, ``scale-shard`` sharding, ``scale-freq`` clocks.
"""

from collections.abc import Callable, Mapping, Sequence

from control_plane.domain import REQUEST_TYPES, InputClass, OutputClass, PoolName, RequestType, Role
from control_plane.serving.ledger_router import LedgerRouter
from control_plane.serving.load_forecast import Arrival, ArrivalWindow
from control_plane.serving.policy import (
    ClusterController,
    Governor,
    Needs,
    Policy,
    PoolController,
    RoutedRequest,
    Router,
    Site,
)
from control_plane.serving.routing import Candidate, Route, quickest
from control_plane.serving.type_pools import (
    POOL_S,
    Knobs,
    Share,
    TypeCluster,
    TypePool,
    larger_first,
    pool_name,
    shares,
)
from control_plane.settings import PoolSettings

DYNAMOLLM = Knobs(instances=True, sharding=True, clocks=True)
MULTI_POOL, SCALE_INST = Knobs(), Knobs(instances=True)
SCALE_SHARD, SCALE_FREQ = Knobs(sharding=True), Knobs(clocks=True)


class TypePools:
    """Implements ``Policy`` for nine pools of combined replicas."""

    needs = Needs()
    splits_phases = False
    takes_quickest = False
    pools: Sequence[PoolSettings] = tuple(
        PoolSettings(name=pool_name(kind), input_classes=tuple(InputClass)) for kind in REQUEST_TYPES
    )
    """Each is shown the whole load, for what others hand up."""

    def __init__(self, site: Site, knobs: Knobs) -> None:
        self._site, self._knobs = site, knobs

    @classmethod
    def with_knobs(cls, knobs: Knobs) -> Callable[[Site], Policy]:
        return lambda site: cls(site, knobs)

    def router(self) -> Router:
        return TypeRouter(self._site)

    def governor(self, pool: PoolName, tp: int, role: Role) -> Governor | None:
        del pool, tp, role
        return None

    def pool(self, pool: PoolName) -> PoolController:
        site = self._site
        settings = next(settings for settings in self.pools if settings.pool == pool)
        gpu = site.profile.gpu
        return TypePool(settings, site.profile, site.settings, site.idle_gpu_w, gpu.context_w, self._knobs)

    def cluster(self) -> ClusterController:
        return TypeCluster(self._site.profile, self._site.settings, self._knobs)


class TypeRouter(LedgerRouter):
    """A request goes to the pool of its type, the output predicted, or with the share that the plan hands up to the
    next larger one. Where it would be late there it goes on; where it is late everywhere, to where it is least so."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self._site, self._slo = site, site.settings.slo.slo()
        self._arrivals = ArrivalWindow(POOL_S)
        self._shares: Mapping[PoolName, Share] = {}
        self._planned_s = 0.0
        self._credit = dict.fromkeys((pool_name(kind) for kind in REQUEST_TYPES), 0.0)
        self._grouped: Sequence[Candidate] = ()
        self._by_pool: dict[PoolName, list[Candidate]] = {}
        self._orders = {kind: larger_first(kind) for kind in REQUEST_TYPES}

    def route(self, now_s: float, request: RoutedRequest, candidates: Sequence[Candidate]) -> Route | None:
        if candidates is not self._grouped:
            self._grouped, self._by_pool = candidates, {}
            for candidate in candidates:
                self._by_pool.setdefault(candidate.pool, []).append(candidate)
        tokens = request.input_tokens
        if request.predicted is None:
            expected = self.expected_tokens(tokens, request.max_tokens)
            kind = RequestType(InputClass.of(tokens), OutputClass.of(round(expected)))
        else:
            expected = request.predicted.expected
            kind = RequestType(InputClass.of(tokens), request.predicted.kind)
        self._arrivals.add(Arrival(now_s, tokens, expected))
        if now_s >= self._planned_s:
            self._plan(now_s)
        limit_s = self._slo.ttft_s(kind.input)
        best: tuple[float, Candidate] | None = None
        for pool in self._in_order(kind):
            found = quickest(self._ledger, self._by_pool.get(pool, ()), tokens)
            if found is not None and (best is None or found[0] < best[0]):
                best = found
            if best is not None and best[0] <= limit_s:
                break
        if best is None:
            return None
        ttft_s, chosen = best
        self._ledger.assigned(request.key, chosen.replica_id, tokens)
        return Route(chosen.pool, chosen.replica_id, chosen.pool != pool_name(kind), ttft_s)

    def _plan(self, now_s: float) -> None:
        seen_s = min(POOL_S, max(now_s, 10.0))
        load = self._arrivals.load(now_s, seen_s).scaled(1 + self._site.settings.sharding.headroom_ratio)
        self._shares = shares(self._site.profile, load)
        self._planned_s = now_s + (POOL_S if now_s >= POOL_S else 30.0)

    def _in_order(self, kind: RequestType) -> Sequence[PoolName]:
        """The pools to try, from the one that the plan gives this request: each pool on the way keeps its share."""
        order = self._orders[kind]
        larger = REQUEST_TYPES[REQUEST_TYPES.index(kind) :]
        for at, _ in enumerate(larger):
            pool = order[at]
            share = self._shares.get(pool)
            self._credit[pool] += 1.0 if share is None else share.kept
            if self._credit[pool] >= 1.0:
                self._credit[pool] -= 1.0
                if pool in self._by_pool:
                    return (*order[at:], *order[:at])
        return order
