"""``sized-pool``: one pool of combined replicas, sized from the worst recent backlog, clocks by governors inside the
replicas. For engines that hand no KV cache over, and for a single node.

One pool for all classes: pools by class of combined replicas need more of them than they save.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from control_plane.domain import LONG_FROM_TOKENS, MEDIUM_FROM_TOKENS, InputClass, PoolName, Role
from control_plane.serving.arrival_log import Arrivals
from control_plane.serving.clock_costs import clock_costs, efficient_held_mhz
from control_plane.serving.combined_governor import CombinedGovernor
from control_plane.serving.fluid_sizing import Demand, Floats, dispersion, fewest_servers, peak_rate, waits_s
from control_plane.serving.policies.single_pool import QuickestRouter
from control_plane.serving.policy import ClusterController, Governor, Needs, PoolController, Router, Site
from control_plane.serving.sized_fleet import BudgetPool, BurstRule, Margin, SizedCluster, SizedPool
from control_plane.settings import PoolSettings

POOL = PoolName("sized-pool")
GPUS_OF_ONE_NODE = 8
FIRST_S = 600.0
"""For so long no less is planned for than the operator said."""

# Chosen on the Azure 2023 traces, simulated with llama2-70b-h100-current; the same for every trace.
MOST_USE, LATE_SHARE = 0.55, 0.006
LATE_SHARE_ON_ONE_NODE = 0.0045
WAIT_SHARE = 0.6
"""Of what is left of a TTFT limit once a prompt of its own is prefilled, so much may pass before its turn."""
BURSTS = BurstRule(least=1.05, per_log=0.12, most=1.7)
GAP_S, DECODING_EACH, DECODE_FACTOR = 0.04, 60.0, 1.15
PROMPT_TOKENS, PROMPT_SHARE = 2048, 0.5
"""A pass of so many tokens must take no more than this share of the medium TTFT limit at full clock: a short prompt may
come just after it began."""


class SizedPoolPolicy:
    """Implements ``Policy`` for engines that hand nothing over."""

    needs = Needs(recent=True, forecast=False)
    splits_phases = False
    takes_quickest = False
    pools: Sequence[PoolSettings] = (PoolSettings(name=POOL, input_classes=tuple(InputClass)),)

    def __init__(self, site: Site) -> None:
        self._site = site
        self._costs = {tp: clock_costs(site.profile, tp) for tp in site.profile.tps}
        self._pool = SizedPool(POOL, self._tp(), Role.COMBINED)

    def _tp(self) -> int:
        """The least tensor parallelism that is quick enough: small ones do the most work per GPU. On one node the
        smallest of all: fewer and larger replicas could not follow the load there."""
        profile, gpus = self._site.profile, self._site.gpus
        tps = sorted(tp for tp in profile.tps if tp <= gpus) or [min(profile.tps)]
        if gpus <= GPUS_OF_ONE_NODE:
            return tps[0]
        limit_s = PROMPT_SHARE * profile.slo.ttft_medium_s
        return next((tp for tp in tps if self._costs[tp][-1].prefill_s(PROMPT_TOKENS) <= limit_s), tps[-1])

    def router(self) -> Router:
        return QuickestRouter()

    def governor(self, pool: PoolName, tp: int, role: Role) -> Governor | None:
        del pool, role
        profile = self._site.profile
        least_mhz = efficient_held_mhz(profile, tp, profile.limits(tp).batch_tokens)
        return CombinedGovernor(self._costs[tp], least_mhz, profile.slo, profile.gpu.settle_ns * 1e-9)

    def pool(self, pool: PoolName) -> PoolController:
        del pool
        return BudgetPool(self._pool)

    def cluster(self) -> ClusterController:
        site = self._site
        margin = Margin(target=0.005, step=0.006, least=0.6)
        if site.gpus <= GPUS_OF_ONE_NODE:
            margin = Margin(target=0.005, step=0.05, least=0.9, most=2.0)
        first = site.first_arrivals if len(site.first_arrivals) else Arrivals.steady(site.first_load, FIRST_S)
        return SizedCluster((self._pool,), self.sizes, first, FIRST_S, margin=margin)

    def sizes(self, arrivals: Arrivals, now_s: float, margin: float) -> Mapping[PoolName, int]:
        """Replicas for what came lately: by their backlog of prompts, and by Little's law for decoding."""
        wanted = 1
        if len(arrivals) == 0:
            return {POOL: wanted}
        if self._site.gpus <= GPUS_OF_ONE_NODE:
            return {POOL: self._few(arrivals, margin)}
        rate = self._costs[self._pool.tp][-1].prefill_rate
        factor = BURSTS.factor(dispersion(arrivals.at_s, arrivals.input_tokens))
        for recorded, faster in ((arrivals.between(now_s - 600.0, math.inf), factor), (arrivals, 1.0)):
            past = recorded.faster(faster * margin)
            if len(past) == 0:
                continue
            demand = Demand(past.at_s, past.input_tokens, self._may_wait_s(past, rate), LATE_SHARE, MOST_USE)
            wanted = max(wanted, fewest_servers(demand, rate), _decoders(recorded))
        return {POOL: wanted}

    def _few(self, arrivals: Arrivals, margin: float) -> int:
        """The fewest of those that one node can hold, by replaying the last hour request by request at full clock."""
        factor = BURSTS.factor(dispersion(arrivals.at_s, arrivals.input_tokens))
        past, rate = arrivals.faster(factor * margin), self._costs[self._pool.tp][-1].prefill_rate
        may_wait_s, most = self._may_wait_s(past, rate), max(1, self._site.gpus // self._pool.tp)
        replicas = min(most, _decoders(arrivals))
        while replicas < most:
            late = np.count_nonzero(waits_s(past.at_s, past.input_tokens / rate, replicas) > may_wait_s)
            if late <= LATE_SHARE_ON_ONE_NODE * len(past):
                break
            replicas += 1
        return replicas

    def _may_wait_s(self, past: Arrivals, rate: float) -> Floats:
        """Before a replica begins with each of the prompts."""
        slo, tokens = self._site.profile.slo, past.input_tokens
        shorter = np.where(tokens < MEDIUM_FROM_TOKENS, slo.ttft_short_s, slo.ttft_medium_s)
        limits_s = np.where(tokens < LONG_FROM_TOKENS, shorter, slo.ttft_long_s)
        return np.maximum(0.01, WAIT_SHARE * (limits_s - tokens / rate))


def _decoders(arrivals: Arrivals) -> int:
    decoding = peak_rate(arrivals.at_s, arrivals.output_tokens, 30.0) * GAP_S * DECODE_FACTOR
    return max(1, math.ceil(decoding / DECODING_EACH))
